"""What the probe asks of devices and makes of their answers: with fakes, processes, containers."""

import itertools
import json
import queue
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from testbed.base import DeviceError, Meters
from testbed.docker.testbed import DockerTestbed
from testbed.host.label import RunLabel
from testbed.limits.limits import DeviceLimits
from testbed.links.link import LinkSpec
from testbed.local.local import LocalTestbed
from testbed.verify.probe import bulk_sizes, disk_files, probe_devices
from testbed.verify.probe_agents import Agents
from testbed.verify.tolerances import Expected, ProbeReport
from tests.testbed.beds import device_image
from tpi.errors import ConfigError
from tpi.program.process import Exit, Inbox, Output, Process, make_inbox

MIB = 1 << 20
KLONET = LinkSpec(0.002, 300e6, 0.0, 16 * MIB)
LIMITS = DeviceLimits(cpus=0.25, memory=64 * MIB, read_bps=50_000_000)
GOOD: dict[str, Any] = {
    "burn": {"cpus": 0.25},
    "disk": {"read_bps": 50e6},
    "serve": {"port": 4000},
    "ping": {"rtts_s": [0.0081] * 8},
    "send": {"rate_bps": 289e6},
}

Answers = Callable[[int, Mapping[str, Any]], Mapping[str, Any] | Exit | None]


def good(device: int, command: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"event": command["do"], **GOOD[command["do"]]}


class FakeProcess(Process):
    """An agent that answers at once, by a function; keeps how it was treated."""

    start_ns = 0

    def __init__(self, device: "FakeDevice", inbox: Inbox) -> None:
        super().__init__(device.index, inbox)
        self._fake, self._inbox = device, inbox
        self.treated: list[str] = []
        self._say({"event": "up"} if device.starts else Exit(1, False, False, 0, "x\nno python"))

    def send(self, line: str) -> None:
        command = json.loads(line)
        self._fake.asked.append((self._fake.index, command))
        self._say(self._fake.answers(self._fake.index, command))

    def release(self) -> None:
        self.treated.append("release")

    def signal(self, number: int) -> None:
        self.treated.append(f"signal {number}")

    def wait(self, timeout_s: float) -> Exit | None:
        return None

    def stop(self, grace_s: float = 2.0) -> Exit:
        self.treated.append("stop")
        return Exit(0, True, False, 0)

    def _say(self, answer: Mapping[str, Any] | Exit | None) -> None:
        if isinstance(answer, Exit):
            self._inbox.put(Output(self._fake.index, exit=answer))
        elif answer is not None:
            self._inbox.put(Output(self._fake.index, json.dumps(answer).encode()))


class FakeDevice:
    """A device whose agent is a `FakeProcess`; all of a bed share `asked`."""

    python = "python3"

    def __init__(self, index: int, asked: list[tuple[int, Mapping[str, Any]]], answers: Answers):
        self.index, self.asked, self.answers = index, asked, answers
        self.address = f"10.77.0.{index + 1}"
        self.starts = True
        self.limits: object = {"memory_bytes": 64 * MIB, "swap_bytes": 0}
        self.processes: list[FakeProcess] = []

    def free_port(self) -> int:
        raise NotImplementedError

    def path_of(self, host_path: Path) -> str:
        return f"/models/{host_path.name}"

    def run(
        self, argv: Sequence[str], inbox: Inbox, spec: Mapping[str, object] | None = None
    ) -> FakeProcess:
        assert argv == ["python3", "-S", "-m", "testbed.verify.probe_agent"]
        self.processes.append(FakeProcess(self, inbox))
        return self.processes[-1]

    def meter(self) -> Meters:
        return Meters()

    def facts(self) -> dict[str, object]:
        return {"limits": self.limits}


def make_devices(count: int, answers: Answers = good) -> list[FakeDevice]:
    asked: list[tuple[int, Mapping[str, Any]]] = []
    return [FakeDevice(i, asked, answers) for i in range(count)]


