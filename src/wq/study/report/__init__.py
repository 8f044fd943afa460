"""How are points shown: tables, pictures, the page?"""
