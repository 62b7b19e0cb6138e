"""The paper's tables, figures and claims: its own values, and what is made of ours beside them."""
