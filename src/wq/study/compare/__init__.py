"""Which points stand beside each other, and which of them is better?"""
