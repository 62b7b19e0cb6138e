"""`python -m testbed.image [PIP ARGUMENTS]`: build the device image if its inputs changed."""

import sys

from testbed.base import DeviceError
from testbed.image.build import build


def main() -> int:
    """Build; returns the exit status."""
    try:
        build(lambda text: print(text, flush=True), sys.argv[1:])  # noqa: T201 - a command
    except (DeviceError, LookupError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 15
    return 0


if __name__ == "__main__":
    sys.exit(main())
