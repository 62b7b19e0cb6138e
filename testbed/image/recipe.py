"""What the device image is made of, and the tag that follows from it. Pure, no daemon needed.

The image holds exactly the versions that are installed beside the running harness, found by their
metadata, so that host and devices compute with the same code.
"""

import functools
import hashlib
import platform
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from testbed.base import DeviceError

REPOSITORY, BASE_REPOSITORY = "tpi-lab-device", "tpi-lab-base"
FOLDER = Path(__file__).parent
# What device programs import; those that are extras only if they are installed here.
ROOTS = (
    "torch", "numpy", "msgspec", "transformers", "accelerate", "safetensors", "tokenizers",
    "psutil",
)  # fmt: skip
EXTRA_ROOTS = ("llama-cpp-python", "gguf")
SUITES: Mapping[str, str] = {"3.11": "bookworm", "3.13": "trixie"}  # Debian's by its Python
_MODULES: Mapping[str, str] = {"llama-cpp-python": "llama_cpp"}
_FILES = ("Dockerfile", "bootstrap.sh")
_BUILDER = "2"  # of what build.py and packages.py put where; another number builds anew

Need = tuple[str, frozenset[str]]  # a distribution's name and the extras that are asked of it
LookUp = Callable[[str, Collection[str]], tuple[str, Sequence[Need]] | None]


def python_version() -> str:
    """Major and minor version of the running Python."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


@functools.cache
def requirements() -> tuple[str, ...]:
    """Every distribution of the image as `name==version`, in order."""
    return closure((*ROOTS, *EXTRA_ROOTS), installed, optional=EXTRA_ROOTS)


def closure(roots: Sequence[str], look_up: LookUp, optional: Sequence[str] = ()) -> tuple[str, ...]:
    """Distributions that some need, themselves included, as `name==version` in order.

    `look_up` gives version and needs of an installed one; only `optional` roots may be missing.
    """
    found: dict[str, str] = {}
    seen: set[Need] = set()
    todo: list[Need] = [(normal(name), frozenset()) for name in roots]
    skippable = {normal(name) for name in optional}
    while todo:
        need = todo.pop()
        if need in seen:
            continue
        seen.add(need)
        name, extras = need
        known = look_up(name, extras)
        if known is None:
            if name in skippable:
                continue
            raise DeviceError(f"image: the package {name} is not installed here; run `make setup`")
        found[name] = known[0]
        todo += [(normal(needed), asked) for needed, asked in known[1]]
    return tuple(f"{name}=={version}" for name, version in sorted(found.items()))


def installed(name: str, extras: Collection[str] = ()) -> tuple[str, list[Need]] | None:
    """Version of an installed distribution and what it needs on this platform."""
    from packaging.requirements import Requirement  # only who asks for the image pays for it

    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    needs = [Requirement(text) for text in found.requires or ()]
    return found.version, [
        (need.name, frozenset(need.extras))
        for need in needs
        if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *extras))
    ]


def normal(name: str) -> str:
    """A distribution's name in its one normal spelling."""
    return re.sub(r"[-_.]+", "-", name).lower()


def modules(packages: Sequence[str]) -> list[str]:
    """What must be importable in an image of these packages."""
    names = {package.partition("==")[0] for package in packages}
    return [_MODULES.get(name, name) for name in (*ROOTS, *EXTRA_ROOTS) if name in names]


def image_tag() -> str:
    """The device image's tag, which changes with everything that goes into it."""
    return f"{REPOSITORY}:{recipe_digest(requirements())}"


def base_tag() -> str:
    """Tag of the base that is bootstrapped here."""
    parts = [python_version(), platform.machine(), _read("bootstrap.sh")]
    return f"{BASE_REPOSITORY}:{_digest(parts)}"


def recipe_digest(packages: Sequence[str]) -> str:
    """12 hexadecimal digits of everything that decides the image."""
    texts = [_read(name) for name in _FILES]
    return _digest([_BUILDER, python_version(), platform.machine(), *packages, *texts])


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
