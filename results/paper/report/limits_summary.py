"""What a testbed of emulated devices measured of its own limits and links, summed up by kind."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from results.records.testbed_facts import Figure, VerificationReport
from tpi.units import format_bytes, format_seconds

_NAMES = {
    "memory": "memory limit",
    "cpus": "CPU limit",
    "read_bps": "disk reads",
    "write_bps": "disk writes",
    "rtt_s": "round trip",
    "rate_bps": "link rate",
}


@dataclass(frozen=True, slots=True)
class LimitSummary:
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


def summarise(proofs: Sequence[VerificationReport]) -> list[LimitSummary]:
    """One line a kind of probe; none where nothing was probed."""
    by_kind: dict[str, list[Figure]] = {}
    for proof in proofs:
        for probe in proof.figures:
            by_kind.setdefault(probe.what, []).append(probe)
    return [_summary(what, probes) for what, probes in by_kind.items()]


def _summary(what: str, probes: Sequence[Figure]) -> LimitSummary:
    asked = [probe.expected or 0.0 for probe in probes]
    measured = [probe.measured or 0.0 for probe in probes]
    off = [abs(m - a) / a for a, m in zip(asked, measured, strict=True) if a]
    bands = [probe.band / probe.expected for probe in probes if probe.expected]
    return LimitSummary(
        what=what,
        asked=(min(asked), max(asked)),
        measured=(min(measured), max(measured)),
        worst_share=max(off, default=0.0),
        band_share=max(bands, default=0.0),
        count=len(probes),
        failed=sum(probe.verdict != "ok" for probe in probes),
    )


def condition_lines(proofs: Sequence[VerificationReport]) -> Iterator[str]:
    """What else happened on the host during the repeats, at its worst, and what did not hold."""
    found = [each.conditions for each in proofs if each.conditions]
    if found:
        foreign = max(each.foreign_cores for each in found)
        stolen = max(each.steal_cores for each in found)
        resent = max(each.unexplained_retransmissions or 0 for each in found)
        yield f"cores used by other programs: at most {foreign:.3g}"
        yield f"cores stolen by the hypervisor: at most {stolen:.3g}"
        yield f"retransmissions that nothing explains: at most {resent:.3g}"
        yield f"swapped out: at most {format_bytes(max(each.swapped_out for each in found))}"
    if late := [each.late_us.get("p99", 0.0) for each in found if each.late_us]:
        yield f"timers late, 99 of 100: at most {max(late):.0f} µs"
    for proof in proofs:
        yield from (f"did not hold: {problem}" for problem in proof.problems)


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
