"""What `AllReduce` does around a sum; `allreduces/test_conformance.py` has the sums."""

import pytest
import torch

from tests.comm.parts import part, sum_by_rank
from tests.comm.peers import group, outcomes, run_ranks, socket_group
from tests.loopback import MemoryMesh
from tpi.comm.allreduce import AllReduce
from tpi.comm.allreduces.base import CHUNK_ELEMENTS
from tpi.comm.allreduces.registry import allreduce_names
from tpi.comm.wire import Op
from tpi.errors import ConfigError, FrameError, NumericsError
from tpi.trace import Tracer

torch.set_num_threads(1)
SIZES = (1, 5, 1001, CHUNK_ELEMENTS + 7)


@pytest.mark.parametrize("world_size", range(1, 5))
@pytest.mark.parametrize("kind", ["memory", "socket"])
def test_reduce_gives_the_sum_to_the_master(kind, world_size):
    def work(mesh):
        allreduce = AllReduce(mesh, "ring", "float32", max(SIZES), Tracer())
        results = [part(mesh.ranks.rank, count) for count in SIZES]
        for step, values in enumerate(results):
            allreduce.reduce(values, step=step, layer=1, op=Op.FFN)
        return results, mesh.counters.messages_sent

    ranks = run_ranks(group(kind, world_size), work)
    for index, count in enumerate(SIZES):
        expected = sum_by_rank(world_size, count, "float32")
        assert torch.equal(ranks[0][0][index], expected)
    assert [sent for _results, sent in ranks] == [0] + [len(SIZES) + 1] * (world_size - 1)


def test_tensor_of_any_shape_is_summed_in_place():
    def work(mesh):
        allreduce = AllReduce(mesh, "star", "float32", 24, Tracer())
        partial_BSD = torch.full((2, 3, 4), float(mesh.ranks.rank + 1))
        allreduce.all_reduce(partial_BSD, step=0, layer=0, op=Op.ATTN)
        return partial_BSD

    for partial_BSD in run_ranks(MemoryMesh.group(3), work):
        assert torch.equal(partial_BSD, torch.full((2, 3, 4), 6.0))


@pytest.mark.parametrize("world_size", [1, 2])
def test_time_goes_to_the_tracer_where_anything_is_sent(world_size):
    def work(mesh):
        tracer = Tracer()
        AllReduce(mesh, "star", "float32", 4, tracer).all_reduce(
            torch.ones(4), step=0, layer=0, op=Op.ATTN
        )
        return tracer.totals_ns["allreduce"]

    spent_ns = run_ranks(MemoryMesh.group(world_size), work)
    assert [ns > 0 for ns in spent_ns] == [world_size > 1] * world_size


@pytest.mark.parametrize("algorithm", allreduce_names())
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_names_rank_and_layer_everywhere(algorithm, value):
    def work(mesh):
        values = torch.ones(8)
        if mesh.ranks.rank == 2:
            values[3] = value
        AllReduce(mesh, algorithm, "float32", 8, Tracer()).all_reduce(
            values, step=4, layer=7, op=Op.FFN
        )

    for error in outcomes(socket_group(3), work):
        assert type(error) is NumericsError
        assert "rank 2 computed NaN or infinity" in str(error)
        assert "step 4, layer 7" in str(error)


def test_nan_of_a_rank_that_does_not_check_is_found_by_the_master(monkeypatch):
    monkeypatch.setattr("tpi.comm.allreduce.check_finite", lambda *args: None)

    def work(mesh):
        values = torch.full((8,), float("nan") if mesh.ranks.rank == 2 else 1.0)
        AllReduce(mesh, "star", "float32", 8, Tracer()).all_reduce(
            values, step=4, layer=7, op=Op.FFN
        )
        if not mesh.ranks.is_master:
            AllReduce(mesh, "star", "float32", 8, Tracer()).all_reduce(
                torch.ones(8), step=4, layer=8, op=Op.ATTN
            )

    for error in outcomes(socket_group(3), work):
        assert type(error) is NumericsError
        assert "rank 2 sent NaN or infinity" in str(error)


def test_large_finite_values_are_no_false_alarm():
    mesh = MemoryMesh.group(1)[0]
    AllReduce(mesh, "star", "float32", 4, Tracer()).all_reduce(
        torch.full((4,), 3e38), step=0, layer=0, op=Op.ATTN
    )


@pytest.mark.parametrize("algorithm", allreduce_names())
def test_one_extra_sum_is_a_frame_error_everywhere(algorithm):
    def work(mesh):
        allreduce = AllReduce(mesh, algorithm, "float32", 8, Tracer())
        for layer in range(3):
            if mesh.ranks.rank == 1 and layer == 1:
                allreduce.all_reduce(torch.ones(8), step=0, layer=layer, op=Op.FFN)
            allreduce.all_reduce(torch.ones(8), step=0, layer=layer, op=Op.ATTN)

    for error in outcomes(socket_group(3), work):
        assert type(error) is FrameError
        assert "expected" in str(error)


@pytest.mark.parametrize(
    ("algorithm", "dtype", "text"), [("mesh", "float32", "star"), ("star", "int8", "bfloat16")]
)
def test_unknown_choice_is_a_config_error(algorithm, dtype, text):
    with pytest.raises(ConfigError, match=text):
        AllReduce(MemoryMesh.group(1)[0], algorithm, dtype, 8, Tracer())


@pytest.mark.parametrize("bad", [torch.ones(9), torch.ones(0), torch.ones(4).double(),
                                 torch.ones(4, 2).t()])  # fmt: skip
def test_tensor_that_cannot_be_summed_is_refused(bad):
    allreduce = AllReduce(MemoryMesh.group(1)[0], "star", "float32", 8, Tracer())
    with pytest.raises(ValueError, match="a sum takes"):
        allreduce.all_reduce(bad, step=0, layer=0, op=Op.ATTN)
