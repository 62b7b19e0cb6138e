"""Run records: their schema, metrics, files and tables."""
