"""Runs the paper's tables and figures."""
