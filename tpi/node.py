"""`tpi node SPEC`: one rank, from its shard folder to its last event.

`open_engine` puts the parts of a rank together (planner's choice, window, model, allreduce);
`run_node` does so for a spec, joins the mesh, and serves: the master obeys `go ID` lines, workers
follow the master. Every way out says why: an `error` event here, an ABORT frame to the peers.
"""

import hashlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType as PythonFrame

import torch

from tpi.comm.allreduce import AllReduce
from tpi.comm.join import join
from tpi.comm.mesh import Deadlines, SocketMesh, Transport
from tpi.engine import Engine
from tpi.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    IncompatibleError,
    ResourceError,
    TpiError,
)
from tpi.events import CommandReader, EventWriter
from tpi.heap import return_freed_tensors
from tpi.log import setup_logging
from tpi.memory import WindowChoice, choose_window
from tpi.model.llama import Llama
from tpi.procfs import peak_rss_bytes
from tpi.ranks import Ranks
from tpi.session import Session
from tpi.spec import NodeSpec, SystemOptions, system_options
from tpi.trace import Tracer, write_trace
from tpi.weights.blockfile import Manifest, open_shard_folder, read_manifest
from tpi.weights.embedding import EmbeddingRows
from tpi.weights.window import Window

log = logging.getLogger(__name__)
_LEASE_GRACE_S = 5.0
_EXIT_DEFECT = 1


class InterruptedByUser(BaseException):
    """Ctrl-C, SIGTERM, or whoever started us is gone; not an error of ours or of a peer."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What decides how a rank computes, beside its shard."""

    dtype: str = "float32"
    max_batch: int = 1
    max_tokens: int = 128
    prefill_chunk: int = 512
    window: int | None = 2
    memory_budget: int | None = None
    allreduce: str = "star"
    wire_dtype: str = "float32"
    poison: bool = False


@contextmanager
def open_engine(
    manifest: Manifest,
    transport: Transport,
    options: EngineOptions,
    tracer: Tracer,
    on_wait: Callable[[int], None] | None = None,
) -> Iterator[tuple[Engine, Window, WindowChoice]]:
    """Put the parts of one rank together and load what stays in memory.

    Raises:
        ResourceError: the memory budget cannot work.
        WeightsError: a block cannot be read.
    """
    share = manifest.plan.shares[manifest.rank]
    choice = plan_rank(manifest, options)
    streamed = [entry for entry in manifest.blocks if entry.id.kind != "embed"]
    with ExitStack() as stack:
        window = stack.enter_context(
            Window(
                streamed, window=choice.window, retained=choice.retained,
                poison=options.poison, tracer=tracer, on_wait=on_wait,
            )
        )  # fmt: skip
        embedding = None
        if transport.ranks.is_master:
            entry = next(e for e in manifest.blocks if e.id.kind == "embed")
            embedding = stack.enter_context(EmbeddingRows(entry))
        step_tokens = min(options.prefill_chunk, options.max_tokens)
        engine = Engine(
            model=manifest.config,
            llama=Llama(
                manifest.config, share, compute_dtype=getattr(torch, options.dtype),
                max_batch=options.max_batch, max_tokens=options.max_tokens, tracer=tracer,
            ),
            window=window,
            allreduce=AllReduce(
                transport, options.allreduce, options.wire_dtype,
                options.max_batch * step_tokens * manifest.config.hidden_size, tracer,
                manifest.config.hidden_size,
            ),
            transport=transport,
            embedding=embedding,
            max_batch=options.max_batch,
            max_tokens=options.max_tokens,
            prefill_chunk=options.prefill_chunk,
            num_head_tiles=sum(e.id.kind == "head" for e in manifest.blocks),
            tracer=tracer,
        )  # fmt: skip
        window.start()
        yield engine, window, choice


def plan_rank(manifest: Manifest, options: EngineOptions) -> WindowChoice:
    """What this rank keeps in memory, and its predicted peak."""
    return choose_window(
        manifest.config,
        manifest.plan,
        manifest.rank,
        blocks=tuple((entry.id, entry.num_bytes) for entry in manifest.blocks),
        dtype=options.dtype,
        max_batch=options.max_batch,
        max_tokens=options.max_tokens,
        step_tokens=min(options.prefill_chunk, options.max_tokens),
        window=options.window,
        memory_budget=options.memory_budget,
        allreduce=options.allreduce,
        wire_dtype=options.wire_dtype,
    )


def run_node(spec: NodeSpec) -> int:
    """Serve one rank as its spec says; returns the exit status."""
    setup_logging(spec.rank)
    torch.set_num_threads(spec.threads)
    return_freed_tensors()
    events = EventWriter.claim_stdout()
    try:
        with _interruptible():
            _serve(spec, system_options(spec), events)
    except TpiError as exc:
        log.error("%s", exc)  # noqa: TRY400  # a line for people; the trace says nothing to them
        return _say(events, exc, exc.exit_status)
    except (InterruptedByUser, KeyboardInterrupt, BrokenPipeError) as exc:
        log.info("interrupted: %s", exc)
        return EXIT_INTERRUPTED
    except Exception as exc:
        log.exception("a defect of this program")
        return _say(events, exc, _EXIT_DEFECT)
    return EXIT_OK


def _say(events: EventWriter, error: Exception, status: int) -> int:
    with suppress(BrokenPipeError):  # nobody listens any more
        events.error(error)
    return status


