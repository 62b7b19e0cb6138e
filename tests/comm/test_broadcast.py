import pytest
import torch

from tests.comm.peers import group, outcomes, run_ranks, socket_group
from tpi.comm.allreduce import AllReduce
from tpi.comm.broadcast import Broadcast, StepBroadcast
from tpi.comm.wire import FrameType, Op
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


def steps(mesh, **options):
    return StepBroadcast(mesh, 200, HIDDEN, **options)


def chain(mesh, tracer=None):
    """Every rank hears of a step from the one before it."""
    rank, world_size = mesh.ranks.rank, mesh.ranks.world_size
    targets = [rank + 1] if rank + 1 < world_size else []
    return steps(mesh, source=rank - 1, targets=targets, tracer=tracer, span="chain")


@pytest.mark.parametrize("kind", ["memory", "socket"])
def test_workers_get_hidden_state_and_info_then_the_ends(kind):
    def work(mesh):
        broadcast = steps(mesh)
        if mesh.ranks.is_master:
            for info, shape in zip(INFOS, SHAPES, strict=True):
                broadcast.send(hidden(shape), info)
            broadcast.end_request(request=5, num_decode_steps=31)
            broadcast.end_session()
            return mesh.counters.messages_sent
        received = []
        for step in (0, 1, 2, 3, 3):
            got = broadcast.receive(step)
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
        broadcast = steps(mesh)
        if mesh.ranks.is_master:
            broadcast.send(hidden(SHAPES[2]), Broadcast(0))
            return None
        got = broadcast.receive(0)
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
        broadcast = steps(mesh)
        if mesh.ranks.is_master:
            broadcast.send(hidden(shape), Broadcast(step))
            allreduce = AllReduce(mesh, "star", "float32", 1, Tracer())
            allreduce.all_reduce(torch.ones(1), step=0, layer=0, op=Op.ATTN)
        else:
            broadcast.receive(0)

    for error in outcomes(socket_group(2), work):
        assert type(error) is FrameError
        assert field in str(error)


@pytest.mark.parametrize("kind", ["memory", "socket"])
def test_links_of_a_chain_pass_on_what_they_make_of_a_step_and_the_ends_by_themselves(kind):
    def work(mesh):
        tracer = Tracer()
        link = chain(mesh, tracer)
        if mesh.ranks.is_master:
            link.send(hidden(SHAPES[0]), INFOS[0])
            link.send(hidden(SHAPES[1]), INFOS[1])
            link.end_request(request=4, num_decode_steps=1)
            link.end_session()
            return mesh.counters.messages_sent
        got = []
        for step in range(2):
            received = link.receive(step)
            assert received.info == INFOS[step]
            got.append(received.hidden_BSD.clone())
            if mesh.ranks.rank < 3:
                link.send(received.hidden_BSD + 1, received.info)
            elif step == 0:  # the wait for a first step began before the request
                assert tracer.totals_ns["chain"] == 0
        end = link.receive(2)
        assert (end.control, end.info.request) == (FrameType.END_REQUEST, 4)
        assert end.num_decode_steps == 1
        assert link.receive(2).control is FrameType.END_SESSION
        assert tracer.totals_ns["chain"] > 0
        return got, mesh.counters.messages_sent

    sent, *workers = run_ranks(group(kind, 4), work)
    assert sent == 2
    for place, (got, messages) in enumerate(workers):
        assert messages == (2 if place < 2 else 0)
        for step in range(2):
            assert torch.equal(got[step], hidden(SHAPES[step]) + place)
