"""Writes the report: verdicts first, then tables and figures, then what they rest on.

The page needs nothing from anywhere else, and everything in it comes from one book. Templates
escape whatever they are given: names, reasons and notes are words of programs and of users.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from results.paper.cells.load import open_result_set
from results.paper.cells.result_set import ResultSet
from results.paper.claims.judge import Judgement, basis_of_all, judge_claims
from results.paper.claims.verdict import VERDICTS
from results.paper.index import INDEX_FILE
from results.paper.render.cell_format import LEGEND, STAND_IN_LEGEND, plain
from results.paper.report import runs, trust
from results.paper.report.exhibits import FIGURES, TABLES, ShownExhibit, draw_all, shown_exhibit
from tpi.command_line import Parser
from tpi.errors import EXIT_OK, ResourceError, TpiError, map_errors
from tpi.files import write_atomic
from tpi.outfile import check_out
from tpi.units import counted


class ReportError(TpiError):
    """The report was written, and figures are missing in it; it names each."""

    code = "report"


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page shows, in its order."""

    scale: str
    num_records: int
    num_entries: int
    num_unusable: int
    judgements: Sequence[Judgement]
    verdict_counts: Mapping[str, int]
    basis: str
    problems: Sequence[str]
    legend: Mapping[str, str]
    stand_in_legend: str
    tables: Sequence[ShownExhibit]
    figures: Sequence[ShownExhibit]
    comparisons: Sequence[trust.Comparison]
    calibrations: Sequence[trust.Calibration]
    held_limits: Sequence[trust.HeldLimits]
    noise_floors: Sequence[trust.ShownFloor]
    sources: runs.Sources
    environments: Sequence[runs.Environment]
    reruns: Sequence[runs.Reruns]


def make_report(
    book: ResultSet, images: Mapping[str, bytes], failures: Sequence[str] = ()
) -> Report:
    """Everything that a book says.

    Args:
        book: Whose claims, tables and runs it shows.
        images: SVG by exhibit; a figure without one has its values alone.
        failures: One line for each figure that there is none of.

    Raises:
        RecordError: A record or samples file cannot be used, or changed since the book was read.
    """
    judgements = judge_claims(book)
    verdicts = [each.verdict for each in judgements]
    return Report(
        scale=book.scale,
        num_records=len(book.records),
        num_entries=len(book.entries),
        num_unusable=len(book.problems),
        judgements=judgements,
        verdict_counts={verdict: verdicts.count(verdict) for verdict in VERDICTS},
        basis=basis_of_all(judgements),
        problems=[*book.problems, *failures],
        legend=LEGEND,
        stand_in_legend=STAND_IN_LEGEND,
        tables=[shown_exhibit(book, name) for name in TABLES],
        figures=[shown_exhibit(book, name, images.get(name)) for name in FIGURES],
        comparisons=trust.comparisons(book),
        calibrations=trust.calibrations(book),
        held_limits=trust.held_limits(book),
        noise_floors=trust.shown_floors(book),
        sources=runs.sources_of(book),
        environments=runs.environments(book),
        reruns=list(runs.reruns(book)),
    )


def html_of(report: Report) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("results.paper.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_one_line,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["counted"] = counted
    return environment.get_template("report.html.j2").render(report=report)


def _one_line(value: object) -> object:
    """A log's words have control characters; what a template made is left as it is."""
    return value if isinstance(value, Markup) else plain(str(value))


def write_report(book: ResultSet, path: Path, figures_dir: Path | None = None) -> None:
    """Write the report of a book.

    Args:
        book: From `collected.open_result_set`.
        path: The file to write.
        figures_dir: Where `render` put the figures; None draws them here.

    Raises:
        ResourceError: The disk is full or cannot be written.
        ReportError: Figures could not be drawn or read; the rest is written.
        RecordError: As `make_report`.
    """
    images, failures = draw_all(book, figures_dir)
    text = html_of(make_report(book, images, failures))
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
        write_report(open_result_set(args.folder), out, args.figures)
    except TpiError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return exc.exit_status
    sys.stdout.write(f"{out}\n")
    return EXIT_OK
