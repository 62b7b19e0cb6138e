"""Real `tpi node` processes (or those of a baseline) for tests: start, follow, harm, reap."""

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from msgspec.structs import replace

from tests.checkpoints import make_checkpoint
from tests.forked import ForkedProgram
from tpi.options import ComputeOptions
from tpi.program.local_process import free_port
from tpi.program.spec import NodeSpec, Request, dump_spec
from tpi.weights.checkpoint import open_checkpoint
from tpi.weights.shard import make_shard_plan
from tpi.weights.split import split

PROMPT = tuple(range(3, 40))


def split_checkpoint(folder: Path, kind: str, world_size: int, shares=None, **changes) -> Path:
    """Make a small checkpoint of that kind and split it; returns the folder of the ranks."""
    source = open_checkpoint(make_checkpoint(folder / "checkpoint", kind, **changes))
    out = folder / f"split-{world_size}"
    split(source, make_shard_plan(source.config, world_size, shares), out)
    return out


def make_specs(
    shards: Path, *, new_tokens: int, max_tokens: int, time_scale=1.0, prompt=PROMPT[:8],
    own=None, **compute,
) -> list[NodeSpec]:  # fmt: skip
    """One spec a rank, all for one request `r0`; `own` are the system's own options."""
    world_size = len(list(shards.glob("rank-*/manifest.json")))
    master = NodeSpec(
        system="tpi", rank=0, world_size=world_size, session="ab" * 16, bind="127.0.0.1",
        master=f"127.0.0.1:{free_port()}", model_dir=shards / "rank-0", threads=1,
        compute=ComputeOptions.named_in(compute, max_tokens=max_tokens), time_scale=time_scale,
        requests=(Request("r0", new_tokens, tuple(prompt)),), options=own or {},
    )  # fmt: skip
    return [master] + [
        replace(
            master, rank=r, model_dir=shards / f"rank-{r}", requests=(Request("r0", new_tokens),)
        )
        for r in range(1, world_size)
    ]


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


class Nodes:
    """Processes by name (their rank unless named otherwise) and everything they said.

    They are forked from one that has imported torch, unless `fresh` asks for new interpreters.
    """

    def __init__(
        self,
        specs: Sequence[NodeSpec],
        folder: Path,
        module: str = "tpi.cli",
        *,
        fresh: bool = False,
    ) -> None:
        self._folder = folder
        self._module = module
        self._fresh = fresh
        self._processes: dict[object, subprocess.Popen[bytes] | ForkedProgram] = {}
        self._heard: dict[object, list[dict[str, Any]]] = {}
        self._queue: queue.SimpleQueue[tuple[object, dict[str, Any] | None]] = queue.SimpleQueue()
        for spec in specs:
            self.start(spec)

    def start(self, spec: NodeSpec, name: object = None) -> None:
        name = spec.rank if name is None else name
        path = self._folder / f"spec-{name}.json"
        dump_spec(spec, path)
        process = self._open([*(["node"] if self._module == "tpi.cli" else []), str(path)], name)
        self._processes[name] = process
        self._heard[name] = []
        threading.Thread(target=self._read, args=(name, process.stdout), daemon=True).start()

    def _open(
        self, arguments: Sequence[str], name: object
    ) -> "subprocess.Popen[bytes] | ForkedProgram":
        log = self._folder / f"{name}.log"
        if not self._fresh:
            return ForkedProgram(self._module, arguments, log)
        with log.open("wb") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", self._module, *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            )  # fmt: skip

    def _read(self, name, stream) -> None:
        for line in stream:
            self._queue.put((name, json.loads(line)))
        self._queue.put((name, None))

    def __enter__(self):
        return self

    def __exit__(self, *exc_info) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
            _pipe(process.stdin).close()
            _pipe(process.stdout).close()

    def _pump(self, deadline: float) -> None:
        name, event = self._queue.get(timeout=max(0.01, deadline - time.monotonic()))
        if event is not None:
            self._heard[name].append(event)

    def wait_for(
        self, event: str, ranks: Iterable[object], timeout_s: float = 30, times: int = 1
    ) -> None:
        """Until each of these has sent the event; an error of any of them fails the test."""
        deadline = time.monotonic() + timeout_s
        for name in ranks:
            while len(self.events(name, event)) < times:
                errors = [e for e in self._heard[name] if e["event"] == "error"]
                assert not errors, errors
                self._pump(deadline)

    def errors_of(
        self, ranks: Iterable[object], timeout_s: float = 30
    ) -> dict[object, dict[str, Any]]:
        """The error event of each of these."""
        deadline = time.monotonic() + timeout_s
        found = {}
        for name in ranks:
            while not (errors := [e for e in self._heard[name] if e["event"] == "error"]):
                self._pump(deadline)
            found[name] = errors[0]
        return found

    def exit_codes(self, ranks: Iterable[object], timeout_s: float = 20) -> list[int]:
        return [self._processes[name].wait(timeout_s) for name in ranks]

    def signal(self, name: object, number: int) -> None:
        self._processes[name].send_signal(number)

    def close_stdin(self, ranks: Iterable[object]) -> None:
        for name in ranks:
            _pipe(self._processes[name].stdin).close()

    def go(self, request_id: str) -> None:
        _pipe(self._processes[0].stdin).write(f"go {request_id}\n".encode())
        _pipe(self._processes[0].stdin).flush()

    def tokens(self) -> list[int]:
        return [e["token"] for e in self._heard[0] if e["event"] == "token"]

    def events(self, name: object, kind: str) -> list[dict[str, Any]]:
        return [e for e in self._heard[name] if e["event"] == kind]

    def wait_for_log(self, name: object, text: str, timeout_s: float = 20) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in (self._folder / f"{name}.log").read_text():
            assert time.monotonic() < deadline, f"{name}.log never said {text!r}"
            threading.Event().wait(0.02)
