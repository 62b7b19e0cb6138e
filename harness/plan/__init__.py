"""From a configuration to a plan: what will run, what it needs, what is cut."""
