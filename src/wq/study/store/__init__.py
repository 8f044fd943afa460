"""Where are results kept, as files and in MLflow, and how are they found again?"""
