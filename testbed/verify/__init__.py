"""Measures that limits and links hold before a run counts."""
