"""The whole book of one folder: what the paper reports, what is computed, predicted or run.

`results/paper/render/main.py`, the report and the claims all open the same book, so that a number
is the same wherever it stands. Read `open_result_set` first.
"""

from dataclasses import replace
from pathlib import Path

from results.paper.authors_model.times import published_time_cells
from results.paper.cells.allreduce import allreduce_cells
from results.paper.cells.computed import computed_cells
from results.paper.cells.pipeline_shares import of_pipelines
from results.paper.cells.result_set import ResultSet, read_book
from results.paper.index import read_index
from results.paper.values.paper_values import reported_cells


def open_result_set(folder: Path) -> ResultSet:
    """Read a folder's records with the reported, computed and studied cells beside them.

    Raises:
        RecordError: The index cannot be read.
        ConfigError: A file of the paper's values does not fit.
    """
    others = [*reported_cells(), *computed_cells(), *published_time_cells()]
    there = {(cell.place, cell.evidence, cell.source) for cell in others}
    index = read_index(folder)
    studied = allreduce_cells(folder, index.scale, index.studies)
    others += [c for c in studied if (c.place, c.evidence, c.source) not in there]
    book = of_pipelines(read_book(folder, others))
    problems = dict.fromkeys(c.detail for c in studied if c.word == "unusable")
    return replace(book, problems=(*book.problems, *problems))
