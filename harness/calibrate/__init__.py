"""What `make calibrate` measures of this machine, part by part; `harness/calibrate/main.py` joins it."""
