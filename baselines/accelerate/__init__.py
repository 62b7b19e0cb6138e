"""Accelerate's disk offload, as it is today and as the paper met it."""
