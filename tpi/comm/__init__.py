"""Frames, channels, the mesh of ranks and allreduce. Read `allreduce.py` first."""
