"""Gathers what the image holds: the host's packages, in its versions, and libraries they load.

The host's own pip fills a wheelhouse, with the index it is set up for. What pip cannot give quickly
is copied from where it is installed, by its RECORD.
"""

import compileall
import ctypes
import json
import os
import py_compile
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from testbed.base import DeviceError
from testbed.image.recipe import normal

Say = Callable[[str], None]

# No wheel of these is published. Compiling them again takes minutes, and pip's cache has the wheel
# that was made here only for the user who made it.
COMPILED_HERE = ("llama-cpp-python",)
# What packages that were compiled here take from the system and a slim Python image lacks.
_LIBRARIES = ("libgomp.so.1",)
_TIMEOUT_S = 1200


def collect(folder: Path, listed: Sequence[str], say: Say) -> None:
    """Fill `folder/packages` with distributions and `folder/libraries` with what they load.

    The folder is empty and may need room for the packages three times; `listed` has `name==version`
    of what is installed here. A package that cannot be had in its version is a DeviceError.
    """
    packages = folder / "packages"
    packages.mkdir()
    (folder / "libraries").mkdir()
    wanted = [each for each in listed if _name(each) not in COMPILED_HERE]
    copied = [_name(each) for each in listed if _name(each) in COMPILED_HERE]
    try:
        _from_wheelhouse(folder, wanted, packages)
    except DeviceError as exc:
        say(f"{exc}; copying the packages that are installed here instead")
        copied = [_name(each) for each in listed]
    for name in copied:
        copy_installed(metadata.distribution(name), packages)
    copy_libraries(_LIBRARIES, folder / "libraries")
    check_versions(packages, listed)
    # A device's root is read-only: what is not compiled now is compiled at every start. By hash,
    # so that the same packages make the same layer whenever they were unpacked.
    compileall.compile_dir(
        packages,
        ddir="/opt/packages",
        quiet=2,  # some packages hold templates that are no Python
        workers=os.cpu_count() or 1,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def copy_installed(found: metadata.Distribution, target: Path) -> None:
    """Copy an installed distribution's files, without scripts and caches."""
    name = found.metadata["Name"]
    if json.loads(found.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable"):
        raise DeviceError(f"image: {name} is installed editable and cannot be copied; install it")
    if not found.files:
        raise DeviceError(f"image: {name} has no RECORD of its files; install it with pip")
    for file in found.files:
        if file.is_absolute() or ".." in file.parts or "__pycache__" in file.parts:
            continue
        copy = target / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(found.locate_file(file)), copy)


def copy_libraries(names: Sequence[str], target: Path) -> None:
    """Copy system libraries; packages do not need one that this host lacks."""
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8").split()
        # Mapped under the name of the file, to which `name` is a link.
        path = next(word for word in mapped if Path(word).name.startswith(name))
        shutil.copyfile(path, target / name)


def check_versions(packages: Path, listed: Sequence[str]) -> None:
    """Raise a DeviceError if the packages in a folder are not those that are `listed`."""
    there = {
        f"{normal(found.metadata['Name'])}=={found.version}"
        for found in metadata.distributions(path=[str(packages)])
    }
    wrong = sorted(there.symmetric_difference(listed))
    if wrong:
        raise DeviceError(f"image: packages differ from those installed here: {', '.join(wrong)}")


def archive(folder: Path, target: Path) -> None:
    """Write a folder as a tar file whose files anyone may read and root owns."""
    with tarfile.open(target, "w") as tar:
        tar.add(folder, arcname=".", filter=_for_anyone)


def run(argv: Sequence[str], what: str, temporary: Path) -> None:
    """Run a command quietly; a DeviceError says what failed and its last line."""
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise DeviceError(f"image: {what}: {exc}") from exc
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise DeviceError(f"image: {what} failed with status {done.returncode}: {lines[-1]}")


def _from_wheelhouse(folder: Path, wanted: Sequence[str], packages: Path) -> None:
    wheels, listed = folder / "wheels", folder / "requirements.txt"
    listed.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    try:
        fill = [*pip, "wheel", "--no-deps", "-w", str(wheels), "-r", str(listed)]
        run(fill, "filling the wheelhouse", folder)
        unpack = [*pip, "install", "--no-index", "--no-deps", "--no-compile", "--target"]
        found = map(str, sorted(wheels.glob("*.whl")))
        run([*unpack, str(packages), *found], "unpacking the wheelhouse", folder)
    finally:
        shutil.rmtree(wheels, ignore_errors=True)
        listed.unlink()


def _for_anyone(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """A device's user is the owner of the run, and the host's umask may be strict."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    runs = info.isdir() or info.mode & 0o100
    info.mode = (info.mode | (0o555 if runs else 0o444)) & ~0o022
    return info


def _name(package: str) -> str:
    return package.partition("==")[0]
