"""What is asked: which settings there are, which have an effect, and what the point is called?"""
