"""A rank that only sums: every allreduce by itself, started on all devices at the same moment.

    python -m baselines.allreduce_rank SPEC

The spec is one JSON object: rank, world_size, session, bind, master, time_scale, and `rounds`, a
list of {"algorithm", "num_bytes"}. The program says `{"event": "up"}` once all have joined; then a
line `ROUND AT_NS` on standard input has it start that round at that moment of CLOCK_MONOTONIC, and
it answers `{"event": "sum", "round": ROUND, "end_ns": ..., "ok": ...}`. It leaves when its input
ends.
"""

import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import torch
from msgspec import Meta, Struct

from tpi.comm.allreduce import AllReduce
from tpi.comm.allreduces.registry import find_allreduce
from tpi.comm.deadlines import Deadlines
from tpi.comm.join import join
from tpi.comm.wire import Op
from tpi.decode import Count, CountOrZero, decode_file
from tpi.errors import ConfigError
from tpi.ranks import Ranks
from tpi.trace import Tracer

_FLOAT_BYTES = 4
_MAX_SPEC_BYTES = 1 << 20


class Round(Struct, frozen=True, forbid_unknown_fields=True):
    """One sum."""

    algorithm: str
    num_bytes: Count


class SumSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """The task of a rank."""

    rank: CountOrZero
    world_size: Count
    session: str
    bind: str
    master: str
    time_scale: Annotated[float, Meta(gt=0)]
    rounds: list[Round]


def serve(spec: SumSpec, commands: Iterable[str]) -> None:
    """Join the others, and sum on command."""
    torch.set_num_threads(1)
    ranks, rounds = Ranks(spec.rank, spec.world_size), spec.rounds
    most_elements = max(r.num_bytes for r in rounds) // _FLOAT_BYTES
    with join(
        ranks,
        bind=spec.bind,
        master=spec.master,
        session=bytes.fromhex(spec.session),
        fingerprint=bytes(32),
        deadlines=Deadlines().scaled(spec.time_scale),
        peer_links=any(find_allreduce(r.algorithm).needs_peer_links for r in rounds),
        trust_network=True,
    ) as mesh:
        sums = {
            name: AllReduce(mesh, name, "float32", most_elements, Tracer())
            for name in sorted({r.algorithm for r in rounds})
        }
        _write({"event": "up"})
        for step, line in enumerate(commands, start=1):
            number, at_ns = map(int, line.split())
            algorithm, count = rounds[number].algorithm, rounds[number].num_bytes
            values = torch.full((count // _FLOAT_BYTES,), float(ranks.rank + 1))
            while (left_ns := at_ns - time.monotonic_ns()) > 0:
                time.sleep(left_ns / 1e9)
            sums[algorithm].all_reduce(values, step=step, layer=0, op=Op.FFN)
            end_ns = time.monotonic_ns()
            expected = ranks.world_size * (ranks.world_size + 1) / 2
            is_right = bool((values == expected).all())
            result = {"round": number, "end_ns": end_ns, "ok": is_right}
            _write({"event": "sum", **result})
        mesh.end()


def _write(event: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(decode_file(Path(sys.argv[1]), SumSpec, _MAX_SPEC_BYTES, ConfigError), sys.stdin)
