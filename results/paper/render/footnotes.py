"""What stands below a table or figure: numbered reasons, doubts, testbeds and problems.

The same text has one number however many cells point at it, and what holds for all cells of a
source is said once without any. Paths are cut to what lies below the folder of the records, so that
the same records give the same notes wherever they lie. Read `Footnotes` first.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from results.paper.cell import Cell
from results.paper.cells.result_set import ResultSet
from results.paper.render.cell_format import plain
from results.paper.render.filling import source_of
from results.records.comparison_table import where_lines

_SEPARATOR = "; "  # between the parts of a cell's detail, each of which is a note


@dataclass
class Footnotes:
    """Numbers given out in the order in which they are asked for.

    Attributes:
        shared: By source, what holds for all of its cells: said once, without a number.
    """

    book: ResultSet
    shared: dict[str, tuple[str, ...]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, book: ResultSet, exhibit: str) -> "Footnotes":
        """Footnotes of an exhibit, what its cells share already set apart."""
        parts: dict[str, list[tuple[str, ...]]] = {}
        for cell in book.exhibit(exhibit):
            # The reason of a word stays beside it; a doubt of the paper's may be all cells'.
            if not cell.word or cell.evidence == "reported":
                parts.setdefault(source_of(cell).label, []).append(_parts(book, cell))
        shared = {}
        for label, found in parts.items():
            common = tuple(part for part in found[0] if all(part in each for each in found))
            if common and len(found) > 1:
                shared[label] = common
        return cls(book, shared)

    def numbers(self, cells: Iterable[Cell]) -> str:
        """` (1, 3)` after a value; empty without a note of its own."""
        found = dict.fromkeys(number for cell in cells for number in self._numbers(cell))
        return f" ({', '.join(map(str, found))})" if found else ""

    def shared_lines(self) -> list[str]:
        """One line a source: what all of its cells share."""
        return [f"{label}: {_SEPARATOR.join(parts)}" for label, parts in self.shared.items()]

    def _numbers(self, cell: Cell) -> Iterator[int]:
        shared = self.shared.get(source_of(cell).label, ())
        for text in _parts(self.book, cell):
            if text in shared:
                continue
            if text not in self.texts:
                self.texts.append(text)
            yield self.texts.index(text) + 1


def _parts(book: ResultSet, cell: Cell) -> tuple[str, ...]:
    return tuple(part for part in relative(book, cell.detail).split(_SEPARATOR) if part)


def relative(book: ResultSet, text: str) -> str:
    """One line without control characters and without the path of the book's folder."""
    return plain(text).replace(f"{book.folder}/", "") if book.folder.name else plain(text)


def below(book: ResultSet, exhibit: str) -> list[str]:
    """Testbeds of an exhibit's runs and what could not be read, each once."""
    runs = [entry.run_id for entry in book.entries if entry.exhibit == exhibit]
    records = [book.records[run] for run in dict.fromkeys(runs) if run in book.records]
    lines = [relative(book, line) for line in where_lines(records)]
    problems = [relative(book, p) for p in book.problems if any(r and r in p for r in runs)]
    return [*lines, *(f"unusable: {problem}" for problem in problems)]
