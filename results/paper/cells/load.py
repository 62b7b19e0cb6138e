"""The whole result set of one folder: reported, computed, predicted and run.

Tables, report and claims all open the same result set, so that a number is the same everywhere.
"""

from dataclasses import replace
from pathlib import Path

from results.paper.authors_model.times import published_time_cells
from results.paper.cells.allreduce import allreduce_cells
from results.paper.cells.computed import computed_cells
from results.paper.cells.pipeline_shares import of_pipelines
from results.paper.cells.result_set import ResultSet, read_result_set
from results.paper.index import read_index
from results.paper.values.paper_values import reported_cells


def open_result_set(folder: Path) -> ResultSet:
    """Read a folder with its index and records; what else is known of each place stands beside."""
    others = [*reported_cells(), *computed_cells(), *published_time_cells()]
    there = {(cell.place, cell.evidence, cell.source) for cell in others}
    index = read_index(folder)
    studied = allreduce_cells(folder, index.scale, index.studies)
    others += [c for c in studied if (c.place, c.evidence, c.source) not in there]
    found = of_pipelines(read_result_set(folder, others))
    problems = dict.fromkeys(c.detail for c in studied if c.missing_reason == "unusable")
    return replace(found, problems=(*found.problems, *problems))
