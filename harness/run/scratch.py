"""The temporary folder of a run, for specs, logs and offloaded weights.

It is locked while it is used. An unlocked one was left by a run that was killed, and the next run
removes it.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tpi.errors import ConfigError
from tpi.weights.newfile import lock_folder

_PREFIX = ".run-"


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Make a new folder in `parent`, and remove what killed runs left there."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(ConfigError), lock_folder(left):  # locked: somebody uses it
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent) as name, lock_folder(Path(name)):
        yield Path(name)
