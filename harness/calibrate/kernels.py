"""What computing costs: matrix products, attention, casts, as one core finds them beside busy ones.

`measure_kernels` starts this module as a program on every core, has all of them measure the same
task at the same time (devices together keep all cores busy, and share the memory's rate), and takes
the median. The program reads a task's name a line and answers with its figure. Read
`measure_kernels`, then `_Bench`.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from harness.calibrate.sizes import Rounds, Sizes
from testbed.local.local import device_environment
from tpi.errors import ResourceError

if TYPE_CHECKING:
    import torch

    Matrices = tuple[torch.Tensor, ...]
    Multiply = Callable[[torch.Tensor, torch.Tensor], object]

STORED = ("float32", "float16", "bfloat16")
COMPUTED = ("float32", "bfloat16")
_HEADS, _HEAD_SIZE, _POSITIONS = 8, 128, 256
_QUERIES = (1, 8, 32, 128, _POSITIONS)  # a decoded token, prefills of all lengths
_SUM_ELEMENTS = 64 << 10
_WIDTH, _ROWS = 2048, 64  # of what is done to elements beside products


def task_names(sizes: Sizes) -> list[str]:
    """Every task; those of one stored dtype together, for the program holds matrices of one."""
    names = []
    for stored in STORED:
        pairs = [f"{stored}->{computed}" for computed in COMPUTED]
        names += [f"products {pair} {rows}" for pair in pairs for rows in sizes.rows]
        names += [f"linear {stored} {rows}" for rows in sizes.rows if stored in COMPUTED]
        names += [f"cast {pair}" for pair in pairs]
    names += [f"attend {dtype} {queries}" for dtype in COMPUTED for queries in _QUERIES]
    return [*names, "page_in", "sum", "element"]


def measure_kernels(folder: Path, sizes: Sizes, workers: int) -> dict[str, float]:
    """The figure of every task: bytes/s, FLOP/s, or seconds an element.

    Raises:
        ResourceError: A program ended early.
    """
    names = task_names(sizes)
    found: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        crew = [stack.enter_context(_started(folder, sizes)) for _ in range(workers)]
        for worker in crew:
            _answer(worker)  # it is ready
        for _ in Rounds(sizes.rounds, sizes.part_s):
            for name in names:
                for worker in crew:
                    _ask(worker, name)
                found[name] += [_answer(worker) for worker in crew]
        for worker in crew:
            worker.communicate()
    return {name: median(values) for name, values in found.items()}


def _started(folder: Path, sizes: Sizes) -> subprocess.Popen[str]:
    figures = (*sizes.matrix, sizes.weight_bytes, sizes.task_s)
    argv = [sys.executable, "-m", __name__, str(folder), *map(str, figures)]
    env = {**os.environ, **device_environment(1)}
    # A session of its own: Ctrl-C is for us, and the program ends with its input.
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    )


def _ask(worker: "subprocess.Popen[str]", name: str) -> None:
    if worker.stdin is not None:
        worker.stdin.write(f"{name}\n")
        worker.stdin.flush()


def _answer(worker: "subprocess.Popen[str]") -> float:
    line = worker.stdout.readline() if worker.stdout is not None else ""
    if not line:
        raise ResourceError(f"calibration: a program ended early, exit status {worker.wait()}")
    return float(line)


class _Bench:
    """The tasks, in the program."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        import torch

        torch.set_num_threads(1)
        self._torch = torch
        self._sizes = sizes
        self._folder = folder
        self._made: dict[str, Iterator[Matrices]] = {}

    def run(self, name: str) -> float:
        """Measure one task."""
        kind, *words = name.split()
        tasks: Mapping[str, Callable[..., float]] = {
            "products": self._products,
            "linear": self._linear,
            "attend": self._attend,
            "cast": self._cast,
            "page_in": self._page_in,
            "sum": self._sum,
            "element": self._element,
        }
        with self._torch.inference_mode():
            return tasks[kind](*words)

    def _seconds(self, body: Callable[[], object]) -> float:
        """The median processor time of a call, of as many as fill the least time of a task.

        Not the clock's: what else runs on the machine takes turns with us, and is none of ours.
        """
        taken: list[float] = []
        while not taken or sum(taken) < self._sizes.task_s:
            start_ns = time.process_time_ns()
            body()
            taken.append(max(time.process_time_ns() - start_ns, 1) / 1e9)
        return median(taken)

    def _layers(self, dtype: str) -> "Iterator[Matrices]":
        """FFNs that take turns, so that none is in a cache when it comes again.

        Two matrices that widen and one that narrows, since a library's rate at a few rows hangs on
        the shape.
        """
        if dtype not in self._made:
            self._made = {}  # one dtype at a time
            rows, columns = self._sizes.matrix
            tall = self._torch.randn(rows, columns).to(self._dtype(dtype))
            wide = tall.reshape(columns, rows)
            count = max(2, -(-self._sizes.weight_bytes // (3 * tall.nbytes)))
            layers = [(tall.clone(), tall.clone(), wide.clone()) for _ in range(count)]
            self._made[dtype] = itertools.cycle(layers)
        return self._made[dtype]

    def _rate(self, multiply: "Multiply", stored: str, computed: str, rows: str) -> float:
        """Bytes of weights a second, `rows` rows at a time."""
        layers, dtype = self._layers(stored), self._dtype(computed)
        x_SK = {
            width: self._torch.randn(int(rows), width).to(dtype) for width in self._sizes.matrix
        }

        def body() -> None:
            for weight_NK in next(layers):
                multiply(x_SK[weight_NK.shape[1]], weight_NK)

        num_bytes = sum(weight_NK.nbytes for weight_NK in next(layers))
        return num_bytes / self._seconds(body)

    def _products(self, pair: str, rows: str) -> float:
        from tpi.model.kernels import Kernels

        stored, computed = pair.split("->")
        kernels = Kernels(self._dtype(computed))
        return self._rate(lambda x_SK, w_NK: kernels.project(x_SK, {"w": w_NK}, "w"),
                          stored, computed, rows)  # fmt: skip

    def _linear(self, dtype: str, rows: str) -> float:
        return self._rate(self._torch.nn.functional.linear, dtype, dtype, rows)

    def _attend(self, dtype: str, queries: str) -> float:
        from tpi.model.attention import attend, make_segments

        def states(positions: int) -> "torch.Tensor":
            shape = (1, positions, _HEADS, _HEAD_SIZE)
            made: torch.Tensor = self._torch.randn(shape).to(self._dtype(dtype))
            return made

        q_BShE = states(int(queries))
        keys_BKTE = states(_POSITIONS).transpose(1, 2).contiguous()
        segments = make_segments(range(_HEADS))
        taken_s = self._seconds(lambda: attend(q_BShE, keys_BKTE, keys_BKTE, segments))
        # As `Costs.attend` counts: behind others a mask over all keys is worked through whole.
        keys = _POSITIONS if int(queries) < _POSITIONS else (_POSITIONS + 1) / 2
        return 4 * int(queries) * keys * _HEADS * _HEAD_SIZE / taken_s

    def _cast(self, pair: str) -> float:
        stored, computed = pair.split("->")
        with tempfile.NamedTemporaryFile(dir=self._folder) as file:
            num_bytes = self._fill(file.name)
            to = self._dtype(computed)
            return num_bytes / self._seconds(
                lambda: self._mapped(file.name, stored).to(to, copy=True)
            )

    def _page_in(self) -> float:
        with tempfile.NamedTemporaryFile(dir=self._folder) as file:
            num_bytes = self._fill(file.name)
            pages = os.sysconf("SC_PAGE_SIZE") // 4
            return num_bytes / self._seconds(
                lambda: self._mapped(file.name, "float32")[::pages].sum()
            )

    def _fill(self, name: str) -> int:
        """Write a file that stays in the page cache."""
        num_bytes = self._sizes.weight_bytes // 4
        Path(name).write_bytes(bytes(num_bytes))
        return num_bytes

    def _mapped(self, name: str, dtype: str) -> "torch.Tensor":
        kind = self._dtype(dtype)
        count = Path(name).stat().st_size // kind.itemsize
        mapped: torch.Tensor = self._torch.from_file(name, shared=True, size=count, dtype=kind)
        return mapped

    def _sum(self) -> float:
        total, part = self._torch.zeros(_SUM_ELEMENTS), self._torch.ones(_SUM_ELEMENTS)
        return part.nbytes / self._seconds(lambda: total.add_(part))

    def _element(self) -> float:
        """What a block does beside products: norm, rotation or gate, residual sum."""
        many, one = (self._seconds(self._beside_products(rows)) for rows in (1 + _ROWS, 1))
        return max(many - one, 1e-12) / (_ROWS * _WIDTH)

    def _beside_products(self, rows: int) -> Callable[[], object]:
        torch = self._torch
        hidden_ND, gate_ND = torch.randn(rows, _WIDTH), torch.randn(rows, _WIDTH)
        norm = torch.ones(_WIDTH)

        def body() -> None:
            x_ND = torch.nn.functional.rms_norm(hidden_ND, (_WIDTH,), norm, 1e-5)
            torch.nn.functional.silu(gate_ND).mul_(x_ND)
            hidden_ND.add_(x_ND)

        return body

    def _dtype(self, name: str) -> "torch.dtype":
        dtype: torch.dtype = getattr(self._torch, name)
        return dtype


def _serve(folder: str, rows: str, columns: str, weight_bytes: str, task_s: str) -> None:
    sizes = Sizes(
        matrix=(int(rows), int(columns)), weight_bytes=int(weight_bytes), task_s=float(task_s)
    )
    bench = _Bench(Path(folder), sizes)
    sys.stdout.write("0\n")  # ready
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(f"{bench.run(line.strip())!r}\n")
        sys.stdout.flush()


def tables(figures: Mapping[str, float], kind: str) -> dict[str, tuple[tuple[int, float], ...]]:
    """Rates by rows of every dtype, of `products`, `linear` or `attend`."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name, value in figures.items():
        words = name.split()
        if words[0] == kind:
            found.setdefault(words[1], []).append((int(words[2]), value))
    return {key: tuple(sorted(pairs)) for key, pairs in found.items()}


def of_kind(figures: Mapping[str, float], kind: str) -> dict[str, float]:
    """Figures by dtype, of `cast`."""
    words: Sequence[tuple[list[str], float]] = [(n.split(), v) for n, v in figures.items()]
    return {name[1]: value for name, value in words if name[0] == kind}


if __name__ == "__main__":
    _serve(*sys.argv[1:])
