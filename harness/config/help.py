"""The text of `python run.py --help`: frequent commands, then every option and its default."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from textwrap import wrap

from harness.config.config import Config
from tpi.units import format_bytes

_WIDTH = 100
_HEAD = """\
Measure systems that serve one language model on several devices, and print the table.

  python run.py [KEY=VALUE ...]           one experiment; without arguments a small one
  python run.py -m KEY=A,B [KEY=VALUE ...]   every combination; one table, CSV and plot of all
  python run.py --cfg job [KEY=VALUE ...]    the configuration, instead of a run; --hydra-help
  eval "$(python run.py -sc install=bash)"   completion of options and choices in this shell

  python run.py model=tiny devices=4 'systems=[tpi,transformers]'
  python run.py model=tiny devices=4 systems=all
  python run.py model=llama2-70b devices=8
  python run.py model=llama2-3b devices=8 testbed=klonet      containers with limits and links
  python run.py model=llama2-70b devices=8 testbed=sim        simulated: answers at once, no weights
  python run.py model=folder model.path=DIR devices=4 'workload.prompt=Hello, world'

Before anything starts it prints what it will write, read and need, and about how long it takes. A
run that was finished before is not measured again; more repeats are added to it.
"""

_ABOUT = {
    "devices": "how many devices a distributed system gets; others run on one",
    "dtype": "float32 | bfloat16, of the computation",
    "threads": "per device, the same for every system; null fits the device",
    "window": "tpi, transformers-window: blocks in memory at once, or all",
    "memory_budget": "the same: per device, as 4GiB; decides window and retained blocks",
    "allreduce": "tpi, tpi-resident: star | tree | ring | direct | exchange",
    "wire_dtype": "tpi, tpi-resident: float32 | bfloat16",
    "shares": "of the devices in distributed systems, as [2,1,1]; null is even",
    "repeats": "each on fresh devices, after a warm-up request",
    "max_minutes": "to fit, repeats are cut to 1, then new tokens to 3",
    "results_dir": "where records lie",
    "sweep_dir": "with -m: where its one table, CSV and plot lie",
    "force": "true measures again what is there",
    "trace": "true keeps spans of computing, allreduce, loading; make trace",
    "model.path": "a checkpoint in Hugging Face form, with model=folder",
    "workload.prompt": "text; needs a tokenizer in the model's folder",
    "workload.prompt_file": "the same, from a file",
    "workload.prompt_tokens": "length of a prompt of seeded ids, where no text is given",
    "workload.new_tokens": "made greedily, exactly so many",
    "workload.seed": "of the prompt's ids",
    "weights.dir": "where weights are made, and found again",
    "weights.max_bytes": "of synthetic weights; so many layers differ as fit",
    "weights.distinct_layers": "layers that are stored; the others are links to them",
    "weights.dtype": "storage of synthetic weights: auto | float32 | float16 | bfloat16",
    "weights.seed": "of synthetic weights",
    "testbed.time_scale": "multiplies every deadline",
    "testbed.backend": "local | docker | sim: what makes the devices; sim computes them",
    "testbed.dilation": "how many times slower all runs, and times are divided by; or auto",
    "testbed.oversubscribe": "run devices that do not fit this host, marked",
    "testbed.fit": "decode | prefill: the phase that CPU quotas are right for",
    "testbed.make_swap": "make a swap file where devices need swap; as root",
    "testbed.calibration": "of sim: reference, or a file that `make calibrate` wrote",
    "device.cores": "of every device; null is no limit, as for those below",
    "device.core_speed": "of one core, where one of this host is 1",
    "device.mem_gbps": "memory rate of all its cores, 10^9 bytes/s",
    "device.memory": "as 8GiB",
    "device.swap": "beside the memory, as 4GiB",
    "device.disk_read_mb_s": "10^6 bytes/s; disk_write_mb_s likewise",
    "link.delay_ms": "one way, device to core; there and back between two devices is 4 x",
    "link.rate_mbps": "10^6 bits/s each way; null is no limit",
    "link.loss_frac": "share of packets lost, each way",
    "link.queue_kib": "what may wait at a port",
    "link.backend": "auto | netem | switch | switch-c | switch-python",
    "link.faults": "as [{device: 1, kind: cut, at_s: 2, for_s: 0.5}]",
    "allow_concurrent": "run beside another harness on this host, marked",
}
_OF_SYSTEMS = {
    "tpi.prefill_chunk": "prompt tokens in one pass; so for all that use tpi's parts",
    "transformers.dtype": "of this system alone, as dtype",
    "transformers.threads": "of this system alone, as threads",
    "transformers.low_cpu_mem_usage": "false builds the model before weights are read",
    "transformers.mmap": "whether its checkpoint is mapped",
    "accelerate.max_memory": "for weights, as 2GiB; null offloads all to disk",
    "galaxy.overlap": "of ring steps and products in prefill",
    "llamacpp.quantization": "none | q8_0 | q4_0",
    "llamacpp.mmap": "whether its file is mapped",
}

_TAIL = """\
Exit status: 0 every system ended ok, or was computed or seen not to fit its device; 1 one of them
crashed, ran out of time or of the host's memory, or gave wrong tokens; 2 an option is wrong; 14 a
checkpoint or shard is missing or damaged; 15 memory, disk or devices do not suffice; 130
interrupted: Ctrl-C once ends it in order, a second time at once.
"""


def help_text(
    config: Config, axes: Mapping[str, tuple[str, ...]], shortcuts: Mapping[str, object]
) -> str:
    """The whole text, with the defaults of `config` and the choices of each axis."""
    lines = [_HEAD, "Axes (AXIS=NAME, files in conf/):"]
    for axis, names in axes.items():
        lines += wrap(
            " | ".join(names), width=_WIDTH, initial_indent=f"  {axis:12}",
            subsequent_indent=" " * 14, break_on_hyphens=False,
        )  # fmt: skip
    lines += ["", "Options (defaults in brackets):"]
    values = {**_flat(asdict(config), ""), **shortcuts}
    for name, about in _ABOUT.items():
        lines.append(f"  {name:26}{about} [{_shown(name, values.get(name))}]")
    lines += ["", "Options of one system (after systems.):"]
    for name, about in _OF_SYSTEMS.items():
        lines.append(f"  {name:32}{about} [{_shown(name, values.get(f'systems.{name}'))}]")
    return "\n".join([*lines, "", _TAIL])


def _flat(tree: Mapping[str, object], prefix: str) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _shown(name: str, value: object) -> str:
    if name.endswith("max_bytes") and isinstance(value, int):
        return format_bytes(value).replace(" ", "")
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return re.sub(r"\$\{now:.*?\}", "DATE", str(value))
