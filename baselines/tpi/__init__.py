"""TPI-LLM with and without its memory scheduler, and the scheduler on one device."""
