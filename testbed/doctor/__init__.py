"""What this machine can emulate, and what is missing."""
