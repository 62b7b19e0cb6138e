"""The findings as a table: for the terminal, and as Markdown for the file. Pure."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from harness.regression.verdict import Finding

_HEADINGS = ("what", "base", "head", "difference", "verdict")
_WELCOME = ("less", "faster")


def rich_table(findings: Sequence[Finding]) -> Table:
    """A row per finding."""
    table = Table(*_HEADINGS, box=None, pad_edge=False)
    for column in table.columns[1:3]:
        column.justify = "right"
    for finding in findings:
        table.add_row(*_cells(finding)[:-1], Text(finding.verdict, _style(finding)))
    return table


def markdown(title: str, findings: Sequence[Finding], verdict: str) -> str:
    """The same with a heading above and the verdict below."""
    rows = [_HEADINGS, ("---", "---:", "---:", "---", "---"), *map(_cells, findings)]
    lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
    return "\n".join([f"# {title}", "", *lines, "", verdict, ""])


def _cells(finding: Finding) -> tuple[str, ...]:
    return (finding.what, finding.base, finding.head, finding.change, finding.verdict)


def _style(finding: Finding) -> str:
    if finding.fails:
        return "red"
    return "green" if finding.verdict in _WELCOME else ""
