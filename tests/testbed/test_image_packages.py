"""What goes into the device image is what is installed here, readable by anyone."""

import stat
import sys
import tarfile
from importlib import metadata

import pytest

from testbed.base import DeviceError
from testbed.image import packages
from testbed.image.packages import (
    archive,
    check_versions,
    collect,
    copy_installed,
    copy_libraries,
    run,
)

RECORD = """toy/__init__.py,,
toy/tool,,
toy/__pycache__/__init__.cpython-311.pyc,,
toy_lab-1.5.dist-info/METADATA,,
toy_lab-1.5.dist-info/RECORD,,
../../../bin/toy,,
"""
SCRIPT = "../../../bin/toy"


def install(site, name="toy_lab", record=RECORD):
    """Lay out an installed distribution; gives its metadata."""
    info = site / f"{name}-1.5.dist-info"
    for line in RECORD.splitlines():
        file = site / line.partition(",")[0].replace("toy_lab", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"content = {name!r}\n")
    (site / "toy/tool").chmod(0o700)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    if record is None:
        (info / "RECORD").unlink()
    else:
        (info / "RECORD").write_text(record.replace("toy_lab", name))
    return next(iter(metadata.distributions(path=[str(site)])))


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "env/lib/python/site-packages"
    folder.mkdir(parents=True)
    return folder


def test_installed_files_are_copied_without_scripts_and_caches(site, tmp_path):
    copy_installed(install(site), tmp_path / "copy")
    assert names(tmp_path / "copy") == [
        "toy/__init__.py",
        "toy/tool",
        "toy_lab-1.5.dist-info/METADATA",
        "toy_lab-1.5.dist-info/RECORD",
    ]
    assert (tmp_path / "copy/toy/tool").stat().st_mode & stat.S_IXUSR


def test_what_is_installed_in_place_or_without_a_list_is_refused(site, tmp_path):
    found = install(site, record=None)
    with pytest.raises(DeviceError, match="toy_lab has no RECORD of its files"):
        copy_installed(found, tmp_path)
    url = site / "toy_lab-1.5.dist-info/direct_url.json"
    url.write_text('{"url": "file:///x", "dir_info": {"editable": true}}')
    with pytest.raises(DeviceError, match="toy_lab is installed editable"):
        copy_installed(found, tmp_path)


def test_versions_that_differ_are_named(site):
    install(site)
    check_versions(site, ["toy-lab==1.5"])
    with pytest.raises(DeviceError, match=r"toy-lab==1.5, toy-lab==1.6"):
        check_versions(site, ["toy-lab==1.6"])
    with pytest.raises(DeviceError, match=r"other==2$"):
        check_versions(site, ["toy-lab==1.5", "other==2"])


def test_archive_is_roots_and_readable_by_anyone_under_a_strict_umask(tmp_path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    for name, mode in (("plain", 0o600), ("runs", 0o700)):
        (folder / "inner" / name).write_text(name)
        (folder / "inner" / name).chmod(mode)
    (folder / "inner").chmod(0o700)
    archive(folder, tmp_path / "folder.tar")
    with tarfile.open(tmp_path / "folder.tar") as tar:
        modes = {info.name: info.mode for info in tar}
        owners = {(info.uid, info.gid, info.uname) for info in tar}
    assert modes["./inner"] == modes["./inner/runs"] == 0o755
    assert modes["./inner/plain"] == 0o644
    assert owners == {(0, 0, "")}


def test_a_library_that_is_not_here_is_not_needed(tmp_path):
    copy_libraries(["libnosuch.so.9", "libc.so.6"], tmp_path)
    assert names(tmp_path) == ["libc.so.6"]


def test_a_tool_that_fails_says_its_last_line(tmp_path):
    with pytest.raises(DeviceError, match="wheels failed with status 3: no such wheel"):
        run(["sh", "-c", "echo a; echo no such wheel >&2; exit 3"], "wheels", tmp_path)
    with pytest.raises(DeviceError, match=r"wheels: .*No such file"):
        run([str(tmp_path / "none")], "wheels", tmp_path)
    run(["sh", "-c", 'test "$TMPDIR" = "$1"', "sh", str(tmp_path)], "folder", tmp_path)


@pytest.fixture
def installed(site, monkeypatch):
    """Two distributions: one that pip gives, and one that was compiled here."""
    install(site, "toy_lab")
    install(site, "compiled")
    monkeypatch.setattr(packages, "COMPILED_HERE", ("compiled",))
    monkeypatch.syspath_prepend(str(site))
    return site


@pytest.fixture
def context(tmp_path):
    folder = tmp_path / "some/where/context"
    folder.mkdir(parents=True)
    return folder


def test_pip_gives_what_it_can_and_the_rest_is_copied(installed, context, monkeypatch):
    asked: list[str] = []

    def pip(argv, what, temporary):
        if "wheel" in argv:
            asked.append((temporary / "requirements.txt").read_text())
        else:
            install(temporary / "packages", "toy_lab")

    monkeypatch.setattr(packages, "run", pip)
    said: list[str] = []
    collect(context, ["compiled==1.5", "toy-lab==1.5"], said.append)
    assert (asked, said) == (["toy-lab==1.5\n"], [])
    assert {path.name for path in context.iterdir()} == {"packages", "libraries"}
    assert (context / "packages/compiled-1.5.dist-info").is_dir()


def test_what_pip_cannot_give_is_copied_and_said(installed, context, monkeypatch):
    def pip(argv, what, temporary):
        raise DeviceError("image: filling the wheelhouse failed with status 1: no such version")

    monkeypatch.setattr(packages, "run", pip)
    said: list[str] = []
    collect(context, ["compiled==1.5", "toy-lab==1.5"], said.append)
    assert len(said) == 1
    assert said[0].endswith("no such version; copying the packages that are installed here instead")
    cached = f"__init__.cpython-{sys.version_info.major}{sys.version_info.minor}.pyc"
    assert (context / "packages/toy/__pycache__" / cached).is_file()
