"""Galaxy, put together: its options, and the parts of one rank. Read `setup` first."""

from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct
from msgspec.structs import replace

from baselines.galaxy.engine import GalaxyEngine
from baselines.galaxy.ring import RingSender
from tpi.build_engine import (
    OnWait,
    make_allreduce,
    make_broadcast,
    open_components,
    plan_rank,
)
from tpi.comm.transport import Transport
from tpi.engine import Engine
from tpi.errors import ConfigError
from tpi.options import ComputeOptions
from tpi.planner.memory import WindowChoice
from tpi.program.node import OpenedEngine, Setup, read_shard
from tpi.program.spec import NodeSpec, own_options
from tpi.trace import Tracer
from tpi.weights.blockfile import Manifest
from tpi.weights.window import Window


class GalaxyOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Whether ring steps overlap with products in prefill."""

    overlap: bool = True


@contextmanager
def open_galaxy(
    manifest: Manifest,
    transport: Transport,
    options: ComputeOptions,
    tracer: Tracer,
    on_wait: OnWait | None = None,
    *,
    overlap: bool = True,
    poison: bool = False,
) -> Iterator[tuple[Engine, Window, WindowChoice]]:
    """Put one rank's engine together, as `open_engine` does."""
    choice = plan_rank(manifest, options)
    with (
        open_components(
            manifest, transport, options, choice, tracer, on_wait, poison=poison
        ) as components,
        RingSender(transport, tracer, overlap=overlap) as courier,
    ):
        engine = GalaxyEngine(
            components, make_broadcast(components), make_allreduce(components),
            plan=manifest.plan, courier=courier,
        )  # fmt: skip
        components.window.start()
        yield engine, components.window, choice


def setup(spec: NodeSpec) -> Setup:
    """Galaxy, from a spec.

    Raises:
        ConfigError, WeightsError: options or a folder that cannot be used.
    """
    overlap = own_options(spec, GalaxyOptions).overlap
    # Weights are resident, and what is summed in decoding goes round the ring, unrounded.
    options = replace(
        spec.compute, window=None, memory_budget=None, allreduce="ring", wire_dtype="float32"
    )
    if options.max_batch != 1:
        raise ConfigError(f"galaxy: runs with batch 1, max_batch is {options.max_batch}")
    manifest = read_shard(spec, spec.rank, spec.world_size)

    def open_it(transport: Transport, tracer: Tracer, on_wait: OnWait) -> OpenedEngine:
        return open_galaxy(manifest, transport, options, tracer, on_wait, overlap=overlap)

    agreed = (
        "galaxy",
        manifest.plan_digest,
        options.dtype,
        options.max_tokens,
        options.prefill_chunk,
    )
    return Setup(manifest, agreed, peer_links=True, open=open_it)
