"""How much `make calibrate` measures: enough for steady figures."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes and repeats of a calibration."""

    rounds: int = 5  # interleaved, of which the median counts
    rows: tuple[int, ...] = (1, 2, 8, 32, 128, 512)  # step sizes of products
    matrix: tuple[int, int] = (4096, 2048)  # rows and columns of a matrix that widens
    weight_bytes: int = 128 * MIB  # of all matrices that take turns: more than any cache
    task_s: float = 0.1  # least time of one measurement
    messages: tuple[int, ...] = (64, 1024, 8192, 32768, 131072, 1048576)  # payloads in bytes
    exchanges: int = 200  # messages there and back, of each size and round
    file_bytes: int = 512 * MIB  # of the file that is read
    reads: tuple[int, ...] = (256 << 10, 1 * MIB, 4 * MIB, 16 * MIB, 64 * MIB)  # block sizes
    layers: tuple[int, int] = (4, 36)  # of the two models that real programs serve
    new_tokens: int = 24  # of each request to them
    program_rounds: int = 2  # how often each program is started
    part_s: float = 40.0  # no round of a part begins later; the first always does


def timed_rounds(most: int, part_s: float) -> Iterator[int]:
    """Numbers of rounds: at most `most`, none begun after `part_s`; a busy machine does fewer."""
    start_s = time.monotonic()
    for number in range(most):
        if number and time.monotonic() - start_s > part_s:
            return
        yield number
