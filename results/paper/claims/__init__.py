"""The paper's claims that can be checked, and their verdicts."""
