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
      studies: {allreduce: [--rounds=15]} # no run: arguments of harness/allreduce_study.py

The same row and column may be there measured and simulated. Read `read_plan` first.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness import allreduce_study
from harness.systems import SYSTEMS
from harness.values import nearest
from results.cells import HOLDERS, SCALES
from results.index import Entry
from tpi.errors import ConfigError, map_errors

PAPER_DIR = Path(__file__).parent.parent / "conf" / "paper"
STUDIES = {"allreduce": "figure3"}  # and the exhibit that each is for
_ALL_SCALES = "simulated"
_SECTION = ("common", "runs", "studies")
_RUN = ("for", "exhibits", "row", "columns", "overrides")
_HOLE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Study:
    """What an exhibit needs that is no run of a system."""

    name: str
    exhibit: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PaperPlan:
    """Everything that one scale runs, in the order in which it is written down."""

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
    for path in sorted(folder.glob("*.yaml"), key=_in_order):
        for name, section in _mapping(_load(path), str(path)).items():
            where = f"{path}: {name}"
            checked = _mapping(section, where, _SECTION)
            # All are checked, whatever the scale.
            found = [*_entries(checked, path.stem, where)], [*_studies(checked, where)]
            only = name.partition(",")[0]
            if only not in (*SCALES, _ALL_SCALES):
                close = nearest(only, (*SCALES, _ALL_SCALES))
                raise ConfigError(f"{path}: unknown section {name!r}{close}")
            if only in (scale, _ALL_SCALES):
                entries += found[0]
                studies += found[1]
    _refuse_twice([*entries, *(study.name for study in studies)], f"{folder}: scale {scale}")
    return PaperPlan(scale, tuple(entries), tuple(studies))


def exhibits_of(name: str) -> tuple[str, ...]:
    """The exhibits that a word of the command line asks for: `table1`; `figure1` is 1a to 1c.

    Raises:
        ConfigError: There is none of that name.
    """
    found = tuple(e for e in HOLDERS if name in (e, e.rstrip("abc")))
    if not found:
        raise ConfigError(f"exhibit: unknown {name!r}{nearest(name, exhibit_words())}")
    return found


def exhibit_words() -> tuple[str, ...]:
    """Every word that `exhibits_of` takes."""
    return tuple(dict.fromkeys(word for e in HOLDERS for word in (e.rstrip("abc"), e)))


def _refuse_twice(found: Sequence[Entry | str], where: str) -> None:
    seen = set()
    for each in found:
        if each in seen:
            raise ConfigError(f"{where}: written down twice: {each}")
        seen.add(each)


def _in_order(path: Path) -> tuple[bool, str]:
    return not path.stem.startswith("table"), path.stem


def _load(path: Path) -> object:
    with map_errors({OSError: ConfigError, yaml.YAMLError: ConfigError, ValueError: ConfigError},
                    str(path)):  # fmt: skip
        loader = _Loader(path.read_text(encoding="utf-8"))
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would keep the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping's keys and values, no key twice."""
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _entries(section: Mapping[str, object], stem: str, where: str) -> Iterator[Entry]:
    common = _texts(section.get("common", []), f"{where}: common")
    for number, raw in enumerate(_list(section.get("runs", []), f"{where}: runs"), start=1):
        here = f"{where}: run {number}"
        run = _mapping(raw, here, _RUN)
        exhibits = _texts(run.get("exhibits", [stem]), f"{here}: exhibits")
        for exhibit in exhibits:
            if exhibit not in HOLDERS:
                close = nearest(exhibit, HOLDERS)
                raise ConfigError(f"{here}: exhibits: unknown {exhibit!r}{close}")
        overrides = [*common, *_texts(run.get("overrides", []), f"{here}: overrides")]
        columns = _columns(run.get("columns"), here)
        row = _text(run.get("row"), f"{here}: row")
        for values in _product(run.get("for", {}), f"{here}: for"):
            filled = tuple(_fill(text, values, here) for text in overrides)
            for exhibit, (column, system) in itertools.product(exhibits, columns.items()):
                yield Entry(
                    exhibit=exhibit,
                    row=_fill(row, values, here),
                    column=_fill(column, values, here),
                    system=system,
                    overrides=filled,
                )


def _studies(section: Mapping[str, object], where: str) -> Iterator[Study]:
    studies = _mapping(section.get("studies", {}), f"{where}: studies")
    for name, arguments in studies.items():
        if name not in STUDIES:
            raise ConfigError(f"{where}: studies: unknown {name!r}{nearest(name, STUDIES)}")
        texts = _texts(arguments, f"{where}: studies: {name}")
        with map_errors({ConfigError: ConfigError}, f"{where}: studies: {name}"):
            allreduce_study.predicted_s(texts)
        yield Study(name, STUDIES[name], tuple(texts))


def _columns(raw: object, where: str) -> dict[str, str]:
    columns = _mapping(raw, f"{where}: columns")
    if not columns:
        raise ConfigError(f"{where}: columns: none, expected COLUMN: SYSTEM")
    for column, system in columns.items():
        if system not in SYSTEMS:
            close = nearest(str(system), SYSTEMS)
            raise ConfigError(f"{where}: columns: {column}: unknown system {system!r}{close}")
    return {column: str(system) for column, system in columns.items()}


def _product(raw: object, where: str) -> Iterator[dict[str, str]]:
    axes = _mapping(raw, where)
    values = [_list(choices, f"{where}: {name}") for name, choices in axes.items()]
    for name, choices in zip(axes, values, strict=True):
        for choice in choices:
            if isinstance(choice, bool) or not isinstance(choice, str | int | float):
                raise ConfigError(
                    f"{where}: {name}: got {choice!r}, expected a text or a number (on, off, yes"
                    " and no need quotes)"
                )
    for combination in itertools.product(*values):
        yield {name: str(value) for name, value in zip(axes, combination, strict=True)}


def _fill(text: str, values: Mapping[str, str], where: str) -> str:
    """Put values into the holes of a text."""
    for name in _HOLE.findall(text):
        if name not in values:
            raise ConfigError(f"{where}: {text!r}: {{{name}}} is not among `for`")
    return _HOLE.sub(lambda match: values[match[1]], text)


def _mapping(raw: object, where: str, known: Sequence[str] = ()) -> dict[str, object]:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: got {raw!r}, expected a mapping")
    for key in raw:
        if not isinstance(key, str):
            raise ConfigError(
                f"{where}: got the key {key!r}, expected a text; put quotes around it"
            )
        if known and key not in known:
            raise ConfigError(f"{where}: unknown {key!r}{nearest(key, known)}")
    return raw


def _list(raw: object, where: str) -> list[object]:
    if not isinstance(raw, list):
        raise ConfigError(f"{where}: got {raw!r}, expected a list")
    return raw


def _texts(raw: object, where: str) -> list[str]:
    return [_text(item, where) for item in _list(raw, where)]


def _text(raw: object, where: str) -> str:
    if not isinstance(raw, str) or not raw:
        raise ConfigError(f"{where}: got {raw!r}, expected a text; put quotes around it")
    return raw
