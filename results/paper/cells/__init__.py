"""The cells of the paper's tables, and the evidence behind each."""