def expectations(count: int, limits: DeviceLimits = LIMITS, link: LinkSpec = KLONET):
    return [Expected(limits, link, (Path("/w/rank/block-0"),))] * count


def probe(devices: list[FakeDevice], **more: Any) -> ProbeReport:
    return probe_devices(devices, expectations(len(devices)), **more)


def asked_for(devices: list[FakeDevice], task: str) -> list[tuple[int, Mapping[str, Any]]]:
    return [(device, command) for device, command in devices[0].asked if command["do"] == task]


def verdicts(report: ProbeReport, what: str) -> list[str]:
    return [figure.verdict for figure in report.figures if figure.what == what]


def test_everything_that_holds_is_ok_and_every_agent_is_ended():
    devices = make_devices(3)
    report = probe(devices)
    assert report.problems == ()
    names = [figure.what for figure in report.figures]
    assert (
        names == ["memory"] * 3 + ["cpus"] * 3 + ["read_bps"] * 3 + ["rtt_s"] * 2 + ["rate_bps"] * 2
    )
    assert {figure.verdict for figure in report.figures} == {"ok"}
    assert [d.processes[0].treated for d in devices] == [["release", "stop"]] * 3


def test_all_burn_at_the_same_time():
    devices = make_devices(4)
    probe(devices)
    burns = asked_for(devices, "burn")
    assert [device for device, _ in burns] == [0, 1, 2, 3]
    assert len({command["at_ns"] for _, command in burns}) == 1
    assert {command["processes"] for _, command in burns} == {1}


@pytest.mark.parametrize(
    ("cpus", "seconds", "processes"), [(0.5, 0.4, 1), (0.02, 2.0, 1), (2.5, 0.4, 3)]
)
def test_burn_lasts_forty_periods_in_as_many_processes_as_cores(cpus, seconds, processes):
    devices = make_devices(1, lambda i, c: {"event": c["do"], **GOOD[c["do"]], "cpus": cpus})
    limits = DeviceLimits(cpus=cpus, memory=64 * MIB)
    probe_devices(devices, [Expected(limits, KLONET)])
    ((_, command),) = asked_for(devices, "burn")
    assert command["seconds"] == pytest.approx(seconds)
    assert command["processes"] == processes


def test_unlimited_devices_do_not_burn_and_are_recorded():
    devices = make_devices(2)
    report = probe_devices(devices, expectations(2, DeviceLimits(), LinkSpec()))
    assert asked_for(devices, "burn") == []
    assert verdicts(report, "read_bps") == ["recorded"] * 2
    assert verdicts(report, "rate_bps") == ["recorded"]
    assert verdicts(report, "memory") == ["recorded"] * 2


