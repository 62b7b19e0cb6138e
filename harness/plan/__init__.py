"""From a configuration to a plan: what will run, what it needs, and what is cut."""
