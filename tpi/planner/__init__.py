"""Predicts memory and steady state, and picks what stays in memory."""
