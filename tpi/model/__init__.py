"""The Llama-family blocks on local slices. Read `llama.py` first."""
