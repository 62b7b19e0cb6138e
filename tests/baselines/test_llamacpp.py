"""llama.cpp computes what Transformers does, on a file of the same numbers."""

from dataclasses import replace
from pathlib import Path

import pytest

from baselines.gguf_file import MODEL_FILE, make_gguf
from baselines.gguf_layout import problems
from baselines.gguf_source import GgufSource
from baselines.llamacpp import load
from tests.baselines.bounded import check_bounded
from tests.checkpoints import (
    KINDS,
    NEW_TOKENS,
    PROMPT_IDS,
    make_checkpoint,
    reference_tokens,
    shared_checkpoint,
)
from tpi.config import load_config
from tpi.errors import ConfigError, WeightsError
from tpi.spec import NodeSpec, Request
from tpi.weights.checkpoint import open_checkpoint
from tpi.weights.hf_folder import write_hf_folder

pytest.importorskip("llama_cpp", reason="llama.cpp is an extra: make llamacpp")


def make_spec(folder: Path, **changes: object) -> NodeSpec:
    spec = NodeSpec(
        system="llamacpp", rank=0, world_size=1, session="0" * 32, bind="127.0.0.1", master=None,
        model_dir=folder, threads=1, dtype="float32", max_tokens=len(PROMPT_IDS) + NEW_TOKENS,
        requests=(Request("r0", NEW_TOKENS, PROMPT_IDS),),
    )  # fmt: skip
    return replace(spec, **changes)  # type: ignore[arg-type]  # the test names the fields


def gguf(checkpoint: Path, folder: Path, file_type: str) -> Path:
    with open_checkpoint(checkpoint) as source:
        make_gguf(source, folder, file_type)
    return folder


def tokens_of(folder: Path, requests: int = 1, **changes: object) -> list[tuple[int, ...]]:
    model = load(make_spec(folder, **changes))
    try:
        made = []
        for _ in range(requests):
            tokens: list[int] = []
            model.generate(PROMPT_IDS, NEW_TOKENS, tokens.append)
            made.append(tuple(tokens))
        return made
    finally:
        model.close()


RUN = [kind for kind in KINDS if not problems(load_config(shared_checkpoint(kind)))]


def test_only_what_llamacpp_lacks_is_left_out():
    assert sorted({*KINDS} - {*RUN}) == ["qwen3_bias"]


@pytest.mark.parametrize("kind", RUN)
def test_float32_tokens_are_those_of_transformers(kind, tmp_path):
    checkpoint = shared_checkpoint(kind)
    (tokens,) = tokens_of(gguf(checkpoint, tmp_path, "float32"))
    assert tokens == reference_tokens(checkpoint)


@pytest.mark.parametrize("mmap", [True, False])
def test_second_request_starts_afresh_whether_mapped_or_not(mmap, tmp_path):
    checkpoint = shared_checkpoint("gqa2")
    folder = gguf(checkpoint, tmp_path, "float32")
    made = tokens_of(folder, 2, options={"mmap": mmap})
    assert made == [reference_tokens(checkpoint)] * 2


def test_bfloat16_stays_within_its_bound(tmp_path):
    checkpoint = shared_checkpoint("gqa2")
    folder = gguf(checkpoint, tmp_path, "bfloat16")
    (tokens,) = tokens_of(folder, dtype="bfloat16")
    check_bounded(tokens, checkpoint)


# llama.cpp rounds what it multiplies with to 8 bits too, which the bound of 16-bit arithmetic on
# the file's own numbers leaves room for.
@pytest.mark.slow
@pytest.mark.parametrize("file_type", ["q8_0", "q4_0"])
def test_quantized_tokens_are_those_of_the_files_own_numbers(file_type, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "model", "gqa2", intermediate_size=512)
    folder = gguf(checkpoint, tmp_path / "gguf", file_type)
    (tokens,) = tokens_of(folder, options={"file_type": file_type})
    source = GgufSource(folder / MODEL_FILE, load_config(checkpoint))
    write_hf_folder(source, tmp_path / "hf")
    check_bounded(tokens, tmp_path / "hf")


def test_what_the_record_needs_is_in_the_facts(tmp_path):
    folder = gguf(shared_checkpoint("gqa2"), tmp_path, "bfloat16")
    model = load(make_spec(folder, dtype="bfloat16"))
    assert (model.facts["file_type"], model.facts["kv_cache"]) == ("bfloat16", "float16")
    assert model.facts["parameter_bytes"] > 1 << 20
    model.close()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ((), "prompt is empty"),
        ((512,), "token id 512, the vocabulary has 512"),
        ((1,) * 100, r"100 \+ 32 tokens, the model has 128 positions"),
    ],
)
def test_prompt_that_does_not_fit_is_refused(prompt, message, tmp_path):
    model = load(make_spec(gguf(shared_checkpoint("gqa2"), tmp_path, "float32")))
    with pytest.raises(ConfigError, match=message):
        model.generate(prompt, NEW_TOKENS, lambda _: None)
    model.close()


def test_folder_that_cannot_be_used_is_refused_in_one_line(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        load(make_spec(tmp_path))
    (tmp_path / MODEL_FILE).write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(WeightsError, match=r"llama\.cpp cannot load it: .+") as error:
        load(make_spec(tmp_path))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="unknown key 'window'"):
        load(make_spec(tmp_path, options={"window": 2}))
