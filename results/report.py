"""One HTML file with everything: `python -m results.report FOLDER --out report.html`.

Verdicts first, then tables, figures, and what they rest on: the simulator's errors, calibration,
proofs of links and CPUs, noise floor, environment, how to run each cell again. It needs nothing
from anywhere else, and everything in it comes from one book. Read `report_html` first.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from results.book import Book
from results.claims import judge_claims
from results.collected import open_book
from results.exhibits import VALIDATION_TITLE
from results.index import INDEX_FILE
from results.markup import Html, page, tag
from results.outfile import check_out
from results.report_claims import claims_section
from results.report_exhibits import draw_all, figures_section, legend, tables_section
from results.report_runs import environment_section, problems_section, rerun_section
from results.report_sources import sources_section
from results.report_style import STYLE
from results.report_trust import (
    calibration_section,
    noise_section,
    validation_section,
    validity_section,
)
from tpi.errors import EXIT_OK, ResourceError, TpiError, map_errors
from tpi.files import write_atomic

TITLE = "TPI-LLM, reproduced"
_CONTENTS = {
    "claims": "Verdicts",
    "problems": "Problems",
    "tables": "Tables",
    "figures": "Figures",
    "validation": VALIDATION_TITLE,
    "calibration": "Calibration",
    "validity": "Links and CPUs",
    "noise": "Noise floor",
    "sources": "Source versions",
    "environment": "Environment",
    "rerun": "Run it again",
}


class ReportError(TpiError):
    """The report was written, and figures are missing in it; it names each."""

    code = "report"


def write_report(book: Book, path: Path, figures_dir: Path | None = None) -> None:
    """Write the report of a book.

    Args:
        book: From `collected.open_book`.
        path: The file to write.
        figures_dir: Where `render` put the figures; None draws them here.

    Raises:
        ResourceError: The disk is full or cannot be written.
        ReportError: Figures could not be drawn or read; the rest is written.
        RecordError: A samples file that a claim needs changed since the book was read.
    """
    images, failures = draw_all(book, figures_dir)
    text = report_html(book, images, failures)
    with map_errors({OSError: ResourceError}, f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    if failures:
        raise ReportError("; ".join(failures))


def report_html(book: Book, images: dict[str, bytes], failures: Sequence[str] = ()) -> str:
    """The page.

    Args:
        book: Whose claims, tables and runs it shows.
        images: SVG by exhibit.
        failures: One line for each figure that there is none of.
    """
    return page(
        TITLE,
        STYLE,
        *_opening(book),
        claims_section(judge_claims(book)),
        problems_section([*book.problems, *failures]),
        tables_section(book),
        figures_section(book, images),
        validation_section(book),
        calibration_section(book),
        validity_section(book),
        noise_section(book),
        sources_section(book),
        environment_section(book),
        rerun_section(book),
    )


def _opening(book: Book) -> list[Html]:
    text = (
        "The tables, figures and claims of TPI-LLM (arXiv 2410.00531), the paper's values beside"
        f" ours. Scale {book.scale}; {len(book.records)} run records for {len(book.entries)} cells,"
        f" {len(book.problems)} that cannot be used."
    )
    links = (tag("a", title, href=f"#{name}") for name, title in _CONTENTS.items())
    return [tag("h1", TITLE), tag("p", text), tag("nav", *links), legend()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m results.report", description="Write one HTML file from run records."
    )
    parser.add_argument("folder", type=Path, help="with index.json and the run records")
    parser.add_argument("--out", type=Path, help="the file; FOLDER/report.html unless said")
    parser.add_argument(
        "--figures", type=Path, help="folder of rendered SVG figures; drawn anew unless said"
    )
    args = parser.parse_args(argv)
    out = args.folder / "report.html" if args.out is None else args.out
    try:
        check_out(out, keep=[args.folder / INDEX_FILE])
        write_report(open_book(args.folder), out, args.figures)
    except TpiError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return exc.exit_status
    sys.stdout.write(f"{out}\n")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
