"""What does a point take: bytes, memory, time on a device?"""
