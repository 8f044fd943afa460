"""How is a Whisper model loaded, calibrated, smoothed, quantized, run and exported?"""
