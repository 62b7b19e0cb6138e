"""Logging to standard error with the rank in every line; standard output belongs to events."""

import logging
import sys


class _RankFilter(logging.Filter):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def filter(self, record: logging.LogRecord) -> bool:
        record.rank = self._rank
        return True


def setup_logging(rank: int, level: str = "INFO") -> None:
    """Send the log of this process to standard error, each line with `rank=`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_RankFilter(rank))
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s rank=%(rank)s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
