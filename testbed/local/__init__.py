"""Devices as plain processes: nothing is limited."""
