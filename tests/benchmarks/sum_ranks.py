"""Ranks that sum the same vector with our star and with gloo, turn by turn.

`python -m tests.benchmarks.sum_ranks RANK WORLD_SIZE GLOO_PORT OUR_PORT TURNS` is one worker; the
benchmark itself is rank 0.
"""

import os
import sys
import time

import torch
import torch.distributed as dist

from tpi.comm.allreduce import AllReduce
from tpi.comm.deadlines import Deadlines
from tpi.comm.join import join
from tpi.comm.wire import Op
from tpi.ranks import Ranks
from tpi.trace import Tracer

NUM_ELEMENTS = 8192  # 32 KiB of float32: one token of a 70B model


class SumRank:
    """One rank in both worlds."""

    def __init__(self, rank: int, world_size: int, gloo_port: int, our_port: int) -> None:
        torch.set_num_threads(1)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{gloo_port}", rank=rank, world_size=world_size
        )
        self._mesh = join(
            Ranks(rank, world_size), bind="127.0.0.1", master=f"127.0.0.1:{our_port}",
            session=bytes(16), fingerprint=bytes(32), deadlines=Deadlines(), peer_links=False,
        )  # fmt: skip
        self._star = AllReduce(self._mesh, "star", "float32", NUM_ELEMENTS, Tracer())
        self._values = torch.zeros(NUM_ELEMENTS)
        self._step = 0

    def ours(self) -> float:
        """One star allreduce, in seconds."""
        self._step += 1
        self._values.fill_(1.0)
        start = time.perf_counter()
        self._star.all_reduce(self._values, step=self._step, layer=0, op=Op.FFN)
        return time.perf_counter() - start

    def gloo(self) -> float:
        """One gloo allreduce, in seconds."""
        self._values.fill_(1.0)
        start = time.perf_counter()
        dist.all_reduce(self._values)
        return time.perf_counter() - start

    def total(self) -> float:
        """What the last sum came to."""
        return float(self._values[-1])

    def close(self) -> None:
        """Leave both worlds, all ranks together."""
        dist.barrier()
        self._mesh.end()
        dist.destroy_process_group()


def main(rank: int, world_size: int, gloo_port: int, our_port: int, turns: int) -> None:
    me = SumRank(rank, world_size, gloo_port, our_port)
    for _ in range(turns):
        me.gloo()
        me.ours()
    me.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
