"""Which jobs, on which data, scored how, recorded where, compared how?"""
