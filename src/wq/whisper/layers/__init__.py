"""What of a Whisper model can be quantized, and how is it named and chosen?"""
