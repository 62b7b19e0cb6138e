"""Simulated beside measured as Markdown: one configuration a line, the error of each metric.

Read `markdown` first.
"""

from collections.abc import Iterator, Sequence

from results.book import Book
from results.exhibits import METRIC_LABELS, VALIDATION_TITLE, label_of
from results.marks import markdown_of, show
from results.markup import counted
from results.paper_tables import aligned
from results.validation import PAIRED, Pair, median_error, pairs_of, worst_pair


def markdown(book: Book) -> str:
    """Every configuration that the simulator is checked on, then the errors in a line a metric."""
    pairs = [pair for pair in pairs_of(book) if pair.is_check]
    found: dict[tuple[str, str], dict[str, Pair]] = {}
    for pair in pairs:
        place = pair.place
        found.setdefault((place.row, place.column), {})[place.metric] = pair
    lines = [f"### {VALIDATION_TITLE}", ""]
    if not found:
        return "\n".join([*lines, "Nothing was both measured and simulated to check it."]) + "\n"
    titles = [METRIC_LABELS[metric] for metric in PAIRED]
    head = (each for title in titles for each in (title, "simulated", "error"))
    grid = [("configuration", "system", *head)]
    for (row, column), by_metric in found.items():
        cells = (each for metric in PAIRED for each in _cells(by_metric.get(metric)))
        grid.append((label_of(row), label_of(column), *cells))
    lines += [*aligned(grid), ""]
    lines.append(f"{counted(len(found), 'configuration')}. Errors, simulated / measured - 1:")
    lines += ["", *(f"- {line}" for line in summary(pairs))]
    return "\n".join(lines) + "\n"


def summary(pairs: Sequence[Pair]) -> Iterator[str]:
    """Median and worst error of each metric that has pairs, a line each."""
    for metric in PAIRED:
        mine = [pair for pair in pairs if pair.place.metric == metric]
        if mine:
            worst = worst_pair(mine)
            where = f"{worst.place.row}, {label_of(worst.place.column)}"
            name = METRIC_LABELS[metric]
            median = f"{100 * median_error(mine):.1f} %"
            yield f"{name}: median {median}, worst {percent(worst.error)} ({where})"


def percent(error: float) -> str:
    """`+1.2 %`."""
    return f"{100 * error:+.1f} %"


def _cells(pair: Pair | None) -> tuple[str, str, str]:
    if pair is None:
        return "", "", ""
    measured, simulated = markdown_of(show(pair.measured)), markdown_of(show(pair.simulated))
    return measured, simulated, percent(pair.error)
