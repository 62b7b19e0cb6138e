"""Allreduces of a package outside the repository, found through its entry points."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = '''
from tpi.comm.allreduces.base import AllReduceAlgorithm
from tpi.comm.allreduces.base import chunks


class Chain(AllReduceAlgorithm):
    """Every rank adds its part to what the one before sends; the last sends the sum to all."""

    name = "chain"

    def run(self, call, num_elements):
        ranks = call.transport.ranks
        rank, last = ranks.rank, ranks.world_size - 1
        for start, stop in chunks(num_elements):
            call.vector.round(start, stop)
            if rank > 0:
                recvs = call.recvs([rank - 1], start, stop)
                call.transport.transfer([], recvs, call.adder(1, start, stop))
                call.vector.round(start, stop)
            if rank == last:
                call.transport.transfer(call.sends(ranks.peers, start, stop), [])
            else:
                call.transport.transfer(call.sends([rank + 1], start, stop), [])
                call.transport.transfer([], call.recv_in_place(last, start, stop))
                call.vector.unpack(start, stop)

    def simulate(self, network, num_elements):
        last = network.world_size - 1
        for start, stop in chunks(num_elements):
            for rank in range(last):
                network.gather([rank], rank + 1, stop - start)
            network.scatter(last, range(last), stop - start)

    def closed_form_s(self, world_size, delay_s, payload_s):
        return world_size * delay_s + 2 * (world_size - 1) * payload_s


class Mute(AllReduceAlgorithm):
    """Says only how it runs."""

    name = "mute"
    run = Chain.run


class Misnamed(Chain):
    name = "other"
'''
ENTRY_POINTS = """
[tpi.allreduces]
chain = toy_allreduces:Chain
mute = toy_allreduces:Mute
misnamed = toy_allreduces:Misnamed
missing = toy_allreduces:Missing
absent = no_such_package:Chain
alien = pathlib:Path
"""


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """As if a package with these allreduces were installed in the folder."""
    (folder / "toy_allreduces.py").write_text(SOURCE)
    info = folder / "toy_allreduces-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-allreduces\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("toy_allreduces", None)
