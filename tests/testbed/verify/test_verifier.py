"""The proof of a repeat: what is measured when, and what becomes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from testbed.base import DeviceError
from testbed.docker.testbed import DockerTestbed
from testbed.host.label import RunLabel
from testbed.limits.cgroup import open_cgroup
from testbed.limits.limits import DeviceLimits
from testbed.links.link import LinkSpec
from testbed.links.network import Network
from testbed.verify.tolerances import Expected, ProbeReport, judge
from testbed.verify.verifier import LimitVerifier
from tests.testbed.beds import device_image
from tests.testbed.cgroups import make_v1
from tests.testbed.programs import read_to_exit, start
from tests.testbed.verify.test_probe import FakeDevice, good
from tpi.errors import ConfigError
from tpi.program.process import make_inbox

TCP = {"RetransSegs": 0, "OutSegs": 1}
SETTINGS = {"net.ipv4.tcp_congestion_control": "reno"}
PORT = {"up_dropped": 0}
SPINS = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass"


class FakeLinks(Network):
    """Links that count what they are told to, and may be found wrong."""

    backend = "fake"

    def __init__(self) -> None:
        self.problem: str | None = None
        self.again = 0
        self.num_verified = 0

    def verify(self) -> None:
        self.num_verified += 1
        if self.problem is not None:
            raise DeviceError(self.problem)

    def attach(self, index: int, pid: int) -> str:
        raise NotImplementedError

    def fault(self, index: int, kind: str, value: float) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def counters(self) -> dict[str, Any]:
        tcp = [{**TCP, "RetransSegs": self.again}]
        return {"backend": "switch-c", "settings": [SETTINGS], "ports": [PORT], "tcp": tcp}


class LimitedDevice(FakeDevice):
    """A fake device with a control group; counts how often its meter was reset."""

    def __init__(self, root: Path) -> None:
        super().__init__(0, [], good)
        make_v1(root)
        self.cgroup = open_cgroup(100, root)
        self.num_resets = 0

    def reset_meter(self) -> None:
        self.num_resets += 1


class FakeProbe:
    """Gives reports in turn, and keeps what it was asked with."""

    def __init__(self, *shares: float) -> None:
        self._shares = list(shares)
        self.options: list[dict[str, Any]] = []

    def __call__(self, devices: object, expected: object, **options: Any) -> ProbeReport:
        self.options.append(options)
        return ProbeReport((judge(0, "cpus", 0.5, self._shares.pop(0)),))


@pytest.fixture
def device(tmp_path):
    return LimitedDevice(tmp_path)


@pytest.fixture
def links():
    return FakeLinks()


def verifier(
    device: LimitedDevice,
    links: FakeLinks,
    probe: FakeProbe,
    link: LinkSpec = LinkSpec(),  # noqa: B008 - a frozen value
    **options: Any,
) -> LimitVerifier:
    return LimitVerifier([device], [Expected(DeviceLimits(), link)], links, probe=probe, **options)


def test_everything_holds(device, links):
    probe = FakeProbe(0.5, 0.5)
    both = verifier(device, links, probe, dilation=8.0, host_read_bps=1e9)
    before = both.verify("before")
    assert device.num_resets == 1  # what the probe used is not the system's
    proof = before.joined(both.verify("after"))
    assert device.num_resets == 1  # what the system used has been read by now, or will be
    assert proof.problems == ()
    assert list(proof.figures) == ["before", "links", "conditions", "after"]
    assert proof.figures["links"] == {"backend": "switch-c", "settings": [SETTINGS]}
    assert probe.options == [{"dilation": 8.0, "host_read_bps": 1e9, "oversubscribed": False}] * 2
    assert links.num_verified == 2


def test_problems_say_when(device, links):
    both = verifier(device, links, FakeProbe(0.1, 0.2))
    assert both.verify("before").problems == (
        "before the run: device 0: CPU 0.100 cores, expected 0.500 +- 0.050 cores",
    )
    links.problem = "links: device 0 is gone"
    assert both.verify("after").problems == (
        "after the run: device 0: CPU 0.200 cores, expected 0.500 +- 0.050 cores",
        "after the run: links: device 0 is gone",
    )


@pytest.mark.parametrize(
    ("link", "options", "num_problems"),
    [(LinkSpec(), {}, 1), (LinkSpec(loss_frac=0.1), {}, 0), (LinkSpec(), {"has_faults": True}, 0)],
)
def test_segments_sent_again_are_a_problem_of_good_links(
    device, links, link, options, num_problems
):
    both = verifier(device, links, FakeProbe(0.5, 0.5), link, **options)
    both.verify("before")
    links.again = 7
    assert len(both.verify("after").problems) == num_problems


def test_after_comes_after_before(device, links):
    with pytest.raises(DeviceError, match="nothing was measured before"):
        verifier(device, links, FakeProbe(0.5)).verify("after")
    with pytest.raises(ConfigError, match="got 'later'"):
        verifier(device, links, FakeProbe(0.5)).verify("later")


@pytest.mark.docker
@pytest.mark.timeout(120)
def test_a_repeat_in_containers_is_proved(tmp_path):
    """Two containers that burn and talk between two probes; whoever else burns here shows."""
    limits = DeviceLimits(cpus=0.4, memory=96 << 20)
    link = LinkSpec(0.02, 100e6, 0.0, 4 << 20)  # a virtual host adds a millisecond

    def make(devices: Any, network: Any) -> LimitVerifier:
        return LimitVerifier(devices, [Expected(limits, link)] * len(devices), network)

    with DockerTestbed(
        tmp_path / "bed",
        [limits] * 2,
        [link] * 2,
        image=device_image(),
        mounts=[],
        label=RunLabel.mine("test-verifier"),
        verifier_factory=make,
    ) as bed:
        devices, inbox = bed.up(2), make_inbox()
        before = bed.verify("before")
        assert devices[0].meter().anon_peak in range(4 << 20)  # the probe's is forgotten
        start(devices[1], inbox, SPINS)
        assert read_to_exit(inbox)[1].code == 0
        proof = before.joined(bed.verify("after"))
    assert [p for p in proof.problems if ": CPU " not in p] == []
    conditions: Any = proof.figures["conditions"]
    assert 0.1 < conditions["devices"][1]["cpu_s"] < 0.9
    assert conditions["devices"][1]["throttled_share"] > 0.2
    assert conditions["devices"][0]["throttled_share"] < 0.2
    assert conditions["unexplained_retransmissions"] == 0
    assert conditions["late_us"]["p50"] < 1000
    assert json.dumps(proof.figures)
