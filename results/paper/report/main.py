"""Writes the report: verdicts first, then tables and figures, then what they rest on.

The page is one file that loads nothing. Templates escape whatever they are given: names, reasons
and notes come from programs and users.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from results.paper.cells.load import open_result_set
from results.paper.cells.result_set import ResultSet
from results.paper.cells.validation import noise_floors
from results.paper.claims.judge import TEMPLATES, basis_of_all, judge_claims
from results.paper.claims.verdict import VERDICTS, in_times
from results.paper.index import INDEX_FILE
from results.paper.render.cell_format import LEGEND, STAND_IN_LEGEND, in_words
from results.paper.render.layouts import label_of
from results.paper.render.validation_table import percent
from results.paper.report import runs, trust
from results.paper.report.exhibits import FIGURES, TABLES, ShownExhibit, draw_all
from results.records.notes import plain
from tpi.command_line import Parser
from tpi.errors import EXIT_OK, ResourceError, TpiError, map_errors
from tpi.files import check_out, write_atomic
from tpi.units import counted


class ReportError(TpiError):
    """The report was written, and figures are missing in it; it names each."""

    code = "report"


def html_of(results: ResultSet, images: Mapping[str, bytes], failures: Sequence[str] = ()) -> str:
    """The page, with SVG by exhibit; `failures` has a line for each figure that is missing."""
    judgements = judge_claims(results)
    verdicts = [each.verdict for each in judgements]
    environment = Environment(
        loader=PackageLoader("results.paper.report"),
        autoescape=True,
        finalize=_one_line,
        **TEMPLATES,
    )
    filters = (counted, in_times, in_words, label_of, percent)
    environment.filters.update({each.__name__: each for each in filters})
    return environment.get_template("report.html.j2").render(
        results=results,
        judgements=judgements,
        verdict_counts={verdict: verdicts.count(verdict) for verdict in VERDICTS},
        basis=basis_of_all(results, judgements),
        problems=[*results.problems, *failures],
        legend=LEGEND,
        stand_in_legend=STAND_IN_LEGEND,
        tables=[ShownExhibit(results, name) for name in TABLES],
        figures=[ShownExhibit(results, name, images.get(name)) for name in FIGURES],
        comparisons=trust.comparisons(results),
        calibrations=trust.calibrations(results),
        held_limits=trust.held_limits(results),
        noise_floors=noise_floors(results),
        sources=runs.sources_of(results),
        environments=runs.environments(results),
        reruns=runs.reruns(results),
    )


def _one_line(value: object) -> object:
    """A log's words have control characters; what a template made is left as it is."""
    return value if isinstance(value, Markup) else plain(str(value))


def write_report(results: ResultSet, path: Path, figures_dir: Path | None = None) -> None:
    """Write the report, figures from a folder or drawn here; a ReportError names those missing."""
    images, failures = draw_all(results, figures_dir)
    text = html_of(results, images, failures)
    with map_errors({OSError: ResourceError}, f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    if failures:
        raise ReportError("; ".join(failures))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = Parser(prog="lab report", description="Write one HTML file from run records.")
    parser.add_argument("folder", type=Path, help="with index.json and the run records")
    parser.add_argument("--out", type=Path, help="the file; FOLDER/report.html unless said")
    parser.add_argument(
        "--figures", type=Path, help="folder of rendered SVG figures; drawn anew unless said"
    )
    args = parser.parse_args(argv)
    out = args.folder / "report.html" if args.out is None else args.out
    try:
        check_out(out, keep=[args.folder / INDEX_FILE])
        results = open_result_set(args.folder)
        write_report(results, out, args.figures)
    except TpiError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return exc.exit_status
    results.warn()
    sys.stdout.write(f"{out}\n")
    return EXIT_OK
