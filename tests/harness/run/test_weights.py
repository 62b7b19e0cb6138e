import io

import numpy as np
import pytest
from rich.console import Console

from baselines.weight_formats import HF
from harness.plan.plan import make_plan
from harness.progress.live import Live
from harness.run import weights
from tests.harness.micro import HOST, MODEL, PROMPT, make_config, write_model
from tpi.weights.blockfile import open_shard_folder
from tpi.weights.checkpoint import open_checkpoint
from tpi.weights.dtypes import to_float32

LIVE = Live(Console(file=io.StringIO()))


def plan_of(tmp_path, **changes):
    return make_plan(make_config(tmp_path, **changes), MODEL, PROMPT, HOST)


def folder_plan(tmp_path, **changes):
    path = tmp_path / "checkpoint"
    if not path.exists():
        write_model(path, tokenizer=True)
    return plan_of(tmp_path, model={"name": "folder", "path": str(path)}, **changes)


def test_synthetic_weights_are_made_once_in_both_forms(tmp_path):
    plan = plan_of(tmp_path)
    before = weights.locate(plan)
    shards = plan.systems[0].form
    assert before.missing == plan.forms
    assert set(plan.forms) == {shards, HF}
    weights.obtain(plan, before, LIVE)
    after = weights.locate(plan)
    assert after.to_write == 0
    assert after.identity == before.identity
    for rank, folder in enumerate(after.model_dirs(plan.systems[0])):
        assert open_shard_folder(folder).rank == rank
    assert after.model_dirs(plan.systems[1]) == (after.hf,)
    written = sum(f.stat().st_size for f in after.folders[shards].glob("rank-*/*.safetensors"))
    assert written == plan.forms[shards]


def test_what_decides_the_bytes_decides_the_folder(tmp_path):
    one = weights.locate(plan_of(tmp_path))
    base = {"dir": str(tmp_path / "weights")}
    for changes in (
        {"weights": {**base, "seed": 1}},
        {"weights": {**base, "dtype": "float16"}},
        {"weights": {**base, "distinct_layers": 2}},
    ):
        other = weights.locate(plan_of(tmp_path, **changes))
        assert other.base != one.base
        assert other.identity != one.identity
    cuts: tuple[dict[str, object], ...] = ({"devices": 3}, {"systems": {"tpi": {"shares": [2, 1]}}})
    for cut in cuts:
        other = weights.locate(plan_of(tmp_path, **cut))
        assert set(other.folders.values()) & set(one.folders.values()) == {one.hf}
        assert (other.hf, other.identity) == (one.hf, one.identity)


def test_a_folder_is_its_own_hf_form_and_is_never_written(tmp_path):
    plan = folder_plan(tmp_path)
    found = weights.locate(plan)
    assert found.hf == tmp_path / "checkpoint"
    assert found.missing[HF] == 0
    names = sorted(p.name for p in found.hf.iterdir())
    weights.obtain(plan, found, LIVE)
    assert weights.locate(plan).to_write == 0
    assert sorted(p.name for p in found.hf.iterdir()) == names
    master, worker = found.model_dirs(plan.systems[0])
    assert (master / "tokenizer.json").exists()
    assert not (worker / "tokenizer.json").exists()


def test_synthetic_weights_of_a_folders_shape_are_told_apart_by_the_shape(tmp_path):
    plan = folder_plan(tmp_path, weights={"dir": str(tmp_path / "w"), "source": "synthetic"})
    found = weights.locate(plan)
    assert found.hf != tmp_path / "checkpoint"
    assert found.missing[HF] == plan.forms[HF] > 0


def test_distinct_layers_are_links_and_take_no_space(tmp_path):
    plan = plan_of(tmp_path, weights={"dir": str(tmp_path / "w"), "distinct_layers": 1})
    found = weights.locate(plan)
    weights.obtain(plan, found, LIVE)
    files = list(found.folders[plan.systems[0].form].glob("rank-0/ffn-*.safetensors"))
    assert len(files) == MODEL.num_layers
    assert len({f.stat().st_ino for f in files}) == 1


def test_disk_rate_needs_enough_bytes(tmp_path, monkeypatch):
    plan = plan_of(tmp_path)
    found = weights.locate(plan)
    weights.obtain(plan, found, LIVE)
    assert weights.read_rate_bps(found) is None
    monkeypatch.setattr(weights, "_RATE_BYTES", 1 << 16)
    assert (weights.read_rate_bps(found) or 0) > 1e6


def test_forms_of_single_devices_lie_beside_those_of_many(tmp_path):
    systems: dict[str, object] = {"tpi": {}, "pipeline": {}, "transformers-window": {}}
    plan = plan_of(tmp_path, systems=systems)
    found = weights.locate(plan)
    weights.obtain(plan, found, LIVE)
    tpi, pipeline, window = (found.model_dirs(system) for system in plan.systems)
    assert [folder.name for folder in tpi] == ["rank-0", "rank-1"]
    assert pipeline == (*window, *window)  # every device finds its layers in one folder
    assert open_shard_folder(window[0]).plan.world_size == 1


def test_gguf_is_a_form_too(tmp_path):
    pytest.importorskip("gguf", reason="an extra: make llamacpp")
    plan = plan_of(tmp_path, systems={"llamacpp": {}})
    found = weights.locate(plan)
    assert found.to_write == sum(plan.forms.values()) > 0
    weights.obtain(plan, found, LIVE)
    assert weights.locate(plan).to_write == 0
    (folder,) = found.model_dirs(plan.systems[0])
    assert (folder / "model.gguf").read_bytes()[:4] == b"GGUF"


def test_reference_of_a_quantized_file_has_the_files_own_numbers(tmp_path):
    pytest.importorskip("llama_cpp", reason="an extra: make llamacpp")
    systems = {"llamacpp": {"quantization": "q8_0"}, "tpi": {}}
    plan = plan_of(tmp_path, systems=systems)
    quantized, tpi = plan.systems
    assert {form.kind for form in plan.forms} == {"gguf", "dequantized", "shards", "hf"}
    found = weights.locate(plan)
    assert found.reference_dir(tpi) == found.hf != found.reference_dir(quantized)
    weights.obtain(plan, found, LIVE)
    assert weights.locate(plan).to_write == 0
    name = "model.layers.0.mlp.up_proj.weight"
    with (
        open_checkpoint(found.hf) as exact,
        open_checkpoint(found.reference_dir(quantized)) as rounded,
    ):
        rows = to_float32(exact.read_rows(name, 0, 8), exact.tensor_dtype(name))
        error = np.abs(rounded.read_rows(name, 0, 8) - rows).max()
    assert 0 < error < 0.01 * np.abs(rows).max()
