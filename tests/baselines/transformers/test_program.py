"""Transformers as a system and as the reference, on a tiny checkpoint."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from baselines.transformers.program import load
from baselines.transformers.reference import (
    ReferenceJob,
    compute,
    main,
    read_job,
    read_reference,
)
from tests.baselines.bounded import check_bounded
from tests.checkpoints import NEW_TOKENS as NEW
from tests.checkpoints import PROMPT_IDS, make_checkpoint, reference_tokens, shared_checkpoint
from tpi.errors import ConfigError, WeightsError
from tpi.options import ComputeOptions
from tpi.program.events import parse_event
from tpi.program.spec import NodeSpec, Request, dump_spec

ROOT = Path(__file__).parents[3]
PROMPT = (1, 50, 3, 77)
NEW_TOKENS = 16


def make_spec(folder: Path, dtype: str = "float32", **changes: Any) -> NodeSpec:
    spec = NodeSpec(
        system="transformers", rank=0, world_size=1, session="0" * 32, bind="127.0.0.1",
        master=None, model_dir=folder, threads=1,
        compute=ComputeOptions(dtype=dtype, max_tokens=64),
        requests=(Request("r0", NEW_TOKENS, PROMPT),),
    )  # fmt: skip
    return replace(spec, **changes)


def greedy_by_hand(folder: Path) -> list[int]:
    """One full forward per token: no cache, no `generate`."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = list(PROMPT)
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[int]:
    return greedy_by_hand(checkpoint)


def test_tokens_are_greedy_whatever_the_checkpoint_prefers(checkpoint, expected):
    tokens: list[int] = []
    load(make_spec(checkpoint)).generate(PROMPT, NEW_TOKENS, tokens.append)
    assert tokens == expected
    assert len(set(tokens)) > 4
    assert any(token < 48 for token in tokens)  # a stop token of the checkpoint did not stop it


def test_bfloat16_is_loaded_as_bfloat16(checkpoint):
    small, large = (load(make_spec(checkpoint, dtype=d)) for d in ("bfloat16", "float32"))
    # Not exactly half: the rotary table stays in float32.
    assert large.facts["parameter_bytes"] / small.facts["parameter_bytes"] == pytest.approx(2, 0.01)


WAYS = [
    {"low_cpu_mem_usage": lazy, "mmap": mmap} for lazy in (True, False) for mmap in (True, False)
]


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize(
    "kind", ["mha", "gqa2", "tied", "llama3_rope", "bias", "qk_norm", "multi_file", "bfloat16"]
)
def test_every_way_of_loading_gives_the_same_tokens(kind, options):
    folder = shared_checkpoint(kind)
    tokens: list[int] = []
    load(make_spec(folder, options=options)).generate(PROMPT_IDS, NEW, tokens.append)
    assert tuple(tokens) == reference_tokens(folder)


@pytest.mark.parametrize("options", WAYS)
def test_bfloat16_strays_no_further_than_its_rounding(options):
    folder = shared_checkpoint("bfloat16")
    tokens: list[int] = []
    model = load(make_spec(folder, dtype="bfloat16", options=options))
    model.generate(PROMPT_IDS, NEW, tokens.append)
    check_bounded(tokens, folder)


