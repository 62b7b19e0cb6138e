"""Measure systems side by side and print the table: `python run.py --help`.

From here the path is: `read_command_line` (words -> overrides that Hydra can read) -> `drive`
(Hydra composes and calls the job) -> `prepare` and `run` in `harness/run/session.py`.
"""

import functools
import signal
import sys
from collections.abc import Sequence

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # The imports below take a moment; until `main`, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from harness.config.command_line import read_command_line
from harness.config.compose import help_text
from harness.run.failure import run_command
from harness.run.signals import ignore_signals
from tpi.errors import EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    return run_command("run.py", functools.partial(_answer, args))


def _answer(args: Sequence[str]) -> int:
    try:
        line = read_command_line(args)
        if line.wants_help:
            sys.stdout.write(f"{help_text()}\n")
            sys.stdout.flush()
            return EXIT_OK
        from harness.config.hydra_app import drive  # --help and refusals need none of it

        return drive(line)
    except SystemExit as exc:  # of Hydra's own answers, and of a sweep
        return exc.code if isinstance(exc.code, int) else EXIT_OK if exc.code is None else 1


if __name__ == "__main__":
    exit_status = main()
    ignore_signals()
    sys.exit(exit_status)
