"""Computing and communicating shares of a pipeline, whose devices work one at a time.

A run record has the shares of a mean device, which counts waiting for the others as communicating.
In the whole pipeline N devices compute N mean shares of the time; the rest is communication.
"""

from collections.abc import Mapping
from dataclasses import replace

from results.paper.cell import Cell, Place
from results.paper.cells.result_set import ResultSet
from results.records.schema import RunRecord

NOTE = (
    "one device computes at a time: computation is that of all {n} devices, communication the time"
    " in which none computes"
)
_NO_COUNT = "the record does not say how many devices ran, so no share of the pipeline follows"
_SHARES = ("compute_share", "allreduce_share")


def pipeline_shares(time_share: Mapping[str, float], devices: int) -> dict[str, float]:
    """The shares of a whole pipeline from those of its mean device."""
    compute = min(1.0, devices * time_share["compute"])
    return {**time_share, "compute": compute, "allreduce": max(0.0, 1.0 - compute)}


def is_pipeline(place: Place) -> bool:
    """Whether a share of a whole pipeline stands there."""
    return (place.exhibit, place.row) == ("figure1b", "pipeline") and place.metric in _SHARES


def devices_of(record: RunRecord) -> int | None:
    """How many devices ran; None where the record does not say."""
    return len(record.config.predicted_peak_bytes) or record.config.devices or None


def of_pipelines(results: ResultSet) -> ResultSet:
    """The same results, with the shares of all devices of a pipeline together."""
    cells = dict(results.cells)
    for place, found in results.cells.items():
        if is_pipeline(place):
            cells[place] = tuple(_of_all(results, cell) for cell in found)
    return replace(results, cells=cells)


def _of_all(results: ResultSet, cell: Cell) -> Cell:
    record = results.records.get(cell.run_id)
    if cell.value is None or record is None or record.metrics is None:
        return cell
    devices = devices_of(record)
    if devices is None:
        absent = replace(cell, value=None, low=None, high=None, n=0, missing_reason="unusable")
        return replace(absent, detail=_NO_COUNT)
    shares = pipeline_shares(record.metrics.time_share, devices)
    value = shares[cell.place.metric.removesuffix("_share")]
    detail = "; ".join(part for part in (NOTE.format(n=devices), cell.detail) if part)
    return replace(cell, value=value, low=value, high=value, detail=detail)
