"""What stands at a place in the line of one source: its cells, or the word for why there are none.

A run that gave no number says why in a few metrics only; the word holds for all of them. Read
`Filling.at` first.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from results.paper.cell import Cell, Place
from results.paper.render.layouts import Layout

_NO_FORMULA = "no formula gives it"
_NOT_SAID = "the run does not say"


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """Where a line's cells come from; the order is that of the lines."""

    rank: int
    label: str

    @property
    def is_run(self) -> bool:
        """Whether its cells come from run records."""
        return self.rank in (MEASURED.rank, SIMULATED.rank)


REPORTED, MEASURED, SIMULATED = Source(0, "paper"), Source(1, "measured"), Source(2, "simulated")
_COMPUTED = Source(3, "computed")


def source_of(cell: Cell) -> Source:
    """The line that a cell stands in."""
    if cell.evidence == "reported":
        return REPORTED
    if cell.evidence == "computed":
        source = _COMPUTED
    else:  # What could not be simulated stands where the simulated number would.
        is_simulated = cell.evidence == "simulated" or cell.backend == "sim"
        source = SIMULATED if is_simulated else MEASURED
    return Source(source.rank, f"{source.label}, {cell.source}") if cell.source else source


@dataclass(slots=True)
class Filling:
    """The cells of an exhibit by source and place."""

    layout: Layout
    _cells: dict[tuple[str, ...], list[Cell]] = field(default_factory=dict)
    _runs: dict[tuple[str, ...], list[Cell]] = field(default_factory=dict)

    @classmethod
    def of(cls, layout: Layout, cells: Iterable[Cell]) -> "Filling":
        """Sort the cells of an exhibit."""
        filling = cls(layout)
        for cell in cells:
            source = source_of(cell)
            filling._cells.setdefault(filling._key(source, cell.place), []).append(cell)
            if source.is_run:
                filling._runs.setdefault(filling._run_key(source, cell.place), []).append(cell)
        return filling

    def at(self, source: Source, place: Place) -> tuple[Cell, ...]:
        """At least one cell: `not run` only where no other run says more."""
        found = self._cells.get(self._key(source, place)) or self._words(source, place)
        said = tuple(cell for cell in found if cell.word != "not run")
        return said or tuple(found[:1]) or (self._missing(source, place),)

    def _words(self, source: Source, place: Place) -> list[Cell]:
        """What became of the runs of a place that gave no number."""
        words = {
            (cell.run_id, cell.word): replace(cell, place=place)
            for cell in self._runs.get(self._run_key(source, place), [])
            if cell.word
        }
        return list(words.values())

    def _missing(self, source: Source, place: Place) -> Cell:
        if source == REPORTED:
            return Cell(place, "reported", word="not found")
        if not source.is_run:
            return Cell(place, "computed", word="not found", detail=_NO_FORMULA)
        evidence = "simulated" if source.rank == SIMULATED.rank else "measured"
        if self._run_key(source, place) in self._runs:
            return Cell(place, evidence, word="not found", detail=_NOT_SAID)
        return Cell(place, evidence, word="not run")

    def _key(self, source: Source, place: Place) -> tuple[str, ...]:
        return (*self._run_key(source, place), place.metric)

    def _run_key(self, source: Source, place: Place) -> tuple[str, ...]:
        return (source.label, place.row, "" if self.layout.joins_columns else place.column)
