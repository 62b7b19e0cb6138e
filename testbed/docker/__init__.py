"""Devices as containers with limits on CPU, memory, swap and disk."""
