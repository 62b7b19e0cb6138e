"""Programs that start at once: forked from a process that has imported torch already.

A fresh `python -m tpi.cli node` spends 1.5 s of CPU on importing torch before its first own line,
a program with Transformers 4 s. Tests of what ranks do to each other start a hundred of them and
ask nothing about the start. They use `ForkedProgram`, which has the part of `subprocess.Popen` that
they need. Tests of a start (its memory, its imports) use a fresh interpreter.
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from baselines.galaxy import engine as galaxy_engine
from baselines.transformers import collectives, gloo
from baselines.transformers import loading as huggingface
from tpi.program import host, node

# What programs import, but no program itself: that one must run as `__main__`.
_OURS = (collectives, galaxy_engine, gloo, host, huggingface, node)
_LIBRARIES = (
    "torch.distributed.tensor",
    "transformers.distributed.configuration_utils",
    "transformers.models.llama.modeling_llama",
)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, *_LIBRARIES, *(module.__name__ for module in _OURS)])


def _run(module: str, arguments: Sequence[str], ends: Sequence[Connection]) -> None:
    """In the forked process: be `python -m MODULE ARGUMENTS` with these standard streams."""
    for fd, end in enumerate(ends):
        os.dup2(end.fileno(), fd)
        end.close()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process lives
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class ForkedProgram:
    """`python -m MODULE ARGUMENTS` with pipes to its input and output, its errors in a file."""

    def __init__(self, module: str, arguments: Sequence[str], log: Path) -> None:
        """Start it."""
        stdin, to_program = os.pipe()
        from_program, stdout = os.pipe()
        stderr = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        # Only a `Connection` takes its descriptor along to a process of the fork server.
        with (
            Connection(stdin, writable=False) as stdin_end,
            Connection(stdout, readable=False) as stdout_end,
            Connection(stderr, readable=False) as stderr_end,
        ):
            ends = (stdin_end, stdout_end, stderr_end)
            self._process = _CONTEXT.Process(target=_run, args=(module, arguments, ends))
            self._process.start()
        self.stdin = os.fdopen(to_program, "wb")
        self.stdout = os.fdopen(from_program, "rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Kill what still runs."""
        self.kill()
        self.wait()
        self.stdin.close()
        self.stdout.close()

    def send_signal(self, number: int) -> None:
        """Nothing happens to one that has ended."""
        if self._process.is_alive() and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return self._process.exitcode
