"""How much `make calibrate` measures: enough for steady figures, or little for tests."""

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


@dataclass(frozen=True, slots=True)
class Rounds:
    """Numbers of rounds: at most `most`, none begun after `part_s`; a busy machine does fewer."""

    most: int
    part_s: float

    def __iter__(self) -> Iterator[int]:
        start_s = time.monotonic()
        for number in range(self.most):
            if number and time.monotonic() - start_s > self.part_s:
                return
            yield number


TINY = Sizes(
    rounds=1, rows=(1, 8), matrix=(128, 64), weight_bytes=1 * MIB, task_s=0.001,
    messages=(64, 65536), exchanges=5, file_bytes=4 * MIB, reads=(64 << 10, 1 * MIB),
    layers=(1, 3), new_tokens=3, program_rounds=1,
)  # fmt: skip
