"""Peak memory of every device against what the planner predicted for it, with real processes."""

import pytest

from tests.benchmarks.test_bench_window import say
from tests.nodes import Nodes, make_specs
from tpi.model_config import load_preset
from tpi.units import format_bytes
from tpi.weights.shard import make_shard_plan
from tpi.weights.split import split
from tpi.weights.synthetic import SyntheticSource

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

MAX_RSS_BEFORE_WEIGHTS = 260 << 20
NEW_TOKENS = 3
# Model, devices, window, distinct layers that are stored, prompt tokens.
COMBINATIONS = (
    ("llama2-7b", 8, 2, 2, 32),
    ("llama2-7b", 8, 4, 2, 32),
    ("llama2-7b", 2, 1, 2, 32),
    ("llama2-3b", 4, 2, 2, 256),
    ("llama3.1-8b", 4, 2, 2, 32),
    ("yi-34b", 8, 2, 1, 32),
    ("tiny", 3, "all", 8, 32),
)


@pytest.mark.parametrize(("model", "devices", "window", "distinct", "prompt"), COMBINATIONS)
def test_peak_is_within_a_tenth_of_the_plan(tmp_path, model, devices, window, distinct, prompt):
    config = load_preset(model)
    source = SyntheticSource(config, dtype="bfloat16", distinct_layers=distinct)
    split(source, make_shard_plan(config, devices), tmp_path / "shards")
    specs = make_specs(
        tmp_path / "shards", new_tokens=NEW_TOKENS, max_tokens=prompt + NEW_TOKENS,
        prompt=range(5, 5 + prompt), window=window,
    )  # fmt: skip
    ranks = range(devices)
    with Nodes(specs, tmp_path) as nodes:
        nodes.wait_for("ready", ranks, timeout_s=300)
        nodes.go("r0")
        nodes.wait_for("end", ranks, timeout_s=600)
        ready = [nodes.events(r, "ready")[0] for r in ranks]
        measured = [nodes.events(r, "counters")[0]["rss_hwm"] for r in ranks]
    say(f"\n{model}, {devices} devices, window {window}, prompt {prompt}: rank predicted measured")
    for rank in ranks:
        predicted = ready[rank]["predicted_peak_bytes"]
        say(
            f"  {rank} {format_bytes(predicted):>9} {format_bytes(measured[rank]):>9} "
            f"{measured[rank] / predicted - 1:+.1%}"
        )
    for rank in ranks:
        assert abs(measured[rank] / ready[rank]["predicted_peak_bytes"] - 1) <= 0.10
        assert ready[rank]["rss_before_weights"] <= MAX_RSS_BEFORE_WEIGHTS
