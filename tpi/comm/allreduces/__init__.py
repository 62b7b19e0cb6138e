"""The ways to a sum, one class in one module each; `base.py` has what they derive from."""
