"""What an emulated system needs of the host, as far as no container is involved."""

from dataclasses import replace

from harness.plan.plan import make_plan
from harness.plan.types import Plan
from harness.run.emulation import drop_page_cache, notes_of, private_copies
from tests.harness.micro import GIB, HOST, MODEL, PROMPT, make_config
from tpi.weights.direct_io import read_rate_bps

DOCKER = {"backend": "docker", "name": "klonet"}
PROFILE = {"name": "small", "cores": 1, "memory": "1GiB", "swap": "1GiB"}
LIMITED = replace(HOST, core_gbps=20.0)


def plan_of(tmp_path, **changes) -> Plan:
    raw = {"testbed": DOCKER, "device": PROFILE, "link": {"delay_ms": 2, "rate_mbps": 300}}
    return make_plan(make_config(tmp_path, **{**raw, **changes}), MODEL, PROMPT, LIMITED)


def test_a_plan_has_limits_and_links_as_they_are_enforced(tmp_path):
    plan = plan_of(tmp_path, devices=2)
    assert plan.dilation.factor == 2  # 2 cores in 1.7
    assert [device.limits.cpus for device in plan.devices] == [0.5, 0.5]
    assert plan.devices[0].limits.memory == GIB
    links = [device.link for device in plan.devices]
    assert [(link.delay_s, link.rate_bps) for link in links] == [(0.004, 150e6)] * 2
    assert plan.systems[0].threads == (1, 1)


def test_local_processes_have_neither(tmp_path):
    plan = make_plan(make_config(tmp_path), MODEL, PROMPT, HOST)
    assert not plan.is_emulated
    assert plan.devices[0].limits.cpus is plan.devices[0].limits.memory is None
    assert plan.dilation.factor == 1


def test_what_fits_its_device_needs_no_swap_and_says_so(tmp_path):
    plan = plan_of(tmp_path)
    tpi = plan.systems[0]
    assert tpi.swap_need == 0
    notes = notes_of(plan, tpi)
    assert "docker: disk reads not limited" in notes
    assert "docker: CPU not limited" not in notes
    assert "none was made" in notes[-1]


def test_swap_is_counted_up_to_what_a_device_has(tmp_path):
    plan = plan_of(tmp_path)
    cost = replace(plan.systems[1].cost, peak_bytes=(5 * GIB,))
    assert replace(plan.systems[1], cost=cost).swap_need == GIB
    some = int(1.2 * GIB)
    cost = replace(cost, peak_bytes=(some,))
    assert replace(plan.systems[1], cost=cost).swap_need == some - int(0.95 * GIB)


def test_a_device_that_is_too_small_is_run_and_a_host_that_is_too_small_refuses(tmp_path):
    small = {**PROFILE, "memory": "100MiB", "swap": 0}
    assert plan_of(tmp_path, device=small).systems[1].refusal is None
    host = replace(LIMITED, available_memory=100 << 20)
    config = make_config(tmp_path, testbed=DOCKER, device=PROFILE)
    assert "needs" in (make_plan(config, MODEL, PROMPT, host).systems[1].refusal or "")


def test_private_copies_are_whole_and_share_no_file(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/a.safetensors").write_bytes(b"x" * 100)
    copies = private_copies(tmp_path / "model", 2, tmp_path / "work")
    files = [copy / "a.safetensors" for copy in copies]
    assert [file.read_bytes() for file in files] == [b"x" * 100] * 2
    assert len({file.stat().st_ino for file in files}) == 2


def test_dropping_the_page_cache_leaves_files_as_they_are(tmp_path):
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep/a.safetensors"
    file.write_bytes(bytes(8192))
    drop_page_cache([tmp_path, tmp_path])
    assert file.read_bytes() == bytes(8192)
    assert read_rate_bps([file]) > 0
