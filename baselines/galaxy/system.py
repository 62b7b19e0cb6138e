"""Galaxy as a system: `tpi node`'s needs, since it is made of its parts."""

from baselines.galaxy.options import GalaxyOptions
from baselines.tpi.system import NodeSystem

SYSTEMS = (
    NodeSystem(
        "galaxy",
        GalaxyOptions,
        ("-m", "baselines.galaxy.program"),
        "baselines.galaxy.schedule:simulate",
        distributed=True,
        order=40,
    ),
)
