"""The simulator: what a system would do on devices and links that need not exist."""
