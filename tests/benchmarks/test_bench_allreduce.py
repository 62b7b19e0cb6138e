"""Our star against gloo: 32 KiB on loopback, both in the same processes, turn by turn."""

import socket
import statistics
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.benchmarks.sum_ranks import SumRank

pytestmark = pytest.mark.bench
ROOT = Path(__file__).parents[2]
WARMUP, ROUNDS = 20, 200


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [sock.getsockname()[1] for sock in sockets]


@contextmanager
def rank_0_of(world_size: int):
    ports, turns = [str(port) for port in free_ports(2)], str(WARMUP + ROUNDS)
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.benchmarks.sum_ranks", str(rank),
                     str(world_size), *ports, turns],
                    cwd=ROOT,
                )
            )
            for rank in range(1, world_size)
        ]  # fmt: skip
        try:
            me = SumRank(0, world_size, *map(int, ports))
            yield me
            me.close()
            assert [worker.wait(20) for worker in workers] == [0] * (world_size - 1)
        finally:
            for worker in workers:
                worker.kill()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("world_size", "least_ratio"), [(2, None), (4, 3.0), (8, 5.0)])
def test_star_allreduce_of_32_kib_against_gloo(benchmark, world_size, least_ratio):
    gloo_s, ours_s = [], []
    with rank_0_of(world_size) as me:

        def gloo():
            gloo_s.append(me.gloo())
            assert me.total() == world_size

        benchmark.pedantic(
            lambda: ours_s.append(me.ours()), setup=gloo, rounds=ROUNDS, warmup_rounds=WARMUP
        )
        assert me.total() == world_size
    gloo_ms, ours_ms = (1e3 * statistics.median(s[WARMUP:]) for s in (gloo_s, ours_s))
    ratio = gloo_ms / ours_ms
    benchmark.extra_info.update(gloo_median_ms=gloo_ms, star_median_ms=ours_ms, ratio=ratio)
    line = f"star {ours_ms:.2f} ms, gloo {gloo_ms:.2f} ms, {ratio:.1f} times faster"
    print(f"\n{world_size} processes, 32 KiB: {line}")  # noqa: T201
    if least_ratio is not None:
        assert ratio >= least_ratio
