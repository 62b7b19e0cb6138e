"""Real processes give Transformers' tokens too, stay small, and import only what they need."""

import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.checkpoints import (
    NEW_TOKENS,
    PROMPT_IDS,
    make_checkpoint,
    reference_logits,
    reference_tokens,
)
from tests.nodes import Nodes, make_specs, split_checkpoint
from tpi.comm.broadcast import StepBroadcast
from tpi.comm.deadlines import Deadlines
from tpi.comm.join import join
from tpi.comm.transport import Recv, Send
from tpi.comm.wire import Expect, FrameHeader, FrameType, Op, WireDtype
from tpi.errors import TpiError
from tpi.program.node import tpi_setup
from tpi.ranks import Ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
MAX_RSS_BEFORE_WEIGHTS = 260 << 20


def generate(shards, tmp_path, **options):
    """Tokens and events of one request on real nodes."""
    max_tokens = len(PROMPT_IDS) + NEW_TOKENS
    specs = make_specs(
        shards, new_tokens=NEW_TOKENS, max_tokens=max_tokens, prompt=PROMPT_IDS, **options
    )
    with Nodes(specs, tmp_path) as nodes:
        nodes.wait_for("ready", ranks=range(len(specs)))
        nodes.go("r0")
        nodes.wait_for("end", ranks=range(len(specs)))
        assert nodes.exit_codes(range(len(specs))) == [0] * len(specs)
        return nodes


@pytest.mark.parametrize(
    ("kind", "world_size", "shares", "options"),
    [
        ("mha", 1, None, {"window": 2}),
        ("gqa2", 3, None, {"window": 1}),
        ("tied", 2, None, {"window": "all"}),
        ("llama3_rope", 4, None, {"window": 2, "allreduce": "ring"}),
        ("bias", 2, (3, 1), {"window": 4, "allreduce": "direct"}),
        ("qk_norm", 5, (1, 2, 0, 3, 1), {"window": 2, "allreduce": "tree"}),
    ],
)
def test_tokens_are_those_of_transformers(tmp_path, kind, world_size, shares, options):
    shards = split_checkpoint(tmp_path / "model", kind, world_size, shares)
    nodes = generate(shards, tmp_path, **options)
    assert nodes.tokens() == list(reference_tokens(tmp_path / "model" / "checkpoint"))
    for rank in range(world_size):
        (ready,) = nodes.events(rank, "ready")
        assert ready["rss_before_weights"] <= MAX_RSS_BEFORE_WEIGHTS
        (counters,) = nodes.events(rank, "counters")
        assert counters["steps"] == NEW_TOKENS
        if options["window"] == "all":
            assert counters["disk_bytes_decode"] <= NEW_TOKENS * 8192


def test_star_sends_what_its_closed_form_says(tmp_path):
    shards = split_checkpoint(tmp_path / "model", "mha", 3)
    nodes = generate(shards, tmp_path)
    layers, payload = 3, 80 + 4 * 256
    for rank in range(3):
        (counters,) = nodes.events(rank, "counters")
        # The master: one broadcast and 2 L - 1 sums, each to both workers; a worker: 2 L parts.
        per_token = 2 * (1 + 2 * layers - 1) if rank == 0 else 2 * layers
        assert counters["messages_sent_decode"] == per_token * (NEW_TOKENS - 1)
        assert counters["wire_bytes_sent_decode"] == per_token * payload * (NEW_TOKENS - 1)


def test_stop_token_ends_the_request(tmp_path):
    shards = split_checkpoint(tmp_path / "model", "mha", 2)
    expected = list(reference_tokens(tmp_path / "model" / "checkpoint"))
    stop = expected[5]
    specs = make_specs(
        shards, new_tokens=NEW_TOKENS, max_tokens=80, prompt=PROMPT_IDS, stop_ids=[stop]
    )
    with Nodes(specs, tmp_path) as nodes:
        nodes.wait_for("ready", ranks=range(2))
        nodes.go("r0")
        nodes.wait_for("end", ranks=range(2))
        assert nodes.tokens() == expected[: expected.index(stop) + 1]


