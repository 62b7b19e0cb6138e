"""`lab image [--prune]`: build the device image if its inputs changed."""

import signal
import sys

from testbed.image.build import build, prune
from tpi.command_line import Parser
from tpi.errors import EXIT_INTERRUPTED, EXIT_OK, TpiError


def main(arguments: list[str] | None = None) -> int:
    """Build or prune; returns the exit status."""
    parser = Parser(
        prog="lab image",
        description="Build the device image if its inputs changed.",
        epilog="The wheelhouse is filled by pip: set PIP_INDEX_URL and the like for other indexes.",
    )
    parser.add_argument(
        "--prune", action="store_true", help="remove the device images of other inputs instead"
    )
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: tidily
    try:
        (prune if chosen.prune else build)(_say)
    except TpiError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_status
    except KeyboardInterrupt:
        sys.stderr.write("image: interrupted; nothing was tagged\n")
        return EXIT_INTERRUPTED
    return EXIT_OK


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
