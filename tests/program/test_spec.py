import json
from pathlib import Path
from typing import Any

import pytest

from tpi.errors import ConfigError
from tpi.program.spec import (
    NodeSpec,
    Request,
    SystemOptions,
    dump_spec,
    load_spec,
    parse_spec,
    spec_to_json,
    system_options,
)

SPEC = NodeSpec(
    system="tpi",
    rank=0,
    world_size=2,
    session="0123456789abcdef" * 2,
    bind="127.0.0.1",
    master="127.0.0.1:4711",
    model_dir=Path("/models/tiny/rank-0"),
    threads=1,
    dtype="float32",
    max_tokens=8,
    requests=(Request("r0", 3, (1, 2, 3), warmup=True), Request("r1", 4, (5,))),
    time_scale=2.5,
    options={"window": "all", "trust_network": True},
)


def raw_spec(**changes: Any) -> dict[str, Any]:
    return {**spec_to_json(SPEC), **changes}


def test_spec_written_and_read_is_the_same(tmp_path):
    dump_spec(SPEC, tmp_path / "spec.json")
    assert load_spec(tmp_path / "spec.json") == SPEC


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thread": 1}, "unknown key 'thread'"),
        ({"schema": 2}, "schema must be 1, got 2"),
        ({"rank": 2}, "rank must be an integer in 0..1, got 2"),
        ({"rank": True}, "rank must be an integer"),
        ({"threads": "2"}, "threads must be an integer in 1..1024, got '2'"),
        ({"session": "0123"}, "session must be 32 hexadecimal digits"),
        ({"master": None}, "master must be host:port, got None"),
        ({"master": "localhost"}, "master must be host:port"),
        ({"master": "localhost:70000"}, "master must be host:port"),
        ({"dtype": "int8"}, "dtype must be float32 | bfloat16, got 'int8'"),
        ({"time_scale": 0}, "time_scale must be a number > 0"),
        ({"model_dir": ""}, "model_dir must be a non-empty string"),
        ({"requests": {}}, "requests must be a list"),
        ({"requests": [3]}, "requests[0]: must be a JSON object, got 3"),
        ({"requests": [{"id": "a b", "new_tokens": 1}]}, "requests[0]: id must be"),
        ({"requests": [{"id": "a", "new_tokens": 0}]}, "new_tokens must be an integer in 1.."),
        ({"requests": [{"id": "a", "new_tokens": 1}]}, "request a of rank 0 needs prompt_ids"),
        (
            {"requests": [{"id": "a", "new_tokens": 1, "prompt_ids": [-1]}]},
            "prompt_ids must be a non-empty list of token ids",
        ),
        ({"max_tokens": 5}, "request r0 has 6 tokens with its answer, max_tokens is 5"),
        (
            {"requests": [{"id": "a", "new_tokens": 1, "prompt_ids": [1]}] * 2},
            "two requests have the same id",
        ),
    ],
)
def test_bad_value_is_one_line_that_names_the_key(changes, message):
    with pytest.raises(ConfigError) as caught:
        parse_spec(raw_spec(**changes), "spec x")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_worker_must_not_have_prompt_ids():
    with pytest.raises(ConfigError, match="request r0 of rank 1 must not have prompt_ids"):
        parse_spec(raw_spec(rank=1))


def test_missing_key_is_named():
    raw = raw_spec()
    del raw["bind"]
    with pytest.raises(ConfigError, match="bind is missing"):
        parse_spec(raw)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"schema": 1, "schema": 1}', "a key stands twice"),
        ('{"time_scale": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_file_that_is_not_json_is_refused(tmp_path, text, message):
    path = tmp_path / "spec.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_spec(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json: No such file"):
        load_spec(tmp_path / "none.json")


def test_request_is_found_by_id():
    assert SPEC.request("r1").new_tokens == 4
    with pytest.raises(ConfigError, match="no request 'r9'"):
        SPEC.request("r9")


def test_options_of_tpi_have_defaults_and_are_checked():
    assert system_options(SPEC) == SystemOptions(window=None, trust_network=True)
    for options, message in [
        ({"windows": 2}, "unknown key 'windows'"),
        ({"window": 0}, 'window must be an integer >= 1 or "all", got 0'),
        ({"allreduce": "mesh"}, "allreduce: got 'mesh', expected star | tree"),
        ({"memory_budget": -1}, "memory_budget must be bytes"),
    ]:
        with pytest.raises(ConfigError) as caught:
            system_options(parse_spec(raw_spec(options=options)))
        assert message in str(caught.value)


def test_spec_is_plain_json():
    assert json.loads(json.dumps(spec_to_json(SPEC))) == spec_to_json(SPEC)
