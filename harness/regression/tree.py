"""A tree of the project, and programs that run from it and from no other.

Both trees use this interpreter and its packages; PYTHONPATH and the working folder decide whose
`tpi` is imported, and every program says which it was (`Tree.check`). Read `Tree.run` first.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpi.errors import ConfigError, TpiError

_TIMEOUT_S = 300.0
# How a program ends that was asked for a module, name, argument or option that is not there.
_LACKS = ("ImportError", "ModuleNotFoundError", "AttributeError", "TypeError", "ConfigError")
_NAME_IT = "import sys, tpi; sys.stdout.write(tpi.__file__)"


class ProgramError(TpiError):
    """A program of a tree failed."""

    code = "program"


class LacksError(ProgramError):
    """It failed since the tree does not have, or does not take, what it was asked for."""

    code = "lacks"


@dataclass(frozen=True, slots=True)
class Tree:
    """One side of the comparison.

    Attributes:
        name: "base" or "head".
        root: The folder that holds `tpi`.
    """

    name: str
    root: Path

    @property
    def env(self) -> dict[str, str]:
        """What its programs get: our own environment, and the way to its modules."""
        # One tree may hold compiled modules already; the other must be allowed to keep its own.
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        return {**kept, "PYTHONPATH": str(self.root)}

    def run(self, *args: str, timeout_s: float = _TIMEOUT_S) -> str:
        """Run Python with these arguments in this tree; returns its standard output.

        Raises:
            LacksError: The tree lacks what it needs.
            ProgramError: It failed otherwise, or took too long.
        """
        argv = [sys.executable, *args]
        try:
            done = subprocess.run(
                argv, cwd=self.root, env=self.env, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, check=False, timeout=timeout_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ProgramError(f"{self._named(args)}: not done after {timeout_s:g} s") from None
        if done.returncode:
            raise failure(self._named(args), done.returncode, done.stderr)
        return done.stdout

    def check(self, imported: str) -> None:
        """See that `imported`, the path of a module, belongs to this tree.

        Raises:
            ConfigError: It is another's: whatever is measured would say nothing of this one.
        """
        path = Path(imported).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise ConfigError(
                f"{self.name}: its programs import {path}, not what is in {self.root}"
            )

    def check_imports(self) -> None:
        """Start an interpreter and see whose `tpi` it imports; raises as `check` and `run`."""
        self.check(self.run("-c", _NAME_IT))

    def _named(self, args: Sequence[str]) -> str:
        return f"{self.name}: python {' '.join(args)[:80]}"


def failure(what: str, status: int, stderr: str) -> ProgramError:
    """The error of a program that ended so, from the last line of what it said."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    why = lines[-1] if lines else f"exit status {status}, without a word"
    kind = why.partition(":")[0].rpartition(".")[2]
    lacks = status == ConfigError.exit_status or kind in _LACKS
    return (LacksError if lacks else ProgramError)(f"{what}: {why}")
