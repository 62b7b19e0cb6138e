"""Profiles of devices and links, one per rank where they differ."""

import pytest

from harness.config.compose import compose
from harness.config.config import config_from
from testbed.links.link import LinkSpec
from tpi.errors import ConfigError


def test_the_home_testbed_has_a_profile_and_a_link_per_rank():
    config = compose(["testbed=home4"]).config
    names = [profile.name for profile in config.profiles]
    assert names == ["macbook-pro", "macbook-air", "dell", "dell"]
    assert [link.delay_s for link in config.links] == [0.005, 0.007, 0.003, 0.003]
    assert [link.rate_bps for link in config.links] == [510e6, 320e6, 610e6, 610e6]
    assert [profile.memory for profile in config.profiles] == [8 << 30, 8 << 30, 16 << 30, 16 << 30]


def test_devices_takes_the_first_ones():
    config = compose(["testbed=home4", "devices=2"]).config
    assert [profile.name for profile in config.profiles] == ["macbook-pro", "macbook-air"]


def test_ranks_have_options_of_their_own():
    args = ["testbed=klonet", "testbed.links.r3.delay_ms=20", "link.rate_mbps=100"]
    config = compose(args).config
    assert config.links[3] == LinkSpec(0.02, 100e6, 0.0, 16384 << 10)
    assert config.links[0].delay_s == 0.002
    config = compose(["testbed=home4", "testbed.roster.r1.memory=4GiB"]).config
    assert config.profiles[1].memory == 4 << 30


@pytest.mark.parametrize(
    "override", ["link.delay_ms=3", "device.memory=3GiB", "link=klonet", "device=klonet"]
)
def test_an_option_that_every_rank_has_itself_is_refused(override):
    with pytest.raises(ConfigError, match=r"in testbed=home4 every rank has its own, say testbed"):
        compose(["testbed=home4", override])


def test_klonet_counts_links_and_keeps_the_papers_numbers():
    config = compose(["testbed=klonet", "devices=8"]).config
    profile = config.profiles[7]
    assert (profile.cores, profile.memory, profile.swap) == (8, 8 << 30, 4 << 30)
    assert config.links[7] == LinkSpec(0.002, 300e6, 0.0, 16384 << 10)


def test_a_dilated_link_is_slower_in_proportion():
    link = LinkSpec(0.002, 300e6, 0.01, 1 << 20)
    assert link.dilated(8) == LinkSpec(0.016, 37.5e6, 0.01, 1 << 20)
    assert LinkSpec().dilated(8).rate_bps is None


def test_faults_are_read_and_checked():
    docker = {"systems": {"tpi": {}}, "testbed": {"backend": "docker"}}
    fault = {"device": 1, "kind": "delay", "value": 30, "at_s": 2, "for_s": 1}
    config = config_from({**docker, "link": {"faults": [fault]}})
    assert vars(config.link.faults[0]) == fault
    for wrong, words in (
        ({**fault, "device": 4}, "device 4, there are devices=4"),
        ({**fault, "kind": "cut", "value": 0.5}, "value of a cut: got 0.5, expected 1 or 0"),
        ({**fault, "kind": "cat"}, "did you mean cut?"),
        ({**fault, "kind": "drop", "value": 2}, "value: got 2"),
        ({**fault, "when": 1}, "link.faults.when"),
        ("cut", "expected options"),
    ):
        with pytest.raises(ConfigError) as error:
            config_from({**docker, "link": {"faults": [wrong]}})
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["testbed=home4", "testbed.roster.r0.memory=abc"], r"testbed\.roster\.r0\.memory: got"),
        (["testbed=home4", "testbed.links.r1.rate_mbps=-5"], r"testbed\.links\.r1\.rate_mbps: got"),
        (["testbed=docker", "device.memory=1MiB"], r"device\.memory: got .*expected 6 MiB to"),
        (["testbed=docker", "device.memory=99999999999GiB"], r"expected 6 MiB to"),
        (["testbed=docker", "link.faults=[{1:2}]"], r"unknown option link\.faults\.1"),
    ],
)
def test_what_is_wrong_is_said_of_where_it_stands(overrides, words):
    with pytest.raises(ConfigError, match=words):
        compose(overrides)
