"""`tpi generate`: N node processes on this machine, one prompt, text as it comes.

`LocalNodes` starts the processes and merges their events into one stream; `generate` asks for one
request and turns tokens into text. Closing the nodes' standard input ends them, however we end.
"""

import os
import queue
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tpi.errors import ConfigError, TpiError, error_from_code
from tpi.events import Event, EventError, parse_event
from tpi.spec import NodeSpec, Request, dump_spec
from tpi.tokenizer import StreamDecoder, Tokenizer
from tpi.weights.blockfile import Manifest, open_shard_folder

_READY_TIMEOUT_S = 3600.0  # the first start hashes every shard
_EXIT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """What `tpi generate` was asked for; the names are those of its options."""

    dir: Path
    prompt: str | None
    prompt_tokens: str | None
    devices: int | None = None
    new_tokens: int = 64
    window: int | None = 2
    memory_budget: int | None = None
    dtype: str = "float32"
    allreduce: str = "star"
    wire_dtype: str = "float32"
    threads: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """What one generation took: seconds, and bytes by rank."""

    num_tokens: int
    ttft_s: float
    token_latency_s: float | None
    peak_bytes: tuple[int, ...]


class LocalNodes:
    """N `tpi node` processes on loopback and their merged events.

    Raises:
        TpiError: the first error that any node reported, or that it died without a word.
    """

    def __init__(self, specs: Sequence[NodeSpec], folder: Path) -> None:
        self._specs = specs
        self._folder = folder
        self._events: queue.SimpleQueue[tuple[int, Event | TpiError | None]] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ended: set[int] = set()

    def __enter__(self) -> Self:
        try:
            for spec in self._specs:
                self._start(spec)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, spec: NodeSpec) -> None:
        path = self._folder / f"spec-{spec.rank}.json"
        dump_spec(spec, path)
        with (self._folder / f"rank-{spec.rank}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tpi.cli", "node", str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C comes to us alone; we end them in order
            )
        self._processes.append(process)
        if process.stdout is None:
            raise RuntimeError("a pipe was asked for")
        threading.Thread(
            target=self._read, args=(spec.rank, process.stdout), name="events", daemon=True
        ).start()

    def _read(self, rank: int, stream: IO[bytes]) -> None:
        for line in stream:
            try:
                self._events.put((rank, parse_event(line)))
            except EventError as exc:
                self._events.put((rank, exc))
        self._events.put((rank, None))

    def go(self, request_id: str) -> None:
        """Start a request on the master."""
        stdin = self._processes[0].stdin
        if stdin is None:
            raise RuntimeError("a pipe was asked for")
        stdin.write(f"go {request_id}\n".encode())
        stdin.flush()

    def next_event(self, timeout_s: float) -> tuple[int, Event]:
        """Wait for the next event of any rank."""
        try:
            rank, event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            raise TpiError(
                f"no event from any of {len(self._specs)} nodes for {timeout_s} s"
            ) from None
        if event is None:
            self._ended.add(rank)
            raise self._death(rank)
        if isinstance(event, TpiError):
            raise event
        if event.name == "error":
            fields = event.fields
            message = str(fields["message"])
            named = message if message.startswith("rank ") else f"rank {rank}: {message}"
            raise error_from_code(str(fields["code"]), named)
        return rank, event

    def _death(self, rank: int) -> TpiError:
        status = self._processes[rank].wait(_EXIT_TIMEOUT_S)
        log = (self._folder / f"rank-{rank}.log").read_text(errors="replace").strip()
        last = log.splitlines()[-1] if log else "nothing in its log"
        return TpiError(f"rank {rank} ended with status {status} and without a word; {last}")

    def collect(self, name: str, timeout_s: float) -> dict[int, Event]:
        """Wait until every rank has sent one event of this name; others are dropped."""
        found: dict[int, Event] = {}
        deadline = time.monotonic() + timeout_s
        while len(found) < len(self._specs):
            rank, event = self.next_event(max(0.0, deadline - time.monotonic()))
            if event.name == name:
                found[rank] = event
        return found

    def close(self) -> None:
        """End all nodes: close their input, then ask, then kill; may be called twice."""
        for process in self._processes:
            if process.stdin is not None:
                with suppress(OSError):  # a broken pipe means that it is gone already
                    process.stdin.close()
        deadline = time.monotonic() + _EXIT_TIMEOUT_S
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
                process.wait()
        for process in self._processes:
            if process.stdout is not None:
                process.stdout.close()
        self._processes.clear()


def generate(options: GenerateOptions, show: Callable[[str], None]) -> Summary:
    """Run one prompt on local nodes; `show` gets the text piece by piece.

    Raises:
        ConfigError: the folder or an option cannot be used.
        TpiError: what went wrong on a node.
    """
    folders = shard_folders(options.dir, options.devices)
    manifest = open_shard_folder(folders[0], verify=False)
    tokenizer = Tokenizer.load(folders[0]) if Tokenizer.present(folders[0]) else None
    prompt_ids = _prompt_ids(options, tokenizer)
    specs = _make_specs(options, folders, manifest, prompt_ids)
    text = _Text(show, tokenizer)
    with (
        tempfile.TemporaryDirectory(prefix="tpi-") as folder,
        LocalNodes(specs, Path(folder)) as nodes,
    ):
        nodes.collect("ready", _READY_TIMEOUT_S)
        nodes.go("r0")
        return _follow(nodes, text, len(specs))


