"""Builds the device image if its inputs changed: base, packages, image.

The base is the official slim Python image where it can be pulled, and else bootstrapped from
Debian's packages; `packages.py` gathers the rest, so that no step of the build needs a network. An
image gets its name last, after everything in it was loaded. Read `build` first.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests

from testbed.base import DeviceError
from testbed.docker.daemon import Daemon
from testbed.image.packages import Say, archive, collect, run
from testbed.image.recipe import (
    BASE_REPOSITORY,
    FOLDER,
    REPOSITORY,
    SUITES,
    base_tag,
    image_tag,
    modules,
    python_version,
    requirements,
)
from testbed.image.workspace import workspace

NO_DAEMON = (
    "the Docker daemon does not answer; start it (systemctl start docker, or dockerd as root)"
)
_LABEL = "org.tpi-lab.image=device"
# Between two signs of life of the daemon: a large layer is written without one.
_TIMEOUT_S = 1200


def image_problem(client: Any) -> str | None:
    """Why devices cannot be made of the image, in one line; None if they can.

    `client` is Docker's low-level or high-level client.
    """
    tag = image_tag()
    api = getattr(client, "api", client)
    try:
        api.inspect_image(tag)
    except docker.errors.ImageNotFound:
        return f"the device image {tag} is not there; build it with `make image`"
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError):
        return NO_DAEMON
    return None


def build(say: Say) -> str:
    """Build the image unless it is there; returns its tag.

    Args:
        say: Told what is done, a line at a time.

    Raises:
        DeviceError: No daemon, no base, or a package cannot be had; one line.
    """
    tag = image_tag()
    with _connected() as client:
        if image_problem(client) is None:
            say(f"{tag} is there, nothing to do")
            return tag
        start_s = time.monotonic()
        say(f"building {tag}: Python {python_version()}, {len(requirements())} packages")
        with workspace() as folder:
            base = _base(client, folder, say)
            _build_image(client, folder, base, say)
        size_bytes = client.inspect_image(tag)["Size"]
        say(f"{tag} built in {time.monotonic() - start_s:.0f} s, {size_bytes / 1e9:.1f} GB")
        old = old_tags(client)
        if old:
            say(f"of other inputs: {' '.join(old)}; lab image --prune removes them")
    return tag


def old_tags(client: Any) -> list[str]:
    """Tags of images that other inputs led to, which nothing uses any more."""
    kept = {image_tag(), base_tag()}
    found = [client.images(name=name) for name in (REPOSITORY, BASE_REPOSITORY)]
    return sorted({tag for images in found for i in images for tag in i["RepoTags"] or ()} - kept)


def prune(say: Say) -> None:
    """Remove the images of other inputs, and what interrupted builds left.

    Raises:
        DeviceError: No daemon.
    """
    with _connected() as client:
        for tag in old_tags(client):
            try:
                client.remove_image(tag)
            except docker.errors.APIError as exc:  # a container still uses it
                say(f"{tag} stays: {_one_line(exc)}")
            else:
                say(f"{tag} removed")
        left = client.prune_images(filters={"dangling": True, "label": _LABEL})
        say(f"{left['SpaceReclaimed'] / 1e9:.1f} GB of unfinished builds removed")


@contextmanager
def _connected() -> Iterator[Any]:
    """A client of the daemon; whatever is raised below becomes one line."""
    daemon = Daemon()
    try:
        daemon.client.timeout = _TIMEOUT_S
        yield daemon.client
    except docker.errors.APIError as exc:
        raise DeviceError(f"image: the Docker daemon refused: {_one_line(exc)}") from exc
    except (docker.errors.DockerException, requests.exceptions.RequestException) as exc:
        raise DeviceError(f"image: the Docker daemon went away: {exc}") from exc
    except OSError as exc:
        raise DeviceError(f"image: {exc}") from exc
    finally:
        daemon.close()


def _one_line(error: Any) -> str:
    text = getattr(error, "explanation", None) or error
    return " ".join(str(text).split())


def _base(client: Any, folder: Path, say: Say) -> str:
    """A base with this host's Python version: pulled, or made here; both are kept."""
    official, own = f"python:{python_version()}-slim", base_tag()
    for tag in (official, own):
        if client.images(name=tag):
            return tag
    say(f"pulling {official}")
    problem = _pull(client, official)
    if problem is None:
        return official
    say(f"it cannot be pulled ({problem}); bootstrapping a base from Debian's packages")
    missing = bootstrap_problem(python_version(), os.geteuid(), shutil.which("debootstrap"))
    if missing is not None:
        raise DeviceError(f"image: {official} cannot be pulled, and {missing}")
    start_s, packed = time.monotonic(), folder / "base.tar"
    script = str(FOLDER / "bootstrap.sh")
    run([script, SUITES[python_version()], str(packed)], "bootstrapping the base", folder)
    repository, _, version = own.partition(":")
    client.import_image_from_file(str(packed), repository, version, ["ENV LANG=C.UTF-8"])
    packed.unlink()
    say(f"{own} made in {time.monotonic() - start_s:.0f} s")
    return own


def bootstrap_problem(python: str, user: int, debootstrap: str | None) -> str | None:
    """Why no base can be bootstrapped, in one line; None if it can."""
    if python not in SUITES:
        return f"no Debian release has Python {python} (known: {', '.join(SUITES)})"
    if debootstrap is None:
        return "debootstrap, which makes a base, is missing: apt-get install debootstrap"
    if user != 0:
        return "debootstrap, which makes a base, needs root: sudo make image"
    return None


def _pull(client: Any, tag: str) -> str | None:
    """Pull; returns what went wrong, in one line."""
    try:
        for entry in client.pull(tag, stream=True, decode=True):
            if "error" in entry:
                return _one_line(entry["error"])
    except docker.errors.APIError as exc:
        return _one_line(exc)
    return None


def _build_image(client: Any, folder: Path, base: str, say: Say) -> None:
    """Gather the packages and build; the daemon tags only what was built to the end."""
    start_s, context, packed = time.monotonic(), folder / "context", folder / "context.tar"
    context.mkdir()
    collect(context, requirements(), say)
    shutil.copy(FOLDER / "Dockerfile", context)
    archive(context, packed)
    shutil.rmtree(context)
    say(f"packages gathered in {time.monotonic() - start_s:.0f} s; building the image")
    with packed.open("rb") as stream:
        entries = client.build(
            fileobj=stream,
            custom_context=True,
            tag=image_tag(),
            buildargs={"BASE": base, "MODULES": " ".join(modules(requirements()))},
            network_mode="none",
            rm=True,
            forcerm=True,
            decode=True,
        )
        problem = build_problem(entries)
    if problem is not None:
        raise DeviceError(f"image: {problem}")


def build_problem(entries: Iterator[dict[str, Any]]) -> str | None:
    """What went wrong in a build, in one line: its error and what was printed last before it."""
    last = ""
    for entry in entries:
        if "error" in entry:
            error = _one_line(entry["error"])
            return f"{error}: {last}" if last else error
        last = str(entry.get("stream", "")).strip() or last
    return None
