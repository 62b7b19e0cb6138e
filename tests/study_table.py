"""The table of an allreduce study in docs/, from the points of its file."""

from collections.abc import Sequence

from results.paper.cells.allreduce import Point
from tpi.comm.allreduces.registry import PAPER_ALLREDUCES


def markdown(points: Sequence[Point]) -> str:
    """Markdown with a row per delay, with the measured latency and the bound in cells."""
    order = PAPER_ALLREDUCES.index
    columns = sorted({(p.num_bytes, order(p.algorithm), p.algorithm) for p in points})
    cells = {(p.delay_ms, p.num_bytes, p.algorithm): p for p in points}
    lines = [
        "| delay to core | "
        + " | ".join(f"{name}, {count} B" for count, _, name in columns)
        + " |",
        "|---:|" + "---:|" * len(columns),
    ]
    for delay_ms in dict.fromkeys(point.delay_ms for point in points):
        row = [cells[delay_ms, count, name] for count, _, name in columns]
        words = [f"{point.median_s * 1e3:.2f} ({point.bound_s * 1e3:.2f})" for point in row]
        lines.append(f"| {delay_ms:g} ms | " + " | ".join(words) + " |")
    return "\n".join(lines)
