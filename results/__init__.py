"""Run records and what is computed from them: schema, store, statistics, tables."""
