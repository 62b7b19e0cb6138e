"""What `make calibrate` measures of this machine, part by part; `main.py` joins it."""
