"""The program that measures kernels on one core: a task's name a line in, its figure out.

Names, sizes and units are those of `kernels.py`, which starts one of these on every core. Times are
the processor's, not the clock's: other programs on the machine must not count.
"""

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from tpi.model.attention import attend, make_segments
from tpi.model.kernels import Kernels

POSITIONS = 256  # of the keys that are attended to
_HEADS, _HEAD_SIZE = 8, 128
_SUM_ELEMENTS = 64 << 10
_WIDTH, _ROWS = 2048, 64  # of the work on elements beside products
Matrices = tuple[torch.Tensor, ...]
Multiply = Callable[[torch.Tensor, torch.Tensor], object]


@dataclass
class Bench:
    """The tasks, each a method of the name of its kind; figures are those of `Sizes`."""

    folder: Path
    matrix: tuple[int, int]
    weight_bytes: int
    task_s: float
    _stored: str = ""
    _layers: Iterator[Matrices] = field(default_factory=lambda: iter(()))

    def run(self, name: str) -> float:
        """Measure one task."""
        kind, *words = name.split()
        with torch.inference_mode():
            return float(getattr(self, kind)(*words))

    def products(self, pair: str, rows: str) -> float:
        """Bytes of weights per second through our own kernels."""
        stored, computed = pair.split("->")
        kernels = Kernels(_dtype(computed))
        return self._rate(
            lambda x_SK, w_NK: kernels.project(x_SK, {"w": w_NK}, "w"), stored, computed, rows
        )

    def linear(self, dtype: str, rows: str) -> float:
        """Bytes of weights per second through PyTorch's kernels, which the libraries use."""
        return self._rate(torch.nn.functional.linear, dtype, dtype, rows)

    def attend(self, dtype: str, queries: str) -> float:
        """Operations per second of attention."""

        def states(positions: int) -> torch.Tensor:
            return torch.randn(1, positions, _HEADS, _HEAD_SIZE).to(_dtype(dtype))

        count = int(queries)
        q_BShE, keys_BKTE = states(count), states(POSITIONS).transpose(1, 2).contiguous()
        segments = make_segments(range(_HEADS))
        taken_s = self._seconds(lambda: attend(q_BShE, keys_BKTE, keys_BKTE, segments))
        # As `Costs.attend` counts: behind other positions, the mask covers all keys.
        keys = POSITIONS if count < POSITIONS else (POSITIONS + 1) / 2
        return 4 * count * keys * _HEADS * _HEAD_SIZE / taken_s

    def cast(self, pair: str) -> float:
        """Bytes per second that are mapped and converted."""
        stored, computed = map(_dtype, pair.split("->"))
        return self._mapped_rate(stored, lambda mapped: mapped.to(computed, copy=True))

    def page_in(self) -> float:
        """Bytes per second that are mapped from the page cache and touched."""
        pages = os.sysconf("SC_PAGE_SIZE") // 4
        return self._mapped_rate(torch.float32, lambda mapped: mapped[::pages].sum())

    def sum(self) -> float:
        """Bytes per second of a sum."""
        total, part = torch.zeros(_SUM_ELEMENTS), torch.ones(_SUM_ELEMENTS)
        return part.nbytes / self._seconds(lambda: total.add_(part))

    def element(self) -> float:
        """Seconds per element of a block's norm, gate and residual sum."""
        many, one = (self._seconds(_beside_products(rows)) for rows in (1 + _ROWS, 1))
        return max(many - one, 1e-12) / (_ROWS * _WIDTH)

    def _seconds(self, body: Callable[[], object]) -> float:
        """The median of as many calls as fill the least time of a task."""
        taken: list[float] = []
        while not taken or sum(taken) < self.task_s:
            start_ns = time.process_time_ns()
            body()
            taken.append(max(time.process_time_ns() - start_ns, 1) / 1e9)
        return median(taken)

    def _rate(self, multiply: Multiply, stored: str, computed: str, rows: str) -> float:
        """Bytes of weights per second, `rows` rows at a time."""
        if stored != self._stored:  # matrices of one dtype at a time
            self._stored, self._layers = stored, itertools.cycle(self._make_layers(_dtype(stored)))
        x_SK = {width: torch.randn(int(rows), width).to(_dtype(computed)) for width in self.matrix}

        def body() -> None:
            for weight_NK in next(self._layers):
                multiply(x_SK[weight_NK.shape[1]], weight_NK)

        num_bytes = sum(weight_NK.nbytes for weight_NK in next(self._layers))
        return num_bytes / self._seconds(body)

    def _make_layers(self, dtype: torch.dtype) -> list[Matrices]:
        """FFNs that take turns, so that none is in a cache when it comes again.

        Two matrices widen and one narrows: a library's rate at a few rows depends on the shape.
        """
        tall = torch.randn(self.matrix).to(dtype)
        wide = tall.reshape(tall.shape[1], tall.shape[0])
        count = max(2, -(-self.weight_bytes // (3 * tall.nbytes)))
        return [(tall.clone(), tall.clone(), wide.clone()) for _ in range(count)]

    def _mapped_rate(self, dtype: torch.dtype, use: Callable[[torch.Tensor], object]) -> float:
        num_bytes = self.weight_bytes // 4
        count = num_bytes // dtype.itemsize
        with tempfile.NamedTemporaryFile(dir=self.folder) as file:
            Path(file.name).write_bytes(bytes(num_bytes))  # it stays in the page cache
            return num_bytes / self._seconds(
                lambda: use(torch.from_file(file.name, shared=True, size=count, dtype=dtype))
            )


def _beside_products(rows: int) -> Callable[[], object]:
    hidden_ND, gate_ND = torch.randn(rows, _WIDTH), torch.randn(rows, _WIDTH)
    norm = torch.ones(_WIDTH)

    def body() -> None:
        x_ND = torch.nn.functional.rms_norm(hidden_ND, (_WIDTH,), norm, 1e-5)
        torch.nn.functional.silu(gate_ND).mul_(x_ND)
        hidden_ND.add_(x_ND)

    return body


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _serve(folder: str, rows: str, columns: str, weight_bytes: str, task_s: str) -> None:
    torch.set_num_threads(1)
    bench = Bench(Path(folder), (int(rows), int(columns)), int(weight_bytes), float(task_s))
    sys.stdout.write("0\n")  # ready
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(f"{bench.run(line)!r}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
