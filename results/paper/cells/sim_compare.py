"""Simulated beside measured: `lab validate FOLDER ...`.

Each folder is searched for run records (`run.json`) of the Docker testbed; every one that ended
well is simulated from what it says of itself: model, weights, system, dilation, limits, links. The
error is simulated / measured - 1. Read `rebuild`.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from baselines.options import SystemOptions
from baselines.registry import find_system, simulate
from testbed.limits.limits import DeviceLimits
from testbed.links.link import LinkSpec
from testbed.sim.base import SimDevice, SimOutcome, SimRun
from testbed.sim.calibration import Calibration, load_calibration
from tpi.command_line import Parser
from tpi.decode import decode_file
from tpi.errors import ConfigError, ResourceError
from tpi.model_config import load_preset

_MAX_RECORD_BYTES = 64 << 20
_Positive = Annotated[float, Meta(gt=0)]


class _Named(Struct, frozen=True):
    name: str


class _Weights(Struct, frozen=True):
    dtype: str


class _Workload(Struct, frozen=True):
    new_tokens: int


class _Testbed(Struct, frozen=True):
    backend: str = ""


class _Config(Struct, frozen=True):
    """Of records of version 1, `systems` has the options of the system that ran."""

    model: _Named
    weights: _Weights
    workload: _Workload
    dtype: str
    testbed: _Testbed = _Testbed()
    prompt_ids: tuple[int, ...] = ()
    options: Mapping[str, object] = msgspec.field(default_factory=dict)
    systems: Mapping[str, Mapping[str, object]] = msgspec.field(default_factory=dict)


class _Dilation(Struct, frozen=True):
    factor: Annotated[float, Meta(ge=1)]


class _DiskProbe(Struct, frozen=True):
    read_bps: float


class _Calibration(Struct, frozen=True):
    disk_probe: _DiskProbe
    dilation: _Dilation | None = None
    limits: tuple[DeviceLimits, ...] = ()
    links: tuple[LinkSpec, ...] = ()


class _Spread(Struct, frozen=True):
    median: _Positive


class _Metrics(Struct, frozen=True):
    ttft_s: _Spread
    token_latency_s: _Spread | None


class _Backend(Struct, frozen=True):
    testbed: _Testbed = _Testbed()


class _Head(Struct, frozen=True):
    """Whether a record is one to compare with."""

    status: str
    config: _Backend


class Record(Struct, frozen=True):
    """What of a run record is simulated again, and what it is compared with."""

    system: str
    status: str
    config: _Config
    calibration: _Calibration
    metrics: _Metrics | None = None

    @property
    def options(self) -> Mapping[str, object]:
        """Of the system that ran."""
        return self.config.options or self.config.systems.get(self.system, {})


@dataclass(frozen=True, slots=True)
class Figures:
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
    def errors(self) -> tuple[float, ...]:
        """Of TTFT and, where both have one, of the token latency."""
        pairs = [(self.simulated.ttft_s, self.measured.ttft_s)]
        if self.simulated.token_latency_s is not None and self.measured.token_latency_s is not None:
            pairs.append((self.simulated.token_latency_s, self.measured.token_latency_s))
        return tuple(ours / theirs - 1 for ours, theirs in pairs)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that there is nothing to compare with; `is_broken`: it is none of ours."""

    name: str
    reason: str
    is_broken: bool = False


def figures_of(outcome: SimOutcome) -> Figures:
    """TTFT and token latency, as `results/records/measure.py` takes them of events."""
    events = [event for _, event in outcome.events]
    go_ns = next(event.t_ns for event in events if event.name == "request")
    token_ns = [event.t_ns for event in events if event.name == "token"]
    gaps = len(token_ns) - 1
    return Figures(
        (token_ns[0] - go_ns) / 1e9,
        (token_ns[-1] - token_ns[0]) / 1e9 / gaps if gaps else None,
    )


