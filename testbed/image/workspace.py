"""A folder for a build, which holds some GB, on a disk with room.

It is removed after the build. A folder that a killed build left is removed by the next one: a build
holds a lock on its folder, which the kernel frees however the build ends.
"""

import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "tpi-lab-image-"
# A folder is younger than this between being made and being locked.
_YOUNG_S = 60


@contextmanager
def workspace(parent: Path | None = None) -> Iterator[Path]:
    """An empty folder of this build's own, in `parent` or on a disk with room."""
    parent = parent or _roomy()
    sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def sweep(parent: Path, young_s: float = _YOUNG_S) -> None:
    """Remove folders of this user whose builds are gone."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another user's, or gone meanwhile
            continue
        try:
            status = os.fstat(lock)
            if status.st_uid == os.geteuid() and time.time() - status.st_mtime > young_s:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
        except BlockingIOError:  # its build runs
            continue
        finally:
            os.close(lock)


def _remove(folder: Path) -> None:
    # Not shutil.rmtree: a bootstrap that was killed may have left the host's /dev mounted in it.
    subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=False)


def _roomy() -> Path:
    """Where TMPDIR says, or /var/tmp: /tmp is often memory."""
    varying = Path("/var/tmp")
    named = "TMPDIR" in os.environ or not os.access(varying, os.W_OK)
    return Path(tempfile.gettempdir()) if named else varying
