"""What the device image is made of, and the tag that follows from it: pure, no daemon needed.

The image holds exactly the versions that are installed beside the running harness, found by their
metadata, so that host and devices compute with the same code. Read `image_tag` first.
"""

import functools
import hashlib
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

REPOSITORY, BASE_REPOSITORY = "tpi-lab-device", "tpi-lab-base"
FOLDER = Path(__file__).parent
# What device programs import; those that are extras only if they are installed here.
ROOTS = ("torch", "numpy", "transformers", "accelerate", "safetensors", "tokenizers", "psutil")
EXTRA_ROOTS = ("llama-cpp-python", "gguf")
SUITES: Mapping[str, str] = {"3.11": "bookworm", "3.13": "trixie"}  # Debian's by its Python
_FILES = ("Dockerfile", "bootstrap.sh")
_BUILDER = "1"  # of what build.py puts where; another number builds anew
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Requires = Callable[[str], tuple[str, Sequence[str]] | None]


def python_version() -> str:
    """Major and minor version of the running Python."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


@functools.cache
def requirements() -> tuple[str, ...]:
    """Every distribution of the image as `name==version`, in order."""
    return closure((*ROOTS, *EXTRA_ROOTS), installed, optional=EXTRA_ROOTS)


def closure(
    roots: Sequence[str], look_up: Requires, optional: Sequence[str] = ()
) -> tuple[str, ...]:
    """Distributions that some need, themselves included, as `name==version` in order.

    Args:
        roots: Where to begin.
        look_up: Gives (version, names of what it requires here) of an installed distribution.
        optional: Roots that may be missing.

    Raises:
        LookupError: One that is needed is not installed.
    """
    found: dict[str, str] = {}
    todo = [normal(name) for name in roots]
    skippable = {normal(name) for name in optional}
    while todo:
        name = todo.pop()
        if name in found:
            continue
        known = look_up(name)
        if known is None:
            if name in skippable:
                continue
            raise LookupError(f"the package {name} is not installed here; run `make setup`")
        found[name] = known[0]
        todo += [normal(required) for required in known[1]]
    return tuple(f"{name}=={version}" for name, version in sorted(found.items()))


def installed(name: str) -> tuple[str, list[str]] | None:
    """Version of an installed distribution and what it requires on this platform."""
    from packaging.requirements import Requirement

    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    needs = [Requirement(text) for text in found.requires or ()]
    applies = [n for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    return found.version, [n.name for n in applies]


def normal(name: str) -> str:
    """A distribution's name in its one normal spelling."""
    return re.sub(r"[-_.]+", "-", name).lower()


def image_tag() -> str:
    """The device image's tag: another for every change of what goes into it."""
    return f"{REPOSITORY}:{recipe_digest(requirements())}"


def base_tag() -> str:
    """Tag of the base that is bootstrapped here."""
    return f"{BASE_REPOSITORY}:{_digest([python_version(), _read('bootstrap.sh')])}"


def recipe_digest(packages: Sequence[str]) -> str:
    """12 hexadecimal digits of everything that decides the image."""
    parts = [_BUILDER, python_version(), platform.machine(), *packages, *map(_read, _FILES)]
    return _digest(parts)


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
