"""TPI-LLM: tensor-parallel LLM inference on several small devices. Read `engine.py` first."""
