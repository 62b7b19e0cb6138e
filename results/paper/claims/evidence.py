"""The cells of one kind of evidence: a rule sees one kind alone, so that kinds are never mixed.

A view refuses cells that say nothing of the paper's size: another model than the paper's, and times
of plain processes without limits. `ratio` has an interval wherever both runs have repeats.
"""

from dataclasses import dataclass, replace

from results.paper.cell import METRICS, Cell, Place
from results.paper.cells.pipeline_shares import devices_of, is_pipeline, pipeline_shares
from results.paper.cells.result_set import ResultSet
from results.paper.cells.substitutions import stand_in
from results.records.schema import RepeatMetrics, Spread
from results.records.stats import ratio_of_means, spread_of_means
from results.records.store import RunStore
from testbed.host.environment import host_fingerprint

Groups = list[list[float]]
_TIMED = ("s", "share")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of evidence; `sources` are those of computed cells that belong to it."""

    name: str
    evidence: str
    sources: tuple[str, ...] = ()

    def has(self, cell: Cell) -> bool:
        """Whether a cell is of this kind."""
        if self.evidence != cell.evidence:
            # What could not be run stands where the number would.
            expected = "simulated" if cell.is_simulated else "measured"
            return cell.evidence == "infeasible" and self.evidence == expected
        return not self.sources or cell.source in self.sources


REPORTED = Kind("reported", "reported")
MEASURED = Kind("measured", "measured")
SIMULATED = Kind("simulated", "simulated")
PUBLISHED = Kind("computed, as published", "computed", ("as published", "published: hops"))
OURS = Kind("computed, ours", "computed", ("ours", "ours: 32 KiB"))
KINDS = (REPORTED, MEASURED, SIMULATED, PUBLISHED, OURS)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a view has for a place: a cell that counts, or the reason why there is none."""

    cell: Cell | None
    reason: str = ""

    @property
    def has_value(self) -> bool:
        """Whether there is a number."""
        return self.cell is not None and self.cell.value is not None

    @property
    def is_oom(self) -> bool:
        """Whether the result is that memory ran out."""
        return self.cell is not None and self.cell.missing_reason == "oom"


@dataclass(frozen=True, slots=True)
class View:
    """The results of one kind of evidence."""

    results: ResultSet
    kind: Kind

    def look(self, place: Place, source: str = "") -> Seen:
        """The cell of a place that counts: a number, or else a reason; of one `source` if given."""
        cells = self._cells(place, source) or self._reasons(place)
        if not cells:
            return Seen(None, "not run" if self.kind in (MEASURED, SIMULATED) else "not given")
        cell = max(
            cells,
            key=lambda c: (c.value is not None, c.missing_reason == "oom", c.backend != "local"),
        )
        if reason := _no_answer(self.results, cell):
            return Seen(None, reason)
        detail = self.results.relative(cell.detail)
        reason = ": ".join(filter(None, (cell.missing_reason, detail)))
        return Seen(cell, "" if cell.value is not None else reason)

    def _cells(self, place: Place, source: str) -> list[Cell]:
        return [c for c in self.results.of(place) if self.kind.has(c) and source in ("", c.source)]

    def _reasons(self, place: Place) -> list[Cell]:
        """Why a run has no number: it says so in a few metrics only."""
        others = (replace(place, metric=metric) for metric in METRICS)
        return [cell for other in others for cell in self._cells(other, "") if cell.missing_reason]

    def rows(self, exhibit: str) -> list[str]:
        """Rows of an exhibit that are numbers, by size, of any kind of evidence."""
        rows = {cell.place.row for cell in self.results.exhibit(exhibit)}
        return sorted((r for r in rows if r.replace(".", "", 1).isdigit()), key=float)

    def value(self, place: Place, source: str = "") -> Spread | None:
        """The number of a place with its interval, if it has one."""
        cell = self.look(place, source).cell
        if cell is None or cell.value is None:
            return None
        groups = samples_of(self.results, cell)
        if groups and len(groups) > 1:
            return spread_of_means(groups)
        return _interval(cell, cell.value)

    def ratio(self, above: Place, below: Place, source: str = "") -> Spread | None:
        """One number over another; None unless both are there, from the same backend."""
        top, bottom = self.look(above, source).cell, self.look(below, source).cell
        if top is None or bottom is None or top.backend != bottom.backend:
            return None
        records = [self.results.records.get(cell.run_id) for cell in (top, bottom)]
        hosts = [record.environment.host for record in records if record is not None]
        # As far as the records say; the simulator has no host.
        if len({host and host_fingerprint(host) for host in hosts}) > 1 and not top.is_simulated:
            return None
        if top.value is None or not bottom.value:
            return None
        groups = samples_of(self.results, top), samples_of(self.results, bottom)
        if groups[0] and groups[1]:
            return ratio_of_means(groups[0], groups[1])
        return _quotient(_interval(top, top.value), _interval(bottom, bottom.value))

    def why_no_ratio(self, *places: Place) -> str:
        """Why two places give no ratio."""
        missing = [(place, self.look(place)) for place in places]
        reasons = [f"{p.column} {seen.reason}" for p, seen in missing if not seen.has_value]
        return ", ".join(reasons) or "measured on different backends or hosts"


def samples_of(results: ResultSet, cell: Cell) -> Groups | None:
    """One group of values a repeat, of a measured time or share; None where a cell has none."""
    record = results.records.get(cell.run_id)
    if record is None or cell.evidence != "measured" or not record.num_ok:
        return None
    devices = devices_of(record) if is_pipeline(cell.place) else None
    repeats = RunStore(results.folder).measured(record)
    groups = [_values(cell.place.metric, repeat, devices) for repeat in repeats]
    return groups if all(groups) else None


def _values(metric: str, repeat: RepeatMetrics, pipeline: int | None) -> list[float]:
    """The values of a metric in one repeat; `pipeline` is the number of its devices."""
    if metric == "token_latency_s":
        return list(repeat.gaps_s)
    if metric == "first_token_s":
        return [repeat.load_s + repeat.ttft_s]
    if metric == "ttft_s":
        return [repeat.ttft_s]
    shares = repeat.time_share
    if pipeline is not None and "compute" in shares:
        shares = pipeline_shares(shares, pipeline)
    share = shares.get(metric.removesuffix("_share"))
    return [] if share is None or not metric.endswith("_share") else [share]


def _no_answer(results: ResultSet, cell: Cell) -> str:
    if cell.missing_reason in ("not run", "unusable") or cell.evidence == "infeasible":
        return ""
    if METRICS[cell.place.metric] in _TIMED and cell.backend == "local":
        return stand_in(results, cell) or "ran as plain processes, which no limit of a device held"
    return stand_in(results, cell)


def _interval(cell: Cell, value: float) -> Spread:
    low = value if cell.low is None else cell.low
    high = value if cell.high is None else cell.high
    # A simulator's answer is always the same, so that its repeats say nothing.
    return Spread(value, low, high, cell.n if cell.evidence == "measured" else 0)


def _quotient(above: Spread, below: Spread) -> Spread:
    """As wide as both intervals allow, since nothing is known of how they go together."""
    low = above.low / below.high
    high = above.high / below.low if below.low > 0 else float("inf")
    return Spread(above.median / below.median, low, high, min(above.n, below.n))
