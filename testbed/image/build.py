"""Builds the device image if its inputs changed: base, packages, image.

The base is the official slim Python image where it can be pulled, else bootstrapped from Debian's
packages. `packages.py` gathers the rest, so that no step of the build needs a network. An image
gets its name last, after everything in it was loaded.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
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

NO_DAEMON = (
    "the Docker daemon does not answer; start it (systemctl start docker, or dockerd as root)"
)
_LABEL = "org.tpi-lab.image=device"
# Between two signs of life of the daemon: a large layer is written without one.
_TIMEOUT_S = 1200
_PREFIX = "tpi-lab-image-"
# A folder is younger than this between being made and being locked.
_YOUNG_S = 60


def image_problem(client: Any) -> str | None:
    """Why devices cannot be made of the image, in one line; None if they can."""
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
    """Build the image unless it is there, telling `say` what is done; returns its tag."""
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
    """Tags of images from other inputs, which nothing uses any more."""
    kept = {image_tag(), base_tag()}
    found = [client.images(name=name) for name in (REPOSITORY, BASE_REPOSITORY)]
    return sorted({tag for images in found for i in images for tag in i["RepoTags"] or ()} - kept)


def prune(say: Say) -> None:
    """Remove the images from other inputs, and what interrupted builds left."""
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


@contextmanager
def workspace(parent: Path | None = None) -> Iterator[Path]:
    """An empty folder of this build's own, in `parent` or on a disk with room for some GB.

    It is removed after the build. One that a killed build left is removed by the next: a build
    holds a lock on its folder, which the kernel frees however the build ends.
    """
    parent = parent or _roomy()
    sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        _remove_folder(folder)
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
                _remove_folder(folder)
        except BlockingIOError:  # its build runs
            continue
        finally:
            os.close(lock)


def _remove_folder(folder: Path) -> None:
    # Not shutil.rmtree: a bootstrap that was killed may have left the host's /dev mounted in it.
    subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=False)


def _roomy() -> Path:
    """Where TMPDIR says, or /var/tmp: /tmp is often memory."""
    varying = Path("/var/tmp")
    named = "TMPDIR" in os.environ or not os.access(varying, os.W_OK)
    return Path(tempfile.gettempdir()) if named else varying
