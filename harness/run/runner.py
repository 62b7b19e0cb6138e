"""One repeat of one system: programs are started on fresh devices, spoken to, and taken down.

`run_repeat` writes each device's spec, starts its program, and lets a `ProgramSession` do the rest.
It judges only what the session alone can see (`Failure`); `judge.py` does the rest.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from testbed.base import Device, Meters, Testbed, VerificationReport
from tpi.options import ComputeOptions
from tpi.program.events import Event
from tpi.program.process import Exit
from tpi.program.program_session import Deadlines, Failure, ProgramSession
from tpi.program.spec import NodeSpec, Request, to_json
from tpi.ranks import MASTER_RANK


class Watch(Protocol):
    """An observer of a repeat while it runs; called from the harness's own thread."""

    def started(self, devices: Sequence[Device]) -> None:
        """All programs were started; the devices' meters may be read from any thread."""

    def event(self, event: Event) -> None:
        """A rank said something that keeps the contract."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What is started: one program per model folder, rank 0 first."""

    system: str
    program: tuple[str, ...]
    model_dirs: tuple[Path, ...]
    requests: tuple[Request, ...]
    compute: ComputeOptions
    threads: tuple[int, ...] = ()  # by rank; 1 where nothing is said
    time_scale: float = 1.0
    keep_spans: bool = False
    trust_network: bool = False
    options: Mapping[str, object] = field(default_factory=dict)
    deadlines: Deadlines = field(default_factory=Deadlines)

    @property
    def world_size(self) -> int:
        """Number of ranks, each on a device of its own."""
        return len(self.model_dirs)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that was seen of one repeat; `events` as they came, the rest by rank."""

    start_ns: tuple[int, ...]
    events: tuple[Event, ...]
    exits: tuple[Exit | None, ...]
    meters: tuple[Meters, ...]
    facts: tuple[dict[str, object], ...]
    failure: Failure | None = None
    proof: VerificationReport = field(default_factory=VerificationReport)


def run_repeat(launch: Launch, testbed: Testbed, watch: Watch | None = None) -> Outcome:
    """Run one repeat; raises DeviceError if a device or a program cannot be started."""
    try:
        devices = testbed.up(launch.world_size)
        proof = testbed.verify("before")
        is_proved = not proof.problems  # else no measurement would count
        deadlines = launch.deadlines.scaled(launch.time_scale)
        hear = (lambda _: None) if watch is None else watch.event
        session = ProgramSession(launch.requests, deadlines, hear, keep_spans=launch.keep_spans)
        failure = None
        if is_proved:
            for device, spec in zip(devices, make_specs(launch, devices), strict=True):
                argv = [device.python, *launch.program]
                session.add(device.run(argv, session.inbox, to_json(spec)))
            if watch is not None:
                watch.started(devices)
            failure = session.run()
        meters = tuple(device.meter() for device in devices)
        facts = tuple(device.facts() for device in devices)
        # A run that failed needs no verification, and its devices may be gone.
        if is_proved and failure is None:
            proof = proof.joined(testbed.verify("after"))
        return Outcome(
            start_ns=session.start_ns,
            events=tuple(session.events),
            exits=tuple(session.exits),
            meters=meters,
            facts=facts,
            failure=failure,
            proof=proof,
        )
    finally:
        testbed.down()


def make_specs(launch: Launch, devices: Sequence[Device]) -> list[NodeSpec]:
    """The spec of every rank; only rank 0 learns the prompts."""
    hidden = tuple(msgspec.structs.replace(request, prompt_ids=None) for request in launch.requests)
    session = secrets.token_hex(16)
    master = f"{devices[0].address}:{devices[0].free_port()}" if launch.world_size > 1 else None
    return [
        NodeSpec(
            system=launch.system,
            rank=rank,
            world_size=launch.world_size,
            session=session,
            bind=device.address,
            master=master,
            model_dir=Path(device.path_of(launch.model_dirs[rank])),
            threads=launch.threads[rank] if launch.threads else 1,
            compute=launch.compute,
            requests=launch.requests if rank == MASTER_RANK else hidden,
            time_scale=launch.time_scale,
            keep_spans=launch.keep_spans,
            trust_network=launch.trust_network,
            options=launch.options,
        )
        for rank, device in enumerate(devices)
    ]
