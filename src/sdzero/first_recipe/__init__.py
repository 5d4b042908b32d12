"""`sdzero init`: look at a model and at data, and write a first recipe for them. Imports no torch."""
