"""Timings of one tree, on demand: the same file runs against the base's modules and the head's.

    python -P probe.py serve FOLDER     say what can be timed; then a name a line in, seconds out
    python -P probe.py spans FOLDER     say how many allreduces a worker took part in per step
    python -P probe.py rank RANK PORT   one of the ranks that `allreduce` sums with

PYTHONPATH decides which `tpi` is imported, so this file imports nothing else of the project. What a
tree does not have is reported as missing. Every probe is a context that makes what it needs in
FOLDER and yields a function that times it once, in seconds.
"""

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import tpi
from tpi.errors import ConfigError

if TYPE_CHECKING:
    from tpi.program.program_session import ProgramSession

Once = Callable[[], float]
RANKS, SUM_ELEMENTS = 4, 8192  # 32 KiB of float32: one token of a 70B model
DEVICES, NEW_TOKENS, MOST_REQUESTS = 2, 9, 64
_BLOCKS, _BLOCK_ROWS, _WIDTH = 6, 1024, 1024  # 2 MiB each in bfloat16
_FRAMES = 100
_READY_S = 120.0
_IMPORT = (
    "import sys, time; start = time.perf_counter(); import tpi.cli; "
    "sys.stdout.write(str(time.perf_counter() - start))"
)


def best_of(times: int, action: Callable[[], object]) -> float:
    """The least seconds of an action: other programs on the machine only add to it."""
    best_s = math.inf
    for _ in range(times):
        start_s = time.perf_counter()
        action()
        best_s = min(best_s, time.perf_counter() - start_s)
    return best_s


@contextmanager
def matvec(_folder: Path) -> Iterator[Once]:
    """A vector by a block's matrix of 16 MiB, stored in bfloat16 and multiplied in float32."""
    from tpi.model.kernels import Kernels

    kernels = Kernels(torch.float32)
    weights = {"w": torch.randn(2048, 4096).bfloat16()}
    yield partial(best_of, 15, partial(kernels.project, torch.randn(1, 4096), weights, "w"))


@contextmanager
def wire(_folder: Path) -> Iterator[Once]:
    """Encode 100 small tensor frames, and take their stream apart again."""
    from tpi.comm.messages import FrameParser
    from tpi.comm.wire import FrameHeader, FrameType, Op, WireDtype

    payload = bytes(256)

    def there_and_back() -> None:
        stream = bytearray()
        for step in range(_FRAMES):
            header = FrameHeader(
                FrameType.TENSOR, step=step, op=Op.FFN, dtype=WireDtype.FLOAT32, shape=(1, 64),
                payload_bytes=len(payload),
            )  # fmt: skip
            stream += header.encode_as(bytes(16), step) + payload
        if len(FrameParser().feed(memoryview(stream))) != _FRAMES:
            raise RuntimeError("wire: other frames came back than were sent")

    yield partial(best_of, 20, there_and_back)


@contextmanager
def window(folder: Path) -> Iterator[Once]:
    """One cycle over 6 blocks of 2 MiB through a window of 2, in the steady state."""
    from tpi.weights.blockfile import BlockEntry
    from tpi.weights.layout import make_layout
    from tpi.weights.shard import BlockId
    from tpi.weights.window import Window

    layout = make_layout((("weight", "bfloat16", (_BLOCK_ROWS, _WIDTH)),))
    entries = []
    for layer in range(_BLOCKS):
        block = BlockId("ffn", layer)
        path = folder / block.file_name
        path.write_bytes(layout.header + bytes(layout.num_bytes - len(layout.header)))
        entries.append(BlockEntry(block, path, layout.num_bytes, "", layout.places))
    with Window(entries, window=2).start() as blocks:

        def cycle() -> None:
            for entry in entries:
                with blocks.hold(entry.id) as tensors:
                    tensors["weight"][0].sum()

        yield partial(best_of, 10, cycle)


@contextmanager
def allreduce(_folder: Path) -> Iterator[Once]:
    """A star allreduce of 32 KiB between 4 processes on loopback."""
    from tpi.program.local_process import free_port

    port = free_port()
    with ExitStack() as stack:
        for rank in range(1, RANKS):
            argv = [sys.executable, "-P", __file__, "rank", str(rank), str(port)]
            process = stack.enter_context(subprocess.Popen(argv, stderr=subprocess.DEVNULL))
            stack.callback(process.kill)
        sums = stack.enter_context(_sums(0, port))
        yield partial(best_of, 25, partial(next, sums))


@contextmanager
def import_cli(_folder: Path) -> Iterator[Once]:
    """Import `tpi.cli` in a new interpreter: what every command waits for."""

    def once() -> float:
        argv = [sys.executable, "-c", _IMPORT]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ImportError(done.stderr.strip().rpartition("\n")[2])
        return float(done.stdout)

    yield lambda: min(once() for _ in range(3))