@pytest.mark.parametrize(("host_read_bps", "at_once"), [(None, False), (5e8, True), (1.2e8, False)])
def test_disks_are_read_at_once_where_the_host_can_serve_all(host_read_bps, at_once):
    """Which shows in whether the second is asked before the first has answered."""
    first_put: list[int] = []

    def answers(device: int, command: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if command["do"] == "disk":
            first_put.append(len(asked_for(devices, "disk")))
        return good(device, command)

    devices = make_devices(3, answers)
    waits: list[Sequence[int]] = []
    original = Agents.ask

    def ask(self: Agents, commands: Mapping[int, Mapping[str, object]], timeout_s: float):
        waits.append([i for i, c in commands.items() if c["do"] == "disk"])
        return original(self, commands, timeout_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Agents, "ask", ask)
        probe(devices, host_read_bps=host_read_bps)
    assert [w for w in waits if w] == ([[0, 1, 2]] if at_once else [[0], [1], [2]])


@pytest.mark.parametrize(
    ("cap", "request_bytes"),
    [(None, 4 * MIB), (700_000_000, 4 * MIB), (50_000_000, 999_424), (1_000_000, 64 << 10)],
)
def test_disk_requests_are_whole_pages_and_short(cap, request_bytes):
    devices = make_devices(1)
    limits = DeviceLimits(memory=64 * MIB, read_bps=cap)
    probe_devices(devices, expectations(1, limits))
    command = asked_for(devices, "disk")[0][1]
    assert command["request_bytes"] == request_bytes
    assert command["paths"] == ["/models/block-0"]


def test_a_disk_limit_without_a_file_to_read_is_a_problem():
    report = probe_devices(make_devices(1), [Expected(LIMITS, KLONET)])
    assert report.problems == (
        "device 0: disk read rate could not be measured: there is no file to read",
    )


def test_pings_come_in_turns_and_bulks_one_after_the_other():
    devices = make_devices(8)
    probe(devices)
    pings = asked_for(devices, "ping")
    assert [device for device, _ in pings] == list(range(1, 8))
    starts = [command["at_ns"] for _, command in pings]
    gaps = {round((b - a) / 1e6, 3) for a, b in itertools.pairwise(starts)}
    assert gaps == {2.0}  # ms
    assert pings[0][1]["every_s"] == pytest.approx(0.014)
    assert [device for device, _ in asked_for(devices, "send")] == list(range(1, 8))
    assert all(c["address"] == "10.77.0.1" and c["port"] == 4000 for _, c in pings)


def test_slow_links_get_few_pings_that_never_overlap():
    devices = make_devices(3, lambda i, c: {**good(i, c), "rtts_s": [0.0641] * 8, "rate_bps": 36e6})
    report = probe_devices(devices, expectations(3, link=KLONET.dilated(8)), dilation=8)
    assert report.problems == ()
    command = asked_for(devices, "ping")[0][1]
    assert command["count"] == 8
    assert command["every_s"] == pytest.approx(0.08, rel=0.01)


def test_one_device_has_no_link():
    devices = make_devices(1)
    probe(devices)
    assert asked_for(devices, "serve") == []


def test_what_is_out_is_measured_again_and_then_named():
    seen = []

    def answers(device: int, command: Mapping[str, Any]) -> Mapping[str, Any]:
        if (device, command["do"]) == (1, "ping"):
            seen.append(device)
            return {"event": "ping", "rtts_s": [0.0093, 0.0095, 0.0091]}
        return good(device, command)

    report = probe(make_devices(2, answers))
    assert report.problems == ("device 1: RTT to the master 9.30 ms, expected 8.01 +- 0.80 ms",)
    assert len(seen) == 2


def test_a_hiccup_is_forgiven_and_told():
    shares = [0.1, 0.25]

    def answers(device: int, command: Mapping[str, Any]) -> Mapping[str, Any]:
        more = {"cpus": shares.pop(0)} if command["do"] == "burn" else {}
        return {**good(device, command), **more}

    report = probe(make_devices(1, answers))
    assert report.problems == ()
    assert [f.tries for f in report.figures if f.what == "cpus"] == [2]


def test_oversubscribed_devices_may_get_less_but_never_more():
    def answers(device: int, command: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**good(device, command), "cpus": (0.1, 0.4)[device]}

    report = probe(make_devices(2, answers), oversubscribed=True)
    assert verdicts(report, "cpus") == ["ok", "out"]


def test_an_error_of_the_agent_stands_in_the_problem():
    def answers(device: int, command: Mapping[str, Any]) -> Mapping[str, Any]:
        if command["do"] == "disk":
            return {"event": "error", "message": "disk: OSError: no O_DIRECT"}
        return good(device, command)

    (problem,) = probe(make_devices(1, answers)).problems
    assert problem == "device 0: disk read rate could not be measured: disk: OSError: no O_DIRECT"


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (Exit(-9, False, True, 0), "the probe itself did not fit in the memory limit"),
        (Exit(1, False, False, 0, "Traceback\nMemoryError\n"), "the probe ended: MemoryError"),
        (Exit(1, False, False, 0), "the probe ended: it said nothing"),
    ],
)
def test_an_agent_that_ended_is_a_problem_of_everything_after(end, words):
    def answers(device: int, command: Mapping[str, Any]) -> Mapping[str, Any] | Exit | None:
        if device == 1:
            return end if command["do"] == "burn" else None
        return good(device, command)

    report = probe(make_devices(2, answers))
    assert [p for p in report.problems if not p.endswith(words)] == []
    assert len(report.problems) == 4  # CPU, disk, RTT, rate


