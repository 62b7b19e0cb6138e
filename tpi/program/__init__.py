"""The program of one rank: spec in, events out."""
