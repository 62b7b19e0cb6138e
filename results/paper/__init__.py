"""What the paper reports, one file an exhibit, and models that predict it."""
