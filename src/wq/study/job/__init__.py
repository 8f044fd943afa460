"""How is one point evaluated, from its configuration to its result?"""
