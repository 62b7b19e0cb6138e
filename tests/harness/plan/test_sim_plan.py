"""What the simulator is asked does not depend on this host, and what it cannot heed is refused."""

from dataclasses import replace

import pytest

from harness.config.compose import compose
from harness.config.sim_options import refuse_ignored
from harness.plan.availability import split_available
from harness.plan.describe import describe
from harness.plan.plan import calibration_of
from harness.run.session import prepare
from harness.run.simulation import sim_run
from testbed.links.link import LinkSpec
from testbed.sim.base import SimDevice
from testbed.sim.calibration import save_calibration
from tests.harness.micro import MODEL
from tests.harness.simulated import CALIBRATION, plan_of, sim_plan
from tpi.errors import ConfigError
from tpi.model_config import load_preset

GIB = 1 << 30
KLONET = SimDevice(
    cores=3.2, memory=8 * GIB, swap=4 * GIB, disk_read_bps=700e6, disk_write_bps=500e6
)


def run_of(tmp_path, *overrides):
    plan = plan_of(tmp_path, *overrides)
    return sim_run(plan, plan.systems[0])


def words(plan, pending=("tpi",)):
    return "\n".join(f"{h}: {t}" for h, t in describe(plan, 0, list(pending)))


def test_sim_is_klonet_simulated(tmp_path):
    short = compose(["testbed=sim"]).config
    long = compose(["testbed=klonet", "testbed.backend=sim"]).config
    assert short.testbed.backend == "sim"
    assert (short.profiles, short.links) == (long.profiles, long.links)
    system = sim_plan(long, MODEL, 4, CALIBRATION).systems[0]
    assert plan_of(tmp_path).systems[0] == system


def test_a_device_is_worth_its_memory_rate_over_that_of_a_calibrated_core(tmp_path):
    run = run_of(tmp_path, "devices=8")
    assert run.devices == (KLONET,) * 8  # 32 GB/s over 10, which is less than 8 cores x 0.6
    assert run.links == (LinkSpec(0.002, 300e6, 0.0, 16384 << 10),) * 8
    half = run_of(tmp_path, "device.mem_gbps=16").devices[0]
    assert half.cores == pytest.approx(1.6)
    prefill = run_of(tmp_path, "testbed.fit=prefill").devices[0]
    assert prefill.cores == pytest.approx(4.8)


def test_a_device_without_limits_computes_with_one_calibrated_core(tmp_path):
    run = run_of(tmp_path, "testbed=docker", "testbed.backend=sim")
    assert run.devices[0] == SimDevice(1.0)
    assert run.links[0].delay_s == 0


def test_devices_that_differ_are_asked_for_one_by_one(tmp_path):
    overrides = ["testbed=home4", "testbed.backend=sim", "testbed.links.r3.delay_ms=20"]
    run = run_of(tmp_path, *overrides)
    assert [link.delay_s for link in run.links] == [0.005, 0.007, 0.003, 0.02]
    assert len({device.cores for device in run.devices}) > 1
    assert "worth" in words(plan_of(tmp_path, *overrides))


def test_systems_of_one_device_get_one_and_options_as_they_are(tmp_path):
    overrides = ["systems=[tpi,transformers]", "window=3", "allreduce=ring", "devices=6"]
    plan = plan_of(tmp_path, *overrides, "systems.transformers.dtype=bfloat16")
    tpi, transformers = (sim_run(plan, system) for system in plan.systems)
    assert (tpi.world_size, transformers.world_size) == (6, 1)
    assert (tpi.compute.window, tpi.compute.allreduce) == (3, "ring")
    assert (tpi.compute.dtype, transformers.compute.dtype) == ("float32", "bfloat16")
    assert (tpi.storage, tpi.prompt_tokens, tpi.new_tokens) == ("bfloat16", 4, 32)


def test_nothing_is_cut_or_refused_for_memory_or_time(tmp_path):
    composed = compose(["testbed=sim", "model=llama2-70b", "devices=256", "max_minutes=0.01"])
    plan = sim_plan(composed.config, load_preset("llama2-70b"), 32, CALIBRATION)
    assert plan.systems[0].world_size == 256  # more than the model has KV heads
    assert plan.new_tokens == 32


def test_a_memory_budget_that_cannot_work_is_refused_while_planning(tmp_path):
    overrides = ["memory_budget=100MiB", f"results_dir={tmp_path}", "devices=2"]
    composed = compose(["testbed=sim", "systems=[tpi]", *overrides])
    with pytest.raises(ConfigError, match=r"^tpi: memory_budget: rank 0: .* too small: the least"):
        sim_plan(composed.config, MODEL, 4, CALIBRATION)
    with pytest.raises(ConfigError, match="tpi: memory_budget"):
        prepare(composed)
    prepared = prepare(compose(["testbed=sim", "systems=all", "model=tiny", *overrides]))
    assert {"tpi", "transformers-window"} <= set(prepared.unavailable)
    assert prepared.unavailable["tpi"].startswith("memory_budget: rank 0")
    left = [system.name for system in prepared.systems]
    assert "tpi-resident" in left
    assert not set(left) & {"tpi", "transformers-window"}


