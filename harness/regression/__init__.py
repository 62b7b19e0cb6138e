"""Whether this tree got worse than its base commit, both measured in one job."""
