"""How does audio become text, token for token as transformers writes it?"""
