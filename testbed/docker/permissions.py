"""Whether another user could read a folder: programs on a device run without root's rights."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tpi.errors import ConfigError


def check_readable(folder: Path, owner: tuple[int, int]) -> None:
    """Raise a ConfigError unless a user and its only group can read everything in a folder."""
    for path in _walk(folder):
        try:
            info = path.stat()
        except OSError as exc:
            raise ConfigError(f"{path}: {exc.strerror}, and is to be seen by devices") from exc
        if not is_readable(info, owner):
            raise ConfigError(
                f"{path}: mode {stat.filemode(info.st_mode)} of user {info.st_uid}, so user"
                f" {owner[0]} of the containers cannot read it; `chmod -R a+rX {folder}`"
            )


def is_readable(info: os.stat_result, owner: tuple[int, int]) -> bool:
    """Whether its mode lets a user read a file, or list and enter a folder."""
    need = 0b101 if stat.S_ISDIR(info.st_mode) else 0b100
    shift = 6 if info.st_uid == owner[0] else 3 if info.st_gid == owner[1] else 0
    return (info.st_mode >> shift) & need == need


def _walk(folder: Path) -> Iterator[Path]:
    yield folder
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            # A link is followed in the container, where it may lead nowhere: its program says so.
            if not path.is_symlink():
                yield path
