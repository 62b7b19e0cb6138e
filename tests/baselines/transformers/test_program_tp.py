"""Transformers' tensor parallelism: tokens, what it refuses, what a lost rank does to others."""

import json
import signal
import time

import pytest
from msgspec.structs import replace

from baselines.transformers.gloo import interface_of
from baselines.transformers.program_tp import load, problems
from tests.baselines.bounded import check_bounded
from tests.baselines.tp_ranks import ALLREDUCE_BYTES
from tests.checkpoints import (
    NEW_TOKENS,
    PROMPT_IDS,
    make_checkpoint,
    reference_tokens,
    shared_checkpoint,
)
from tests.forked import ForkedProgram
from tests.nodes import Nodes
from tests.weights.shard_folders import small_config
from tpi.errors import ConfigError
from tpi.model_config import load_preset
from tpi.options import ComputeOptions
from tpi.program.local_process import free_port
from tpi.program.spec import NodeSpec, Request, dump_spec

KINDS = ("mha", "gqa2", "tied", "llama3_rope", "bias", "qk_norm")
MODULE = "baselines.transformers.program_tp"


def make_specs(folder, world_size, requests=(("r0", NEW_TOKENS),), **changes) -> list[NodeSpec]:
    asked = tuple(Request(name, count, PROMPT_IDS) for name, count in requests)
    spec = NodeSpec(
        system="transformers-tp", rank=0, world_size=world_size, session="0" * 32,
        bind="127.0.0.1", master=f"127.0.0.1:{free_port()}" if world_size > 1 else None,
        model_dir=folder, threads=1, compute=ComputeOptions(max_tokens=128), requests=asked,
    )  # fmt: skip
    spec = replace(spec, **changes)
    hidden = tuple(replace(r, prompt_ids=None) for r in spec.requests)
    return [spec, *(replace(spec, rank=r, requests=hidden) for r in range(1, world_size))]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What two ranks say of every kind, and of bfloat16, in one pair of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    uneven = make_checkpoint(folder / "uneven", "gqa2", vocab_size=513, intermediate_size=351)
    jobs = {
        **{kind: ("float32", shared_checkpoint(kind)) for kind in KINDS},
        "uneven": ("float32", uneven),
        "bfloat16": ("bfloat16", shared_checkpoint("bfloat16")),
    }
    processes = []
    for spec in make_specs(shared_checkpoint("mha"), 2):
        path = folder / f"{spec.rank}.json"
        dump_spec(spec, path)
        arguments = [str(part) for job in jobs.values() for part in job]
        log = path.with_suffix(".log")
        processes.append(ForkedProgram("tests.baselines.tp_ranks", [str(path), *arguments], log))
    said = []
    for rank, process in enumerate(processes):
        with process:
            lines = process.stdout.read().splitlines()
            assert process.wait(60) == 0, (folder / f"{rank}.log").read_text()
        said.append(dict(zip(("sum", *jobs), map(json.loads, lines), strict=True)))
    return said, {name: folder for name, (_, folder) in jobs.items()}


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize("kind", [*KINDS, "uneven"])
def test_tokens_of_two_ranks_are_those_of_one(two_ranks, kind):
    said, folders = two_ranks
    expected = list(reference_tokens(folders[kind]))
    assert [rank[kind]["tokens"] for rank in said] == [expected, expected]


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_bfloat16_strays_no_further_than_its_rounding(two_ranks):
    said, folders = two_ranks
    tokens = [rank["bfloat16"]["tokens"] for rank in said]
    assert tokens[0] == tokens[1]
    check_bounded(tokens[0], folders["bfloat16"])


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_each_rank_holds_its_share_only(two_ranks):
    said, _ = two_ranks
    whole = sum(p.numel() * 4 for p in _parameters("mha"))
    for rank in said:
        assert rank["mha"]["bytes"] == pytest.approx(whole / 2, rel=0.01)
    assert said[0]["bfloat16"]["bytes"] * 2 == said[0]["gqa2"]["bytes"]


