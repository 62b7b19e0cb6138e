import json
import shutil
from pathlib import Path
from statistics import median

import pytest
from msgspec.structs import replace

from results.paper.cells.sim_compare import (
    Comparison,
    Figures,
    Skipped,
    compare,
    main,
    rebuild,
    table,
)
from results.paper.index import INDEX_FILE
from results.records.codec import decode_record, encode_record
from results.records.testbed_facts import DiskRates
from testbed.limits.limits import DeviceLimits
from testbed.sim.calibration import load_calibration
from tpi.errors import ConfigError

PUBLISHED = Path(__file__).parents[4] / "results" / "published"


def record(options=(), limits=None, **calibration):
    """A published one; its first device's limits, options and parts of its calibration changed."""
    (path,) = PUBLISHED.glob("klonet-llama2-3b/tpi-resident-*/run.json")
    found = decode_record(path.read_bytes(), "x")
    if limits is not None:
        calibration["limits"] = (DeviceLimits(**limits), *found.calibration.limits[1:])
    return replace(
        found,
        config=replace(found.config, options={**found.config.options, **dict(options)}),
        calibration=replace(found.calibration, **calibration),
    )


def written(folder, found):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_bytes(encode_record(found))


def test_every_record_of_the_reference_machine_is_predicted():
    # Those of the paper's tables are of other machines: test_validation.py.
    folders = [folder for folder in PUBLISHED.glob("*/") if not (folder / INDEX_FILE).exists()]
    found = compare(folders, load_calibration())
    assert len(found) >= 7
    compared = [each for each in found if isinstance(each, Comparison)]
    assert compared == found
    errors = [abs(error) for each in compared for error in each.errors]
    assert median(errors) <= 0.10
    assert max(errors) <= 0.25


def test_a_record_says_what_to_simulate():
    run = rebuild(record())
    assert (run.system, run.storage, run.compute.dtype) == ("tpi-resident", "float16", "float32")
    assert (run.prompt_tokens, run.new_tokens, run.world_size) == (8, 6, 8)
    assert run.devices[0].cores == pytest.approx(32 / 19.26, rel=1e-3)
    assert run.devices[0].disk_read_bps == 700e6
    assert (run.links[0].delay_s, run.links[0].rate_bps) == (0.002, 300e6)


@pytest.mark.parametrize(
    ("cpus", "threads", "cores"),
    [(None, 1, 8), (None, 2, 16), (4.0, 1, 8), (1.5, 2, 12), (0.25, 2, 2)],
)
def test_a_device_is_worth_the_threads_that_its_quota_keeps_busy(cpus, threads, cores):
    found = record(limits={"cpus": cpus, "threads": threads})  # at dilation 8
    assert rebuild(found).devices[0].cores == cores


def test_a_disk_without_a_limit_is_the_hosts_in_the_devices_time():
    found = record(limits={"read_bps": None}, disk_probe=DiskRates(read_bps=1e9))
    assert rebuild(found).devices[0].disk_read_bps == 8e9


def test_a_prompt_is_as_long_as_it_was_and_a_system_has_a_dtype_and_threads_of_its_own():
    found = record({"dtype": "bfloat16", "threads": 2}, {"cpus": None})
    run = rebuild(replace(found, config=replace(found.config, prompt_ids=(1, 2, 3))))
    assert (run.prompt_tokens, run.compute.dtype, run.devices[0].cores) == (3, "bfloat16", 16)


def test_what_cannot_be_rebuilt_is_a_line_and_the_table_goes_on(tmp_path):
    found = record()
    model = replace(found.config.model, name="folder", path="x")
    written(tmp_path / "a", replace(found, config=replace(found.config, model=model)))
    small = record({"window": 2, "memory_budget": 1 << 20})
    written(tmp_path / "b", replace(small, system="tpi"))
    written(tmp_path / "c", found)
    compared = compare([tmp_path], load_calibration())
    assert [type(each) for each in compared] == [Skipped, Skipped, Comparison]
    lines = table(compared).splitlines()
    assert "skipped: " in lines[2]
    assert "memory budget of 1 MiB is too small" in lines[3]
    assert lines[-1].startswith("median error")


def test_what_would_not_fit_is_a_line(tmp_path):
    written(tmp_path, record(limits={"memory": 1 << 20}))
    (found,) = compare([tmp_path], load_calibration())
    assert isinstance(found, Skipped)
    assert "it is oom: rank 0 needs" in found.reason


def test_a_record_that_lacks_something_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"record tpi-resident-.*: nothing to simulate it from"):
        rebuild(record(disk_probe=None))


def test_what_did_not_end_well_or_ran_elsewhere_is_left_out(tmp_path):
    written(tmp_path / "a", replace(record(), status="oom", reason="killed", metrics=None))
    written(tmp_path / "b", replace(record(), system="llamacpp"))
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
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    assert main([str(PUBLISHED / "klonet-llama2-3b"), str(tmp_path)]) == ConfigError.exit_status
    out = capsys.readouterr().out
    assert out.count("klonet-llama2-3b/tpi") == 2
    assert "bad | skipped: " in out
    assert main([str(tmp_path / "gone")]) == ConfigError.exit_status
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"config": []}, {"system": []}, {"metrics": {"a": 1}}])
def test_what_no_record_holds_is_a_line(change, tmp_path):
    (path,) = PUBLISHED.glob("klonet-llama2-3b/tpi-resident-*/run.json")
    raw = json.loads(path.read_text())
    (tmp_path / "run.json").write_text(json.dumps({**raw, **change}))
    (found,) = compare([tmp_path], load_calibration())
    assert isinstance(found, Skipped)
    assert found.is_broken
