"""Transformers on one device and its own tensor parallelism; the reference."""
