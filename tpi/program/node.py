"""`tpi node SPEC`: one rank, from its shard folder to its last event.

A `Setup` says what is peculiar to a system; `tpi_setup` makes TPI-LLM's from a spec, and the
baselines that are built of the same parts have theirs. `run_node` does the rest: it joins the mesh
and serves, the master obeying `go ID` lines, workers following the master. Every way out says why:
an `error` event here, an ABORT frame to the peers.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field

import torch

from tpi.build_engine import OnWait, open_engine, plan_rank
from tpi.comm.allreduces.registry import find_allreduce
from tpi.comm.deadlines import Deadlines
from tpi.comm.join import join
from tpi.comm.mesh import SocketMesh
from tpi.comm.transport import Transport
from tpi.engine import Engine
from tpi.errors import EXIT_INTERRUPTED, EXIT_OK, ConfigError, IncompatibleError, TpiError
from tpi.options import window_word
from tpi.planner.memory import WindowChoice
from tpi.program.events import CommandReader, EventWriter
from tpi.program.heap import return_freed_tensors
from tpi.program.lease import InterruptedByUser, Lease, interruptible, out_of_memory_named
from tpi.program.log import setup_logging
from tpi.program.procfs import peak_rss_bytes
from tpi.program.session import Session
from tpi.program.spec import NodeSpec, OwnOptions, own_options
from tpi.ranks import Ranks
from tpi.trace import Tracer, write_trace
from tpi.weights.blockfile import Manifest, open_shard_folder, read_manifest
from tpi.weights.window import Window

log = logging.getLogger(__name__)
_LEASE_GRACE_S = 5.0
_EXIT_DEFECT = 1

OpenedEngine = AbstractContextManager[tuple[Engine, Window, WindowChoice]]


@dataclass(frozen=True, slots=True)
class Setup:
    """How one rank of a system is put together, decided before anybody is called.

    Attributes:
        manifest: The blocks that this rank uses; no other file of the folder is looked at.
        agreed: What all ranks must have alike, or their frames mean nothing.
        peer_links: Whether workers talk to each other.
        open: Makes the engine once the ranks are joined; it leaves with the context.
        own: How tokens are picked, and where spans go.
    """

    manifest: Manifest
    agreed: tuple[object, ...]
    peer_links: bool
    open: Callable[[Transport, Tracer, OnWait], OpenedEngine]
    own: OwnOptions = field(default_factory=OwnOptions)

    @property
    def fingerprint(self) -> bytes:
        """A digest of `agreed`."""
        return hashlib.sha256(json.dumps(self.agreed).encode()).digest()


def tpi_setup(spec: NodeSpec) -> Setup:
    """TPI-LLM: tensor parallel, streaming its weights through a window.

    Raises:
        ConfigError, WeightsError: options or a folder that cannot be used.
        ResourceError: a memory budget that cannot work.
    """
    own, options = own_options(spec, OwnOptions), spec.compute
    if own.trace is not None and spec.keep_spans:
        raise ConfigError("spec options: trace and keep_spans exclude each other: give one")
    manifest = read_shard(spec, spec.rank, spec.world_size)
    plan_rank(manifest, options)  # a budget that cannot work is refused before the join

    def open_it(transport: Transport, tracer: Tracer, on_wait: OnWait) -> OpenedEngine:
        return open_engine(manifest, transport, options, tracer, on_wait)

    return Setup(
        manifest,
        agreed=(
            manifest.plan_digest, options.dtype, options.allreduce, options.wire_dtype,
            options.max_batch, options.max_tokens, options.prefill_chunk,
        ),
        peer_links=find_allreduce(options.allreduce).needs_peer_links,
        open=open_it,
        own=own,
    )  # fmt: skip


def read_shard(spec: NodeSpec, rank: int, world_size: int) -> Manifest:
    """What the spec's folder holds, which must be the shard of that rank.

    Raises:
        IncompatibleError: It is another one's.
    """
    manifest = read_manifest(spec.model_dir)
    got = (manifest.rank, manifest.plan.world_size)
    if got != (rank, world_size):
        raise IncompatibleError(
            f"{spec.model_dir}: is the shard of rank {got[0]} of {got[1]}, "
            f"expected that of rank {rank} of {world_size}; "
            f"the spec is for rank {spec.rank} of {spec.world_size}"
        )
    return manifest


def run_node(spec: NodeSpec, make_setup: Callable[[NodeSpec], Setup] = tpi_setup) -> int:
    """Serve one rank as its spec says; returns the exit status."""
    setup_logging(spec.rank)
    torch.set_num_threads(spec.threads)
    return_freed_tensors()
    events = EventWriter.claim_stdout()
    try:
        with interruptible():
            _serve(spec, make_setup(spec), events)
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


def _serve(spec: NodeSpec, setup: Setup, events: EventWriter) -> None:
    trace = setup.own.trace
    rss_before_weights = peak_rss_bytes()
    tracer = Tracer(keep=spec.keep_spans or trace is not None)
    lease = Lease(_LEASE_GRACE_S * spec.time_scale)
    commands = CommandReader(on_lease_lost=lease.lost).start()
    try:
        with _joined(spec, setup) as mesh, out_of_memory_named(spec.rank):
            # After the join: whatever is wrong with a shard is then told to every rank.
            verify_s = _verify(spec, setup.manifest)
            with setup.open(mesh, tracer, _watcher(mesh)) as (engine, window, choice):
                events.emit(
                    "ready",
                    verify_s=verify_s,
                    notes=list(window.notes),
                    window=window_word(choice.window),
                    retained=len(choice.retained),
                    predicted_peak_bytes=choice.peak_bytes,
                    rss_before_weights=rss_before_weights,
                )
                sampling = setup.own.sampling
                session = Session(spec, sampling, engine, tracer, events, lease, mesh.check)
                session.run(commands)
    finally:
        if trace is not None:
            write_trace(tracer, trace, spec.rank)


def _verify(spec: NodeSpec, manifest: Manifest) -> float:
    start_ns = time.monotonic_ns()
    open_shard_folder(spec.model_dir, only={entry.id for entry in manifest.blocks})
    return (time.monotonic_ns() - start_ns) / 1e9


def _watcher(mesh: SocketMesh) -> OnWait:
    """What to do while weights are awaited: tell the peers that we load, and see how they are."""

    def watch(loaded_bytes: int) -> None:
        mesh.set_progress(loaded_bytes >> 10)
        mesh.check()

    return watch


def _joined(spec: NodeSpec, setup: Setup) -> SocketMesh:
    return join(
        Ranks(spec.rank, spec.world_size),
        bind=spec.bind,
        master=spec.master,
        session=bytes.fromhex(spec.session),
        fingerprint=setup.fingerprint,
        deadlines=Deadlines().scaled(spec.time_scale),
        peer_links=setup.peer_links,
        trust_network=spec.trust_network,
    )
