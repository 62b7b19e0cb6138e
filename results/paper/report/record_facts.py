"""What the report shows of a record's environment and calibration, as names and values."""

from collections.abc import Iterator, Mapping

import msgspec

from results.records.schema import RunRecord
from testbed.host.environment import HostFacts

Facts = tuple[tuple[str, str], ...]  # names and values, in the order in which they are shown

_SHOWN = (
    *("cpu_model", "cores", "usable_cores", "memory_gib", "swap_bytes", "architecture", "kernel"),
    *("cgroup", "governor", "python"),
)


def environment_facts(record: RunRecord) -> Facts:
    """The host and the versions that a record was made with."""
    environment = record.environment
    facts = [] if environment.host is None else list(_of_host(environment.host))
    if environment.calibrated_host is not None:
        facts.append(("calibrated_host", environment.calibrated_host.words))
    return tuple(facts)


def _of_host(host: HostFacts) -> Iterator[tuple[str, str]]:
    for name in _SHOWN:
        if (value := getattr(host, name)) is not None:
            yield name, str(value)
    for name, version in host.versions.items():
        yield f"version of {name}", version or "not installed"
    if host.weights_disk is not None:
        yield "disk: device", str(host.weights_disk.device)
        yield "disk: file_system", str(host.weights_disk.file_system)


def simulator_facts(record: RunRecord) -> Facts:
    """Every number and word of the calibration behind a simulated run; empty for any other."""
    simulator = record.calibration.simulator
    return () if simulator is None else tuple(_flattened(msgspec.to_builtins(simulator)))


def _flattened(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Every number and text in nested objects and lists, by its path."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flattened(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _flattened(each, f"{name}[{index}]")
    else:
        yield name, str(value)
