"""Which files make a model, are they whole, and what do they hold?"""
