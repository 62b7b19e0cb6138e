"""Where a command may write its one file: in the place of nothing, or of a regular file.

`tpi.files.write_atomic` puts a new file in the place of whatever has the name, so a device, a FIFO
or a link would be gone.
"""

import stat
from collections.abc import Sequence
from pathlib import Path

from tpi.errors import ConfigError


def check_out(path: Path, keep: Sequence[Path] = ()) -> None:
    """Refuse a path that `--out` names.

    Args:
        path: The file to write.
        keep: Files that are read, and so not written.

    Raises:
        ConfigError: It is no file's name, one of `keep`, or something else than a regular file.
    """
    if not path.name:
        raise ConfigError(f"--out {path}: expected a file, got a folder; name the file in it")
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):
        return  # nothing is there, or writing says what is wrong
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise ConfigError(f"--out {path}: is {what}; expected a new or a regular file")
    if any(each.exists() and path.samefile(each) for each in keep):
        raise ConfigError(f"--out {path}: is read for it; name another file")
