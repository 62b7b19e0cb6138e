"""Galaxy, put together: its options, and the parts of one rank. Read `setup` first."""

from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct

from baselines.galaxy.engine import GalaxyEngine
from baselines.galaxy.ring import RingSender
from tpi.build_engine import (
    EngineOptions,
    OnWait,
    make_allreduce,
    make_broadcast,
    open_parts,
    plan_rank,
)
from tpi.comm.transport import Transport
from tpi.decode import Count, convert
from tpi.engine import Engine
from tpi.errors import ConfigError
from tpi.planner.memory import WindowChoice
from tpi.program.node import OpenedEngine, Setup, make_engine_options, read_shard
from tpi.program.spec import NodeSpec, SystemOptions
from tpi.trace import Tracer
from tpi.weights.manifest import Manifest
from tpi.weights.window import Window


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Of Galaxy.

    Attributes:
        prefill_chunk: Most prompt tokens in one step.
        trust_network: Allow addresses other than loopback without encryption.
        overlap: Send tiles while others are computed.
    """

    prefill_chunk: Count = 512
    trust_network: bool = False
    overlap: bool = True


@contextmanager
def open_galaxy(
    manifest: Manifest,
    transport: Transport,
    options: EngineOptions,
    tracer: Tracer,
    on_wait: OnWait | None = None,
    *,
    overlap: bool = True,
) -> Iterator[tuple[Engine, Window, WindowChoice]]:
    """Put the parts of one rank together, as `open_engine` does."""
    choice = plan_rank(manifest, options)
    with (
        open_parts(manifest, transport, options, choice, tracer, on_wait) as parts,
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
    given = convert(spec.options, Options, "spec options", ConfigError)
    options = SystemOptions(
        window=None,
        allreduce="ring",
        prefill_chunk=given.prefill_chunk,
        trust_network=given.trust_network,
    )
    if spec.max_batch != 1:
        raise ConfigError(f"galaxy: runs with batch 1, max_batch is {spec.max_batch}")
    manifest = read_shard(spec, spec.rank, spec.world_size)
    engine_options = make_engine_options(spec, options)

    def open_it(transport: Transport, tracer: Tracer, on_wait: OnWait) -> OpenedEngine:
        return open_galaxy(
            manifest, transport, engine_options, tracer, on_wait, overlap=given.overlap
        )

    agreed = ("galaxy", manifest.plan_digest, spec.dtype, spec.max_tokens, options.prefill_chunk)
    return Setup(options, manifest, agreed, peer_links=True, open=open_it)
