"""Model parallelism: layer ranges on devices one after another."""
