"""Galaxy (arXiv 2405.17245), tensor and sequence parallel: `-m baselines.galaxy.program SPEC`.

From the Galaxy paper it has: attention and FFN cut by heads and columns over all devices, even or
in proportion to their capability (the shard plan's shares); norms and residuals cut along the
sequence; ring reduce-scatter and all-gather between the two in place of allreduce; and in prefill
the tile-wise overlap of ring steps with matrix products. It lacks the planner
that profiles the devices and searches for shares; shares are given here. The paper does not
describe decoding. One token cannot be cut along the sequence, so here the ring then runs over the
width. Weights are resident. `baselines/galaxy/engine.py` has the passes, `ring.py` the rings.
"""

import sys

from tpi.program.host import main
from tpi.program.model import OpenedModel
from tpi.program.spec import NodeSpec


def open_model(spec: NodeSpec) -> OpenedModel:
    """Open one rank's part."""
    from baselines.galaxy.engine import setup  # loads torch, after its threads are set
    from tpi.program.node import open_node

    return open_node(spec, setup)


if __name__ == "__main__":
    sys.exit(main(open_model))
