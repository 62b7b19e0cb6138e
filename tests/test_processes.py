"""Real processes give Transformers' tokens too, stay small, and import only what they need."""

import subprocess
import sys

import pytest

from tests.checkpoints import NEW_TOKENS, PROMPT_IDS, make_checkpoint, reference_tokens
from tests.nodes import Nodes, make_specs, split_checkpoint
from tpi.weights.checkpoint import open_checkpoint
from tpi.weights.shard import make_shard_plan
from tpi.weights.split import split

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
        "import sys, tpi.node, tpi.cli, tpi.launch\n"
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
    folder = make_checkpoint(tmp_path / "checkpoint", "gqa2")
    source = open_checkpoint(folder)
    split(source, make_shard_plan(source.config, 2), tmp_path / "out")
    done = generate(tmp_path / "out", tmp_path, wire_dtype="bfloat16")
    agree = sum(a == b for a, b in zip(done.tokens(), reference_tokens(folder), strict=True))
    assert agree >= 1  # the first token at least; rounding may turn any later one
