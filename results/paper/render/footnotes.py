"""What stands below a table or figure: numbered reasons and doubts, testbeds, problems.

The same text has one number however many cells refer to it. What holds for all cells of a source is
said once, without a number.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from results.paper.cell import Cell
from results.paper.cells.result_set import ResultSet
from results.paper.cells.substitutions import stand_in_name
from results.paper.render.cell_format import FormattedCell, format_cell
from results.paper.render.sections import source_of
from results.records.comparison_table import where_lines

_SEPARATOR = "; "  # between the parts of a cell's detail, each of which is a note


@dataclass
class Footnotes:
    """Numbers in the order in which they are asked for."""

    results: ResultSet
    shared: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by source, for all its cells
    texts: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, results: ResultSet, exhibit: str) -> "Footnotes":
        """Footnotes of an exhibit, with what its cells share already set apart."""
        parts: dict[str, list[tuple[str, ...]]] = {}
        for cell in results.exhibit(exhibit):
            # Why a value is missing stays beside it; a doubt of the paper's may be of all cells.
            if not cell.missing_reason or cell.evidence == "reported":
                parts.setdefault(source_of(cell).label, []).append(_parts(results, cell))
        shared = {}
        for label, found in parts.items():
            common = tuple(part for part in found[0] if all(part in each for each in found))
            if common and len(found) > 1:
                shared[label] = common
        return cls(results, shared)

    def numbers(self, cells: Iterable[Cell]) -> str:
        """` (1, 3)` after a value; empty without a note of its own."""
        found = dict.fromkeys(number for cell in cells for number in self._numbers(cell))
        return f" ({', '.join(map(str, found))})" if found else ""

    def joined(self, cells: Iterable[Cell], dress: Callable[[FormattedCell], str]) -> str:
        """What stands in one cell of a table, each value once, as `dress` renders it."""
        formatted = (format_cell(cell, stand_in_name(self.results, cell)) for cell in cells)
        return " / ".join(dict.fromkeys(map(dress, formatted)))

    def shared_lines(self) -> list[str]:
        """One line for each source: what all of its cells share."""
        return [f"{label}: {_SEPARATOR.join(parts)}" for label, parts in self.shared.items()]

    def _numbers(self, cell: Cell) -> Iterator[int]:
        shared = self.shared.get(source_of(cell).label, ())
        for text in _parts(self.results, cell):
            if text in shared:
                continue
            if text not in self.texts:
                self.texts.append(text)
            yield self.texts.index(text) + 1


def _parts(results: ResultSet, cell: Cell) -> tuple[str, ...]:
    return tuple(part for part in results.relative(cell.detail).split(_SEPARATOR) if part)


def below(results: ResultSet, exhibit: str) -> list[str]:
    """Testbeds of an exhibit's runs and what could not be read, each once."""
    runs = [entry.run_id for entry in results.entries if entry.exhibit == exhibit]
    records = [results.records[run] for run in dict.fromkeys(runs) if run in results.records]
    lines = [results.relative(line) for line in where_lines(records)]
    problems = [p for p in results.problems if any(run and run in p for run in runs)]
    return [*lines, *(f"unusable: {results.relative(problem)}" for problem in problems)]
