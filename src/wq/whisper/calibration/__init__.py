"""What do the layers of a model read on calibration speech?"""
