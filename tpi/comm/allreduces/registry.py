"""Finds an allreduce by its name: the built-in ones, and those that other packages bring.

A package brings one through an entry point of the group `tpi.allreduces`: its name, and a class
that derives from `AllReduceAlgorithm`. Installed packages are searched only for a name that is not
built in, or to list all, since that takes milliseconds.
"""

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from tpi.comm.allreduces.base import AllReduceAlgorithm
from tpi.comm.allreduces.direct import Direct
from tpi.comm.allreduces.exchange import Exchange
from tpi.comm.allreduces.ring import Ring
from tpi.comm.allreduces.star import Star
from tpi.comm.allreduces.tree import Tree
from tpi.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "tpi.allreduces"
_BUILT_IN: dict[str, AllReduceAlgorithm] = {
    each.name: each for each in (Star(), Tree(), Ring(), Direct(), Exchange())
}
PAPER_ALLREDUCES = tuple(name for name, each in _BUILT_IN.items() if each.in_paper)


def find_allreduce(name: str) -> AllReduceAlgorithm:
    """Return the allreduce of that name.

    Raises:
        ConfigError: There is none, or the package that brings it is broken.
    """
    return _BUILT_IN.get(name) or _load(name)


def allreduce_names() -> tuple[str, ...]:
    """All names, the built-in ones first."""
    return tuple(dict.fromkeys([*_BUILT_IN, *sorted(each.name for each in _installed())]))


@cache
def _load(name: str) -> AllReduceAlgorithm:
    for entry in _installed():
        if entry.name == name:
            return _open(entry)
    from difflib import get_close_matches  # for the message alone

    known = allreduce_names()
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"allreduce: got {name!r}, expected {' | '.join(known)}{hint}")


def _installed() -> "Iterable[EntryPoint]":
    from importlib.metadata import entry_points  # only where it is needed: it takes 19 ms

    return entry_points(group=GROUP)


def _open(entry: "EntryPoint") -> AllReduceAlgorithm:
    where = f"allreduce {entry.name}: {entry.value}"
    try:
        found = entry.load()
    except Exception as exc:
        raise ConfigError(f"{where} cannot be imported: {type(exc).__name__}: {exc}") from exc
    if not (isinstance(found, type) and issubclass(found, AllReduceAlgorithm)):
        raise ConfigError(f"{where} is no class that derives from AllReduceAlgorithm")
    if getattr(found, "name", None) != entry.name:
        raise ConfigError(f"{where} has another name: {getattr(found, 'name', None)!r}")
    return found()
