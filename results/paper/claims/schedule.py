"""Rules of the claims about what a device does: loads that hide, shares of time, the same tokens.

Every rule takes a `View` of one kind of evidence and gives `Item`s.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from results.paper.cell import Place
from results.paper.claims.evidence import MEASURED, REPORTED, View
from results.paper.claims.speed import on_and_off
from results.paper.claims.stalls import predict, predict_run
from results.paper.claims.verdict import (
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    Item,
    at_least,
    at_most,
    in_percent,
    in_times,
    item_of,
    percent,
    point,
    repeats,
)
from results.paper.render.layouts import label_of
from results.records.notes import plain
from results.records.schema import RunRecord, Spread
from results.records.store import RunStore
from tpi.model_config import load_preset
from tpi.planner.propositions import LayerTimes

# Section 3.3: Llama 2-7B on four laptops, a quarter each, window 4.
PAPER_TIMES = LayerTimes(
    attn_s=0.011, ffn_s=0.017, allreduce_s=0.014, attn_load_s=0.018, ffn_load_s=0.030
)
_PAPER_MODEL, _PAPER_WINDOW = "llama2-7b", 4


def loads_hide(view: View, rows: Sequence[str], bound: float) -> list[Item]:
    """Whether devices wait for weights at most `bound` of the time, with the scheduler.

    The paper gives no such share. There: whether latency is at most `bound` above that without the
    scheduler, which is what hidden loads would mean.
    """
    if view.kind == REPORTED:
        # The paper's own times meet its conditions; without a run this decides nothing.
        layers = load_preset(_PAPER_MODEL).num_layers
        figure = f"by its times: {predict(PAPER_TIMES, layers, _PAPER_WINDOW)}"
        label = f"section 3.3, {label_of(_PAPER_MODEL)}, window {_PAPER_WINDOW}"
        return [*(_costs_nothing(view, row, bound) for row in rows), Item(label, figure=figure)]
    return [_waits(view, row, bound) for row in rows]


def waiting_place(row: str) -> Place:
    """Where the share of the time that is spent waiting for weights stands."""
    return Place("table1", row, "on", "wait_weights_share")


def _waits(view: View, row: str, bound: float) -> Item:
    def figure(value: Spread) -> str:
        text = f"waits {in_percent(value)} of the time{repeats(value)}"
        predicted = _prediction(view, row)
        return f"{text}; {predicted}" if predicted else text

    place = waiting_place(row)
    return item_of(
        label_of(row),
        view.value(place),
        partial(at_most, bound=bound),
        figure,
        view.look(place).reason,
        percent(bound),
    )


def _prediction(view: View, row: str) -> str:
    cell = view.look(waiting_place(row)).cell
    record = view.results.records.get(cell.run_id) if cell is not None else None
    if record is None:
        return ""
    found = predict_run(record, RunStore(view.results.folder).repeats(record))
    return f"no prediction: {found}" if isinstance(found, str) else str(found)


def _costs_nothing(view: View, row: str, bound: float) -> Item:
    on, off = on_and_off(row)
    if view.look(off).is_oom:
        return Item(label_of(row), reason="does not fit without the scheduler")
    return item_of(
        label_of(row),
        view.ratio(on, off),
        partial(at_most, bound=1 + bound),
        lambda ratio: f"{in_times(ratio)} the latency without the scheduler",
        view.why_no_ratio(on, off),
    )


def shares_of_time(view: View, most: float, least: float) -> list[Item]:
    """Whether communication is at most a share of model parallelism, at least one of tensor's."""
    parts = (("pipeline", "model", at_most, most), ("tpi", "tensor", at_least, least))
    return [_share(view, *part) for part in parts]


def _share(
    view: View, row: str, name: str, rule: Callable[[Spread, float], str], bound: float
) -> Item:
    # The paper's and a run's column of figure 1b differ.
    column = "communication" if view.kind == REPORTED else "run"
    place = Place("figure1b", row, column, "allreduce_share")
    return item_of(
        f"{name} parallelism",
        view.value(place),
        lambda value: rule(value, bound),
        lambda value: f"communication {in_percent(value)}{repeats(value)}",
        view.look(place).reason,
        percent(bound),
    )


def same_tokens(view: View) -> list[Item]:
    """Whether every run of TPI-LLM, of any size, gave the tokens of the reference."""
    if view.kind != MEASURED:
        return [Item("tokens", UNDECIDED, reason="no token was computed")]
    found = (
        view.results.record_of(entry) for entry in view.results.entries if entry.system == "tpi"
    )
    records = list({record.run_id: record for record in found if record is not None}.values())
    checked = [record for record in records if record.check.kind != "none"]
    if not checked:
        return [Item("tokens", UNDECIDED, reason="no run with a check of its tokens")]
    return [replace(_tokens(record), model=record.config.model.name) for record in checked]


def _tokens(record: RunRecord) -> Item:
    check = record.check
    label = f"{record.config.model.name or record.system}, {record.run_id}"
    detail = plain(check.detail)
    agreement = check.agreement
    figure = f"check {check.kind}"
    if agreement is not None:
        figure += f", {in_percent(point(agreement))} of the tokens agree"
    if check.kind.endswith("bounded"):
        return Item(label, "", figure, "16-bit tokens cannot be compared for equality")
    if check.passed is None:
        return Item(label, UNDECIDED, reason=detail or "the check gave no verdict")
    if not check.passed:
        return Item(label, NOT_REPRODUCED, figure, detail)
    if check.kind.startswith("two_layer"):
        return Item(label, "", figure, "two layers of the shape only")
    return Item(label, REPRODUCED, figure)