def rebuild(record: Record, where: str) -> SimRun:
    """What a record of the Docker testbed was a run of.

    Raises:
        ConfigError: It lacks something, or its model is none of the presets.
    """
    config, calibration, options = record.config, record.calibration, _options(record)
    if calibration.dilation is None:
        raise ConfigError(f"record {where}: nothing to simulate it from: it names no dilation")
    factor = calibration.dilation.factor
    model = load_preset(config.model.name)
    storage = config.weights.dtype
    probed_bps = calibration.disk_probe.read_bps
    max_tokens = len(config.prompt_ids) + config.workload.new_tokens
    return SimRun(
        system=record.system,
        compute=options.compute(config.dtype, max_tokens),
        model=model,
        storage=model.dtype if storage == "auto" else storage,
        prompt_tokens=len(config.prompt_ids),
        new_tokens=config.workload.new_tokens,
        devices=tuple(_device(each, options, factor, probed_bps) for each in calibration.limits),
        links=tuple(link.dilated(1 / factor) for link in calibration.links),
        shares=None if options.split is None else tuple(options.split),
        options=options.spec(),
    )


def _options(record: Record) -> SystemOptions:
    """Of the system that ran; what older versions had beside is left out."""
    options: type[SystemOptions] = find_system(record.system).options
    known = {k: v for k, v in record.options.items() if k in options.__struct_fields__}
    return options(**known)


def _device(
    limits: DeviceLimits, options: SystemOptions, factor: float, probed_bps: float
) -> SimDevice:
    """A device in its own time, in which all of the host is as many times faster as it is dilated.

    That holds where nothing was limited too: the host's own rate was divided by no factor.
    """
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
    """Simulate every record of the Docker testbed below these folders that ended well.

    A record that cannot be read, or holds what none of ours does, is skipped and says so; digests
    are not checked.

    Raises:
        ConfigError: There is no such folder.
    """
    paths: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder, expected one with run records")
        paths.update(folder.rglob("run.json"))
    found = [_compare_or_skip(path, calibration) for path in sorted(paths)]
    return [comparison for comparison in found if comparison is not None]


def _compare_or_skip(path: Path, calibration: Calibration) -> Comparison | Skipped | None:
    name = _name_of(path)
    try:
        return _compare(path, calibration)
    except ConfigError as exc:
        return Skipped(name, str(exc), is_broken=True)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        return Skipped(name, f"holds what no record of ours does: {exc!r}", is_broken=True)


def _name_of(path: Path) -> str:
    return f"{path.parent.parent.name}/{path.parent.name}"


def _compare(path: Path, calibration: Calibration) -> Comparison | Skipped | None:
    head = decode_file(path, _Head, _MAX_RECORD_BYTES, ConfigError)
    if head.status != "ok" or head.config.testbed.backend != "docker":
        return None
    record = decode_file(path, Record, _MAX_RECORD_BYTES, ConfigError)
    measured = record.metrics
    if measured is None or not find_system(record.system).simulator:
        return None
    name, latency = _name_of(path), measured.token_latency_s
    try:
        outcome = simulate(rebuild(record, str(path)), calibration)
    except (ConfigError, ResourceError) as exc:
        return Skipped(name, str(exc))
    if outcome.status != "ok":
        return Skipped(name, f"simulated, it is {outcome.status}: {outcome.reason}")
    return Comparison(
        name,
        Figures(measured.ttft_s.median, None if latency is None else latency.median),
        figures_of(outcome),
    )


def table(found: Sequence[Comparison | Skipped]) -> str:
    """As Markdown, with the median and the worst error below."""
    lines = [
        "| run | TTFT s | simulated | error | token s | simulated | error |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for each in found:
        if isinstance(each, Skipped):
            lines.append(f"| {each.name} | skipped: {each.reason} | | | | | |")
            continue
        cells = [each.name, *_cells(each.measured.ttft_s, each.simulated.ttft_s)]
        cells += _cells(each.measured.token_latency_s, each.simulated.token_latency_s)
        lines.append(f"| {' | '.join(cells)} |")
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
