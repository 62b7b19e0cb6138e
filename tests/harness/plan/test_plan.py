from dataclasses import replace

import pytest

from baselines.cost_inputs import num_parameters
from baselines.registry import system_names
from baselines.weight_formats import HF, most_distinct_layers
from harness.plan.describe import describe
from harness.plan.plan import make_plan, reduced_plan
from tests.harness.micro import GIB, HOST, MODEL, make_config
from tpi.errors import ConfigError
from tpi.model_config import load_preset
from tpi.weights.shard import make_shard_plan
from tpi.weights.split import required_bytes


def plan_of(tmp_path, name, host=HOST, prompt_tokens=32, **changes):
    changes = {"workload": {}, "repeats": 3, "devices": 8, **changes}
    config = make_config(tmp_path, model={"name": name}, **changes)
    return make_plan(config, load_preset(name), range(prompt_tokens), host)


def words(plan):
    pending = [s.name for s in plan.runnable]
    lines = describe(plan, sum(plan.forms.values()), pending)
    return "\n".join(f"{heading}: {text}" for heading, text in lines)


def shards_bytes(plan):
    return sum(num_bytes for form, num_bytes in plan.forms.items() if form.kind == "shards")


def checks(plan):
    return [system.check for system in plan.systems]


def test_tiny_runs_as_asked_with_an_exact_check(tmp_path):
    plan = plan_of(tmp_path, "tiny", devices=4)
    assert [s.name for s in plan.runnable] == ["tpi", "transformers"]
    assert (plan.check, checks(plan)) == ("reference", ["exact", "exact"])
    assert (plan.cuts, plan.config.repeats, plan.new_tokens) == ((), 3, 32)
    assert plan.distinct_layers == plan.model.num_layers
    assert plan.forms[HF] == num_parameters(plan.model) * 2
    assert plan.systems[1].world_size == 1


def test_llama2_70b_on_24_gib_is_cut_to_fit_and_transformers_is_infeasible(tmp_path):
    plan = plan_of(tmp_path, "llama2-70b")
    tpi, transformers = plan.systems
    assert tpi.refusal is None
    assert max(tpi.cost.peak_bytes) < 0.6 * GIB
    assert tpi.cost.read_bytes_per_step > 120 * GIB
    assert transformers.refusal is not None
    assert "257 GiB" in transformers.refusal
    assert "21.6 GiB" in transformers.refusal
    assert 1 < plan.distinct_layers < 80
    assert 14 * GIB < shards_bytes(plan) <= 16 * GIB
    assert HF not in plan.forms
    assert plan.check == "two_layer"
    assert plan.config.repeats == 1
    assert 3 <= plan.new_tokens < 32
    assert plan.predicted_s <= 30 * 60
    text = words(plan)
    for piece in ("infeasible", "of 80 layers distinct", "repeats 3 -> 1", "new tokens 32 ->"):
        assert piece in text


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"at_s": 700}, r"at_s: got 700, 700 s at dilation 1, which is later than max_minutes=10"),
        ({"at_s": 7, "kind": "delay", "value": 60_000}, r"delay: got 6000, expected 0 to 1000"),
    ],
)
def test_fault_of_a_link_that_the_run_cannot_make_is_refused(tmp_path, fault, words):
    dilation = 100 if fault.get("kind") else 1
    changes = {
        "testbed": {"backend": "docker", "dilation": dilation},
        "link": {"faults": [{"device": 0, "kind": "cut", **fault}]},
        "max_minutes": 10 * dilation,
    }
    with pytest.raises(ConfigError, match=words):
        plan_of(tmp_path, "tiny", devices=2, **changes)


def test_share_of_a_core_that_the_kernel_cannot_enforce_is_refused(tmp_path):
    changes = {
        "testbed": {"backend": "docker", "dilation": 1000},
        "device": {"cores": 0.01},
        "max_minutes": 10_000,
    }
    with pytest.raises(ConfigError, match=r"device 0: at dilation 1000 it gets .* 0\.001 at least"):
        plan_of(tmp_path, "tiny", devices=2, **changes)


def test_plan_does_not_depend_on_what_is_free_on_disk(tmp_path):
    some = plan_of(tmp_path, "llama2-70b")
    full = plan_of(tmp_path, "llama2-70b", host=replace(HOST, free_disk=GIB))
    assert some == full


def test_time_is_cut_by_repeats_first_then_tokens_then_refused(tmp_path):
    def fits(minutes):
        return plan_of(tmp_path, "llama2-70b", max_minutes=minutes)

    assert fits(10000).cuts == ()
    some = fits(230)
    assert (some.config.repeats, some.new_tokens) == (2, 32)
    assert fits(20).config.repeats == 1
    assert fits(20).new_tokens < fits(30).new_tokens
    with pytest.raises(ConfigError, match=r"max_minutes: got 1, .* 1 repeat of 3 new"):
        fits(1)


