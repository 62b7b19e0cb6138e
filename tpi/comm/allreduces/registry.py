"""Finds an allreduce by its name: the built-in ones, and those that other packages bring.

A package brings one through an entry point of the group `tpi.allreduces`: its name, and a class
that derives from `AllReduceAlgorithm`. Installed packages are searched only for a name that is not
built in, or to list all, since that takes milliseconds.
"""

from functools import cache

from tpi import plugins
from tpi.comm.allreduces.base import AllReduceAlgorithm
from tpi.comm.allreduces.direct import Direct
from tpi.comm.allreduces.exchange import Exchange
from tpi.comm.allreduces.ring import Ring
from tpi.comm.allreduces.star import Star
from tpi.comm.allreduces.tree import Tree
from tpi.errors import ConfigError

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
    others = sorted(entry.name for entry in plugins.installed(GROUP))
    return tuple(dict.fromkeys([*_BUILT_IN, *others]))


@cache
def _load(name: str) -> AllReduceAlgorithm:
    for entry in plugins.installed(GROUP):
        if entry.name == name:
            return plugins.load(entry, "allreduce", AllReduceAlgorithm)
    from difflib import get_close_matches  # for the message alone

    known = allreduce_names()
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"allreduce: got {name!r}, expected {' | '.join(known)}{hint}")
