"""`tpi generate`: one prompt on N node processes of this machine, text as it comes.

`generate` writes a spec for each node, starts them, has a `ProgramSession` ask for one request, and
turns tokens into text.
"""

import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from msgspec.structs import replace

from tpi.errors import ConfigError, PeerLostError, TpiError, error_from_code
from tpi.options import GREEDY, ComputeOptions, SamplingOptions
from tpi.program.events import Event
from tpi.program.local_process import LocalProcess, free_port
from tpi.program.process import Exit, Inbox
from tpi.program.program_session import Deadlines, Failure, ProgramSession
from tpi.program.spec import NodeSpec, OwnOptions, Request, dump_spec, to_json
from tpi.tokenizer import StreamDecoder, Tokenizer
from tpi.weights.blockfile import Manifest, open_shard_folder

# The first start hashes every shard. A node says by itself when it is lost, silent or stalled; the
# wait for a token only bounds a defect.
_DEADLINES = Deadlines(ready_s=3600.0, token_s=86400.0)


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """What `tpi generate` was asked for; the names are those of its options."""

    dir: Path
    prompt: str | None
    prompt_tokens: str | None
    devices: int | None = None
    new_tokens: int = 64
    threads: int | None = None
    ignore_eos: bool = False
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    sampling: SamplingOptions = GREEDY


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
    session = ProgramSession(specs[0].requests, _DEADLINES, text.event, may_stop=True)
    with (
        _interrupts(session.kill),
        tempfile.TemporaryDirectory(prefix="tpi-") as folder,
        session,
    ):
        for spec in specs:
            session.add(start_node(spec, Path(folder), session.inbox))
        failure = session.run()
    if failure is not None:
        raise _error(failure, session)
    text.end()
    return _summary(session.events)


def start_node(spec: NodeSpec, folder: Path, inbox: Inbox) -> LocalProcess:
    """Start `tpi node` for a spec, which is written to the folder beside its log."""
    path = folder / f"spec-{spec.rank}.json"
    dump_spec(spec, path)
    argv = [sys.executable, "-m", "tpi.cli", "node", str(path)]
    return LocalProcess(spec.rank, argv, inbox, folder / f"rank-{spec.rank}.log")


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
    stop_ids = () if options.ignore_eos else tuple(manifest.config.eos_token_ids)
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
        compute=replace(options.compute, max_tokens=len(ids) + options.new_tokens),
        requests=(Request("r0", options.new_tokens, ids),),
        options=to_json(OwnOptions(sampling=replace(options.sampling, stop_ids=stop_ids))),
    )
    worker_requests = (Request("r0", options.new_tokens),)
    return [master] + [
        replace(master, rank=rank, model_dir=folders[rank].absolute(), requests=worker_requests)
        for rank in range(1, world_size)
    ]


class _Text:
    """Tokens to text, or to their numbers where there is no tokenizer."""

    def __init__(self, show: Callable[[str], None], tokenizer: Tokenizer | None) -> None:
        self._show = show
        self._decoder = None if tokenizer is None else StreamDecoder(tokenizer)
        self._first = True

    def event(self, event: Event) -> None:
        """Show a token."""
        if event.name != "token":
            return
        if self._decoder is not None:
            self._show(self._decoder.push(event.token))
        else:
            self._show(f"{event.token}" if self._first else f" {event.token}")
        self._first = False

    def end(self) -> None:
        """Show what was held back."""
        if self._decoder is not None:
            self._show(self._decoder.finish())


def _summary(events: Sequence[Event]) -> Summary:
    (start_ns,) = (event.t_ns for event in events if event.name == "request")
    stamps = [event.t_ns for event in events if event.name == "token"]
    peaks = {
        event.rank: int(event.number("rss_hwm")) for event in events if event.name == "counters"
    }
    gaps = len(stamps) - 1
    return Summary(
        num_tokens=len(stamps),
        ttft_s=(stamps[0] - start_ns) / 1e9,
        token_latency_s=(stamps[-1] - stamps[0]) / 1e9 / gaps if gaps else None,
        peak_bytes=tuple(peaks[rank] for rank in sorted(peaks)),
    )


def _error(failure: Failure, session: ProgramSession) -> TpiError:
    """What ranks reported; of one that left without a word, also how it ended."""
    reported = [_reported(event) for event in session.events if event.name == "error"]
    end = None if failure.ended is None else session.exits[failure.ended]
    if end is None:
        return reported[0] if reported else TpiError(failure.reason)
    error = reported[0] if reported else PeerLostError(f"rank {failure.ended} is gone")
    return type(error)(f"{error}; rank {failure.ended} {_how_it_ended(end)}")


def _reported(event: Event) -> TpiError:
    message = str(event.fields["message"])
    named = message if message.startswith("rank ") else f"rank {event.rank}: {message}"
    return error_from_code(str(event.fields["code"]), named)


def _how_it_ended(end: Exit) -> str:
    log = end.log_tail.strip()
    last = log.splitlines()[-1] if log else "nothing"
    names = {-number: f"signal {number.name}" for number in signal.Signals}
    how = names.get(end.code, f"status {end.code}")
    return f"ended with {how} and without a word; last in its log: {last}"


@contextmanager
def _interrupts(hurry: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM raises KeyboardInterrupt; a later one kills the nodes at once.

    A later one raises nothing, so that nothing stops the clean-up that the first has begun.
    """
    seen: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) == 1:
            raise KeyboardInterrupt
        hurry()

    is_main = threading.current_thread() is threading.main_thread()  # the only one that may
    names = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    old = [(name, signal.signal(name, handle)) for name in names]
    try:
        yield
    finally:
        for name, handler in old:
            signal.signal(name, handler)
