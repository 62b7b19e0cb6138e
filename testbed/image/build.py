"""Builds the device image if its inputs changed: base, packages, image.

The base is the official slim Python image where it can be pulled, and else bootstrapped from
Debian's packages. The host's own pip fills a wheelhouse, with whatever index it is set up for, and
unpacks it; nothing is fetched inside the image. Read `build` first.
"""

import compileall
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import docker
import requests

from testbed.base import DeviceError
from testbed.daemon import Daemon
from testbed.image.recipe import (
    FOLDER,
    REPOSITORY,
    SUITES,
    base_tag,
    image_tag,
    python_version,
    requirements,
)

Say = Callable[[str], None]

NO_DAEMON = (
    "the Docker daemon does not answer; start it (systemctl start docker, or dockerd as root)"
)
_BUILD_TIMEOUT_S = 1200
_PULL_TIMEOUT_S = 600


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
    except (docker.errors.DockerException, requests.exceptions.RequestException):
        return NO_DAEMON
    return None


def build(say: Say, pip_arguments: Sequence[str] = ()) -> str:
    """Build the image unless it is there; returns its tag.

    Args:
        say: Told what is done, a line at a time.
        pip_arguments: For the wheelhouse alone, as another index.

    Raises:
        DeviceError: No daemon, no base, or a package cannot be had; one line.
    """
    daemon = Daemon()
    try:
        daemon.client.timeout = _BUILD_TIMEOUT_S  # between two lines of a build lie minutes
        return _build(daemon.client, say, pip_arguments)
    finally:
        daemon.close()


def old_tags(client: Any) -> list[str]:
    """Device images of other recipes, which nothing uses any more."""
    images = client.images(name=REPOSITORY)
    return sorted({t for i in images for t in i["RepoTags"] or ()} - {image_tag()})


def _build(client: Any, say: Say, pip_arguments: Sequence[str]) -> str:
    tag = image_tag()
    if image_problem(client) is None:
        say(f"{tag} is there, nothing to do")
        return tag
    start_s = time.monotonic()
    say(f"building {tag}: Python {python_version()}, {len(requirements())} packages")
    base = _base(client, say)
    with tempfile.TemporaryDirectory(prefix="tpi-lab-image-", dir=_roomy()) as name:
        context = Path(name)
        _collect_packages(context, say, pip_arguments)
        shutil.copy(FOLDER / "Dockerfile", context)
        say("building the image")
        _build_image(client, context, tag, base)
    size = client.inspect_image(tag)["Size"]
    say(f"{tag} built in {time.monotonic() - start_s:.0f} s, {size / 1e9:.1f} GB")
    return tag


def _base(client: Any, say: Say) -> str:
    """A base with this host's Python version: pulled, or made here; both are kept."""
    official, own = f"python:{python_version()}-slim", base_tag()
    for tag in (official, own):
        if client.images(name=tag):
            return tag
    say(f"pulling {official}")
    if _pull(official):
        return official
    say("no registry can be reached; bootstrapping a base from Debian's packages")
    suite = SUITES.get(python_version())
    problem = None
    if suite is None:
        problem = f"no Debian release has Python {python_version()}"
    elif os.geteuid() != 0:
        problem = "debootstrap needs root: sudo make image"
    elif shutil.which("debootstrap") is None:
        problem = "debootstrap is missing: apt-get install debootstrap"
    if problem is not None:
        raise DeviceError(f"image: {official} cannot be pulled, and {problem}")
    _run([str(FOLDER / "bootstrap.sh"), own, str(suite)], "bootstrap of the base")
    return own


def _pull(tag: str) -> bool:
    command = ["docker", "pull", "--quiet", tag]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PULL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _collect_packages(context: Path, say: Say, pip_arguments: Sequence[str]) -> None:
    """Fill `packages` in the build's context with what is installed here, in the same versions."""
    wheels, packages = context / "wheels", context / "packages"
    listed = context / "requirements.txt"
    listed.write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    say("filling the wheelhouse")
    fill = [*pip, "wheel", "--no-deps", "-w", str(wheels), "-r", str(listed), *pip_arguments]
    _run(fill, "wheelhouse")
    unpack = [*pip, "install", "--no-index", "--no-deps", "--no-compile", "--target", str(packages)]
    _run([*unpack, *map(str, sorted(wheels.glob("*.whl")))], "unpacking the wheelhouse")
    shutil.rmtree(wheels)
    listed.unlink()
    # A device's root is read-only: what is not compiled now is compiled at every start.
    compileall.compile_dir(
        packages, ddir="/opt/packages", quiet=2, workers=os.cpu_count() or 1, optimize=-1
    )


def _build_image(client: Any, context: Path, tag: str, base: str) -> None:
    error = None
    for entry in client.build(
        path=str(context), tag=tag, buildargs={"BASE": base}, rm=True, forcerm=True, decode=True
    ):
        error = error or entry.get("error")
    if error is not None:
        raise DeviceError(f"image: {' '.join(str(error).split())}")


def _run(argv: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise DeviceError(f"image: {what}: {exc}") from exc
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise DeviceError(f"image: {what} failed with status {done.returncode}: {lines[-1]}")


def _roomy() -> str | None:
    """Where some GB may lie for a while: /tmp is often memory."""
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else None
