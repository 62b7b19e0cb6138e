"""`tpi node SPEC`: one rank of an engine over a mesh, as the host's `Model`.

A `Setup` says what is peculiar to a system; `tpi_setup` makes TPI-LLM's from a spec, and the
baselines that are built of the same parts have theirs. `open_node` does the rest: it joins the
mesh, opens the engine, and tells every peer by an ABORT frame why it ends.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tpi.build_engine import OnWait, open_engine, plan_rank
from tpi.comm.allreduces.registry import find_allreduce
from tpi.comm.deadlines import Deadlines
from tpi.comm.join import join
from tpi.comm.mesh import SocketMesh
from tpi.comm.transport import Transport
from tpi.engine import Engine, Prompt
from tpi.errors import FrameError, IncompatibleError
from tpi.options import GREEDY, SamplingOptions, window_word
from tpi.planner.memory import WindowChoice
from tpi.program.heap import return_freed_tensors
from tpi.program.lease import out_of_memory_named
from tpi.program.model import Model, OpenedModel, Passes, Spent
from tpi.program.procfs import peak_rss_bytes
from tpi.program.spec import NodeSpec, OwnOptions, Request, own_options
from tpi.ranks import Ranks
from tpi.sampling import Sampler
from tpi.trace import Tracer
from tpi.weights.blockfile import Manifest, open_shard_folder, read_manifest
from tpi.weights.window import Window

OpenedEngine = AbstractContextManager[tuple[Engine, Window, WindowChoice]]


@dataclass(frozen=True, slots=True)
class Setup:
    """How one rank of a system is put together, decided before anybody is called."""

    manifest: Manifest  # the blocks that this rank uses; no other file of the folder is looked at
    agreed: tuple[object, ...]  # what all ranks must have alike, or their frames mean nothing
    peer_links: bool  # whether workers talk to each other
    # Makes the engine once the ranks are joined; it leaves with the context.
    open: Callable[[Transport, Tracer, OnWait], OpenedEngine]
    sampling: SamplingOptions = GREEDY

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
        sampling=own.sampling,
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


@dataclass
class EngineModel:
    """An engine over a mesh, serving the requests of a spec.

    A worker hears of a request by its first step, and sees no token.
    """

    _spec: NodeSpec
    _engine: Engine
    _sampling: SamplingOptions
    tracer: Tracer
    facts: Mapping[str, Any]
    check: Callable[[], None]
    _history: list[Spent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._engine.after_step = lambda: self._history.append(self.spent())

    def spent(self) -> Spent:
        """Bytes and messages so far."""
        sent = self._engine.counters
        return Spent(self._engine.disk_bytes, sent.bytes_sent, sent.messages_sent)

    def generate(
        self,
        request: Request,
        go_ns: int,  # noqa: ARG002 - the protocol's
        on_token: Callable[[int], int],
    ) -> Passes:
        """Lead a request, or take part in it; counters are noted after every step.

        A worker learns only at the end which of the steps were decode steps.
        """
        self._history = [self.spent()]
        is_worker = request.prompt_ids is None
        num_decode = self._engine.take_part() if is_worker else self._lead(request, on_token)
        num_steps = len(self._history) - 1
        if not 0 <= num_decode <= num_steps:
            raise FrameError(
                f"rank 0 counts {num_decode} decode steps, here were {num_steps} steps"
            )
        return Passes(num_steps, self._history[num_steps - num_decode])

    def _lead(self, request: Request, on_token: Callable[[int], int]) -> int:
        prompt = Prompt((request.prompt_ids or (),))
        index = self._spec.requests.index(request)
        sampler = Sampler(self._sampling)
        num_tokens = 0
        for (token,) in self._engine.generate(prompt, request.new_tokens, sampler, index):
            on_token(token)
            num_tokens += 1
            if token in self._sampling.stop_ids:
                break
        self._engine.end_request(num_tokens - 1)
        return num_tokens - 1

    def follow(self) -> Request | None:
        """Wait for the first step of the master's next request.

        Raises:
            FrameError: The master speaks of a request that the spec has not.
        """
        index = self._engine.follow()
        if index is None:
            return None
        if not 0 <= index < len(self._spec.requests):
            raise FrameError(
                f"rank 0 began request {index}, the spec has {len(self._spec.requests)}"
            )
        return self._spec.requests[index]


def open_tpi(spec: NodeSpec) -> OpenedModel:
    """Open TPI-LLM's part of a spec, as `open_node`."""
    return open_node(spec, tpi_setup)


def open_node(spec: NodeSpec, make_setup: Callable[[NodeSpec], Setup]) -> OpenedModel:
    """Put one rank together; entering what is returned joins the others and loads the weights."""
    torch.set_num_threads(spec.threads)
    return_freed_tensors()
    return _joined_model(spec, make_setup(spec))


@contextmanager
def _joined_model(spec: NodeSpec, setup: Setup) -> Iterator[Model]:
    """The model once all ranks are joined; the master ends the session when it leaves."""
    rss_before_weights = peak_rss_bytes()
    tracer = Tracer(keep=spec.keep_spans)
    with _joined(spec, setup) as mesh, out_of_memory_named(spec.rank):
        # After the join: whatever is wrong with a shard is then told to every rank.
        verify_s = _verify(spec, setup.manifest)
        with setup.open(mesh, tracer, _watcher(mesh)) as (engine, window, choice):
            facts = {
                "verify_s": verify_s,
                "notes": list(window.notes),
                "window": window_word(choice.window),
                "retained": len(choice.retained),
                "predicted_peak_bytes": choice.peak_bytes,
                "rss_before_weights": rss_before_weights,
            }
            yield EngineModel(spec, engine, setup.sampling, tracer, facts, mesh.check)
            if mesh.ranks.is_master:
                engine.end_session()


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
