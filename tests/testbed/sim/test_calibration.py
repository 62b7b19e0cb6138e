import json
from dataclasses import asdict, replace

import pytest

from testbed.sim.calibration import decode, load_calibration, save_calibration
from tpi.errors import ConfigError


def test_the_reference_comes_with_the_project():
    reference = load_calibration()
    assert reference.host
    assert "bfloat16->float32" in reference.products
    assert {"float32", "bfloat16"} <= set(reference.linear)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    path = tmp_path / "host.json"
    reference = load_calibration()
    save_calibration(reference, path)
    assert load_calibration(path) == reference


def test_product_time_is_exact_where_measured_and_linear_between():
    table = ((1, 10.0), (5, 5.0), (9, 1.0))
    calibration = replace(load_calibration(), products={"float32->float32": table})
    times = [calibration.product_s(10, rows, "float32", "float32") for rows in (1, 3, 5, 9, 13)]
    assert times == pytest.approx([1.0, 1.5, 2.0, 10.0, 18.0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fewer_queries_never_take_longer(dtype):
    calibration = load_calibration()
    times = [calibration.attend_s(n, 512, 4096, dtype) for n in (1, 8, 32, 128, 256, 257, 1024)]
    assert times == sorted(times)


def test_rate_of_attention_is_exact_where_measured_and_a_power_between():
    table = ((1, 1.0), (16, 4.0), (256, 8.0))
    calibration = replace(load_calibration(), attend={"float32": table})
    rates = [4.0 * n / calibration.attend_s(n, 1, 1, "float32") for n in (1, 4, 16, 64, 256, 900)]
    assert rates == pytest.approx([1.0, 2.0, 4.0, 4 * 2**0.5, 8.0, 8.0])


def test_one_rate_is_good_for_any_rows():
    calibration = replace(load_calibration(), linear={"float32": ((1, 2.0),)})
    assert calibration.linear_s(4, 512, "float32") == 2.0


def test_dtypes_that_nobody_measured_are_refused_by_name():
    calibration = replace(load_calibration(), products={"float32->float32": ((1, 1.0),)})
    with pytest.raises(ConfigError, match=r"no bfloat16->float32, it has float32->float32"):
        calibration.product_s(1, 1, "bfloat16", "float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"send_s": -1.0}, r"send_s must be a number in 0\.\.1e\+18, got -1.0; measure anew"),
        ({"send_s": "fast"}, "send_s"),
        ({"send_s": True}, "send_s"),
        ({"sum_bps": 0}, "sum_bps must be a number in 0"),
        ({"sum_bps": {}}, "sum_bps must be a number in 0"),
        ({"step_s": 10**400}, "step_s"),
        ({"disk_request_s": 1e308}, "disk_request_s must be a number"),
        ({"schema": 2}, "schema"),
        ({"products": {"float32->float32": [[2, 1.0]]}}, "rows that ascend from 1"),
        (
            {"products": {"float32->float32": [[1, 0.0]]}},
            r"products\[float32->float32\]\[0\]\[1\] must be a number",
        ),
        (
            {"products": {"float32->float32": [1, 2]}},
            r"products\[float32->float32\]\[0\] must be a list of 2, got 1",
        ),
        ({"products": {"float32->float32": [[1, 1e9]]}}, "two numbers of rows or more, got 1"),
        ({"linear": {"float32": [[1, 1e9]]}}, r"linear.*float32.* must have two numbers of rows"),
        ({"cast_bps": 3}, "cast_bps must be a JSON object, got 3"),
        ({"sped_s": 1.0}, "unknown key 'sped_s'"),
    ],
)
def test_a_bad_field_is_named(change, message):
    raw = {**json.loads(json.dumps(asdict(load_calibration()))), **change}
    with pytest.raises(ConfigError, match=message):
        decode(raw, "x.json")


def test_a_missing_field_is_named():
    raw = asdict(load_calibration())
    del raw["recv_s"]
    with pytest.raises(ConfigError, match=r"calibration x.json: recv_s is missing"):
        decode(raw, "x.json")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json"):
        load_calibration(tmp_path / "none.json")
