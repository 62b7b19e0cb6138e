"""How much `make calibrate` measures: enough for a steady figure, and small for tests."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes and repeats.

    Attributes:
        rounds: Interleaved repeats, of which the median counts.
        rows: Step sizes of products.
        matrix: Rows and columns of a matrix that widens; one that narrows has them exchanged.
        weight_bytes: Of all matrices that take turns: more than any cache.
        task_s: Least time of one measurement.
        messages: Payloads in bytes.
        exchanges: Messages there and back, of each size and round.
        file_bytes: Of the file that is read.
        reads: Block sizes in bytes.
        layers: Of the two models that real programs serve.
        new_tokens: Of each request to them.
        program_rounds: How often each program is started.
        part_s: After which no further round of a part is begun; the first always is.
    """

    rounds: int = 5
    rows: tuple[int, ...] = (1, 2, 8, 32, 128, 512)
    matrix: tuple[int, int] = (4096, 2048)
    weight_bytes: int = 128 * MIB
    task_s: float = 0.1
    messages: tuple[int, ...] = (64, 1024, 8192, 32768, 131072, 1048576)
    exchanges: int = 200
    file_bytes: int = 512 * MIB
    reads: tuple[int, ...] = (256 << 10, 1 * MIB, 4 * MIB, 16 * MIB, 64 * MIB)
    layers: tuple[int, int] = (4, 36)
    new_tokens: int = 24
    program_rounds: int = 2
    part_s: float = 40.0


@dataclass(frozen=True, slots=True)
class Rounds:
    """Numbers of rounds: at most `most`, and none begun after `part_s`.

    So a busy machine gives fewer repeats, and not a longer wait.
    """

    most: int
    part_s: float

    def __iter__(self) -> Iterator[int]:
        start_s = time.monotonic()
        for number in range(self.most):
            if number and time.monotonic() - start_s > self.part_s:
                return
            yield number


TINY = Sizes(
    rounds=1,
    rows=(1, 8),
    matrix=(128, 64),
    weight_bytes=1 * MIB,
    task_s=0.001,
    messages=(64, 65536),
    exchanges=5,
    file_bytes=4 * MIB,
    reads=(64 << 10, 1 * MIB),
    layers=(1, 3),
    new_tokens=3,
    program_rounds=1,
)
