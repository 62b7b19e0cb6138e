"""What installed packages add to this project, through entry points.

Modules of Python's `importlib.metadata` are imported only here: they take 19 ms.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from tpi.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


def installed(group: str) -> "Iterable[EntryPoint]":
    """The entry points of a group, in no order."""
    from importlib.metadata import entry_points

    return entry_points(group=group)


def load(entry: "EntryPoint", what: str, base: type[T]) -> T:
    """Import what an entry point names: an object of `base`, or a class that makes one.

    Raises:
        ConfigError: It cannot be imported, is something else, or has another name.
    """
    where = f"{what} {entry.name}: {entry.value}"
    try:
        found = entry.load()
    except Exception as exc:
        raise ConfigError(f"{where} cannot be imported: {type(exc).__name__}: {exc}") from exc
    if isinstance(found, type) and issubclass(found, base):
        found = found()
    if not isinstance(found, base):
        raise ConfigError(f"{where} is no class that derives from {base.__name__}")
    if getattr(found, "name", None) != entry.name:
        raise ConfigError(f"{where} has another name: {getattr(found, 'name', None)!r}")
    return found
