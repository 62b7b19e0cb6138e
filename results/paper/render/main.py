"""Render the paper's tables and figures from run records: `lab render FOLDER`.

Every exhibit becomes files of its own, `table1.md`, `.tex`, `.csv` and `figure3.svg`, `.png`,
`.md`, `.csv`, beside `validation.md`. One that fails does not stop the others.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from results.paper.cell import ALL_EXHIBITS, VALIDATION
from results.paper.cells.load import open_result_set
from results.paper.cells.result_set import ResultSet
from results.paper.render import validation_table
from results.paper.render.csv import cells_csv
from results.paper.render.latex import latex
from results.paper.render.markdown import figure_markdown, markdown
from results.paper.render.sections import shown_cells
from tpi.command_line import Parser
from tpi.errors import EXIT_OK, ConfigError, ResourceError, TpiError, map_errors
from tpi.files import write_atomic

OUT_FOLDER = "rendered"


class RenderError(TpiError):
    """Some exhibits could not be rendered; the others were."""

    code = "render"


def render_result_set(
    results: ResultSet, out_dir: Path, exhibits: Sequence[str] | None = None
) -> list[Path]:
    """Write every exhibit of a result set, or those named, and return the paths.

    Raises:
        ConfigError: There is no such exhibit.
        ResourceError: The disk is full or cannot be written.
        RenderError: Some exhibits failed; it names each, and the rest is written.
    """
    names = exhibits_named(exhibits)
    with map_errors({OSError: ResourceError}, f"cannot write {out_dir}"):
        out_dir.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    failures = []
    for name in names:
        try:
            for suffix, data in _files(results, name):
                path = out_dir / f"{name}.{suffix}"
                with map_errors({OSError: ResourceError}, f"cannot write {path}"):
                    write_atomic(path, data)
                paths.append(path)
        except ResourceError:
            raise  # a full disk fails them all
        except Exception as exc:  # noqa: BLE001  # a defect of one drawing must not hide the rest
            failures.append(f"{name}: {type(exc).__name__}: {exc}")
    if failures:
        raise RenderError("; ".join(failures))
    return paths


def exhibits_named(words: Sequence[str] | None) -> list[str]:
    """Exhibits in the paper's order; `figure1` is 1a to 1c. A word that names none: ConfigError."""
    if words is None:
        return list(ALL_EXHIBITS)
    for word in words:
        if not any(_is_named(name, word) for name in ALL_EXHIBITS):
            raise ConfigError(f"--only: got {word!r}, expected some of {', '.join(ALL_EXHIBITS)}")
    return [name for name in ALL_EXHIBITS if any(_is_named(name, word) for word in words)]


def _is_named(exhibit: str, word: str) -> bool:
    return exhibit == word or (exhibit.startswith("figure") and exhibit.rstrip("abc") == word)


def _files(results: ResultSet, exhibit: str) -> Iterator[tuple[str, bytes]]:
    """Suffix and content of each file of an exhibit."""
    if exhibit == VALIDATION:
        yield "md", validation_table.markdown(results).encode()
        return
    texts: Mapping[str, Callable[[ResultSet, str], str]] = {"md": markdown, "tex": latex}
    if exhibit.startswith("figure"):
        yield from _drawings(results, exhibit)
        texts = {"md": figure_markdown}
    for suffix, render in texts.items():
        yield suffix, render(results, exhibit).encode()
    yield "csv", cells_csv(shown_cells(results, exhibit), results).encode()


def _drawings(results: ResultSet, exhibit: str) -> Iterator[tuple[str, bytes]]:
    # Here, since matplotlib takes a second to load and tables need none of it.
    from results.paper.render.figures.draw import draw
    from results.paper.render.figures.style import house_style, png_bytes, svg_bytes

    with house_style():
        figure = draw(results, exhibit)
        yield "svg", svg_bytes(figure)
        yield "png", png_bytes(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    out_dir = args.out or args.folder / OUT_FOLDER
    try:
        results = open_result_set(args.folder)
        paths = render_result_set(results, out_dir, args.only)
    except TpiError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return exc.exit_status
    results.warn()
    sys.stdout.write(f"{len(paths)} files in {out_dir}\n")
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lab render",
        description="Render the paper's tables and figures from run records.",
    )
    parser.add_argument("folder", type=Path, help="with index.json and the run records")
    parser.add_argument("--out", type=Path, help=f"where to write; FOLDER/{OUT_FOLDER} unless said")
    parser.add_argument(
        "--only", nargs="+", metavar="EXHIBIT",
        help="table1 ... table8, figure1a ... figure6, validation",
    )  # fmt: skip
    return parser
