"""How are a model's values moved onto the grid of a format?"""