def test_no_tpi_process_imports_transformers():
    code = (
        "import sys, tpi.program.node, tpi.cli, tpi.launch\n"
        "bad = {'transformers', 'accelerate', 'hydra', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_tpi(*args):
    return subprocess.run(
        [sys.executable, "-m", "tpi.cli", *map(str, args)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_split_and_generate_from_the_command_line(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint", "gqa2")
    done = run_tpi("split", folder, "--devices", 2, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    ids = ",".join(map(str, PROMPT_IDS))
    done = run_tpi(
        "generate", tmp_path / "out", "--prompt-tokens", ids, "--new-tokens", 32, "--ignore-eos"
    )
    assert done.returncode == 0, done.stderr
    assert [int(t) for t in done.stdout.split()] == list(reference_tokens(folder))
    assert "TTFT" in done.stderr
    assert "peak memory per device" in done.stderr


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["split", "nowhere", "--devices", "2", "--out", "x"], "neither a folder nor a preset"),
        (["split", "tiny", "--devices", "0", "--out", "x"], "--devices"),
        (["generate", "nowhere", "--prompt", "x"], "nowhere"),
        (["generate", "nowhere"], "--prompt"),
        (["generate", "x", "--prompt", "x", "--window", "0"], "--window"),
        (["generate", "x", "--prompt", "x", "--temperature", "nan"], "--temperature"),
        (["plan", "--model", "tiny", "--devices", "2", "--times", "nan,1,1,1,1"], "--times"),
        (["node", "nowhere.json"], "nowhere.json"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_command_lines_are_one_line_and_status_2(args, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_tpi(*args)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert word in done.stderr


def test_bfloat16_wire_and_compute_stay_near(tmp_path):
    shards = split_checkpoint(tmp_path / "model", "bfloat16", 2)
    nodes = generate(shards, tmp_path, dtype="bfloat16", wire_dtype="bfloat16")
    tokens = nodes.tokens()
    folder = tmp_path / "model" / "checkpoint"
    ids = [*PROMPT_IDS, *tokens[:-1]]
    logits_SV = reference_logits(folder, ids)[len(PROMPT_IDS) - 1 :]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        rounded_SV = model(torch.tensor([ids])).logits[0, len(PROMPT_IDS) - 1 :].float()
    allowed = 2 * float((rounded_SV - logits_SV).abs().max())
    assert len(tokens) == NEW_TOKENS
    assert max(shortfalls(logits_SV, tokens)) <= allowed
    # The bound means something: the same tokens in another order break it nearly everywhere.
    moved = shortfalls(logits_SV, tokens[1:] + tokens[:1])
    assert sum(s > allowed for s in moved) > NEW_TOKENS // 2


def shortfalls(logits_SV, tokens):
    """How far the logit of each token lies below the largest of its position."""
    own_S = logits_SV.gather(1, torch.tensor(tokens).view(-1, 1))[:, 0]
    return (logits_SV.max(dim=1).values - own_S).tolist()


def fake_worker(spec, field, errors):
    """Join as the rank of `spec`, wait for the first step and answer it with a wrong frame."""
    count = len(PROMPT_IDS) * 256
    right = FrameHeader(
        FrameType.TENSOR, op=Op.ATTN, dtype=WireDtype.FLOAT32, shape=(count,),
        payload_bytes=4 * count,
    )  # fmt: skip
    changes: dict[str, dict[str, Any]] = {
        "step": {"step": 3},
        "layer": {"layer": 2},
        "op": {"op": Op.FFN},
        "shape": {"shape": (count // 2, 2)},
        "start": {"start": 1},
    }
    wrong = replace(right, **changes[field])
    try:
        with join(
            Ranks(spec.rank, spec.world_size), bind=spec.bind, master=spec.master,
            session=bytes.fromhex(spec.session),
            fingerprint=tpi_setup(spec).fingerprint,
            deadlines=Deadlines(), peer_links=False,
        ) as mesh:  # fmt: skip
            StepBroadcast(mesh, count, 256).receive(0)
            answer = Recv(0, Expect(right), memoryview(bytearray(4 * count)))
            mesh.transfer([Send(0, wrong, memoryview(bytes(4 * count)))], [answer])
    except TpiError as exc:
        errors.append(exc)


@pytest.mark.parametrize("field", ["step", "layer", "op", "shape", "start"])
def test_frame_that_does_not_fit_the_plan_ends_every_rank(tmp_path, field):
    shards = split_checkpoint(tmp_path / "model", "mha", 3)
    specs = make_specs(shards, new_tokens=4, max_tokens=40, prompt=PROMPT_IDS)
    told: list[TpiError] = []
    worker = threading.Thread(target=fake_worker, args=(specs[2], field, told), daemon=True)
    with Nodes(specs[:2], tmp_path) as nodes:
        worker.start()
        nodes.wait_for("ready", ranks=range(2))
        nodes.go("r0")
        for error in nodes.errors_of(range(2)).values():
            assert error["code"] == "protocol"
            assert f"rank 2: {field}: expected" in error["message"]
        assert nodes.exit_codes(range(2)) == [12, 12]
        worker.join(20)
    assert [error.code for error in told] == ["protocol"]
