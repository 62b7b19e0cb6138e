"""Simulated beside measured: `lab validate FOLDER ...`.

Each folder is searched for run records of the Docker testbed. Every run that ended well is
simulated from its own record: model, weights, system, dilation, limits, links. The error is
simulated / measured - 1.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from baselines.options import SystemOptions
from baselines.registry import find_system, simulate
from results.records.codec import decode_record
from results.records.schema import RecordError, RunRecord
from testbed.limits.limits import DeviceLimits
from testbed.sim.base import SimDevice, SimOutcome, SimRun
from testbed.sim.calibration import Calibration, load_calibration
from tpi.command_line import Parser
from tpi.decode import convert
from tpi.errors import ConfigError, ResourceError
from tpi.files import read_small_file
from tpi.model_config import load_preset

_MAX_RECORD_BYTES = 64 << 20


class Figures(NamedTuple):
    """What is compared, in seconds."""

    ttft_s: float
    token_latency_s: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One record."""

    name: str
    measured: Figures
    simulated: Figures

    @property
    def pairs(self) -> tuple[tuple[float | None, float | None], ...]:
        """Measured and simulated TTFT, then token latency."""
        return tuple(zip(self.measured, self.simulated, strict=True))

    @property
    def errors(self) -> tuple[float, ...]:
        """Of TTFT and, where both have one, of the token latency."""
        return tuple(b / a - 1 for a, b in self.pairs if a and b is not None)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that cannot be compared; `is_broken` where it cannot even be read."""

    name: str
    reason: str
    is_broken: bool = False


def figures_of(outcome: SimOutcome) -> Figures:
    """TTFT and token latency, as `results/records/measure.py` takes them from events."""
    events = [event for _, event in outcome.events]
    go_ns = next(event.t_ns for event in events if event.name == "request")
    token_ns = [event.t_ns for event in events if event.name == "token"]
    gaps = len(token_ns) - 1
    latency_s = (token_ns[-1] - token_ns[0]) / 1e9 / gaps if gaps else None
    return Figures((token_ns[0] - go_ns) / 1e9, latency_s)


def rebuild(record: RunRecord) -> SimRun:
    """The run that a record describes; a ConfigError if it lacks something or has no preset."""
    config, calibration = record.config, record.calibration
    kind: type[SystemOptions] = find_system(record.system).options
    known = config.options.items()
    # What older versions had beside is left out.
    asked = {name: value for name, value in known if name in kind.__struct_fields__}
    options = convert(asked, kind, f"record {record.run_id}", ConfigError)
    probe, new_tokens = calibration.disk_probe, config.workload.new_tokens
    read_bps = None if probe is None else probe.read_bps
    if read_bps is None or new_tokens is None or config.dtype is None or not calibration.limits:
        raise ConfigError(
            f"record {record.run_id}: nothing to simulate it from: it lacks a disk probe, limits or"
            " a number of tokens"
        )
    factor = calibration.dilation.factor
    model, storage = load_preset(config.model.name), config.weights.dtype
    return SimRun(
        system=record.system,
        compute=options.compute(config.dtype, len(config.prompt_ids) + new_tokens),
        model=model,
        storage=model.dtype if storage == "auto" else storage,
        prompt_tokens=len(config.prompt_ids),
        new_tokens=new_tokens,
        devices=tuple(_device(each, options, factor, read_bps) for each in calibration.limits),
        links=tuple(link.dilated(1 / factor) for link in calibration.links),
        shares=config.shares,
        options=options.spec(),
    )


def _device(
    limits: DeviceLimits, options: SystemOptions, factor: float, probed_bps: float
) -> SimDevice:
    """A device in its own time, in which the host, limited or not, is `factor` times faster."""
    threads = options.own_threads or limits.threads
    read_bps = probed_bps if limits.read_bps is None else limits.read_bps
    return SimDevice(
        cores=factor * (threads if limits.cpus is None else min(limits.cpus, threads)),
        memory=limits.memory,
        swap=limits.swap,
        disk_read_bps=read_bps * factor,
        disk_write_bps=None if limits.write_bps is None else limits.write_bps * factor,
    )


def compare(folders: Iterable[Path], calibration: Calibration) -> list[Comparison | Skipped]:
    """Simulate every good Docker record below some folders; unusable ones say why."""
    paths: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder, expected one with run records")
        paths.update(folder.rglob("run.json"))
    found = [_compare(path, calibration) for path in sorted(paths)]
    return [comparison for comparison in found if comparison is not None]


def _compare(path: Path, calibration: Calibration) -> Comparison | Skipped | None:
    name = f"{path.parent.parent.name}/{path.parent.name}"
    try:
        data = read_small_file(path, _MAX_RECORD_BYTES, RecordError)
        record = decode_record(data, f"record {path}")
    except RecordError as exc:
        return Skipped(name, str(exc), is_broken=True)
    measured, is_docker = record.metrics, record.config.testbed.backend == "docker"
    if record.status != "ok" or measured is None or not is_docker:
        return None
    try:
        if not find_system(record.system).simulator:
            return None
        outcome = simulate(rebuild(record), calibration)
    except (ConfigError, ResourceError) as exc:
        return Skipped(name, str(exc))
    if outcome.status != "ok":
        return Skipped(name, f"simulated, it is {outcome.status}: {outcome.reason}")
    latency = measured.token_latency_s
    figures = Figures(measured.ttft_s.median, None if latency is None else latency.median)
    return Comparison(name, figures, figures_of(outcome))


def table(found: Sequence[Comparison | Skipped]) -> str:
    """As Markdown, with the median and the worst error below."""
    lines = [
        "| run | TTFT s | simulated | error | token s | simulated | error |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for each in found:
        if isinstance(each, Skipped):
            lines.append(f"| {each.name} | skipped: {each.reason} | | | | | |")
        else:
            cells = [cell for pair in each.pairs for cell in _cells(*pair)]
            lines.append(f"| {' | '.join([each.name, *cells])} |")
    compared = [each for each in found if isinstance(each, Comparison)]
    errors = [abs(error) for each in compared for error in each.errors]
    if errors:
        lines += ["", f"median error {median(errors):.1%}, worst {max(errors):.1%}"]
    return "\n".join(lines) + "\n"


def _cells(measured: float | None, simulated: float | None) -> list[str]:
    if measured is None or simulated is None:
        return ["", "", ""]
    return [f"{measured:.4g}", f"{simulated:.4g}", f"{simulated / measured - 1:+.1%}"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(
        prog="lab validate", description="Set the simulator beside measured run records."
    )
    parser.add_argument("folders", nargs="+", type=Path, help="where run records are")
    parser.add_argument("--calibration", type=Path, help="JSON file; default: the reference")
    asked = parser.parse_args(argv)
    try:
        found = compare(asked.folders, load_calibration(asked.calibration))
    except ConfigError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_status
    sys.stdout.write(table(found) if found else "no run record of the Docker testbed found\n")
    broken = any(isinstance(each, Skipped) and each.is_broken for each in found)
    return ConfigError.exit_status if broken else 0
