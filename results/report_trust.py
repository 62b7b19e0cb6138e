"""The report's sections on trust: simulator, calibration, links and CPUs, noise floor.

Read `validation_section` first.
"""

from collections.abc import Iterator, Mapping, Sequence

from results.book import Book, backend_of
from results.exhibits import VALIDATION_TITLE
from results.marks import in_words
from results.markup import Html, counted, folded, html, joined, listed, section, table, tag
from results.proofs import conditions_of, proven_of
from results.schema import RunRecord
from results.testbed_facts import SimulatorFacts
from results.validation import Floor, Pair, noise_floors, pairs_of
from results.validation_table import percent, summary
from results.verdicts import in_times
from tpi.errors import ConfigError

_CHECKS = "What was measured to check the simulator, which has the costs of the same machine"
_OTHERS = "Places of the paper's, simulated with the costs that their simulated cells have"


def validation_section(book: Book) -> Html:
    """Simulated beside measured, with the error of each, the median and the worst."""
    pairs = pairs_of(book)
    checks = _compared(_CHECKS, [pair for pair in pairs if pair.is_check])
    others = _compared(_OTHERS, [pair for pair in pairs if not pair.is_check])
    return section("validation", VALIDATION_TITLE, *checks, *others)


def _compared(title: str, pairs: Sequence[Pair]) -> Iterator[Html]:
    yield tag("h3", title)
    if not pairs:
        yield tag("p", "Nothing was both simulated and measured with the same model and limits.")
        return
    yield listed(summary(pairs))
    yield _pairs(pairs)


def _pairs(pairs: Sequence[Pair]) -> Html:
    rows = [
        (
            pair.place,
            tag("span", _value(pair.place.metric, pair.simulated.value), cls="cell simulated"),
            tag("span", _value(pair.place.metric, pair.measured.value), cls=_class(pair)),
            tag("td", percent(pair.error), cls="number"),
        )
        for pair in pairs
    ]
    return table(("place", "simulated", "measured", "error"), rows)


def _class(pair: Pair) -> str:
    return "cell dilated" if pair.measured.dilation != 1 else "cell measured"


def _value(metric: str, value: float | None) -> str:
    if value is None:
        raise ConfigError(f"{metric}: a pair has two values")
    return in_words(metric, value)


def calibration_section(book: Book) -> Html:
    """What the simulator's costs rest on, once for each calibration."""
    found: dict[str, tuple[SimulatorFacts, list[str]]] = {}
    for record in book.records.values():
        if simulator := record.calibration.simulator:
            found.setdefault(simulator.digest, (simulator, []))[1].append(record.run_id)
    parts = [_calibration(simulator, runs) for simulator, runs in found.values()]
    return section(
        "calibration",
        "Calibration",
        *(parts or [tag("p", "No simulated run is in these records.")]),
    )


def _calibration(simulator: SimulatorFacts, runs: Sequence[str]) -> Html:
    facts = [(name, getattr(simulator, name)) for name in ("name", "host", "digest")]
    content = list(flattened(simulator.content, "content"))
    return joined(
        [
            tag("p", f"Behind {counted(len(runs), 'simulated run')}:"),
            table(("fact", "value"), facts),
            folded(f"Its {len(content)} figures", table(("figure", "value"), content)),
        ]
    )


def flattened(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Every number and text in nested objects and lists, by its path."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from flattened(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from flattened(each, f"{name}[{index}]")
    else:
        yield name, value


def validity_section(book: Book) -> Html:
    """What the testbed measured of its own limits and links, run by run."""
    measured = [r for r in book.records.values() if backend_of(r) not in ("sim", "")]
    parts = [part for record in measured for part in _validity(record)]
    none = tag("p", "No run on emulated devices is in these records.")
    return section("validity", "Links and CPUs", *(parts or [none]))


def _validity(record: RunRecord) -> Iterator[Html]:
    rows = proven_of(record)
    yield tag("h3", record.system, " ", tag("code", record.run_id))
    if not rows:
        why = f"backend {backend_of(record)}: it emulates nothing, so nothing was proven"
        yield tag("p", why, cls="dim")
        return
    head = ("what", "asked", "measured", "worst off", "allowed", "checks", "not held")
    yield table(head, [row.cells for row in rows])
    yield listed(conditions_of(record))


def noise_section(book: Book) -> Html:
    """The A/A noise floor of each run: a ratio that nothing but noise makes differ from one."""
    rows = [_floor(floor) for floor in noise_floors(book)]
    text = (
        "Token latency of a run over itself. A difference between two systems that is smaller says"
        " nothing."
    )
    head = ("run", "system", "compared", "ratio (95 % interval)")
    body = table(head, rows) if rows else tag("p", "No measured run has a timing.")
    return section("noise", "A/A noise floor", tag("p", text, cls="dim"), body)


def _floor(floor: Floor) -> tuple[Html, str, str, Html]:
    said = html(floor.reason if floor.ratio is None else in_times(floor.ratio))
    return tag("code", floor.record.run_id), floor.record.system, floor.what, said
