"""The systems that `tpi node` serves, and Galaxy, which is made of its parts: start to end.

All ranks load what stays in memory, fill their windows (in the real run a warm-up request has
left them so), and serve one request. Read `serve`.
"""

import numpy as np

from baselines.galaxy.schedule import GalaxyEngine
from baselines.tpi.schedule import Engine
from testbed.sim.base import SimDevice, SimOutcome, SimRun
from testbed.sim.calibration import Calibration
from testbed.sim.rank_plans import MAPPED_BYTES, RankPlan, plan_ranks
from testbed.sim.timeline import Timeline, to_events
from tpi.options import window_word
from tpi.planner.memory import WindowChoice
from tpi.units import format_bytes

PAGED = "paging is taken as strictly least recently used: every pass reads everything again"


def tensor_parallel(run: SimRun, calibration: Calibration) -> SimOutcome:
    """TPI-LLM, with or without the memory scheduler, and the scheduler alone on one device."""
    _, ranks = plan_ranks(run)
    return serve(run, calibration, Engine(run, calibration, ranks), ranks)


def galaxy(run: SimRun, calibration: Calibration) -> SimOutcome:
    """Tensor and sequence parallelism on rings."""
    plan, ranks = plan_ranks(run)
    overlap = bool(run.options.get("overlap", True))
    engine = GalaxyEngine(run, calibration, ranks, plan, overlap=overlap)
    return serve(run, calibration, engine, ranks)


def serve(
    run: SimRun, calibration: Calibration, engine: Engine, ranks: tuple[RankPlan, ...]
) -> SimOutcome:
    """One start and one request."""
    rss = tuple(rank.choice.peak_bytes for rank in ranks)
    anon = tuple(max(0, peak - MAPPED_BYTES) for peak in rss)
    if reason := out_of_memory(run.devices, anon):
        return SimOutcome((), rss, anon, "oom", reason)
    layers = run.model.num_layers
    engine.costs.swap(anon, [layers * (r.attn + r.ffn) + sum(r.head) for r in ranks])
    kept = np.array([_kept_bytes(rank) for rank in ranks], dtype=np.int64)
    load = engine.costs.read(kept) if kept.any() else kept
    ready = engine.costs.on_cores(calibration.start_s) + load
    go = int(ready.max()) + engine.devices.fill(list(engine.blocks()))
    engine.start_at(go)
    first = engine.mark()
    tokens = tuple(engine.request(run.new_tokens))
    held = resident(run.devices, rss)
    timeline = Timeline(
        ready, go, first, tokens, held, engine.devices.spans,
        prefill_passes=engine.prefill_passes, ready_fields=[_said(rank.choice) for rank in ranks],
    )  # fmt: skip
    return SimOutcome(
        to_events(timeline), held, resident(run.devices, anon), notes=notes_of(run, anon)
    )


def _said(choice: WindowChoice) -> dict[str, object]:
    """As `tpi/program/node.py` says it."""
    return {
        "window": window_word(choice.window),
        "retained": len(choice.retained),
        "predicted_peak_bytes": choice.peak_bytes,
    }


def _kept_bytes(rank: RankPlan) -> int:
    choice = rank.choice
    return choice.retained_bytes + (choice.arena_bytes if choice.window is None else 0)


def notes_of(run: SimRun, anon: tuple[int, ...]) -> tuple[str, ...]:
    """What the model leaves out of this run, in words."""
    found = []
    if any(link.loss_frac for link in run.links):
        found.append("packet loss is not simulated: nothing is sent twice")
    if any(d.memory is not None and n > d.memory for d, n in zip(run.devices, anon, strict=True)):
        found.append(PAGED)
    return tuple(found)


def resident(devices: tuple[SimDevice, ...], peaks: tuple[int, ...]) -> tuple[int, ...]:
    """Of what each rank needs, what is in memory at once: never more than its device has."""
    return tuple(
        peak if device.memory is None else min(peak, device.memory)
        for device, peak in zip(devices, peaks, strict=True)
    )


def out_of_memory(devices: tuple[SimDevice, ...], anon: tuple[int, ...]) -> str:
    """Which rank needs more than its memory and swap, in words; empty if none does."""
    for rank, (device, need) in enumerate(zip(devices, anon, strict=True)):
        if device.memory is not None and need > device.memory + device.swap:
            return (
                f"rank {rank} needs {format_bytes(need)}, its limit is"
                f" {format_bytes(device.memory)} and {format_bytes(device.swap)} of swap"
            )
    return ""