PEAKS = """
import json, sys
from pathlib import Path
from baselines.transformers.program import load
from tests.baselines.transformers.test_program import make_spec
from tpi.program.procfs import own_number, peak_rss_bytes

import baselines.transformers.loading  # what the library takes is not the model's

options = {"low_cpu_mem_usage": sys.argv[2] == "True", "mmap": sys.argv[3] == "True"}
spec, before = make_spec(Path(sys.argv[1]), options=options), peak_rss_bytes()
model = load(spec)
model.generate((1, 2, 3), 2, lambda token: None)
# Of no use to a program that reads nothing back: what is mapped counts once it was touched.
print(json.dumps([peak_rss_bytes() - before, own_number("status", "RssAnon") * 1024]))
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_paper_form_holds_the_weights_twice(tmp_path):
    shape = {"vocab_size": 8192, "hidden_size": 768, "intermediate_size": 1536}
    folder = make_checkpoint(tmp_path / "big", "mha", **shape)
    weights = (folder / "model.safetensors").stat().st_size
    running = {
        lazy: subprocess.Popen(
            [sys.executable, "-c", PEAKS, str(folder), str(lazy), "True"],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for lazy in (True, False)
    }  # fmt: skip
    peaks = {lazy: json.loads(process.communicate()[0]) for lazy, process in running.items()}
    assert peaks[True][0] == pytest.approx(weights, rel=0.25)
    assert peaks[False][0] == pytest.approx(2 * weights, rel=0.25)
    assert peaks[False][1] - peaks[True][1] == pytest.approx(weights, rel=0.25)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_tensor_that_is_missing_is_named_in_the_paper_form(tmp_path, name):
    folder = shutil.copytree(shared_checkpoint("mha"), tmp_path / "cut")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name)
    save_file(tensors | {"other": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=rf"missing: \['{name}'\].*model's: \['other'\]"):
        load(make_spec(folder, options={"low_cpu_mem_usage": False}))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ((), "prompt is empty"),
        ((96,), "token id 96, the vocabulary has 96"),
        ((1,) * 60, r"60 \+ 16 tokens, the model has 64 positions"),
    ],
)
def test_prompt_that_does_not_fit_is_refused(checkpoint, prompt, message):
    with pytest.raises(ConfigError, match=message):
        load(make_spec(checkpoint)).generate(prompt, NEW_TOKENS, lambda token: None)


def test_unknown_option_is_refused(checkpoint):
    with pytest.raises(ConfigError, match="unknown key 'window'"):
        load(make_spec(checkpoint, options={"window": 2}))
    with pytest.raises(ConfigError, match="mmap must be true or false, got 1"):
        load(make_spec(checkpoint, options={"mmap": 1}))


def test_folder_without_weights_is_refused(checkpoint, tmp_path):
    with pytest.raises(WeightsError, match="no such folder"):
        load(make_spec(tmp_path / "none"))
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    with pytest.raises(WeightsError, match=f"checkpoint {tmp_path}"):
        load(make_spec(tmp_path))


def test_memory_that_does_not_suffice_is_no_damaged_file(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "huge")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 1 << 50}))
    with pytest.raises(MemoryError, match="allocate"):
        load(make_spec(folder, options={"low_cpu_mem_usage": False}))


def test_reference_gives_tokens_error_and_shortfalls(checkpoint, expected):
    wrong = [*expected[:5], (expected[5] + 1) % 96, *expected[6:]]
    job = ReferenceJob(
        str(checkpoint), PROMPT, NEW_TOKENS, error_of="bfloat16",
        answers={"same": tuple(expected), "wrong": tuple(wrong), "foreign": (999, 3)},
    )  # fmt: skip
    reference = compute(job)
    assert list(reference.tokens) == expected
    assert max(reference.shortfalls["same"]) <= 1e-5
    assert max(reference.shortfalls["wrong"][:5]) <= 1e-5
    assert reference.shortfalls["wrong"][5] > 0.01
    assert reference.shortfalls["foreign"] == (1e30, 1e30)
    assert reference.logit_error is not None
    assert 0 < reference.logit_error < 0.1 * reference.largest_logit


def test_reference_program_writes_its_answer(checkpoint, expected, tmp_path):
    job = ReferenceJob(str(checkpoint), PROMPT, 3, answers={"tpi": (1, 2)})
    (tmp_path / "job.json").write_bytes(msgspec.json.encode(job))
    assert read_job(tmp_path / "job.json") == job
    assert main([str(tmp_path / "job.json"), str(tmp_path / "answer.json")]) == 0
    reference = read_reference(tmp_path / "answer.json")
    assert list(reference.tokens) == expected[:3]
    assert reference.logit_error is None
    assert len(reference.shortfalls["tpi"]) == 2


def test_bad_job_is_one_line(tmp_path, capsys):
    (tmp_path / "job.json").write_text('{"model_dir": "x"}')
    assert main([str(tmp_path / "job.json"), "y"]) == 2
    assert main([str(tmp_path / "none.json"), "y"]) == 2
    assert main([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True] * 3
    assert "prompt_ids is missing" in lines[0]


@pytest.mark.timeout(60)
@pytest.mark.slow  # a process that imports torch and transformers
def test_program_measures_itself_and_says_nothing_else(checkpoint, expected, tmp_path):
    dump_spec(make_spec(checkpoint), tmp_path / "spec.json")
    process = subprocess.Popen(
        [sys.executable, "-m", "baselines.transformers.program", str(tmp_path / "spec.json")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go r0\n")
    process.stdin.flush()
    events = [parse_event(line) for line in process.stdout]
    log = process.communicate()[1]
    assert process.returncode == 0, log
    assert [e.token for e in events if e.name == "token"] == expected
    assert [e.name for e in events if e.name != "token"] == ["ready", "request", "counters", "end"]
    assert "warn" not in log.lower()
    assert "%|" not in log
