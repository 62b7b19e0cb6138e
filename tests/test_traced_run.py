"""Real nodes write their spans: within the request, one after another, and as the counters say."""

from itertools import pairwise

import pytest
from msgspec.structs import replace

from results.paper.render.window_history import window_history
from results.records.schema import PeakMemory, Repeat
from results.records.trace_file import trace_events
from tests.nodes import PROMPT, Nodes, make_specs, split_checkpoint
from tests.results.examples import steps_of
from tpi.program.events import check_event
from tpi.program.spec import Request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
COUNTED = {"compute": "compute_s", "allreduce": "allreduce_s", "wait": "wait_weights_s"}
NEW_TOKENS = 6


def serve(tmp_path, **options):
    """Two traced nodes after a warm-up and a measured request."""
    shards = split_checkpoint(tmp_path / "model", "mha", 2)
    specs = [
        replace(
            spec,
            keep_spans=True,
            requests=(
                Request("w", 2, tuple(PROMPT[:8]) if spec.rank == 0 else None, warmup=True),
                *spec.requests,
            ),
        )
        for spec in make_specs(shards, new_tokens=NEW_TOKENS, max_tokens=32, **options)
    ]
    with Nodes(specs, tmp_path) as nodes:
        nodes.wait_for("ready", ranks=[0, 1])
        nodes.go("w")
        nodes.wait_for("end", ranks=[0, 1])
        nodes.go("r0")
        assert nodes.exit_codes([0, 1]) == [0, 0]
        nodes.wait_for("end", ranks=[0, 1], times=2)
        return nodes


@pytest.mark.parametrize("window", [2, "all"])
def test_spans_of_each_rank_lie_in_the_request_and_agree_with_its_counters(tmp_path, window):
    nodes = serve(tmp_path, window=window)
    (request,) = [e for e in nodes.events(0, "request") if e["id"] == "r0"]
    for rank in (0, 1):
        said = nodes.events(rank, "spans")
        assert {(e["id"], e["rank"]) for e in said} == {("r0", rank)}
        rows = [row for e in said for row in e["spans"]]
        names = {"compute", "allreduce"} | ({"load", "wait"} if window == 2 else set())
        assert names - {"wait"} <= {row[0] for row in rows} <= names
        own = sorted(row[1:] for row in rows if row[0] != "load")
        assert request["t_ns"] < own[0][0]
        assert own[-1][1] < said[0]["t_ns"]
        assert all(before[1] <= after[0] for before, after in pairwise(own))
        counters = nodes.events(rank, "counters")[-1]
        for name, counted in COUNTED.items():
            total_s = sum(end - start for what, start, end, _ in rows if what == name) / 1e9
            assert total_s == pytest.approx(counters[counted], rel=0.01, abs=1e-6)


def test_every_block_is_computed_once_a_step_and_loaded_before(tmp_path):
    nodes = serve(tmp_path, window=2)
    rows = [row for e in nodes.events(1, "spans") for row in e["spans"]]
    computed = [label for name, _, _, label in rows if name == "compute"]
    blocks = list(dict.fromkeys(computed))
    assert blocks[:4] == ["attn.0", "ffn.0", "attn.1", "ffn.1"]
    assert computed == blocks * NEW_TOKENS
    summed = [label for name, _, _, label in rows if name == "allreduce"]
    assert summed == computed
    for label in blocks:
        loads = [span[1:3] for span in rows if (span[0], span[3]) == ("load", label)]
        computes = [span[1:3] for span in rows if (span[0], span[3]) == ("compute", label)]
        for (_, released), (begun, _) in pairwise(computes):
            assert sum(released < start and end < begun for start, end in loads) == 1


def test_window_never_holds_more_than_it_may_and_every_block_passes_through(tmp_path):
    nodes = serve(tmp_path, window=2)
    events = [
        check_event(said, rank)
        for rank in (0, 1)
        for name in ("ready", "request", "token", "spans", "end")
        for said in nodes.events(rank, name)
    ]
    repeat = Repeat(0, "r0", "ok", "", (0, 0), PeakMemory(), tuple(events))
    for rank in (0, 1):
        steps = steps_of(window_history(repeat, rank))
        sizes = [len(labels) for _, labels in steps]
        assert max(sizes) == 2
        blocks = {e["label"] for e in labelled(nodes, rank)}
        assert {label for _, labels in steps for label in labels} == blocks
        arrivals = sum(len({*b} - {*a}) for (_, a), (_, b) in pairwise([(0, ()), *steps]))
        assert NEW_TOKENS * len(blocks) <= arrivals <= NEW_TOKENS * len(blocks) + 2
    bars = [e for e in trace_events(repeat, "tpi") if e["ph"] == "X"]
    assert len(bars) == sum(len(labelled(nodes, rank)) for rank in (0, 1))


def labelled(nodes, rank):
    """A rank's spans that reach into the request."""
    (go_ns,) = [e["t_ns"] for e in nodes.events(0, "request") if e["id"] == "r0"]
    rows = [row for e in nodes.events(rank, "spans") for row in e["spans"]]
    return [{"name": row[0], "label": row[3]} for row in rows if row[2] >= go_ns]
