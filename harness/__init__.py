"""The harness: config to runs, runs to events, events to verdicts."""
