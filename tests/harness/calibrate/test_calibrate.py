"""`make calibrate`: small, but whole; and what it refuses."""

import pytest

from baselines.registry import system_names
from harness.calibrate import main as calibrate
from harness.calibrate.disk import measure_disk
from harness.calibrate.messages import measure_messages
from harness.run.launch import PROGRAMS
from testbed.host.hostlock import host_lock
from testbed.sim.calibration import load_calibration
from tests.harness.calibrate.tiny import TINY
from tpi.errors import EXIT_OK


@pytest.fixture(autouse=True)
def locks(tmp_path, monkeypatch):
    folder = tmp_path / "locks"
    folder.mkdir(parents=True)
    folder.chmod(0o1777)
    monkeypatch.setattr("testbed.host.hostlock._FOLDERS", (folder,))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_this_machine_is_measured_and_written_down(tmp_path, capsys, monkeypatch):
    for name in system_names():  # the real ones take a minute to start so often
        monkeypatch.setitem(PROGRAMS, name, ("-m", "tests.fake_system"))
    folder = tmp_path / "weights"
    assert calibrate.main(["--dir", str(folder)], TINY) == EXIT_OK
    path = folder / "calibration.json"
    found = load_calibration(path)
    assert found.products["float32->float32"][0][1] > 1e7
    assert 1e-7 < found.send_s < 0.1
    assert 0.01 < found.start_s < 60
    assert found.library_bytes > 1 << 20
    out = capsys.readouterr().out
    assert "products float32->float32 at 1 8" in out
    assert str(path) in out
    assert [p.name for p in folder.iterdir()] == ["calibration.json"]


def test_beside_another_harness_it_is_refused_in_one_line(tmp_path, capsys):
    with host_lock(allow_concurrent=False):
        status = calibrate.main(["--dir", str(tmp_path / "weights")], TINY)
    assert status != EXIT_OK
    error = capsys.readouterr().err
    assert error.startswith("calibrate: another harness runs on this host")
    assert error.rstrip().endswith("wait for its end")
    assert error.count("\n") == 1
    assert not (tmp_path / "weights" / "calibration.json").exists()


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert calibrate.main(["--dir", str(tmp_path / "file" / "x")], TINY) == 2
    assert "--dir" in capsys.readouterr().err


def test_disk_is_measured_and_left_as_it_was(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    costs, _ = measure_disk(folder, TINY)
    assert costs["disk_read_bps"] > 1e6
    assert costs["read_cpu_bps"] > 1e6
    assert costs["swap_bps"] > 1e5
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_messages_go_to_another_process_and_back():
    costs = measure_messages(TINY)
    assert costs["send_s"] > 0
    assert costs["recv_s"] >= 0
    assert costs["packet_s"] >= 0
