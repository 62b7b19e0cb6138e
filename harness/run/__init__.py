"""Carries out a plan: programs, checks, verdicts, records."""
