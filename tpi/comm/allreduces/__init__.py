"""The ways to a sum, one class in one module each. Read `base` first."""
