"""The end of a command: its exit status, and one line if an error or an interrupt ended it."""

import contextlib
import sys
from collections.abc import Callable

from harness.run.signals import GracefulShutdown, write_nowhere
from tpi.errors import EXIT_INTERRUPTED, ResourceError, TpiError

EXIT_BROKEN_PIPE = 141  # as of a program that SIGPIPE ended
_GOES_ON = "interrupted; the same command goes on where it stopped"


def run_command(name: str, run: Callable[[], int], interrupted: str = _GOES_ON) -> int:
    """Call `run`; an error becomes the line `NAME: ...` and an exit status."""
    with GracefulShutdown() as signals:
        try:
            return run()
        except (TpiError, OSError, KeyboardInterrupt) as exc:
            status, text = failure_of(exc, interrupted)
        with contextlib.suppress(OSError):  # the terminal may be gone
            if text:
                sys.stderr.write(f"{name}: {' '.join(text.split())}\n")
        try:
            sys.stdout.flush()
        except OSError:  # the rest must not fail again when the interpreter ends
            write_nowhere(sys.stdout.fileno())
    # Other errors may follow a signal; the signal decides the status.
    return EXIT_INTERRUPTED if signals.seen else status


def failure_of(error: BaseException, interrupted: str = _GOES_ON) -> tuple[int, str]:
    """Exit status and line; the line is empty if nobody is left to read it."""
    if isinstance(error, TpiError):
        return error.exit_status, str(error)
    if isinstance(error, BrokenPipeError):
        return EXIT_BROKEN_PIPE, ""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, interrupted
    return ResourceError.exit_status, str(error)
