"""`tpi generate`: one prompt on N node processes of this machine, text as it comes.

`generate` writes a spec for each node, has `local_nodes.py` run them, asks for one request and
turns tokens into text.
"""

import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tpi.errors import ConfigError
from tpi.local_nodes import Interrupts, LocalNodes
from tpi.program.events import Event
from tpi.program.spec import NodeSpec, Request
from tpi.tokenizer import StreamDecoder, Tokenizer
from tpi.weights.blockfile import Manifest, open_shard_folder

_READY_TIMEOUT_S = 3600.0  # the first start hashes every shard


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
        Interrupts() as interrupts,
        tempfile.TemporaryDirectory(prefix="tpi-") as folder,
    ):
        nodes = LocalNodes(specs, Path(folder))
        interrupts.hurry = nodes.kill
        with nodes:
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
    for rank, event in _until_all_ended(nodes, world_size):
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


def _until_all_ended(nodes: LocalNodes, world_size: int) -> Iterator[tuple[int, Event]]:
    # A node says by itself when it is lost, silent or stalled; this only bounds a defect.
    while len(nodes.ended) < world_size:
        yield nodes.next_event(timeout_s=86400.0)
