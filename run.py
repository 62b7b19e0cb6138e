"""Measure systems side by side and print the table: `python run.py --help`.

From here the path is: `compose_all` (command line -> configurations) -> `prepare` (what will be
done) -> `run` (weights, repeats, records, table), both in `harness/run/session.py`. Read `_run_all`
first; the rest is how it ends.
"""

import contextlib
import signal
import sys
from collections.abc import Sequence

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # The imports below take a moment; until `main`, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from harness.config.compose import compose_all, help_text
from harness.run.session import EXIT_BROKEN_PIPE, WIDTH, Output, prepare, run
from harness.run.signals import GracefulShutdown, ignore_signals, write_nowhere
from tpi.errors import EXIT_INTERRUPTED, EXIT_OK, ResourceError, TpiError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    with GracefulShutdown() as signals:
        try:
            return _run_all(args)
        except TpiError as exc:
            _complain(str(exc))
            status = exc.exit_status
        except BrokenPipeError:
            status = EXIT_BROKEN_PIPE
        except OSError as exc:
            _complain(str(exc))
            status = ResourceError.exit_status
        except KeyboardInterrupt:
            _complain("interrupted; the same command goes on where it stopped")
            status = EXIT_INTERRUPTED
        _give_up_unwritable_output()
    # Ending on a signal can fail in its own ways, and is still that.
    return EXIT_INTERRUPTED if signals.seen else status


def _run_all(args: Sequence[str]) -> int:
    console = Output(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    if {"--help", "-h"} & set(args):
        console.print(help_text(), markup=False, soft_wrap=True)
        return EXIT_OK
    composed = compose_all(args)
    # All are planned before the first is measured: what is wrong with the last is said now.
    prepared = [prepare(one) for one in composed]
    if len(composed) == 1:
        return run(prepared[0], console)
    # And each again when its turn comes: free memory and disk are others then.
    return max(run(prepare(one), console) for one in composed)


def _give_up_unwritable_output() -> None:
    """What still waits to be written must not fail once more when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        write_nowhere(sys.stdout.fileno())


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print("run.py:", " ".join(text.split()), file=sys.stderr)


if __name__ == "__main__":
    exit_status = main()
    ignore_signals()
    sys.exit(exit_status)
