"""Measure systems side by side and print the table: `python run.py --help`.

From here the path is: `read_command_line` (words -> overrides that Hydra can read) -> `drive`
(Hydra composes and calls the job) -> `prepare` and `run` in `harness/run/session.py`.
"""

import contextlib
import signal
import sys
from collections.abc import Sequence

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # The imports below take a moment; until `main`, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from harness.config.command_line import read_command_line
from harness.config.compose import help_text
from harness.run.failure import failure_of
from harness.run.signals import GracefulShutdown, ignore_signals, write_nowhere
from tpi.errors import EXIT_INTERRUPTED, EXIT_OK, TpiError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    with GracefulShutdown() as signals:
        try:
            return _answer(args)
        except SystemExit as exc:  # of Hydra's own answers, and of a sweep
            return _as_status(exc.code)
        except (TpiError, OSError, KeyboardInterrupt) as exc:
            status, text = failure_of(exc)
            _complain(text)
        _give_up_unwritable_output()
    # Ending on a signal can fail in its own ways, and is still that.
    return EXIT_INTERRUPTED if signals.seen else status


def _answer(args: Sequence[str]) -> int:
    line = read_command_line(args)
    if line.wants_help:
        print(help_text(), flush=True)
        return EXIT_OK
    from harness.config.hydra_app import (
        drive,  # all that measures: --help and refusals need none of it
    )

    return drive(line)


def _as_status(code: object) -> int:
    return code if isinstance(code, int) else EXIT_OK if code is None else 1


def _give_up_unwritable_output() -> None:
    """What still waits to be written must not fail once more when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        write_nowhere(sys.stdout.fileno())


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        if text:
            print("run.py:", " ".join(text.split()), file=sys.stderr)


if __name__ == "__main__":
    exit_status = main()
    ignore_signals()
    sys.exit(exit_status)
