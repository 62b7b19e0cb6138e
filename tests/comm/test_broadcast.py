import pytest
import torch

from tests.comm.peers import group, outcomes, run_ranks, socket_group
from tpi.comm.allreduce import AllReduce, Broadcast
from tpi.comm.wire import FrameType
from tpi.errors import FrameError
from tpi.trace import Tracer

HIDDEN = 6
INFOS = (
    Broadcast(0, start=0, first=True, request=4, pads=(0, 2, 1)),
    Broadcast(1, start=5, first=False, request=4),
    Broadcast(2, start=0, first=True, request=5),
)
SHAPES = ((3, 5, HIDDEN), (3, 1, HIDDEN), (1, 8, HIDDEN))


def hidden(shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def collectives(mesh, max_elements=200):
    return AllReduce(mesh, "star", "bfloat16", max_elements, Tracer(), HIDDEN)


@pytest.mark.parametrize("kind", ["memory", "socket"])
def test_workers_get_hidden_state_and_info_then_the_ends(kind):
    def work(mesh):
        allreduce = collectives(mesh)
        if mesh.ranks.is_master:
            for info, shape in zip(INFOS, SHAPES, strict=True):
                allreduce.broadcast(hidden(shape), info)
            allreduce.end_request(request=5, num_decode_steps=31)
            allreduce.end_session()
            return mesh.counters.messages_sent
        received = []
        for step in (0, 1, 2, 3, 3):
            got = allreduce.receive_broadcast(step)
            received.append((got.hidden_BSD.clone(), got.info, got.control, got.num_decode_steps))
        return received

    master, *workers = run_ranks(group(kind, 3), work)
    assert master == 2 * 3
    for received in workers:
        for index in range(3):
            hidden_BSD, info, control, _steps = received[index]
            assert torch.equal(hidden_BSD, hidden(SHAPES[index]))
            assert info == INFOS[index]
            assert control is None
        assert received[3][1].request == 5
        assert received[3][2:] == (FrameType.END_REQUEST, 31)
        assert received[4][2] is FrameType.END_SESSION


def test_hidden_state_is_the_callers_to_write_in():
    def work(mesh):
        allreduce = collectives(mesh)
        if mesh.ranks.is_master:
            allreduce.broadcast(hidden(SHAPES[2]), Broadcast(0))
            return None
        got = allreduce.receive_broadcast(0)
        got.hidden_BSD.add_(1)
        return got.hidden_BSD

    assert torch.equal(run_ranks(group("socket", 2), work)[1], hidden(SHAPES[2]) + 1)


@pytest.mark.parametrize(
    ("shape", "step", "field"),
    [
        ((1, 1, HIDDEN + 1), 0, "shape"),
        ((9, 9, HIDDEN), 0, "payload_bytes"),
        ((1, 1, HIDDEN), 1, "step"),
    ],
)  # fmt: skip
def test_broadcast_that_does_not_fit_is_refused(shape, step, field):
    def work(mesh):
        allreduce = collectives(mesh)
        if mesh.ranks.is_master:
            allreduce.broadcast(hidden(shape), Broadcast(step))
            allreduce.all_reduce(torch.ones(1), step=0, layer=0, op=1)
        else:
            allreduce.receive_broadcast(0)

    for error in outcomes(socket_group(2), work):
        assert type(error) is FrameError
        assert field in str(error)
