"""Galaxy's passes: a prefill that is cut along the sequence, and TPI-LLM's decode on a ring.

Between the blocks each rank has the residual stream of its own tile of rows. A block begins with
its norm on these rows, which all ranks then gather, tile by tile, multiplying each while the next
one travels; it ends with a product whose tiles are summed on their way round the ring, each made
while the sum of the one before travels. `setup` puts the parts of one rank together.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from msgspec.structs import replace

from baselines.galaxy.options import GalaxyOptions
from baselines.galaxy.ring import Place, Ring, RingSender
from baselines.galaxy.tiles import last_owner, make_tiles, splits_rows
from tpi.build_engine import (
    OnWait,
    make_allreduce,
    make_broadcast,
    open_components,
    plan_rank,
)
from tpi.comm.allreduce import Reducer, check_finite
from tpi.comm.broadcast import Broadcast, StepBroadcast
from tpi.comm.transport import Recv, Send, Transport
from tpi.comm.vector import as_bytes
from tpi.comm.wire import Expect, Op
from tpi.engine import Engine, EngineComponents
from tpi.errors import ConfigError
from tpi.model.rope import apply_rope
from tpi.options import ComputeOptions
from tpi.planner.memory import WindowChoice
from tpi.program.node import OpenedEngine, Setup, read_shard
from tpi.program.spec import NodeSpec, own_options
from tpi.ranks import MASTER_RANK
from tpi.trace import Tracer
from tpi.weights.blockfile import Manifest
from tpi.weights.shard import BlockId, ShardPlan
from tpi.weights.window import Window

_Weights = Mapping[str, torch.Tensor]
_T = TypeVar("_T")


class GalaxyEngine(Engine):
    """The passes of one rank. Decode, and a prefill of fewer rows than ranks, is TPI-LLM's."""

    def __init__(
        self,
        components: EngineComponents,
        broadcast: StepBroadcast,
        reducer: Reducer,
        *,
        plan: ShardPlan,
        courier: RingSender,
    ) -> None:
        super().__init__(components, broadcast, reducer)
        self._plan = plan
        self._ring = Ring(components.transport.ranks, courier)

    def _forward(self, hidden_BSD: torch.Tensor, info: Broadcast) -> torch.Tensor:
        if not splits_rows(self._plan, hidden_BSD.shape[1]):
            return super()._forward(hidden_BSD, info)
        if self._is_master:
            self._broadcast.send(hidden_BSD, info)
        return _Prefill(self._components, self._plan, self._ring, info, hidden_BSD[0]).run()


