"""Folders that look like a tree of the project, with as much of it as a test needs."""

from pathlib import Path

from harness.regression.tree import Tree

ERRORS = "class TpiError(Exception):\n    exit_status = 1\nclass ConfigError(TpiError):\n    pass\n"


def make_tree(root: Path, name: str = "base", **modules: str) -> Tree:
    """A tree whose `tpi` has these modules, by name, and nothing else."""
    package = root / "tpi"
    package.mkdir(parents=True)
    for module, text in {"__init__": "", **modules}.items():
        (package / f"{module}.py").write_text(text)
    return Tree(name, root)
