"""How far the report's numbers can be trusted: simulator, calibration, limits."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from results.paper.cells.result_set import ResultSet
from results.paper.cells.validation import Pair, pairs_of
from results.paper.render.validation_table import summary
from results.paper.report.runs import Facts
from results.records.schema import RunRecord
from results.records.testbed_facts import VerificationReport
from testbed.verify.tolerances import Figure
from tpi.units import format_bytes, format_seconds

_LIMITS = {
    "memory": "memory limit",
    "cpus": "CPU limit",
    "read_bps": "disk reads",
    "write_bps": "disk writes",
    "rtt_s": "round trip",
    "rate_bps": "link rate",
}


class Comparison(NamedTuple):
    """Pairs of one kind, with the errors of each metric in a line."""

    title: str
    summary: tuple[str, ...]
    pairs: tuple[Pair, ...]


class Calibration(NamedTuple):
    """The simulator's costs: what the calibration is called, and its figures."""

    num_runs: int
    facts: Facts
    figures: Facts


class HeldLimits(NamedTuple):
    """What the testbed measured of its own limits and links in one run."""

    record: RunRecord
    limits: list[tuple[str, ...]]
    conditions: list[str]


def comparisons(results: ResultSet) -> Iterator[Comparison]:
    """Simulated beside measured: runs that check the simulator, then places of the paper."""
    found = pairs_of(results)
    for title, is_check in (
        ("What was measured to check the simulator, which has the costs of the same machine", True),
        ("Places of the paper's, simulated with the costs that their simulated cells have", False),
    ):
        pairs = tuple(pair for pair in found if pair.is_check == is_check)
        yield Comparison(title, tuple(summary(pairs)), pairs)


def calibrations(results: ResultSet) -> Iterator[Calibration]:
    """Each calibration once."""
    counts: dict[Facts, int] = {}
    for record in results.records.values():
        if facts := simulator_facts(record):
            counts[facts] = counts.get(facts, 0) + 1
    for facts, num_runs in counts.items():
        figures = tuple(fact for fact in facts if fact[0].startswith("content"))
        yield Calibration(num_runs, tuple(f for f in facts if f not in figures), figures)


def simulator_facts(record: RunRecord) -> Facts:
    """Every number and word of the calibration behind a simulated run; empty for any other."""
    simulator = record.calibration.simulator
    return () if simulator is None else tuple(_flattened(msgspec.to_builtins(simulator)))


def _flattened(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Every number and text in nested objects and lists, by its path."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flattened(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _flattened(each, f"{name}[{index}]")
    else:
        yield name, str(value)


def held_limits(results: ResultSet) -> Iterator[HeldLimits]:
    """What the testbed measured of itself, run by run."""
    for record in results.records.values():
        if record.config.testbed.backend not in ("sim", ""):
            proofs = record.calibration.proofs
            yield HeldLimits(record, limit_rows(proofs), list(condition_lines(proofs)))


def limit_rows(proofs: Sequence[VerificationReport]) -> list[tuple[str, ...]]:
    """One row for each kind of probe, with the dilated values that were probed."""
    by_kind: dict[str, list[Figure]] = {}
    for proof in proofs:
        for probe in proof.figures:
            by_kind.setdefault(probe.what, []).append(probe)
    return [_limit_row(what, probes) for what, probes in by_kind.items()]


def _limit_row(what: str, probes: Sequence[Figure]) -> tuple[str, ...]:
    asked = [probe.expected or 0.0 for probe in probes]
    measured = [probe.measured or 0.0 for probe in probes]
    off = [abs(m - a) / a for a, m in zip(asked, measured, strict=True) if a]
    bands = [probe.band / probe.expected for probe in probes if probe.expected]
    return (
        _LIMITS.get(what, what),
        _range(what, asked),
        _range(what, measured),
        f"{100 * max(off, default=0.0):.1f} %",
        f"{100 * max(bands, default=0.0):.0f} %",
        str(len(probes)),
        str(sum(probe.verdict != "ok" for probe in probes)),
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


def _range(what: str, values: Sequence[float]) -> str:
    low, high = _in_words(what, min(values)), _in_words(what, max(values))
    return low if low == high else f"{low} to {high}"


def _in_words(what: str, value: float) -> str:
    if what == "rtt_s":
        return format_seconds(value)
    if what == "memory":
        return format_bytes(value)
    if what == "rate_bps":
        return f"{value / 1e6:.4g} Mbit/s"
    return f"{value / 1e6:.4g} MB/s" if what.endswith("_bps") else f"{value:.3g}"
