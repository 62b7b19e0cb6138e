"""What stands below a table or figure: numbered reasons, doubts, testbeds and problems.

The same text has one number however many cells point at it. Paths are cut to what lies below the
folder of the records, so that the same records give the same notes wherever they lie.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from results.book import Book
from results.cells import Cell
from results.marks import plain
from results.tables import where_lines


@dataclass
class Footnotes:
    """Numbers given out in the order in which they are asked for."""

    book: Book
    texts: list[str] = field(default_factory=list)

    def number(self, cell: Cell) -> int | None:
        """The number of a cell's detail; None if it has none."""
        text = relative(self.book, cell.detail)
        if not text:
            return None
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1

    def numbers(self, cells: Iterable[Cell]) -> str:
        """` (1) (3)` after a value; empty without a detail."""
        found = dict.fromkeys(number for cell in cells if (number := self.number(cell)))
        return "".join(f" ({number})" for number in found)


def relative(book: Book, text: str) -> str:
    """One line without control characters and without the path of the book's folder."""
    return plain(text).replace(f"{book.folder}/", "") if book.folder.name else plain(text)


def below(book: Book, exhibit: str) -> list[str]:
    """Testbeds of an exhibit's runs and what could not be read, each once."""
    runs = [entry.run_id for entry in book.entries if entry.exhibit == exhibit]
    records = [book.records[run] for run in dict.fromkeys(runs) if run in book.records]
    lines = [relative(book, line) for line in where_lines(records)]
    problems = [relative(book, p) for p in book.problems if any(r and r in p for r in runs)]
    return [*lines, *(f"unusable: {problem}" for problem in problems)]