def _parameters(kind):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(shared_checkpoint(kind)).parameters()


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_bytes_are_those_of_a_known_allreduce(two_ranks):
    said, _ = two_ranks
    for rank in said:
        # Two ranks each send half of it, reduced, twice; gloo's own headers are small.
        assert ALLREDUCE_BYTES <= rank["sum"]["sent"] <= ALLREDUCE_BYTES + 4096
        assert 0 < rank["sum"]["seconds"] < 5


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_program_serves_on_two_ranks_and_ends_well(tmp_path):
    folder = shared_checkpoint("gqa2")
    with Nodes(make_specs(folder, 2), tmp_path, MODULE) as nodes:
        nodes.wait_for("ready", ranks=range(2))
        nodes.go("r0")
        nodes.wait_for("end", ranks=range(2))
        assert nodes.exit_codes(range(2)) == [0, 0]
        assert nodes.tokens() == list(reference_tokens(folder))
        assert nodes.events(1, "token") == nodes.events(1, "request") == []
        for rank in range(2):
            (counters,) = nodes.events(rank, "counters")
            check_counters(counters)


def check_counters(counters) -> None:
    # 2 ranks: each sends as many bytes as an allreduce holds. 3 layers, two sums each, and the
    # embedding's, of 256 floats; the head gathers half of 512 logits.
    a_token = 4 * ((2 * 3 + 1) * 256 + 512 // 2)
    decode = counters["wire_bytes_sent_decode"] / (NEW_TOKENS - 1)
    assert a_token <= decode <= 2.2 * a_token  # small sums: gloo's own headers count
    assert counters["wire_bytes_sent"] > len(PROMPT_IDS) * 4 * 7 * 256
    assert counters["messages_sent"] is counters["messages_sent_decode"] is None
    assert counters["allreduce_s"] > 0
    assert counters["compute_s"] > 0
    assert counters["wait_weights_s"] == 0


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_four_ranks_agree_and_a_killed_one_ends_them_all(tmp_path):
    folder = shared_checkpoint("mha")
    specs = make_specs(folder, 4, (("r0", NEW_TOKENS), ("long", 100)))
    others = (0, 1, 3)
    with Nodes(specs, tmp_path, MODULE) as nodes:
        nodes.wait_for("ready", ranks=range(4), timeout_s=60)
        nodes.go("r0")
        nodes.wait_for("end", ranks=range(4))
        assert nodes.tokens() == list(reference_tokens(folder))
        nodes.signal(2, signal.SIGSTOP)  # it holds the others inside a collective
        nodes.go("long")
        nodes.signal(2, signal.SIGKILL)
        start = time.monotonic()
        errors = nodes.errors_of(others)
        assert {e["code"] for e in errors.values()} == {"peer_lost"}
        assert all("\n" not in e["message"] for e in errors.values())
        assert nodes.exit_codes(others) == [10] * 3
        assert time.monotonic() - start < 10


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_silent_rank_and_lost_master_end_the_others(tmp_path):
    # A stall of 4.8 s, which the join has too: rank 1 may need that much longer to start.
    specs = make_specs(shared_checkpoint("gqa2"), 2, time_scale=0.04)
    with Nodes(specs, tmp_path, MODULE) as nodes:
        nodes.wait_for("ready", ranks=range(2))
        nodes.signal(1, signal.SIGSTOP)
        nodes.go("r0")
        assert nodes.errors_of([0])[0]["code"] == "peer_silent"
        assert nodes.exit_codes([0]) == [11]
        nodes.signal(1, signal.SIGCONT)
        assert nodes.errors_of([1])[1]["code"] == "peer_lost"
        assert nodes.exit_codes([1]) == [10]


def test_devices_that_do_not_divide_the_heads_are_refused_by_number():
    model = load_preset("llama3.1-8b")  # 32 heads, 8 for keys and values
    assert problems(model, 1) == problems(model, 8) == []
    (kv_heads,) = problems(model, 16)
    assert "16 devices do not divide the model's 8 key-value heads" in kv_heads
    heads, _ = problems(model, 3)
    assert "3 devices do not divide the model's 32 attention heads" in heads
    assert len(problems(small_config(), 7)) == 2


def test_load_refuses_before_it_joins():
    folder = shared_checkpoint("gqa2")
    with pytest.raises(ConfigError, match="2 key-value heads"):
        load(make_specs(folder, 4)[0])
    with pytest.raises(ConfigError, match="unknown key 'window'"):
        load(make_specs(folder, 2, options={"window": 2})[0])


def test_one_device_is_plain_transformers():
    folder = shared_checkpoint("tied")
    tokens: list[int] = []
    load(make_specs(folder, 1)[0]).generate(PROMPT_IDS, NEW_TOKENS, tokens.append)
    assert tuple(tokens) == reference_tokens(folder)


def test_interface_is_found_by_address():
    assert interface_of("127.0.0.1") == interface_of("127.0.0.9")
    with pytest.raises(ConfigError, match=r"192\.0\.2\.7.*no interface"):
        interface_of("192.0.2.7")
