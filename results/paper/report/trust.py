"""How far the report's numbers can be trusted: simulator, calibration, limits, noise floor."""

from collections.abc import Sequence
from dataclasses import dataclass

from results.paper.cells.result_set import ResultSet, backend_of
from results.paper.cells.validation import Floor, Pair, noise_floors, pairs_of
from results.paper.claims.verdict import in_times
from results.paper.render.cell_format import in_words
from results.paper.render.validation_table import percent, summary
from results.paper.report.limits_summary import LimitSummary, condition_lines, summarise
from results.paper.report.record_facts import Facts, simulator_facts, verifications_of
from results.records.schema import RunRecord
from tpi.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ShownPair:
    """One place, simulated and measured, in words."""

    place: str
    simulated: str
    measured: str
    measured_kind: str
    error: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Pairs of one kind, with the errors of each metric in a line."""

    title: str
    summary: tuple[str, ...]
    pairs: tuple[ShownPair, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the simulator's costs rest on: what it is called, and its figures."""

    num_runs: int
    facts: Facts
    figures: Facts


@dataclass(frozen=True, slots=True)
class HeldLimits:
    """What the testbed measured of itself in one run."""

    run_id: str
    system: str
    backend: str
    limits: tuple[LimitSummary, ...]
    conditions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShownFloor:
    """A run's noise floor in words."""

    run_id: str
    system: str
    what: str
    ratio: str


def comparisons(book: ResultSet) -> tuple[Comparison, ...]:
    """Simulated beside measured: runs that check the simulator, then places of the paper."""
    pairs = pairs_of(book)
    return (
        _comparison(
            "What was measured to check the simulator, which has the costs of the same machine",
            [pair for pair in pairs if pair.is_check],
        ),
        _comparison(
            "Places of the paper's, simulated with the costs that their simulated cells have",
            [pair for pair in pairs if not pair.is_check],
        ),
    )


def _comparison(title: str, pairs: Sequence[Pair]) -> Comparison:
    return Comparison(title, tuple(summary(pairs)), tuple(_pair(pair) for pair in pairs))


def _pair(pair: Pair) -> ShownPair:
    metric, (simulated, measured) = pair.place.metric, (pair.simulated, pair.measured)
    if simulated.value is None or measured.value is None:
        raise ConfigError(f"{metric}: a pair has two values")
    return ShownPair(
        str(pair.place),
        in_words(metric, simulated.value),
        in_words(metric, measured.value),
        "dilated" if measured.dilation != 1 else "measured",
        percent(pair.error),
    )


def calibrations(book: ResultSet) -> list[Calibration]:
    """Each calibration once."""
    counts: dict[Facts, int] = {}
    for record in book.records.values():
        if facts := simulator_facts(record):
            counts[facts] = counts.get(facts, 0) + 1
    return [_calibration(facts, num_runs) for facts, num_runs in counts.items()]


def _calibration(facts: Facts, num_runs: int) -> Calibration:
    named = tuple(fact for fact in facts if not fact[0].startswith("content"))
    figures = tuple(fact for fact in facts if fact[0].startswith("content"))
    return Calibration(num_runs, named, figures)


def held_limits(book: ResultSet) -> list[HeldLimits]:
    """What the testbed measured of its own limits and links, run by run."""
    records = book.records.values()
    return [_held(record) for record in records if backend_of(record) not in ("sim", "")]


def _held(record: RunRecord) -> HeldLimits:
    found = verifications_of(record)
    limits, conditions = tuple(summarise(found)), tuple(condition_lines(found))
    return HeldLimits(record.run_id, record.system, backend_of(record), limits, conditions)


def shown_floors(book: ResultSet) -> list[ShownFloor]:
    """The A/A noise floor of each run: a ratio that nothing but noise makes differ from one."""
    return [_floor(floor) for floor in noise_floors(book)]


def _floor(floor: Floor) -> ShownFloor:
    ratio = floor.reason if floor.ratio is None else in_times(floor.ratio)
    return ShownFloor(floor.record.run_id, floor.record.system, floor.what, ratio)
