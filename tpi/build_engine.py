"""The components of one rank, put together: what stays in memory, window, model, sums, engine.

`plan_rank` decides and predicts, `open_components` opens what every engine needs, and `open_engine`
makes TPI-LLM's engine of it. `node.py` joins the mesh that it takes.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from tpi.comm.allreduce import AllReduce
from tpi.comm.broadcast import StepBroadcast
from tpi.comm.transport import Transport
from tpi.engine import Engine, EngineComponents
from tpi.model.llama import Llama
from tpi.options import ComputeOptions
from tpi.planner.memory import WindowChoice, choose_window
from tpi.trace import Tracer
from tpi.weights.blockfile import Manifest
from tpi.weights.embedding import EmbeddingRows
from tpi.weights.window import Window

OnWait = Callable[[int], None]


@contextmanager
def open_engine(
    manifest: Manifest,
    transport: Transport,
    options: ComputeOptions,
    tracer: Tracer,
    on_wait: OnWait | None = None,
    *,
    poison: bool = False,
) -> Iterator[tuple[Engine, Window, WindowChoice]]:
    """Put one rank's engine together and load what stays in memory.

    Raises:
        ResourceError: the memory budget cannot work.
        WeightsError: a block cannot be read.
    """
    choice = plan_rank(manifest, options)
    with open_components(
        manifest, transport, options, choice, tracer, on_wait, poison=poison
    ) as components:
        engine = Engine(components, make_broadcast(components), make_allreduce(components))
        components.window.start()
        yield engine, components.window, choice


@contextmanager
def open_components(
    manifest: Manifest,
    transport: Transport,
    options: ComputeOptions,
    choice: WindowChoice,
    tracer: Tracer,
    on_wait: OnWait | None = None,
    layers: range | None = None,
    *,
    poison: bool = False,
) -> Iterator[EngineComponents]:
    """Open what every engine needs; the window is to be started when all else is there.

    `layers` are those whose blocks the manifest has, None for all. For `on_wait` and `poison` see
    `Window`.
    """
    streamed = [entry for entry in manifest.blocks if entry.id.kind != "embed"]
    with ExitStack() as stack:
        window = stack.enter_context(
            Window(
                streamed, window=choice.window, retained=choice.retained,
                poison=poison, tracer=tracer, on_wait=on_wait,
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
            options=options,
            num_head_tiles=sum(e.id.kind == "head" for e in manifest.blocks),
            tracer=tracer,
        )  # fmt: skip


def make_broadcast(components: EngineComponents) -> StepBroadcast:
    """Return what starts a step: from the master to all workers."""
    return StepBroadcast(
        components.transport, components.max_elements, components.model.hidden_size,
        tracer=components.tracer,
    )  # fmt: skip


def make_allreduce(components: EngineComponents) -> AllReduce:
    """Return the sums that the options ask for."""
    options = components.options
    return AllReduce(
        components.transport, options.allreduce, options.wire_dtype, components.max_elements,
        components.tracer,
    )  # fmt: skip


def plan_rank(manifest: Manifest, options: ComputeOptions) -> WindowChoice:
    """What this rank keeps in memory, and its predicted peak."""
    blocks = tuple((entry.id, entry.num_bytes) for entry in manifest.blocks)
    return choose_window(manifest.config, manifest.plan, manifest.rank, blocks, options)
