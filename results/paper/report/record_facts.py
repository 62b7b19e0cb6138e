"""What the report takes out of a run record's environment and calibration.

No other module of the report looks into them. A record keeps more than is shown: what is not named
here is left out.
"""

from collections.abc import Iterator, Mapping

from msgspec import Struct

from results.records.schema import RecordError, RunRecord
from tpi.decode import convert

Facts = tuple[tuple[str, str], ...]  # names and values, in the order in which they are shown

_SHOWN = (
    *("cpu_model", "cores", "usable_cores", "memory_gib", "swap_bytes", "architecture", "kernel"),
    *("cgroup", "governor", "python", "calibrated_host"),
)


class Probe(Struct, frozen=True):
    """One limit or link, measured on one device; None where it was not measured or not limited."""

    what: str
    expected: float | None = None
    measured: float | None = None
    band: float = 0.0
    verdict: str = ""


class ProbeRound(Struct, frozen=True):
    """All probes before or after a repeat."""

    figures: tuple[Probe, ...] = ()


class Lateness(Struct, frozen=True):
    """How late packets left the switch, in µs."""

    p99: float = 0.0


class Conditions(Struct, frozen=True):
    """What else happened on the host during a repeat."""

    foreign_cores: float = 0.0
    steal_cores: float = 0.0
    unexplained_retransmissions: int | None = None
    swapped_out: int = 0
    late_us: Lateness | None = None


class Verification(Struct, frozen=True):
    """What the testbed measured of its own limits and links around one repeat."""

    before: ProbeRound | None = None
    after: ProbeRound | None = None
    conditions: Conditions | None = None
    problems: tuple[str, ...] = ()

    @property
    def probes(self) -> Iterator[Probe]:
        """Those of both rounds."""
        for taken in (self.before, self.after):
            yield from taken.figures if taken else ()


def verifications_of(record: RunRecord) -> list[Verification]:
    """One for each repeat; none where the testbed emulates nothing.

    Raises:
        RecordError: They are not what a testbed writes.
    """
    where = f"record {record.run_id}: calibration.proofs"
    raw = record.calibration.get("proofs", [])
    return convert(raw, list[Verification], where, RecordError)


def environment_facts(record: RunRecord) -> Facts:
    """The host and the versions that a record was made with."""
    environment = record.environment
    facts = [(name, environment[name]) for name in _SHOWN if environment.get(name) is not None]
    versions, disk = environment.get("versions"), environment.get("weights_disk")
    if isinstance(versions, Mapping):
        facts += [
            (f"version of {name}", version or "not installed") for name, version in versions.items()
        ]
    if isinstance(disk, Mapping):
        facts += [
            (f"disk: {name}", disk[name]) for name in ("device", "file_system") if name in disk
        ]
    return tuple((name, str(value)) for name, value in facts)


def simulator_facts(record: RunRecord) -> Facts:
    """Every number and word of the calibration behind a simulated run; empty for any other."""
    simulator = record.calibration.get("simulator")
    return tuple(flattened(simulator)) if isinstance(simulator, Mapping) else ()


def flattened(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Every number and text in nested objects and lists, by its path."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from flattened(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from flattened(each, f"{name}[{index}]")
    else:
        yield name, str(value)