def test_a_master_that_cannot_listen_makes_no_link_measurable():
    def answers(device: int, command: Mapping[str, Any]) -> Mapping[str, Any]:
        if command["do"] == "serve":
            return {"event": "error", "message": "serve: OSError: no address"}
        return good(device, command)

    report = probe(make_devices(3, answers))
    assert verdicts(report, "rtt_s") == ["unmeasured"] * 2
    assert "the master does not listen: serve: OSError: no address" in report.problems[0]


def test_an_agent_that_does_not_start_is_an_error_and_the_others_are_ended():
    devices = make_devices(2)
    devices[1].starts = False
    with pytest.raises(DeviceError, match=r"device 1: the probe did not start: .*no python"):
        probe(devices)
    assert devices[0].processes[0].treated == ["release", "stop"]


def test_a_silent_agent_is_not_asked_again():
    devices = make_devices(1, lambda device, command: None)
    inbox = make_inbox()
    agents = Agents(
        [devices[0].run(["python3", "-S", "-m", "testbed.verify.probe_agent"], inbox)], inbox
    )
    assert agents.answers([0], 5)[0].event == "up"
    (answer,) = agents.ask({0: {"do": "burn"}}, 0.01)
    assert answer.message == "no answer within 0.01 s"
    inbox.put(Output(0, b'{"event": "burn", "cpus": 9}'))  # too late
    assert agents.ask({0: {"do": "disk"}}, 5)[0].message == "no answer within 0.01 s"


@pytest.mark.parametrize("line", [b"Traceback", b"[1]", b"{}", b"\xff"])
def test_a_line_that_is_no_answer_is_an_error(line):
    inbox: Inbox = queue.Queue()
    inbox.put(Output(0, line))
    (answer,) = Agents([], inbox).answers([0], 5)
    assert answer.event == "error"


def test_swap_is_checked_where_a_device_has_some():
    devices = make_devices(1)
    limits = DeviceLimits(memory=64 * MIB, swap=32 * MIB)
    (problem,) = probe_devices(devices, [Expected(limits, KLONET)]).problems
    assert problem == "device 0: swap limit 0 bytes, expected 33554432 bytes"


def test_expectations_must_match_devices():
    with pytest.raises(ConfigError, match="2 devices, 1 expectations"):
        probe_devices(make_devices(2), expectations(1))


@pytest.mark.parametrize("dilation", [1, 8, 38])
@pytest.mark.parametrize("queue_bytes", [64 << 10, 256 << 10, 1 * MIB, 16 * MIB])
@pytest.mark.parametrize("rate_bps", [1e5, 10e6, 300e6, 1e9, None])
def test_bulks_overflow_no_queue(dilation, queue_bytes, rate_bps):
    link = LinkSpec(0.002, rate_bps, 0.0, queue_bytes).dilated(dilation)
    warm, measured, is_filled = bulk_sizes(link, link, 4 * link.delay_s)
    assert min(warm, measured) >= 4 * 1448
    # In slow start half of what was sent is under way, beside the first window.
    assert (warm + measured) / 2 <= 0.8 * queue_bytes
    if is_filled and link.rate_bps:
        assert warm > 2 * link.rate_bps * 4 * link.delay_s / 8


@pytest.mark.parametrize(
    ("queue_bytes", "rate_bps", "is_filled"),
    [(1 * MIB, 300e6, True), (64 << 10, 300e6, False), (1 * MIB, 1e9, False), (4096, None, True)],
)
def test_a_queue_much_smaller_than_what_is_under_way_cannot_fill_a_link(
    queue_bytes, rate_bps, is_filled
):
    link = LinkSpec(0.002, rate_bps, 0.0, queue_bytes)
    assert bulk_sizes(link, link, 0.008)[2] is is_filled


