"""The costs of computing: matrix products, attention, casts, on one core while others are busy.

`measure_kernels` starts `bench.py` on every core and has all of them measure the same task at the
same time: devices together keep all cores busy and share the memory's rate. The median counts.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from harness.calibrate.sizes import Sizes, timed_rounds
from testbed.local.local import device_environment
from tpi.errors import ResourceError
from tpi.model_config import DTYPES
from tpi.options import COMPUTE_DTYPES

_QUERIES = (1, 8, 32, 128, 256)  # a decoded token, prefills of all lengths


def task_names(sizes: Sizes) -> list[str]:
    """Every task; a program holds matrices of one stored dtype, so those stand together."""
    names = []
    for stored in DTYPES:
        pairs = [f"{stored}->{computed}" for computed in COMPUTE_DTYPES]
        names += [f"products {pair} {rows}" for pair in pairs for rows in sizes.rows]
        names += [f"linear {stored} {rows}" for rows in sizes.rows if stored in COMPUTE_DTYPES]
        names += [f"cast {pair}" for pair in pairs]
    names += [f"attend {dtype} {queries}" for dtype in COMPUTE_DTYPES for queries in _QUERIES]
    return [*names, "page_in", "sum", "element"]


def measure_kernels(folder: Path, sizes: Sizes, workers: int) -> dict[str, float]:
    """Bytes/s, FLOP/s or s/element of every task; raises ResourceError if a program ends early."""
    found: dict[str, list[float]] = {name: [] for name in task_names(sizes)}
    figures = (*sizes.matrix, sizes.weight_bytes, sizes.task_s)
    argv = [sys.executable, "-m", "harness.calibrate.bench", str(folder), *map(str, figures)]
    env = {**os.environ, **device_environment(1)}
    with ExitStack() as stack:
        crew = [
            stack.enter_context(
                # In a session of its own: Ctrl-C is for us, and the program ends with its input.
                subprocess.Popen(
                    argv, env=env, text=True, start_new_session=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                )
            )
            for _ in range(workers)
        ]  # fmt: skip
        for worker in crew:
            _answer(worker)  # it is ready
        for _ in timed_rounds(sizes.rounds, sizes.part_s):
            for name, values in found.items():
                for worker in crew:
                    _ask(worker, name)
                values += [_answer(worker) for worker in crew]
        for worker in crew:
            worker.communicate()
    return {name: median(values) for name, values in found.items()}


def _ask(worker: subprocess.Popen[str], name: str) -> None:
    if worker.stdin is not None:
        worker.stdin.write(f"{name}\n")
        worker.stdin.flush()


def _answer(worker: subprocess.Popen[str]) -> float:
    line = worker.stdout.readline() if worker.stdout is not None else ""
    if not line:
        raise ResourceError(f"calibration: a program ended early, exit status {worker.wait()}")
    return float(line)


def tables(figures: Mapping[str, float], kind: str) -> dict[str, tuple[tuple[int, float], ...]]:
    """Rates by rows of every dtype, of `products`, `linear` or `attend`."""
    found: dict[str, list[tuple[int, float]]] = {}
    for key, rows, value in _of_kind(figures, kind):
        found.setdefault(key, []).append((int(rows), value))
    return {key: tuple(sorted(pairs)) for key, pairs in found.items()}


def casts(figures: Mapping[str, float]) -> dict[str, float]:
    """Rates of casts by pair of dtypes."""
    return {key: value for key, _, value in _of_kind(figures, "cast")}


def _of_kind(figures: Mapping[str, float], kind: str) -> list[tuple[str, str, float]]:
    named = [((*name.split(), "", ""), value) for name, value in figures.items()]
    return [(words[1], words[2], value) for words, value in named if words[0] == kind]
