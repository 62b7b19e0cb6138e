"""The pipeline's passes: a rank's own layers, then the hidden state goes to the next rank.

It is TPI-LLM's engine with whole blocks of some layers: sums have one part, and a step comes from
the rank before instead of the master.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from baselines.pipeline.options import PipelineOptions
from baselines.pipeline.stages import fixed_bytes, holds, make_stages
from tpi.build_engine import OnWait, open_components
from tpi.comm.allreduce import check_finite
from tpi.comm.broadcast import Broadcast, StepBroadcast
from tpi.comm.transport import Recv, Send, Transport
from tpi.comm.vector import as_bytes
from tpi.comm.wire import Expect, FrameHeader, FrameType, Op, WireDtype
from tpi.engine import Engine
from tpi.options import ComputeOptions
from tpi.planner.memory import WindowChoice, plan_memory
from tpi.program.node import OpenedEngine, Setup, read_shard
from tpi.program.spec import NodeSpec, own_options
from tpi.ranks import MASTER_RANK, Ranks
from tpi.trace import Tracer
from tpi.weights.blockfile import Manifest
from tpi.weights.window import Window

_SHOW_LIFE_NS = 200_000_000  # between two signs of progress; heartbeats carry one a second


class NoReduce:
    """Sums of one part: checks that it is finite, and shows that this rank makes progress."""

    def __init__(self, ranks: Ranks, on_wait: OnWait | None) -> None:
        self._ranks = ranks
        self._on_wait = on_wait
        self._num_blocks = 0
        self._shown_ns = 0

    def all_reduce(self, partial: torch.Tensor, *, step: int, layer: int, op: Op) -> None:
        """Leave `partial` as it is.

        Raises:
            NumericsError: it holds NaN or infinity.
            CommError: a peer has left meanwhile.
        """
        check_finite(partial, self._ranks, step, layer, op)
        self._num_blocks += 1
        now_ns = time.monotonic_ns()
        if self._on_wait is not None and now_ns - self._shown_ns > _SHOW_LIFE_NS:
            self._shown_ns = now_ns
            self._on_wait(self._num_blocks << 10)

    def reduce(self, partial: torch.Tensor, *, step: int, layer: int, op: Op) -> None:
        """As `all_reduce`."""
        self.all_reduce(partial, step=step, layer=layer, op=op)


class PipelineEngine(Engine):
    """The passes of one rank; `broadcast` links it to the ranks beside it."""

    def _forward(self, hidden_BSD: torch.Tensor, info: Broadcast) -> torch.Tensor:
        hidden_BSD = self._llama.forward(hidden_BSD, info.start, self._window, self._reduce)
        ranks = self._components.transport.ranks
        if ranks.rank < ranks.world_size - 1:
            self._broadcast.send(hidden_BSD, info)
        last_BD = hidden_BSD[:, -1].contiguous()
        return last_BD if ranks.world_size == 1 else self._bring_back(last_BD, info.step)

    def _bring_back(self, last_BD: torch.Tensor, step: int) -> torch.Tensor:
        """Bring the last position from the last rank to the master."""
        transport = self._components.transport
        ranks = transport.ranks
        header = FrameHeader(
            FrameType.TENSOR, step=step, op=Op.LAST, dtype=WireDtype.FLOAT32,
            shape=tuple(last_BD.shape), payload_bytes=4 * last_BD.numel(),
        )  # fmt: skip
        payload = as_bytes(last_BD.view(-1))
        *between, last = ranks.workers
        with self._tracer.span("allreduce"):
            if ranks.is_master:
                # A slow rank in between does not mean that the last one hangs.
                recv = Recv(last, Expect(header), payload, through=tuple(between))
                transport.transfer([], [recv])
            elif ranks.rank == last:
                transport.transfer([Send(MASTER_RANK, header, payload)], [])
        return last_BD


@contextmanager
def open_pipeline(
    manifest: Manifest,
    transport: Transport,
    options: ComputeOptions,
    tracer: Tracer,
    on_wait: OnWait | None = None,
    *,
    stage: range,
) -> Iterator[tuple[Engine, Window, WindowChoice]]:
    """Put one rank's engine together; `manifest` has the blocks of its stage."""
    ranks = transport.ranks
    held = tuple((e.id, e.num_bytes) for e in manifest.blocks if e.id.kind != "embed")
    fixed = fixed_bytes(manifest.config, ranks.rank, stage, options)
    # All blocks of the stage stay in memory.
    choice = plan_memory(held, window=None, memory_budget=None, fixed_bytes=fixed)
    with open_components(
        manifest, transport, options, choice, tracer, on_wait, stage
    ) as components:
        link = StepBroadcast(
            transport, components.max_elements, components.model.hidden_size,
            source=ranks.rank - 1, targets=[ranks.rank + 1][: ranks.world_size - 1 - ranks.rank],
            tracer=tracer, span="allreduce",
        )  # fmt: skip
        engine = PipelineEngine(components, link, NoReduce(ranks, on_wait))
        components.window.start()
        yield engine, components.window, choice


def own_blocks(whole: Manifest, rank: int, stage: range) -> Manifest:
    """The manifest of a folder with all layers, without the blocks that others use."""
    return replace(whole, blocks=tuple(e for e in whole.blocks if holds(rank, stage, e.id)))


def setup(spec: NodeSpec) -> Setup:
    """The pipeline, from a spec.

    Raises:
        ConfigError, WeightsError: options or a folder that cannot be used.
    """
    shares, options = own_options(spec, PipelineOptions).shares, spec.compute
    whole = read_shard(spec, 0, 1)
    stages = make_stages(whole.config, spec.world_size, shares, whole.dtype)
    stage = stages[spec.rank]
    manifest = own_blocks(whole, spec.rank, stage)

    def open_it(transport: Transport, tracer: Tracer, on_wait: OnWait) -> OpenedEngine:
        return open_pipeline(manifest, transport, options, tracer, on_wait, stage=stage)

    agreed = (
        "pipeline", whole.plan_digest, options.dtype, options.max_batch, options.max_tokens,
        options.prefill_chunk, [(s.start, s.stop) for s in stages],
    )  # fmt: skip
    return Setup(manifest, agreed, peer_links=True, open=open_it)