def test_a_link_that_loses_when_it_is_filled_is_held_to_at_most_its_rate():
    tiny = LinkSpec(0.002, 300e6, 0.0, 4 << 10)
    assert bulk_sizes(tiny, tiny, 0.008) == (4 * 1448, 4 * 1448, False)
    devices = make_devices(2, lambda i, c: {**good(i, c), "rate_bps": 1e6})
    assert probe_devices(devices, expectations(2, link=tiny)).problems == ()
    lossy = LinkSpec(0.002, 300e6, 0.05, 16 * MIB)
    assert probe_devices(devices, expectations(2, link=lossy)).problems == ()


def test_round_trips_over_a_link_that_loses_much_are_only_recorded():
    devices = make_devices(2, lambda i, c: {**good(i, c), "rtts_s": [1.0] * 8})
    lossy = LinkSpec(0.002, 300e6, 0.2, 16 * MIB)
    report = probe_devices(devices, expectations(2, link=lossy))
    assert verdicts(report, "rtt_s") == ["recorded"]


def test_disk_files_are_the_largest(tmp_path):
    for name, size in (("a", 10), ("b", 30), ("empty", 0), ("sub/c", 20)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))
    assert [path.name for path in disk_files(tmp_path)] == ["b", "c", "a"]


def test_plain_processes_are_measured_as_they_are(tmp_path):
    with LocalTestbed(tmp_path) as bed:
        report = probe_devices(bed.up(2), [Expected(DeviceLimits(), LinkSpec())] * 2)
    assert report.problems == ()
    assert verdicts(report, "rtt_s") == ["ok"]
    (rate,) = (f.measured for f in report.figures if f.what == "rate_bps")
    assert rate is not None
    assert rate > 1e8


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "block-0").write_bytes(bytes(32 * MIB))
    return folder


REAL = DeviceLimits(cpus=0.5, memory=96 * MIB, read_bps=60_000_000)
# A virtual host wakes programs late: 0.6 to 1.2 ms there and back, whatever the delay is.
REAL_LINK = LinkSpec(0.005, 300e6, 0.0, 16 * MIB)


def real_probe(tmp_path: Path, model: Path, wanted: Expected) -> ProbeReport:
    """Of two containers with real links."""
    label = RunLabel.mine(f"test-{uuid.uuid4().hex[:8]}")
    with DockerTestbed(
        tmp_path / "bed",
        [REAL] * 2,
        [REAL_LINK] * 2,
        image=device_image(),
        mounts=[model],
        label=label,
    ) as bed:
        return probe_devices(bed.up(2), [wanted] * 2, host_read_bps=1e9)


@pytest.mark.docker
@pytest.mark.timeout(90)
def test_containers_with_links_are_within_their_bands(tmp_path, model):
    report = real_probe(tmp_path, model, Expected(REAL, REAL_LINK, disk_files(model)))
    # Whoever else uses this host shows in the CPU share, which is what that is measured for.
    assert [p for p in report.problems if ": CPU " not in p] == []
    assert len(report.figures) == 8
    shares = [f.measured or 0 for f in report.figures if f.what == "cpus"]
    assert max(shares) < 0.55


@pytest.mark.docker
@pytest.mark.timeout(90)
def test_limits_and_links_that_do_not_hold_are_found(tmp_path, model):
    """What is in force is right, what is expected is another: as if tc or Docker had ignored it."""
    link = LinkSpec(0.003, 200e6, 0.0, 16 * MIB)
    limits = DeviceLimits(cpus=0.1, memory=95 * MIB, read_bps=30_000_000)
    wrong = Expected(limits, link, disk_files(model))
    report = real_probe(tmp_path, model, wrong)
    assert {f.verdict for f in report.figures} == {"out"}
    assert len(report.figures) == 8
