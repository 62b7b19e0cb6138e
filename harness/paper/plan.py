"""`conf/paper/*.yaml`: which runs the paper's tables and figures need, at each scale. Pure.

A file is a mapping of sections. A section holds for the scale that its name begins with (`smoke`,
`small`, `small, simulated`), and `simulated` for all of them. Its `runs` are products, each of
which gives rows and columns of exhibits; `common` goes before the overrides of each run:

    simulated:
      common: [testbed=klonet]
      runs:
        - for: {model: [llama2-3b, llama2-7b], devices: [2, 4]}
          exhibits: [table2] # left out where the file is called after its only one
          row: "{model}"
          columns: {"on/{devices}": tpi, "off/{devices}": tpi-resident} # column -> system
          overrides: ["model={model}", "devices={devices}"] # as run.py takes them
      studies: {allreduce: [--rounds=15]} # no run: arguments of harness/paper/allreduce_study.py

The same row and column may be there measured and simulated.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct, field

from baselines.registry import system_names
from baselines.validators import nearest
from harness.paper import allreduce_study
from results.paper.cell import ALL_EXHIBITS, SCALES
from results.paper.index import Entry
from tpi.decode import Text, convert
from tpi.errors import ConfigError, map_errors

PAPER_DIR = Path(__file__).parents[2] / "conf" / "paper"
STUDIES = {"allreduce": "figure3"}  # and the exhibit that each is for
_ALL_SCALES = "simulated"
_ADVICE = "texts such as on, off, yes, no or 1 need quotes"
_HOLE = re.compile(r"\{(\w+)\}")


class _Run(Struct, frozen=True, forbid_unknown_fields=True):
    """One product; `axes` is the key `for`."""

    row: Text
    columns: dict[str, str]
    axes: dict[str, list[str | int | float]] = field(name="for", default_factory=dict)
    exhibits: list[Text] | None = None
    overrides: list[Text] = []


class _Section(Struct, frozen=True, forbid_unknown_fields=True):
    """The runs of some scales."""

    common: list[Text] = []
    runs: list[_Run] = []
    studies: dict[str, list[Text]] = {}


@dataclass(frozen=True, slots=True)
class Study:
    """A measurement for an exhibit that is no run of a system."""

    name: str
    exhibit: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PaperPlan:
    """Everything that one scale runs, in the order of the files."""

    scale: str
    entries: tuple[Entry, ...]
    studies: tuple[Study, ...]


def read_plan(scale: str, folder: Path = PAPER_DIR) -> PaperPlan:
    """Read and check every file for one scale.

    Raises:
        ConfigError: One line that names the file, the section and the run.
    """
    if scale not in SCALES:
        raise ConfigError(f"scale: got {scale!r}, expected one of {', '.join(SCALES)}")
    entries: list[Entry] = []
    studies: list[Study] = []
    files = sorted(folder.glob("*.yaml"), key=lambda f: (not f.stem.startswith("table"), f.stem))
    for path in files:
        sections = convert(_load(path), dict[str, _Section], str(path), ConfigError, _ADVICE)
        for name, section in sections.items():
            where = f"{path}: {name}"
            # All are checked, whatever the scale.
            found = [*_entries(section, path.stem, where)], [*_studies(section, where)]
            only = name.partition(",")[0]
            if only not in (*SCALES, _ALL_SCALES):
                close = nearest(only, (*SCALES, _ALL_SCALES))
                raise ConfigError(f"{path}: unknown section {name!r}{close}")
            if only in (scale, _ALL_SCALES):
                entries += found[0]
                studies += found[1]
    for each, count in Counter([*entries, *(study.name for study in studies)]).items():
        if count > 1:
            raise ConfigError(f"{folder}: scale {scale}: written down twice: {each}")
    return PaperPlan(scale, tuple(entries), tuple(studies))


def exhibits_of(name: str) -> tuple[str, ...]:
    """The exhibits of a word such as `table1`, or `figure1` for 1a to 1c; raises ConfigError."""
    found = tuple(e for e in ALL_EXHIBITS if name in (e, e.rstrip("abc")))
    if not found:
        raise ConfigError(f"exhibit: unknown {name!r}{nearest(name, exhibit_words())}")
    return found


def exhibit_words() -> tuple[str, ...]:
    """Every word that `exhibits_of` takes."""
    return tuple(dict.fromkeys(word for e in ALL_EXHIBITS for word in (e.rstrip("abc"), e)))


def _load(path: Path) -> object:
    with map_errors({OSError: ConfigError, yaml.YAMLError: ConfigError, ValueError: ConfigError},
                    str(path)):  # fmt: skip
        loader = _Loader(path.read_text(encoding="utf-8"))
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping's keys and values, no key twice."""
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _entries(section: _Section, stem: str, where: str) -> Iterator[Entry]:
    for number, run in enumerate(section.runs, start=1):
        here = f"{where}: run {number}"
        exhibits = [stem] if run.exhibits is None else run.exhibits
        _check_names("exhibits: unknown", exhibits, ALL_EXHIBITS, here)
        if not run.columns:
            raise ConfigError(f"{here}: columns: none, expected COLUMN: SYSTEM")
        for column, system in run.columns.items():
            _check_names(f"columns: {column}: unknown system", [system], system_names(), here)
        overrides = [*section.common, *run.overrides]
        for choices in itertools.product(*run.axes.values()):
            values = dict(zip(run.axes, map(str, choices), strict=True))
            filled = tuple(_fill(text, values, here) for text in overrides)
            for exhibit, (column, system) in itertools.product(exhibits, run.columns.items()):
                row, filled_column = (_fill(text, values, here) for text in (run.row, column))
                yield Entry(exhibit, row, filled_column, system, filled)


def _studies(section: _Section, where: str) -> Iterator[Study]:
    for name, arguments in section.studies.items():
        _check_names("studies: unknown", [name], STUDIES, where)
        with map_errors({ConfigError: ConfigError}, f"{where}: studies: {name}"):
            allreduce_study.parse(arguments)
        yield Study(name, STUDIES[name], tuple(arguments))


def _check_names(
    what: str, names: Sequence[str], known: Sequence[str] | Mapping[str, object], where: str
) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{where}: {what} {name!r}{nearest(name, known)}")


def _fill(text: str, values: Mapping[str, str], where: str) -> str:
    """Put values into the holes of a text."""
    for name in _HOLE.findall(text):
        if name not in values:
            raise ConfigError(f"{where}: {text!r}: {{{name}}} is not among `for`")
    return _HOLE.sub(lambda match: values[match[1]], text)
