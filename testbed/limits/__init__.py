"""Limits of a device and how the kernel enforces them."""