def test_fewer_tokens_than_the_least_are_left_as_asked(tmp_path):
    workload = {"new_tokens": 2}
    plan = plan_of(tmp_path, "llama2-70b", max_minutes=20, workload=workload)
    assert plan.new_tokens == 2


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({}, "exact"),
        ({"dtype": "bfloat16"}, "bounded"),
        ({"systems": {"transformers": {"dtype": "bfloat16"}}}, "bounded"),
        ({"systems": {"transformers": {"dtype": "float32"}}, "dtype": "bfloat16"}, "exact"),
        ({"systems": {"llamacpp": {"quantization": "q8_0"}}}, "bounded"),
        ({"systems": {"tpi": {"wire_dtype": "bfloat16"}}}, "bounded"),
        ({"systems": {"tpi": {}}}, "exact"),
    ],
)
def test_check_follows_what_is_rounded(tmp_path, changes, check):
    assert checks(plan_of(tmp_path, "tiny", devices=2, **changes))[0] == check


def test_no_reference_at_all_is_said(tmp_path):
    host = replace(HOST, available_memory=8 * GIB)
    plan = plan_of(tmp_path, "llama2-70b", host=host, max_minutes=60)
    assert plan.check == "none"
    assert "even two layers" in words(plan)


def test_transformers_alone_without_a_reference_is_unchecked_and_its_weights_are_written(tmp_path):
    systems: dict[str, object] = {"transformers": {}}
    plan = plan_of(tmp_path, "llama2-7b", systems=systems, dtype="bfloat16", max_minutes=1000)
    assert (plan.check, [s.name for s in plan.runnable]) == ("none", ["transformers"])
    assert "check: unchecked (the reference needs" in words(plan)
    assert "would check others, and none runs" in plan.check_reason
    assert plan.forms == {HF: num_parameters(plan.model) * 2}


def test_hf_form_is_written_for_transformers_beside_a_two_layer_check(tmp_path):
    plan = plan_of(tmp_path, "llama2-7b", dtype="bfloat16", max_minutes=1000)
    assert (plan.check, len(plan.runnable)) == ("two_layer", 2)
    assert [s.name for s in plan.checked_first] == ["tpi"]
    assert plan.forms[HF] == num_parameters(plan.model) * 2


def test_two_layers_are_not_checked_for_a_tpi_that_is_refused(tmp_path):
    systems: dict[str, object] = {"tpi": {"window": "all"}, "transformers": {}}
    changes = {"systems": systems, "dtype": "bfloat16", "devices": 16, "max_minutes": 1000}
    host = replace(HOST, available_memory=17 * GIB)
    plan = plan_of(tmp_path, "llama2-7b", host=host, **changes)
    assert [s.name for s in plan.runnable] == ["transformers"]
    assert plan.check == "none"
    assert plan.forms[HF] > 0


def test_all_weights_in_memory_of_one_machine_is_infeasible(tmp_path):
    systems = {"tpi": {"window": "all"}}
    plan = plan_of(tmp_path, "llama2-70b", systems=systems)
    assert plan.runnable == ()
    assert plan.forms == {}
    assert "infeasible" in words(plan)


def test_budget_that_cannot_work_names_the_least(tmp_path):
    systems = {"tpi": {"memory_budget": "100MiB"}}
    with pytest.raises(ConfigError, match=r"memory_budget: .*least"):
        plan_of(tmp_path, "llama2-7b", systems=systems)


def test_distinct_layers_fill_max_bytes_and_no_more():
    model = load_preset("llama2-13b")
    plan = make_shard_plan(model, 5)
    for max_bytes in (2 * GIB, 5 * GIB, 100 * GIB):
        layers = most_distinct_layers(model, plan, "bfloat16", max_bytes)
        assert required_bytes(model, plan, "bfloat16", layers) <= max_bytes
        if layers < model.num_layers:
            assert required_bytes(model, plan, "bfloat16", layers + 1) > max_bytes


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"max_bytes": "100MiB"}, "one distinct layer"),
        ({"distinct_layers": 81}, "the model has 80 layers"),
        ({"distinct_layers": 40}, "holds"),
        ({"source": "folder"}, "model=llama2-70b has no folder"),
    ],
)
def test_weights_that_cannot_be(tmp_path, weights, words):
    with pytest.raises(ConfigError, match=words):
        plan_of(tmp_path, "llama2-70b", weights={"dir": str(tmp_path), **weights})