@contextmanager
def token(folder: Path) -> Iterator[Once]:
    """Mean time between 9 tokens of the model `tiny` on 2 local devices, window 2."""
    with _nodes(folder, MOST_REQUESTS) as session:
        left = iter(session.requests)

        def once() -> float:
            session.events.clear()
            session.serve(next(left))
            stamps_ns = [event.t_ns for event in session.events if event.name == "token"]
            return statistics.mean(b - a for a, b in pairwise(stamps_ns)) / 1e9

        yield once


@contextmanager
def _nodes(folder: Path, requests: int, *, keep_spans: bool = False) -> Iterator["ProgramSession"]:
    from tpi.launch import start_node
    from tpi.model_config import load_preset
    from tpi.options import ComputeOptions
    from tpi.program.local_process import free_port
    from tpi.program.program_session import Deadlines, ProgramSession
    from tpi.program.spec import NodeSpec, Request
    from tpi.weights.shard import make_shard_plan
    from tpi.weights.split import split
    from tpi.weights.synthetic import SyntheticSource

    shards = folder / "shards"
    if not (shards / f"rank-{DEVICES - 1}" / "manifest.json").is_file():
        source = SyntheticSource(load_preset("tiny"), dtype="bfloat16")
        split(source, make_shard_plan(source.config, DEVICES), shards)
    prompt, names = tuple(range(3, 11)), [f"r{i}" for i in range(requests)]
    master = f"127.0.0.1:{free_port()}"
    specs = [
        NodeSpec(
            system="tpi", rank=rank, world_size=DEVICES, session="ab" * 16, bind="127.0.0.1",
            master=master, model_dir=shards / f"rank-{rank}", threads=1,
            compute=ComputeOptions(max_tokens=len(prompt) + NEW_TOKENS),
            keep_spans=keep_spans,
            requests=tuple(Request(n, NEW_TOKENS, None if rank else prompt) for n in names),
        )
        for rank in range(DEVICES)
    ]  # fmt: skip
    deadlines = Deadlines(_READY_S, _READY_S, _READY_S)
    with ProgramSession(specs[0].requests, deadlines, keep_spans=keep_spans) as session:
        for spec in specs:
            session.add(start_node(spec, folder, session.inbox))
        session.wait_ready()
        yield session


@contextmanager
def _sums(rank: int, port: int) -> Iterator[Iterator[None]]:
    """Join the others; each `next` is one sum."""
    from tpi.comm.allreduce import AllReduce
    from tpi.comm.deadlines import Deadlines
    from tpi.comm.join import join
    from tpi.comm.wire import Op
    from tpi.ranks import Ranks
    from tpi.trace import Tracer

    with join(
        Ranks(rank, RANKS), bind="127.0.0.1", master=f"127.0.0.1:{port}", session=bytes(16),
        fingerprint=bytes(32), deadlines=Deadlines(), peer_links=False,
    ) as mesh:  # fmt: skip
        star = AllReduce(mesh, "star", "float32", SUM_ELEMENTS, Tracer())
        values = torch.zeros(SUM_ELEMENTS)

        def sums() -> Iterator[None]:
            for step in count(1):
                values.fill_(1.0)
                star.all_reduce(values, step=step, layer=0, op=Op.FFN)
                yield

        yield sums()


PROBES: dict[str, Callable[[Path], AbstractContextManager[Once]]] = {
    "matvec": matvec,
    "wire": wire,
    "window": window,
    "allreduce": allreduce,
    "import": import_cli,
    "token": token,
}
# Short probes are timed more often in a round: more pairs, each less likely to be disturbed.
TURNS = {"token": 1}
USUAL_TURNS = 2


def serve(folder: Path) -> None:
    """Make every probe and use it once; then time the one that each line of input names."""
    torch.set_num_threads(1)
    ready: dict[str, Once] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        for name, make in PROBES.items():
            try:
                once = stack.enter_context(make(folder))
                once()
            except (ImportError, AttributeError, TypeError, ConfigError) as exc:
                missing[name] = f"{type(exc).__name__}: {exc}"
            else:
                ready[name] = once
        _write({"tpi": tpi.__file__, "missing": missing})
        for line in sys.stdin:
            _write(ready[line.strip()]())


def spans(folder: Path) -> None:
    """Run a worker that keeps its spans, and count its allreduces."""
    with _nodes(folder, 1, keep_spans=True) as session:
        session.serve(session.requests[0])
    own = [event for event in session.events if event.rank == DEVICES - 1]
    (counters,) = [event for event in own if event.name == "counters"]
    found = sum(
        row[0] == "allreduce"
        for event in own
        if event.name == "spans"
        for row in event.fields["spans"]  # type: ignore[attr-defined]
    )
    _write({"tpi": tpi.__file__, "allreduces": found / counters.number("steps")})


def take_part(rank: int, port: int) -> None:
    """Sum with the others until they are gone."""
    torch.set_num_threads(1)
    with _sums(rank, port) as sums:
        for _ in sums:
            pass


def _write(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # An editable install would find in another tree what this one lacks.
    sys.meta_path[:] = [
        f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")
    ]
    if sys.argv[1] == "rank":
        take_part(int(sys.argv[2]), int(sys.argv[3]))
    else:
        {"serve": serve, "spans": spans}[sys.argv[1]](Path(sys.argv[2]))
