"""Galaxy: tensor and sequence parallelism with ring collectives."""