def test_prompt_longer_than_the_model(tmp_path):
    with pytest.raises(ConfigError, match="make either shorter"):
        make_plan(make_config(tmp_path), MODEL, range(127), HOST)


def test_shares_are_the_shard_plan(tmp_path):
    systems = {"tpi": {"shares": [3, 1]}}
    plan = make_plan(make_config(tmp_path, systems=systems), MODEL, range(4), HOST)
    assert plan.systems[0].form.shard_plan == make_shard_plan(MODEL, 2, [3, 1])


def test_two_layer_plan_is_the_same_but_for_its_depth(tmp_path):
    plan = plan_of(tmp_path, "llama2-70b")
    small = reduced_plan(plan)
    assert small.model == replace(plan.model, num_layers=2)
    assert small.systems[0].form == plan.systems[0].form
    assert (small.check, checks(small)) == ("reference", ["exact"])
    assert [s.name for s in small.systems] == ["tpi"]
    assert small.new_tokens >= 8
    assert small.config.dtype == plan.config.dtype


def all_of(tmp_path, name="tiny", **changes):
    return plan_of(tmp_path, name, systems={n: {} for n in system_names()}, devices=4, **changes)


def test_every_system_has_its_devices_and_its_form_of_the_weights(tmp_path):
    plan = all_of(tmp_path)
    found = {s.name: (s.world_size, s.form.folder_name) for s in plan.systems}
    assert found == {
        "tpi": (4, "n4"), "tpi-resident": (4, "n4"), "transformers": (1, "hf"),
        "transformers-window": (1, "n1"), "transformers-tp": (4, "hf"), "accelerate": (1, "hf"),
        "accelerate-2024": (1, "hf"), "galaxy": (4, "n4"), "pipeline": (4, "n1"),
        "llamacpp": (1, "gguf-float32"),
    }  # fmt: skip
    assert {form.folder_name for form in plan.forms} == {"n4", "n1", "hf", "gguf-float32"}
    assert all(num_bytes > num_parameters(plan.model) for num_bytes in plan.forms.values())
    for system in plan.systems:
        assert f"{system.name}: {system.world_size} device" in words(plan)


def test_what_a_system_holds_and_reads_is_in_its_cost(tmp_path):
    plan = all_of(tmp_path, "llama2-7b", dtype="bfloat16", max_minutes=100000)
    cost = {system.name: system.cost for system in plan.systems}
    weights = num_parameters(plan.model) * 2
    for name in ("transformers", "accelerate-2024", "llamacpp"):
        assert cost[name].need_bytes > weights, name
    for name in ("tpi-resident", "galaxy", "pipeline", "transformers-tp"):
        assert weights < cost[name].need_bytes < 1.6 * weights, name
    for name in ("tpi", "transformers-window", "accelerate"):
        assert cost[name].need_bytes < 0.3 * weights, name
        assert cost[name].read_bytes_per_step > 0.9 * weights, name
    assert cost["accelerate-2024"].scratch_bytes == weights


def test_accelerate_keeps_what_fits_its_memory(tmp_path):
    def cost(max_memory):
        systems = {"accelerate": {"max_memory": max_memory}}
        return plan_of(tmp_path, "tiny", systems=systems).systems[0].cost

    none, half, all_ = (cost(m) for m in (None, "50MiB", "10GiB"))
    assert none.read_bytes_per_step > half.read_bytes_per_step > all_.read_bytes_per_step == 0
    assert none.need_bytes < half.need_bytes < all_.need_bytes


def test_form_that_holds_every_layer_in_full_is_bounded_by_max_bytes(tmp_path):
    systems: dict[str, object] = {"tpi": {}, "accelerate": {}}
    plan = plan_of(tmp_path, "llama2-70b", systems=systems)
    tpi, accelerate = plan.systems
    assert tpi.refusal is None
    assert accelerate.refusal is not None
    assert "128 GiB of disk" in accelerate.refusal
    assert "weights.max_bytes is 16 GiB" in accelerate.refusal


def test_every_system_but_the_reference_proves_itself_on_two_layers(tmp_path):
    names = ("transformers", "tpi", "pipeline", "galaxy", "accelerate")
    systems: dict[str, object] = {name: {} for name in names}
    plan = plan_of(
        tmp_path, "llama2-7b", systems=systems, dtype="bfloat16", max_minutes=100000, devices=4
    )
    assert plan.check == "two_layer"
    small = reduced_plan(plan)
    assert [s.name for s in small.systems] == ["tpi", "pipeline", "galaxy", "accelerate"]
    worlds = {s.name: s.world_size for s in small.systems}
    # A pipeline has no device without a layer.
    assert worlds == {"tpi": 4, "pipeline": 2, "galaxy": 4, "accelerate": 1}
    assert small.forms[HF] > 0
