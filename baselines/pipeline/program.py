"""The paper's "MP": a pipeline of layer ranges: `python -m baselines.pipeline.program SPEC`.

Every device holds a contiguous range of whole layers, in proportion to its memory, and keeps its
weights there. The master embeds a step, computes its layers and passes the hidden state on; each
device passes it to the next, and the last one sends the last position back to the master, which
applies the LM head. With one request there is one step at a time: while a device computes, the
others wait. All devices open the one folder of a split for one device, each only its own blocks.
`baselines/pipeline/engine.py` has the passes, `stages.py` who holds what.
"""

import sys

from tpi.program.host import main
from tpi.program.model import OpenedModel
from tpi.program.spec import NodeSpec


def open_model(spec: NodeSpec) -> OpenedModel:
    """Open one rank's part."""
    from baselines.pipeline.engine import setup  # loads torch, after its threads are set
    from tpi.program.node import open_node

    return open_node(spec, setup)


if __name__ == "__main__":
    sys.exit(main(open_model))
