import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tpi.errors import ConfigError
from tpi.options import ComputeOptions, SamplingOptions
from tpi.program.spec import (
    NodeSpec,
    OwnOptions,
    Request,
    dump_spec,
    load_spec,
    own_options,
    parse_spec,
    to_json,
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
    compute=ComputeOptions(window=None, max_tokens=8),
    requests=(Request("r0", 3, (1, 2, 3), warmup=True), Request("r1", 4, (5,))),
    time_scale=2.5,
    trust_network=True,
    options={"sampling": {"top_k": 3}},
)


def raw_spec(**changes: Any) -> dict[str, Any]:
    return {**to_json(SPEC), **changes}


def test_spec_written_and_read_is_the_same(tmp_path):
    dump_spec(SPEC, tmp_path / "spec.json")
    assert load_spec(tmp_path / "spec.json") == SPEC


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thread": 1}, "unknown key 'thread'"),
        ({"schema": 1}, "schema must be 2, got 1"),
        ({"rank": 2}, "rank must be an integer in 0..1, got 2"),
        ({"rank": True}, "rank must be an integer"),
        ({"threads": "2"}, "threads must be an integer in 1..1024, got '2'"),
        ({"session": "0123"}, "session must be 32 hexadecimal digits"),
        ({"master": None}, "master must be host:port, got None"),
        ({"master": "localhost"}, "master must be host:port"),
        ({"master": "localhost:70000"}, "master must be host:port"),
        (
            {"compute": {"dtype": "int8"}},
            "compute.dtype must be float32 | bfloat16, got 'int8'",
        ),
        ({"compute": {"windows": 2}}, "unknown key 'compute.windows'; did you mean window?"),
        ({"time_scale": 0}, "time_scale must be a number > 0"),
        ({"model_dir": ""}, "model_dir must be a non-empty string"),
        ({"requests": {}}, "requests must be a list"),
        ({"requests": [3]}, "requests[0] must be a JSON object, got 3"),
        (
            {"requests": [{"id": "a b", "new_tokens": 1}]},
            "requests[0].id must be 1-64 letters, digits, _ . -, got",
        ),
        ({"requests": [{"id": "a", "new_tokens": 0}]}, "new_tokens must be an integer in 1.."),
        ({"requests": [{"id": "a", "new_tokens": 1}]}, "request a of rank 0 needs prompt_ids"),
        (
            {"requests": [{"id": "a", "new_tokens": 1, "prompt_ids": [-1]}]},
            "requests[0].prompt_ids[0] must be an integer in 0..",
        ),
        (
            {"requests": [{"id": "a", "new_tokens": 1, "prompt_ids": []}]},
            "requests[0].prompt_ids must be a non-empty list of token ids or null, got []",
        ),
        (
            {"compute": {"max_tokens": 5}},
            "request r0 has 6 tokens with its answer, max_tokens is 5",
        ),
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
        ('{"schema": 2, "schema": 2}', "appears twice"),
        ('{"time_scale": NaN}', "NaN is not finite"),
        ("[" * 100_000, "nested too deeply"),
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


def test_own_options_have_defaults_and_are_checked():
    options = own_options(SPEC, OwnOptions)
    assert options == OwnOptions(sampling=SamplingOptions(top_k=3))
    assert own_options(replace(SPEC, options=to_json(options)), OwnOptions) == options
    for raw, message in [
        ({"window": 2}, "spec options: unknown key 'window'"),
        ({"sampling": {"top_p": 2}}, "spec options: sampling.top_p must be a number in 0..1"),
    ]:
        with pytest.raises(ConfigError) as caught:
            own_options(parse_spec(raw_spec(options=raw)), OwnOptions)
        assert message in str(caught.value)


def test_spec_is_plain_json():
    assert json.loads(json.dumps(to_json(SPEC))) == to_json(SPEC)
