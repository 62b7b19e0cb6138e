"""llama.cpp on one device, and the GGUF file that it reads."""