@contextmanager
def _interruptible() -> Iterator[None]:
    """Signals raise once, in the main thread; Ctrl-C or SIGTERM again ends the process at once.

    SIGUSR1 is our own: the lease was lost. Whoever drops it often sends SIGTERM in the same
    breath, which is no second wish.
    """
    seen: list[int] = []

    def handle(number: int, _frame: PythonFrame | None) -> None:
        seen.append(number)
        if len([s for s in seen if s != signal.SIGUSR1]) > 1:
            os._exit(EXIT_INTERRUPTED)
        if len(seen) == 1:
            raise InterruptedByUser(signal.Signals(number).name)

    names = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    old = {name: signal.signal(name, handle) for name in names}
    try:
        yield
    finally:
        for name, handler in old.items():
            signal.signal(name, signal.SIG_IGN if name == signal.SIGUSR1 else handler)


@contextmanager
def _out_of_memory_named(rank: int) -> Iterator[None]:
    """Give every form of "no memory" its name, before peers and harness hear of it."""
    try:
        yield
    except MemoryError as exc:
        raise ResourceError(f"rank {rank} is out of memory: {exc}") from exc
    except RuntimeError as exc:
        if "allocate memory" not in str(exc):  # the words of torch's CPU allocator
            raise
        raise ResourceError(f"rank {rank} is out of memory: {str(exc)[:200]}") from exc


class _Lease:
    """Ends this rank when whoever started it is gone: its standard input has closed.

    A rank that is idle ends by itself (the master has no more requests, the workers hear of it),
    and gets a moment to do so; one that is at work is interrupted at once.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self.busy = True

    def lost(self) -> None:
        """Called by the thread that reads standard input."""
        delay_s = 0.0 if self.busy else self._grace_s
        timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.daemon = True
        timer.start()


def _serve(spec: NodeSpec, options: SystemOptions, events: EventWriter) -> None:
    manifest = read_manifest(spec.model_dir)
    _check_manifest(manifest, spec)
    engine_options = _engine_options(spec, options)
    plan_rank(manifest, engine_options)  # a budget that cannot work is refused before the join
    rss_before_weights = peak_rss_bytes()
    tracer = Tracer(keep=options.trace is not None)
    lease = _Lease(_LEASE_GRACE_S * spec.time_scale)
    commands = CommandReader(on_lease_lost=lease.lost).start()
    try:
        with _joined(spec, options, manifest) as mesh, _out_of_memory_named(spec.rank):
            # After the join: whatever is wrong with a shard is then told to every rank.
            verify_s = _verify(spec)
            with open_engine(manifest, mesh, engine_options, tracer, _watcher(mesh)) as parts:
                engine, window, choice = parts
                events.emit(
                    "ready",
                    verify_s=verify_s,
                    notes=list(window.notes),
                    window="all" if choice.window is None else choice.window,
                    retained=len(choice.retained),
                    predicted_peak_bytes=choice.peak_bytes,
                    rss_before_weights=rss_before_weights,
                )
                Session(spec, options, engine, tracer, events, lease, mesh.check).run(commands)
    finally:
        if options.trace is not None:
            write_trace(tracer, options.trace, spec.rank)


def _verify(spec: NodeSpec) -> float:
    start_ns = time.monotonic_ns()
    open_shard_folder(spec.model_dir)
    return (time.monotonic_ns() - start_ns) / 1e9


def _watcher(mesh: SocketMesh) -> Callable[[int], None]:
    """What to do while weights are awaited: tell the peers that we load, and see how they are."""

    def watch(loaded_bytes: int) -> None:
        mesh.set_progress(loaded_bytes >> 10)
        mesh.check()

    return watch


def _joined(spec: NodeSpec, options: SystemOptions, manifest: Manifest) -> SocketMesh:
    return join(
        Ranks(spec.rank, spec.world_size),
        bind=spec.bind,
        master=spec.master,
        session=bytes.fromhex(spec.session),
        fingerprint=_fingerprint(manifest, spec, options),
        deadlines=Deadlines().scaled(spec.time_scale),
        peer_links=options.allreduce != "star",
        trust_network=options.trust_network,
    )


def _check_manifest(manifest: Manifest, spec: NodeSpec) -> None:
    got = (manifest.rank, manifest.plan.world_size)
    if got != (spec.rank, spec.world_size):
        raise IncompatibleError(
            f"{spec.model_dir}: is the shard of rank {got[0]} of {got[1]}, "
            f"the spec says rank {spec.rank} of {spec.world_size}"
        )


def _engine_options(spec: NodeSpec, options: SystemOptions) -> EngineOptions:
    return EngineOptions(
        dtype=spec.dtype,
        max_batch=spec.max_batch,
        max_tokens=spec.max_tokens,
        prefill_chunk=options.prefill_chunk,
        window=options.window,
        memory_budget=options.memory_budget,
        allreduce=options.allreduce,
        wire_dtype=options.wire_dtype,
    )


def _fingerprint(manifest: Manifest, spec: NodeSpec, options: SystemOptions) -> bytes:
    """What all ranks must agree on, or their sums mean nothing."""
    parts = (
        manifest.plan_digest, spec.dtype, options.allreduce, options.wire_dtype,
        spec.max_batch, spec.max_tokens, options.prefill_chunk,
    )  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).digest()
