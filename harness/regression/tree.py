"""A tree of the project, and programs that run from it and from no other.

Both trees use this interpreter and its packages; PYTHONPATH and the working folder decide whose
`tpi` is imported, and every program says which it was.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from tpi.decode import decode
from tpi.errors import ConfigError, TpiError

_TIMEOUT_S = 300.0
# The last line of a program that was asked for a module, name, argument or option that is missing.
_LACKS = ("ImportError", "ModuleNotFoundError", "AttributeError", "TypeError", "ConfigError")
_NAME_IT = """import sys, tpi; sys.stdout.write('{"tpi": "%s"}' % tpi.__file__)"""


class ProgramError(TpiError):
    """A program of a tree failed."""

    code = "program"


class LacksError(ProgramError):
    """It failed because the tree does not have, or does not take, what was asked for."""

    code = "lacks"


class Answer(Struct, frozen=True, forbid_unknown_fields=True):
    """What every program answers at least: the file of the `tpi` that it imported."""

    tpi: str


AnswerType = TypeVar("AnswerType", bound=Answer)


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
        """The environment of its programs: ours, and the way to its modules."""
        # One tree may hold compiled modules already; the other must be allowed to keep its own.
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        return {**kept, "PYTHONPATH": str(self.root)}

    def run(self, *args: str, timeout_s: float = _TIMEOUT_S) -> str:
        """Run Python with these arguments in this tree; returns its standard output.

        Raises:
            LacksError: The tree lacks what it needs.
            ProgramError: It failed otherwise, or took too long.
        """
        what = f"{self.name}: python {' '.join(args)[:80]}"
        try:
            done = subprocess.run(
                [sys.executable, *args], cwd=self.root, env=self.env, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, check=False, timeout=timeout_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ProgramError(f"{what}: not done after {timeout_s:g} s") from None
        if done.returncode:
            raise failure(what, done.returncode, done.stderr)
        return done.stdout

    def ask(self, as_type: type[AnswerType], *args: str) -> AnswerType:
        """Run a program that answers one JSON object; raises as `run` and `check`."""
        return self.read(self.run(*args).encode(), as_type)

    def read(self, line: bytes, as_type: type[AnswerType]) -> AnswerType:
        """Decode a program's answer.

        Raises:
            ConfigError: It imported another tree's modules and would measure those.
        """
        answer = decode(line, as_type, self.name, ProgramError)
        path = Path(answer.tpi).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise ConfigError(
                f"{self.name}: its programs import {path}, not what is in {self.root}"
            )
        return answer

    def check_imports(self) -> None:
        """Start an interpreter and check whose `tpi` it imports; raises as `ask`."""
        self.ask(Answer, "-c", _NAME_IT)


def failure(what: str, status: int, stderr: str) -> ProgramError:
    """The error of a program that failed, from the last line that it printed."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    why = lines[-1] if lines else f"exit status {status}, without a word"
    kind = why.partition(":")[0].rpartition(".")[2]
    lacks = status == ConfigError.exit_status or kind in _LACKS
    return (LacksError if lacks else ProgramError)(f"{what}: {why}")
