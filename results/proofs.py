"""What a testbed of emulated devices measured of its own limits and links, summed up by kind. Pure.

A record keeps, for each repeat, what was probed before and after it and the conditions between.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from results.marks import plain
from results.schema import RunRecord
from results.testbed_facts import Figure
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
    by_kind: dict[str, list[Figure]] = {}
    for proof in record.calibration.proofs:
        for figure in proof.figures:
            by_kind.setdefault(figure.what, []).append(figure)
    return [_proven(what, figures) for what, figures in by_kind.items()]


def _proven(what: str, figures: Sequence[Figure]) -> Proven:
    asked = [figure.expected or 0.0 for figure in figures]
    measured = [figure.measured or 0.0 for figure in figures]
    off = [abs(m - a) / a for a, m in zip(asked, measured, strict=True) if a]
    bands = [figure.band / a for figure, a in zip(figures, asked, strict=True) if a]
    return Proven(
        what=what,
        asked=(min(asked), max(asked)),
        measured=(min(measured), max(measured)),
        worst_share=max(off, default=0.0),
        band_share=max(bands, default=0.0),
        count=len(figures),
        failed=sum(figure.verdict != "ok" for figure in figures),
    )


def conditions_of(record: RunRecord) -> list[str]:
    """What else happened on the host during the repeats, at its worst, and what did not hold."""
    proofs = record.calibration.proofs
    conditions = [proof.conditions for proof in proofs if proof.conditions is not None]
    lines = [
        f"{words}: at most {max(getattr(each, name) or 0.0 for each in conditions):.3g}"
        for name, words in _CONDITIONS.items()
        if conditions
    ]
    if late := [each.late_us for each in conditions if each.late_us is not None]:
        worst_us = max(each.get("p99", 0.0) for each in late)
        lines.append(f"timers late, 99 of 100: at most {worst_us:.0f} µs")
    problems = [problem for proof in proofs for problem in proof.problems]
    return [*lines, *(f"did not hold: {plain(problem)}" for problem in problems)]


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
