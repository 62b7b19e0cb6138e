"""How the program of a rank begins, before torch is loaded: its spec, and its threads.

Nothing here needs torch. `serve` is what comes after.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tpi.errors import ConfigError, TpiError
from tpi.program.spec import NodeSpec, load_spec


def open_spec(path: Path) -> NodeSpec:
    """Read a spec, and tell thread pools that are loaded later how many threads to have.

    Raises:
        ConfigError: The spec cannot be used.
    """
    spec = load_spec(path)
    # The pools read these once, when torch and numpy are loaded.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(spec.threads)
    return spec


def main(serve: Callable[[NodeSpec], int], argv: Sequence[str] | None = None) -> int:
    """Serve the one spec that `argv` names; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if len(arguments) != 1:
            raise ConfigError("expected one argument, the path of a spec.json")
        spec = open_spec(Path(arguments[0]))
    except TpiError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_status
    return serve(spec)
