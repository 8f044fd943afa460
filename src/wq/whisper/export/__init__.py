"""How is a point written as a checkpoint that other engines load?"""
