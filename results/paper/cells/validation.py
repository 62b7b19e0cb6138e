"""How far numbers can be trusted: simulated beside measured, and a run beside itself.

A pair is one place that was both simulated and measured with the same model. Pairs of `VALIDATION`
are simulated with the costs of the machine that measured them, so they check the simulator. The
noise floor of a run is the ratio of the two halves of its repeats, or of a run and the one before
it in the same configuration: they differ by noise alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from results.paper.cell import METRICS, VALIDATION, Cell, Place
from results.paper.cells.result_set import ResultSet
from results.paper.cells.substitutions import stand_in
from results.records.hashing import split_run_id
from results.records.schema import RecordError, RunRecord, Spread
from results.records.stats import ratio_of_means
from results.records.store import RunStore

PAIRED = ("ttft_s", "token_latency_s", "peak_memory_bytes")
MIN_REPEATS = 4  # two halves of two


@dataclass(frozen=True, slots=True)
class Pair:
    """One place, simulated and measured."""

    place: Place
    simulated: Cell
    measured: Cell
    error: float  # simulated over measured, less one
    is_check: bool  # whether it was measured to check the simulator, which had that machine's costs


@dataclass(frozen=True, slots=True)
class Floor:
    """A run's noise floor; `ratio` is None where it is not known, and `reason` says why."""

    record: RunRecord
    what: str
    ratio: Spread | None
    reason: str = ""


def pairs_of(results: ResultSet) -> list[Pair]:
    """Every pair by its place; each run behind it once for each metric."""
    found: dict[tuple[str, ...], Pair] = {}
    for place in sorted(results.cells):
        if place.metric in PAIRED:
            for pair in _pairs_at(results, place):
                runs = pair.simulated.run_id, pair.measured.run_id
                # One pair of runs may stand in several exhibits.
                key = (*(runs if all(runs) else (str(place),)), place.metric)
                found.setdefault(key, pair)
    return list(found.values())


def _pairs_at(results: ResultSet, place: Place) -> Iterator[Pair]:
    for measured in _with_values(results, place, "measured"):
        if METRICS[place.metric] == "s" and measured.backend == "local":
            continue  # no limit of a device held, and the simulator's do
        for simulated in _with_values(results, place, "simulated"):
            runs = results.records.get(simulated.run_id), results.records.get(measured.run_id)
            models = {run.config.model.name for run in runs if run is not None}
            if simulated.value is None or not measured.value or len(models) > 1:
                continue
            error = simulated.value / measured.value - 1
            is_check = place.exhibit == VALIDATION and _has_its_costs(*runs)
            yield Pair(place, simulated, measured, error, is_check)


def _has_its_costs(simulated: RunRecord | None, measured: RunRecord | None) -> bool:
    """Whether a simulation's calibration names the processor and cores of a measured run."""
    if simulated is None or measured is None:
        return True
    host, calibrated = measured.environment.host, simulated.environment.calibrated_host
    if host is None or calibrated is None:
        return False
    return (calibrated.cpu_model, calibrated.cores) == (host.cpu_model, host.cores)


def _with_values(results: ResultSet, place: Place, evidence: str) -> list[Cell]:
    cells = results.of(place, evidence)
    return [cell for cell in cells if cell.value is not None and not stand_in(results, cell)]


def noise_floors(results: ResultSet) -> list[Floor]:
    """Token latency of every measured run with a timing, beside itself."""
    cells = (cell for found in results.cells.values() for cell in found)
    measured = {cell.run_id for cell in cells if cell.evidence == "measured"}
    floors: list[Floor] = []
    for run_id, record in results.records.items():
        if run_id in measured and record.metrics is not None:
            floors += filter(None, (_halves(results, record), _attempts(results, record)))
    return floors


def _halves(results: ResultSet, record: RunRecord) -> Floor | None:
    def ratio() -> Spread:
        gaps = _gaps(results, record)
        if len(gaps) < MIN_REPEATS:
            raise RecordError(f"at least {MIN_REPEATS} repeats are needed, there are {len(gaps)}")
        middle = len(gaps) // 2
        return ratio_of_means(gaps[:middle], gaps[middle:])

    return _floor(results, record, "first half of its repeats over the second", ratio)


def _attempts(results: ResultSet, record: RunRecord) -> Floor | None:
    """Beside the run before it in the same configuration, if it was measured again."""
    base, attempt = split_run_id(record.run_id) or ("", 1)
    before = base if attempt == 2 else f"{base}-{attempt - 1}"
    store = RunStore(results.folder)
    if attempt == 1 or not store.folder(before).is_dir():
        return None

    def ratio() -> Spread | None:
        earlier, gaps = _gaps(results, store.read(before)), _gaps(results, record)
        return ratio_of_means(gaps, earlier) if earlier and gaps else None

    return _floor(results, record, f"run over {before}", ratio)


def _floor(
    results: ResultSet, record: RunRecord, what: str, ratio: Callable[[], Spread | None]
) -> Floor | None:
    try:
        found = ratio()
    except RecordError as exc:  # too few repeats, or samples changed since they were read
        return Floor(record, what, None, f"not known: {results.relative(str(exc))}")
    return None if found is None else Floor(record, what, found)


def _gaps(results: ResultSet, record: RunRecord) -> list[tuple[float, ...]]:
    return [each.gaps_s for each in RunStore(results.folder).measured(record) if each.gaps_s]
