"""Emulated links between devices."""
