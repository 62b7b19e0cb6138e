"""The paper's "MP": a pipeline of layer ranges: `python -m baselines.pipeline.program SPEC`.

Every device holds a contiguous range of whole layers, in proportion to its memory, and keeps its
weights there. The master embeds a step, computes its layers and passes the hidden state on; each
device passes it to the next, and the last one sends the last position back to the master, which
applies the LM head. With one request there is one step at a time: while a device computes, the
others wait. All devices open the one folder of a split for one device, each only its own blocks.
`baselines/pipeline/engine.py` has the passes, `stages.py` who holds what.
"""

import sys
from typing import ClassVar

from baselines.options import Shared
from tpi.program.entry import main
from tpi.program.spec import NodeSpec


class PipelineOptions(Shared, frozen=True, kw_only=True):
    """`shares` are the proportions of the devices' memories."""

    fixed: ClassVar = {"window": None}
    told: ClassVar = ("shares",)
    where: ClassVar = "systems.pipeline."


def serve(spec: NodeSpec) -> int:
    """Serve one rank; returns the exit status."""
    from baselines.pipeline.engine import setup  # loads torch, after its threads are set
    from tpi.program.node import run_node

    return run_node(spec, setup)


if __name__ == "__main__":
    sys.exit(main(serve))
