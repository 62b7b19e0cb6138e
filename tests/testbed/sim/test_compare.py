import json
import shutil
from pathlib import Path
from statistics import median

import pytest

from testbed.sim.calibration import load_calibration
from testbed.sim.compare import Comparison, Figures, compare, main, rebuild, table
from tpi.errors import ConfigError

PUBLISHED = Path(__file__).parents[3] / "results" / "published"


def record():
    (path,) = PUBLISHED.glob("klonet-llama2-3b/tpi-resident-*/run.json")
    return json.loads(path.read_text())


def test_every_record_of_the_docker_testbed_is_predicted():
    found = compare([PUBLISHED], load_calibration())
    assert len(found) >= 7
    errors = [abs(error) for each in found for error in each.errors]
    assert median(errors) <= 0.10
    assert max(errors) <= 0.25


def test_a_record_says_what_to_simulate():
    run = rebuild(record(), "x")
    assert (run.system, run.storage, run.dtype) == ("tpi-resident", "float16", "float32")
    assert (run.prompt_tokens, run.new_tokens, run.world_size) == (8, 6, 8)
    assert run.devices[0].cores == pytest.approx(32 / 19.26, rel=1e-3)
    assert run.devices[0].disk_read_bps == 700e6
    assert (run.links[0].delay_s, run.links[0].rate_bps) == (0.002, 300e6)


def test_a_device_without_a_limit_has_the_hosts_cores():
    raw = record()
    raw["calibration"]["limits"][0].update(cpus=None, read_bps=None)
    device = rebuild(raw, "x").devices[0]
    assert device.cores == 2 * 8
    assert device.disk_read_bps is None


def test_a_record_that_lacks_something_is_refused_by_name():
    raw = record()
    del raw["calibration"]["dilation"]
    with pytest.raises(ConfigError, match="record x: nothing to simulate it from"):
        rebuild(raw, "x")


def test_what_did_not_end_well_or_ran_elsewhere_is_left_out(tmp_path):
    raw = record()
    for name, change in (("a", {"status": "oom"}), ("b", {"system": "llamacpp"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({**raw, **change}))
    assert compare([tmp_path], load_calibration()) == []
    shutil.copytree(PUBLISHED / "demo", tmp_path / "local")
    assert compare([tmp_path], load_calibration()) == []


def test_the_table_has_errors_and_their_median():
    text = table([Comparison("x", Figures(2.0, 1.0), Figures(2.2, None))])
    assert text.splitlines()[2] == "| x | 2 | 2.2 | +10.0% |  |  |  |"
    assert text.splitlines()[-1] == "median error 10.0%, worst 10.0%"


def test_the_command(capsys, tmp_path):
    assert main([str(PUBLISHED / "klonet-llama2-3b")]) == 0
    assert capsys.readouterr().out.count("klonet-llama2-3b/tpi") == 2
    assert main([str(tmp_path)]) == 0
    assert "no run record" in capsys.readouterr().out
    (tmp_path / "run.json").write_text("{")
    assert main([str(tmp_path)]) == ConfigError.exit_status
    assert "run.json" in capsys.readouterr().err
