"""Weights: checkpoints, shards, block files, splitting, and the window. Read `shard.py` first."""
