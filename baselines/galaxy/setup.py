"""Galaxy, put together: its options, and the parts of one rank. Read `setup` first."""

from collections.abc import Iterator
from contextlib import contextmanager

from msgspec.structs import replace

from baselines.galaxy.engine import GalaxyEngine
from baselines.galaxy.program import GalaxyOptions
from baselines.galaxy.ring import RingSender
from tpi.build_engine import (
    OnWait,
    make_allreduce,
    make_broadcast,
    open_parts,
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
from tpi.weights.manifest import Manifest
from tpi.weights.window import Window


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
    """Put the parts of one rank together, as `open_engine` does."""
    choice = plan_rank(manifest, options)
    with (
        open_parts(manifest, transport, options, choice, tracer, on_wait, poison=poison) as parts,
        RingSender(transport, tracer, overlap=overlap) as courier,
    ):
        engine = GalaxyEngine(
            parts, make_broadcast(parts), make_allreduce(parts, options),
            plan=manifest.plan, courier=courier,
        )  # fmt: skip
        parts.window.start()
        yield engine, parts.window, choice


def setup(spec: NodeSpec) -> Setup:
    """Galaxy, from a spec.

    Raises:
        ConfigError, WeightsError: options or a folder that cannot be used.
    """
    overlap = own_options(spec, GalaxyOptions).overlap
    options = replace(spec.compute, **GalaxyOptions.fixed)
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