def test_plan_says_that_it_is_simulated_and_from_what(tmp_path):
    text = words(plan_of(tmp_path, "devices=8"))
    for piece in (
        "no token is computed",
        "sim (backend sim): devices klonet (each worth 3.2 of the calibrated cores, 8 GiB,",
        "calibration reference: a round host, 2026-01-01",
        "tpi: 8 devices, window 2, allreduce star",
        "a prompt of 4 and 32 new tokens",
    ):
        assert piece in text
    assert "nothing is left" in words(plan_of(tmp_path), pending=())


@pytest.mark.parametrize(
    ("override", "piece"),
    [
        ("testbed.dilation=8", "nothing runs"),
        ("testbed.make_swap=true", "device.swap"),
        ("testbed.oversubscribe=true", "need not fit"),
        ("testbed.time_scale=2", "deadlines"),
        ("threads=2", "device.cores"),
        ("link.backend=netem", "links are computed"),
        ("link.queue_kib=64", "nothing is dropped"),
        ("link.loss_frac=0.01", "nothing is lost"),
        ("weights.distinct_layers=3", "no weights"),
        ("weights.seed=3", "no weights"),
        ("repeats=5", "got 5"),
        ("workload.seed=3", "workload.prompt_tokens"),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(override, piece):
    for testbed in (["testbed=sim"], ["testbed=klonet", "testbed.backend=sim"]):
        with pytest.raises(ConfigError, match=piece) as caught:
            compose([*testbed, override])
        assert str(caught.value).startswith(override.partition("=")[0])
        assert "testbed.backend=sim" in str(caught.value)
    compose(["testbed=klonet", override])


@pytest.mark.parametrize(
    ("override", "piece"),
    [
        ("testbed.roster.r1.threads=2", "device.cores"),
        ("testbed.links.r1.queue_kib=64", "nothing is dropped"),
        ("testbed.links.r1.loss_frac=0.5", "nothing is lost"),
    ],
)
def test_what_would_be_ignored_of_one_rank_is_refused_by_its_own_name(override, piece):
    with pytest.raises(ConfigError, match=piece) as caught:
        refuse_ignored([override])
    assert str(caught.value).startswith(override.partition("=")[0])
    refuse_ignored(["testbed.links.r1.delay_ms=20", "testbed.roster.r1.cores=2"])
    refuse_ignored(["link.loss_frac=0", "testbed.links.r1.loss_frac=0.0"])


def test_what_pages_choose_for_real_devices_is_no_mistake_of_the_users():
    config = compose(["experiment=disk-bound", "testbed.backend=sim", "repeats=1"]).config
    assert config.testbed.backend == "sim"


def test_faults_are_refused_wherever_they_come_from():
    with pytest.raises(ConfigError, match=r"link\.faults"):
        compose(["testbed=sim", "link.faults=[{device: 0, kind: cut}]"])


def test_a_calibration_is_for_the_simulator_only(tmp_path):
    with pytest.raises(ConfigError, match=r"testbed\.calibration: only testbed\.backend=sim"):
        compose(["testbed=klonet", "testbed.calibration=x.json"])
    path = tmp_path / "a=b, c.json"
    save_calibration(replace(CALIBRATION, host="mine"), path)
    config = compose(["testbed=sim", f"testbed.calibration={path}"]).config
    found = calibration_of(config)
    assert found is not None
    assert found.host == "mine"
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"testbed\.calibration: .*a=b, c\.json"):
        calibration_of(config)
    path.unlink()
    with pytest.raises(ConfigError, match=r"c\.json: no such file; make calibrate writes one"):
        calibration_of(config)


def test_systems_that_are_not_modelled_are_refused_by_name_and_a_row_through_all():
    config = compose(["testbed=sim", "systems=[tpi,llamacpp]"]).config
    with pytest.raises(ConfigError, match="llamacpp cannot run: the simulator has no model"):
        split_available(config, MODEL, is_all=False)
    config = compose(["testbed=sim", "systems=all", "devices=2"]).config
    left, problems = split_available(config, MODEL, is_all=True)
    assert set(problems) >= {"transformers-tp", "llamacpp"}
    assert "tpi" in left.systems
    # What does not fit a system does not fit it in a simulation either.
    config = compose(["testbed=sim", "systems=[pipeline]", "devices=64"]).config
    with pytest.raises(ConfigError, match="pipeline cannot run"):
        split_available(config, MODEL, is_all=False)
