"""How well was a test set transcribed, and how sure is that?"""
