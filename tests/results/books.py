"""Books made by hand: a few cells of every kind of evidence, round numbers."""

from pathlib import Path

from results.paper.cell import Cell, Place
from results.paper.cells.result_set import ResultSet
from results.paper.index import Entry
from results.records.schema import RunRecord

GIB = 2.0**30


def cell(place: str, evidence: str = "measured", **fields) -> Cell:
    """`cell("table1 llama2-3b on ttft_s", value=1.0)`."""
    return Cell(Place(*place.split(" ")), evidence, **fields)


def book(
    *cells: Cell,
    scale: str = "small",
    records: dict[str, RunRecord] | None = None,
    entries: tuple[Entry, ...] = (),
    problems: tuple[str, ...] = (),
    folder: Path = Path(),
) -> ResultSet:
    by_place: dict[Place, list[Cell]] = {}
    for each in cells:
        by_place.setdefault(each.place, []).append(each)
    places = {place: tuple(found) for place, found in by_place.items()}
    return ResultSet(scale, places, records or {}, entries, problems, folder)


def every_kind(scale: str = "small") -> ResultSet:
    """Table 1 with one cell of each kind, and of each word."""
    run = {"scale": scale, "run_id": "tpi-1"}
    on, off = "table1 llama2-3b on ", "table1 llama2-3b off "
    return book(
        cell(on + "ttft_s", "reported", value=2.0, source="Table 1"),
        cell(on + "ttft_s", value=1.25, low=1.2, high=1.3, n=3, backend="local", **run),
        cell(on + "ttft_s", "simulated", value=1.5, backend="sim", **run),
        cell(on + "token_latency_s", value=0.5, n=1, backend="docker", dilation=8.0, **run),
        cell(on + "peak_memory_bytes", "computed", value=3 * GIB, source="as published"),
        cell(on + "peak_memory_bytes", "computed", value=GIB / 4, source="ours"),
        cell(off + "token_latency_s", missing_reason="oom", detail="oom: rank 0", **run),
        cell(off + "first_token_s", "reported", value=2.3, detail="includes loading"),
        cell("table1 llama2-70b off token_latency_s", "reported", missing_reason="oom"),
        cell("table1 llama2-70b off token_latency_s", "infeasible", missing_reason="infeasible",
             detail="needs 257 GiB of disk, 80 free", scale=scale),
        cell("table1 yi-34b on token_latency_s", missing_reason="unusable",
             detail="record x: changed", **run),
        scale=scale,
    )  # fmt: skip
