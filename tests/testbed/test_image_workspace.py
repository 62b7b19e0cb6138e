"""A build's folder goes with the build, however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.image.build import sweep, workspace

ROOT = Path(__file__).parents[2]


def test_a_folder_goes_with_its_body(tmp_path):
    with workspace(tmp_path) as folder:
        (folder / "inner").mkdir()
        assert folder.parent == tmp_path
    with pytest.raises(KeyError), workspace(tmp_path) as folder:
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_running_and_young_and_foreign_folders_stay(tmp_path, monkeypatch):
    with workspace(tmp_path) as running:
        young, link = tmp_path / "tpi-lab-image-young", tmp_path / "tpi-lab-image-link"
        young.mkdir()
        link.symlink_to(ROOT)
        (tmp_path / "other").mkdir()
        sweep(tmp_path)
        assert young.is_dir()
        monkeypatch.setattr(os, "geteuid", lambda: -1)
        sweep(tmp_path, -1)
        assert young.is_dir()
        monkeypatch.undo()
        sweep(tmp_path, -1)
        assert {path.name for path in tmp_path.iterdir()} == {running.name, link.name, "other"}


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path):
    code = (
        "import sys; from pathlib import Path; from testbed.image.build import workspace\n"
        "with workspace(Path(sys.argv[1])) as folder: print(folder, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    ) as build:  # fmt: skip
        assert build.stdout is not None
        left = Path(build.stdout.readline().strip())
        sweep(tmp_path, -1)
        assert left.is_dir()
        build.send_signal(signal.SIGKILL)
    assert left.is_dir()
    sweep(tmp_path, -1)
    assert not left.exists()
