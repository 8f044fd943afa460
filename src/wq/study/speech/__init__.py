"""Which utterances are transcribed, and what was said in them?"""
