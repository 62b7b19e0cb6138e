"""What a simulated testbed cannot heed: refused where it was asked for, never passed over. Pure.

Options that only say where things lie or how long they may take are let through; what would change
the numbers of a measured run, and cannot change those of a simulated one, is not.
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
    """Refuse what was said on the command line and has no effect on a simulated testbed.

    Raises:
        ConfigError: One line that names the option.
    """
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
    """An option of one rank by the name of its axis: `testbed.links.r3.backend`, `link.backend`."""
    for where, axis in _AXES.items():
        key = re.sub(rf"^testbed\.{where}\.r\d+\.", f"{axis}.", key)
    return key


def _is_zero(value: str) -> bool:
    try:
        return float(value) == 0
    except ValueError:
        return False  # no number, which the configuration has refused already
