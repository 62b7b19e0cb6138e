import pytest

from baselines.tpi.system import TpiOptions
from baselines.validators import nearest
from harness.config.compose import config_from
from harness.config.config import option_names
from tpi.errors import ConfigError

SYSTEMS: dict[str, object] = {"tpi": {}, "transformers": {}}


def test_config_from_nothing_but_systems_has_the_documented_defaults():
    config = config_from({"systems": SYSTEMS})
    assert (config.dtype, config.repeats, config.max_minutes) == ("float32", 3, 30)
    assert (config.workload.prompt_tokens, config.workload.new_tokens) == (32, 32)
    assert config.weights.max_bytes == 16 << 30
    assert config.systems["tpi"] == TpiOptions(window=2)


def test_config_from_reads_sizes_and_shares():
    tpi = {"memory_budget": "4GiB", "shares": [2, 1, 1], "window": "all"}
    config = config_from({"systems": {"tpi": tpi}, "devices": 3})
    assert config.systems["tpi"] == TpiOptions(
        window="all", memory_budget=4 << 30, shares=[2.0, 1.0, 1.0]
    )


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"systems": {}}, ["systems", "tpi, tpi-resident"]),
        ({"systems": {"galaxi": {}}}, ["unknown system 'galaxi'"]),
        ({"devices": 0}, ["devices: got 0", "from 1"]),
        ({"devices": True}, ["devices: got 'True', expected a whole number"]),
        ({"dtype": "bf16"}, ["dtype: got 'bf16'", "did you mean bfloat16?"]),
        ({"repeats": 0}, ["repeats"]),
        ({"max_minutes": -1}, ["max_minutes: got -1"]),
        ({"max_minutes": float("nan")}, ["max_minutes"]),
        ({"force": "perhaps"}, ["force: got 'perhaps', expected true or false"]),
        ({"results_dir": ""}, ["results_dir"]),
        ({"workload": {"new_tokens": 0}}, ["workload.new_tokens: got 0"]),
        ({"workload": {"new_token": 1}}, ["workload.new_token", "did you mean new_tokens?"]),
        ({"workload": {"prompt": " "}}, ["workload.prompt", "empty"]),
        ({"workload": {"prompt": "a", "prompt_file": "b"}}, ["exclude each other"]),
        ({"workload": {"prompt_file": "/no/such"}}, ["no file '/no/such'"]),
        ({"workload": 3}, ["expected options"]),
        ({"model": {"name": "folder"}}, ["model.path=DIR"]),
        ({"model": {"name": "folder", "path": "/no/such"}}, ["no folder '/no/such'"]),
        ({"model": {"name": "tiny", "path": "/tmp"}}, ["say model=folder"]),
        ({"weights": {"max_bytes": "16GX"}}, ["weights.max_bytes: got '16GX'", "4GiB"]),
        ({"weights": {"distinct_layers": 0}}, ["weights.distinct_layers: got 0", "or auto"]),
        ({"weights": {"source": "hub"}}, ["weights.source: got 'hub'"]),
        ({"device": {"threads": 0}}, ["threads: got 0"]),
        ({"testbed": {"backend": "dokker"}}, ["testbed.backend", "did you mean docker?"]),
        ({"testbed": {"dilation": 0.5}}, ["testbed.dilation: got 0.5", "from 1"]),
        ({"testbed": {"dilation": "much"}}, ["testbed.dilation: got 'much'", "auto"]),
        ({"testbed": {"roster": {"r1": {}}}}, ["testbed.roster: got r1, expected r0"]),
        ({"testbed": {"roster": {"x": {}}}}, ["testbed.roster: got 'x'"]),
        ({"testbed": {"roster": {"r0": {"core": 1}}}}, ["testbed.roster.r0.core", "cores?"]),
        ({"testbed": {"roster": {"r0": {}}}}, ["devices: got 4, the testbed local has 1"]),
        ({"testbed": {"links": {"r0": {"delay": 1}}}}, ["testbed.links.r0.delay", "delay_ms?"]),
        ({"device": {"swap": "1GiB"}}, ["device.swap: needs device.memory"]),
        ({"device": {"cores": 2}}, ["device.cores: plain processes", "testbed=docker"]),
        ({"link": {"delay_ms": 1}}, ["link=ideal: plain processes cannot be limited"]),
        ({"link": {"delay_ms": -1}}, ["link.delay_ms: got -1"]),
        ({"link": {"faults": [{"device": 9, "kind": "cut"}]}}, ["link=ideal"]),
        ({"link": {"faults": [{"device": 0}]}}, ["link.faults[0].kind: must be given"]),
        ({"systems": {"tpi": {"window": 0}}}, ["window: got 0", "or all"]),
        ({"systems": {"tpi": {"allreduce": "stars"}}}, ["allreduce", "did you mean star?"]),
        ({"systems": {"tpi": {"wire_dtype": "int8"}}}, ["wire_dtype"]),
        ({"systems": {"tpi": {"memory_budget": "lots"}}}, ["memory_budget: got 'lots'"]),
        ({"systems": {"tpi": {"shares": [1, 2]}}}, ["shares: got 2 numbers, expected devices=4"]),
        ({"systems": {"tpi": {"shares": [0, 0, 0, 0]}}}, ["at least one above 0"]),
        ({"systems": {"tpi": {"shares": "even"}}}, ["shares: got 'even'", "[2,1,1]"]),
        ({"systems": {"transformers": {"window": 2}}}, ["systems.transformers.window"]),
        ({"devces": 4}, ["unknown option devces", "did you mean devices?"]),
    ],
)  # fmt: skip
def test_config_from_refuses_in_one_line(raw, words):
    with pytest.raises(ConfigError) as error:
        config_from({"systems": SYSTEMS, **raw})
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_option_names_are_complete():
    assert {"devices", "workload.prompt", "systems.tpi.window", "model.path"} <= {*option_names()}


def test_nearest_lists_the_choices_where_nothing_is_close():
    assert nearest("xyz", ["star", "ring"]) == "; there are: star, ring"
