"""What surrounds the jobs of a grid: its store, how far it is, its report?"""