class _Prefill:
    """One step of one sequence, cut along it."""

    def __init__(
        self,
        components: EngineComponents,
        plan: ShardPlan,
        ring: Ring,
        info: Broadcast,
        hidden_SD: torch.Tensor,
    ) -> None:
        self._components = components
        self._llama = components.llama
        self._ring = ring
        self._info = info
        self._ranks = components.transport.ranks
        self._share = plan.shares[self._ranks.rank]
        self._hidden_SD = hidden_SD
        self._tiles = make_tiles(plan, hidden_SD.shape[0])
        self._own = slice(*self._tiles[self._ranks.rank])
        self._angles = self._llama.begin_step(1, hidden_SD.shape[0], info.start)

    def run(self) -> torch.Tensor:
        """All layers. Returns (1, D), on the master that of the last position."""
        residual_ND = self._hidden_SD[self._own].clone()
        for layer in range(self._components.model.num_layers):
            residual_ND += self._attn(residual_ND, layer)
            residual_ND += self._ffn(residual_ND, layer)
        return self._last(residual_ND)

    def _attn(self, residual_ND: torch.Tensor, layer: int) -> torch.Tensor:
        with self._hold("attn", layer, self._share.local_num_heads) as weights:
            parts = self._products(residual_ND, weights, layer, Op.ATTN_INPUT, self._llama.qkv)
            attn_Sh = self._attend(parts, layer) if parts else None
            del parts
            return self._scatter(layer, Op.ATTN, attn_Sh, weights)

    def _attend(
        self, parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], layer: int
    ) -> torch.Tensor:
        with self._computing(Op.ATTN, layer):
            q, k, v = (torch.cat(tiles, 1) for tiles in zip(*parts, strict=True))
            q, k = apply_rope(q, *self._angles), apply_rope(k, *self._angles)
            return self._llama.attend(q, k, v, layer, self._info.start)

    def _ffn(self, residual_ND: torch.Tensor, layer: int) -> torch.Tensor:
        with self._hold("ffn", layer, self._share.local_ffn_size) as weights:
            parts = self._products(residual_ND, weights, layer, Op.FFN_INPUT, self._llama.gate_up)
            gate_Sf = torch.cat(parts) if parts else None
            del parts
            return self._scatter(layer, Op.FFN, gate_Sf, weights)

    def _hold(self, kind: str, layer: int, size: int) -> AbstractContextManager[_Weights | None]:
        """The block's weights; None on a rank that has no part of it."""
        return self._components.window.hold(BlockId(kind, layer)) if size else nullcontext()

    def _products(
        self,
        residual_ND: torch.Tensor,
        weights: _Weights | None,
        layer: int,
        op: Op,
        multiply: Callable[[torch.Tensor, _Weights], _T],
    ) -> list[_T]:
        """Norm this rank's rows, gather all, and multiply them, tile by tile; none if no weights.

        The first block's rows need no gathering: the broadcast brought all of them.
        """
        rows_SD = self._hidden_SD  # nobody needs the step's input once the first block has begun
        products: dict[int, _T] = {}

        def use(start: int, stop: int) -> None:
            if weights is not None:
                with self._computing(op, layer):
                    x_ND = rows_SD[start:stop].to(self._llama.compute_dtype)
                    products[start] = multiply(x_ND, weights)

        gathers = layer > 0 or op is not Op.ATTN_INPUT
        if weights is not None:
            with self._computing(op, layer):
                rows, into = (residual_ND, self._own) if gathers else (rows_SD, slice(None))
                rows_SD[into] = self._llama.norm(rows, weights["norm"])
        if gathers:
            self._ring.gather(rows_SD, self._tiles, Place(self._info.step, layer, op), use)
        else:
            use(0, rows_SD.shape[0])
        return [products[start] for start in sorted(products)]

    def _scatter(
        self, layer: int, op: Op, x_Sf: torch.Tensor | None, weights: _Weights | None
    ) -> torch.Tensor:
        """Multiply by the block's last matrix, and sum this rank's rows over all ranks."""
        name = "o" if op is Op.ATTN else "down"
        width = self._components.model.hidden_size

        def make(start: int, stop: int) -> torch.Tensor:
            if weights is None or x_Sf is None:
                return torch.zeros(stop - start, width)
            with self._computing(op, layer):
                part_ND = self._llama.project_out(x_Sf[start:stop], weights, name)
                check_finite(part_ND, self._ranks, self._info.step, layer, op)
            return part_ND

        return self._ring.scatter(width, self._tiles, Place(self._info.step, layer, op), make)

    def _computing(self, op: Op, layer: int) -> AbstractContextManager[None]:
        kind = "attn" if op in (Op.ATTN, Op.ATTN_INPUT) else "ffn"
        return self._components.tracer.span("compute", kind, layer)

    def _last(self, residual_ND: torch.Tensor) -> torch.Tensor:
        """Bring the last position to the master."""
        owner, transport = last_owner(self._tiles), self._components.transport
        last_1D = residual_ND[-1:].contiguous()
        header = Place(self._info.step, 0, Op.LAST).header(0, 1, self._components.model.hidden_size)
        with self._components.tracer.span("allreduce"):
            if self._ranks.is_master and owner != MASTER_RANK:
                last_1D = torch.empty(1, self._components.model.hidden_size)
                into = as_bytes(last_1D.view(-1))
                transport.transfer([], [Recv(owner, Expect(header), into)])
            elif self._ranks.rank == owner != MASTER_RANK:
                payload = as_bytes(last_1D.view(-1))
                transport.transfer([Send(MASTER_RANK, header, payload)], [])
        return last_1D


@contextmanager
def open_galaxy(
    manifest: Manifest,
    transport: Transport,
    options: ComputeOptions,
    tracer: Tracer,
    on_wait: OnWait | None = None,
    *,
    overlap: bool = True,
) -> Iterator[tuple[Engine, Window, WindowChoice]]:
    """Put one rank's engine together, as `open_engine` does."""
    choice = plan_rank(manifest, options)
    with (
        open_components(manifest, transport, options, choice, tracer, on_wait) as components,
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
    options = replace(spec.compute, **GalaxyOptions.fixed)
    if options.max_batch != 1:
        raise ConfigError(f"galaxy: runs with batch 1, max_batch is {options.max_batch}")
    manifest = read_shard(spec, spec.rank, spec.world_size)

    def open_it(transport: Transport, tracer: Tracer, on_wait: OnWait) -> OpenedEngine:
        return open_galaxy(manifest, transport, options, tracer, on_wait, overlap=overlap)

    agreed = (
        "galaxy", manifest.plan_digest, options.dtype, options.max_tokens, options.prefill_chunk,
    )  # fmt: skip
    return Setup(manifest, agreed, peer_links=True, open=open_it)
