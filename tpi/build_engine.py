"""The parts of one rank, put together: what stays in memory, window, model, sums, engine.

`plan_rank` decides and predicts, `open_parts` opens what every engine needs, and `open_engine`
makes TPI-LLM's engine of it. Read `open_engine` first; `node.py` joins the mesh that it takes.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from tpi.comm.allreduce import AllReduce
from tpi.comm.broadcast import StepBroadcast
from tpi.comm.transport import Transport
from tpi.engine import Engine, EngineComponents
from tpi.model.llama import Llama
from tpi.planner.memory import WindowChoice, choose_window
from tpi.trace import Tracer
from tpi.weights.blockfile import Manifest
from tpi.weights.embedding import EmbeddingRows
from tpi.weights.window import Window

OnWait = Callable[[int], None]


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

    @property
    def step_tokens(self) -> int:
        """Most positions of a sequence in one pass."""
        return min(self.prefill_chunk, self.max_tokens)


@contextmanager
def open_engine(
    manifest: Manifest,
    transport: Transport,
    options: EngineOptions,
    tracer: Tracer,
    on_wait: OnWait | None = None,
) -> Iterator[tuple[Engine, Window, WindowChoice]]:
    """Put the parts of one rank together and load what stays in memory.

    Raises:
        ResourceError: the memory budget cannot work.
        WeightsError: a block cannot be read.
    """
    choice = plan_rank(manifest, options)
    with open_parts(manifest, transport, options, choice, tracer, on_wait) as parts:
        engine = Engine(parts, make_broadcast(parts), make_allreduce(parts, options))
        parts.window.start()
        yield engine, parts.window, choice


@contextmanager
def open_parts(
    manifest: Manifest,
    transport: Transport,
    options: EngineOptions,
    choice: WindowChoice,
    tracer: Tracer,
    on_wait: OnWait | None = None,
    layers: range | None = None,
) -> Iterator[EngineComponents]:
    """Open what every engine needs; the window is to be started when all else is there.

    Args:
        manifest: The blocks that this rank uses, and its share of them.
        transport: The connected ranks.
        options: How to compute.
        choice: What stays in memory.
        tracer: Where times go.
        on_wait: See `Window`.
        layers: The layers whose blocks these are; None for all.
    """
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
        yield EngineComponents(
            model=manifest.config,
            llama=Llama(
                manifest.config, manifest.plan.shares[manifest.rank],
                compute_dtype=getattr(torch, options.dtype), max_batch=options.max_batch,
                max_tokens=options.max_tokens, tracer=tracer, layers=layers,
            ),
            window=window,
            transport=transport,
            embedding=embedding,
            max_batch=options.max_batch,
            max_tokens=options.max_tokens,
            step_tokens=options.step_tokens,
            num_head_tiles=sum(e.id.kind == "head" for e in manifest.blocks),
            tracer=tracer,
        )  # fmt: skip


def make_broadcast(parts: EngineComponents) -> StepBroadcast:
    """Return what starts a step: from the master to all workers."""
    return StepBroadcast(
        parts.transport, parts.max_elements, parts.model.hidden_size, tracer=parts.tracer
    )


def make_allreduce(parts: EngineComponents, options: EngineOptions) -> AllReduce:
    """Return the sums that the options ask for."""
    return AllReduce(
        parts.transport, options.allreduce, options.wire_dtype, parts.max_elements, parts.tracer
    )


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
        step_tokens=options.step_tokens,
        window=options.window,
        memory_budget=options.memory_budget,
        allreduce=options.allreduce,
        wire_dtype=options.wire_dtype,
    )
