"""config.json of the known models, by their true shapes."""
