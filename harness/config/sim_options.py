"""Options that have no effect on a simulated testbed are refused, not ignored. Pure.

They are those that would change the numbers of a measured run. Options that only say where files
lie or how long something may take are accepted.
"""

import re
from collections.abc import Sequence

from tpi.errors import ConfigError

_AXES = {"roster": "device", "links": "link"}
# Option -> why it has no effect, and what to say instead.
_IGNORED = {
    "testbed.dilation": "nothing runs, so nothing is slowed down; times are the devices' own",
    "testbed.oversubscribe": "simulated devices need not fit this host",
    "testbed.make_swap": "swap of simulated devices takes nothing of this host; say device.swap",
    "testbed.time_scale": "nothing waits, so there are no deadlines",
    "threads": "say device.cores",
    "device.threads": "say device.cores",
    "link.backend": "links are computed",
    "link.queue_kib": "queues of simulated links have no end, nothing is dropped",
    "weights.dir": "no weights are read or written",
    "weights.seed": "no weights are read or written",
    "weights.max_bytes": "no weights are read or written, all layers count as distinct",
    "weights.distinct_layers": "no weights are read or written, all layers count as distinct",
    "workload.seed": "only the length of the prompt counts; say workload.prompt_tokens",
    "systems.transformers.threads": "say device.cores",
}


def refuse_ignored(overrides: Sequence[str]) -> None:
    """Refuse overrides that have no effect on a simulated testbed; raises ConfigError."""
    for override in overrides:
        key, _, value = override.partition("=")
        option = _of_any_rank(key)
        if option in _IGNORED:
            raise ConfigError(f"{key}: no effect with testbed.backend=sim: {_IGNORED[option]}")
        if option == "link.loss_frac" and not _is_zero(value):
            raise ConfigError(
                f"{key}: got {value}, no effect with testbed.backend=sim: nothing is lost on"
                " simulated links; leave it out"
            )
        if key == "repeats" and value.strip() != "1":
            raise ConfigError(
                f"repeats: got {value}, no effect with testbed.backend=sim: the same question"
                " always has the same answer; leave it out"
            )


def _of_any_rank(key: str) -> str:
    """`testbed.links.r3.backend` as `link.backend`: an option of one rank by its axis."""
    return re.sub(r"^testbed\.(roster|links)\.r\d+\.", lambda m: f"{_AXES[m[1]]}.", key)


def _is_zero(value: str) -> bool:
    try:
        return float(value) == 0
    except ValueError:
        return False  # no number, which the configuration has refused already


def sim_problems(name: str) -> list[str]:
    """Why a system cannot be simulated; none if it can."""
    from baselines.simulate import SYSTEMS  # NumPy takes a while; checks of options need none

    return [] if name in SYSTEMS else ["the simulator has no model of it"]