def shard_folders(folder: Path, devices: int | None) -> tuple[Path, ...]:
    """The rank folders under what `tpi split` wrote, checked against `devices`.

    Raises:
        ConfigError: not such a folder, or split for another number of devices.
    """
    found = sorted(folder.glob("rank-*/manifest.json"))
    if not found:
        hint = (
            f"; it is a checkpoint: tpi split {folder} --devices {devices or 'N'} --out DIR"
            if (folder / "config.json").is_file()
            else ""
        )
        raise ConfigError(f"{folder}: holds no rank-0/manifest.json as tpi split writes it{hint}")
    folders = tuple(folder / f"rank-{rank}" for rank in range(len(found)))
    if devices is not None and devices != len(folders):
        raise ConfigError(f"--devices {devices}: {folder} was split for {len(folders)} devices")
    return folders


def _prompt_ids(options: GenerateOptions, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    if options.prompt_tokens is not None:
        try:
            return tuple(int(part) for part in options.prompt_tokens.split(","))
        except ValueError:
            raise ConfigError(
                f"--prompt-tokens: got {options.prompt_tokens!r}, expected ids such as 1,2,3"
            ) from None
    if tokenizer is None:
        raise ConfigError(f"{options.dir}: has no tokenizer.json; use --prompt-tokens 1,2,3")
    ids = tokenizer.encode(options.prompt or "")
    if not ids:
        raise ConfigError("--prompt: is empty, expected some text")
    return tuple(ids)


def _make_specs(
    options: GenerateOptions, folders: Sequence[Path], manifest: Manifest, ids: tuple[int, ...]
) -> list[NodeSpec]:
    world_size = len(folders)
    threads = options.threads or max(1, (os.cpu_count() or 1) // world_size)
    master = NodeSpec(
        system="tpi",
        rank=0,
        world_size=world_size,
        session=secrets.token_hex(16),
        bind="127.0.0.1",
        master=f"127.0.0.1:{free_port()}",
        model_dir=folders[0].absolute(),
        threads=threads,
        dtype=options.dtype,
        max_tokens=len(ids) + options.new_tokens,
        requests=(Request("r0", options.new_tokens, ids),),
        options={
            "window": "all" if options.window is None else options.window,
            "memory_budget": options.memory_budget,
            "allreduce": options.allreduce,
            "wire_dtype": options.wire_dtype,
            "temperature": options.temperature,
            "top_k": options.top_k,
            "top_p": options.top_p,
            "seed": options.seed,
            "stop_ids": [] if options.ignore_eos else list(manifest.config.eos_token_ids),
        },
    )
    worker_requests = (Request("r0", options.new_tokens),)
    return [master] + [
        replace(master, rank=rank, model_dir=folders[rank].absolute(), requests=worker_requests)
        for rank in range(1, world_size)
    ]


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class _Text:
    """Tokens to text, or to their numbers where there is no tokenizer."""

    def __init__(self, show: Callable[[str], None], tokenizer: Tokenizer | None) -> None:
        self._show = show
        self._decoder = None if tokenizer is None else StreamDecoder(tokenizer)
        self._first = True

    def token(self, token: int) -> None:
        if self._decoder is not None:
            self._show(self._decoder.push(token))
        else:
            self._show(f"{token}" if self._first else f" {token}")
        self._first = False

    def end(self) -> None:
        if self._decoder is not None:
            self._show(self._decoder.finish())


def _follow(nodes: LocalNodes, text: _Text, world_size: int) -> Summary:
    start_ns, stamps = 0, list[int]()
    peaks: dict[int, int] = {}
    ended: set[int] = set()
    for rank, event in _until_all_ended(nodes, ended, world_size):
        if event.name == "request":
            start_ns = event.t_ns
        elif event.name == "token":
            stamps.append(event.t_ns)
            text.token(event.token)
        elif event.name == "counters":
            peaks[rank] = int(event.number("rss_hwm"))
    text.end()
    gaps = len(stamps) - 1
    return Summary(
        num_tokens=len(stamps),
        ttft_s=(stamps[0] - start_ns) / 1e9,
        token_latency_s=(stamps[-1] - stamps[0]) / 1e9 / gaps if gaps else None,
        peak_bytes=tuple(peaks[rank] for rank in sorted(peaks)),
    )


def _until_all_ended(
    nodes: LocalNodes, ended: set[int], world_size: int
) -> Iterator[tuple[int, Event]]:
    # A node says by itself when it is lost, silent or stalled; this only bounds a defect.
    while len(ended) < world_size:
        rank, event = nodes.next_event(timeout_s=86400.0)
        if event.name == "end":
            ended.add(rank)
        yield rank, event
