"""What a testbed of emulated devices measured of its own limits and links, summed up by kind. Pure.

A record keeps, for each repeat, what was probed before and after it and the conditions between:
`calibration.proofs[i].before.figures`, `.after.figures`, `.conditions`. Read `proven_of` first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from results.marks import plain
from results.schema import RunRecord
from tpi.units import format_bytes, format_seconds

_NAMES = {
    "memory": "memory limit",
    "cpus": "CPU limit",
    "read_bps": "disk reads",
    "write_bps": "disk writes",
    "rtt_s": "round trip",
    "rate_bps": "link rate",
}
# Of the conditions of a repeat: its name, and what its largest value over repeats is called.
_CONDITIONS = {
    "foreign_cores": "cores used by other programs",
    "steal_cores": "cores stolen by the hypervisor",
    "unexplained_retransmissions": "retransmissions that nothing explains",
    "swapped_out": "pages swapped out",
}


@dataclass(frozen=True, slots=True)
class Proven:
    """All probes of one kind in a run; times and rates are the dilated ones that were probed."""

    what: str
    asked: tuple[float, float]
    measured: tuple[float, float]
    worst_share: float
    band_share: float
    count: int
    failed: int

    @property
    def cells(self) -> tuple[str, ...]:
        """As a row of a table."""
        return (
            _NAMES.get(self.what, self.what),
            _range(self.what, self.asked),
            _range(self.what, self.measured),
            f"{100 * self.worst_share:.1f} %",
            f"{100 * self.band_share:.0f} %",
            str(self.count),
            str(self.failed),
        )


def proven_of(record: RunRecord) -> list[Proven]:
    """One line a kind of probe; none where nothing was probed."""
    by_kind: dict[str, list[Mapping[str, object]]] = {}
    for figure in _figures(record):
        by_kind.setdefault(str(figure.get("what")), []).append(figure)
    return [_proven(what, figures) for what, figures in by_kind.items()]


def _figures(record: RunRecord) -> Iterator[Mapping[str, object]]:
    for proof in _proofs(record):
        for when in ("before", "after"):
            part = proof.get(when)
            figures = part.get("figures") if isinstance(part, Mapping) else None
            for figure in figures if isinstance(figures, list) else ():
                if isinstance(figure, Mapping) and "measured" in figure and "expected" in figure:
                    yield figure


def _proofs(record: RunRecord) -> list[Mapping[str, object]]:
    proofs = record.calibration.get("proofs")
    return [p for p in proofs if isinstance(p, Mapping)] if isinstance(proofs, list) else []


def _proven(what: str, figures: list[Mapping[str, object]]) -> Proven:
    asked = [_number(figure, "expected") for figure in figures]
    measured = [_number(figure, "measured") for figure in figures]
    off = [abs(m - a) / a for a, m in zip(asked, measured, strict=True) if a]
    bands = [_number(figure, "band") / a for figure, a in zip(figures, asked, strict=True) if a]
    return Proven(
        what=what,
        asked=(min(asked), max(asked)),
        measured=(min(measured), max(measured)),
        worst_share=max(off, default=0.0),
        band_share=max(bands, default=0.0),
        count=len(figures),
        failed=sum(figure.get("verdict") != "ok" for figure in figures),
    )


def conditions_of(record: RunRecord) -> list[str]:
    """What else happened on the host during the repeats, at its worst, and what did not hold."""
    conditions = [
        each for proof in _proofs(record) if isinstance(each := proof.get("conditions"), Mapping)
    ]
    lines = [
        f"{words}: at most {max(_number(each, name) for each in conditions):.3g}"
        for name, words in _CONDITIONS.items()
        if conditions
    ]
    late = [each["late_us"] for each in conditions if isinstance(each.get("late_us"), Mapping)]
    if late:
        lines.append(
            f"timers late, 99 of 100: at most {max(_number(e, 'p99') for e in late):.0f} µs"
        )
    problems = [str(p) for proof in _proofs(record) for p in _list(proof.get("problems"))]
    return [*lines, *(f"did not hold: {plain(problem)}" for problem in problems)]


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _number(values: Mapping[str, object], name: str) -> float:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _range(what: str, values: tuple[float, float]) -> str:
    low, high = (_in_words(what, value) for value in values)
    return low if low == high else f"{low} to {high}"


def _in_words(what: str, value: float) -> str:
    if what == "rtt_s":
        return format_seconds(value)
    if what == "memory":
        return format_bytes(value)
    if what == "rate_bps":
        return f"{value / 1e6:.4g} Mbit/s"
    return f"{value / 1e6:.4g} MB/s" if what.endswith("_bps") else f"{value:.3g}"
