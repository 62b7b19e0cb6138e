"""Both Accelerate baselines: tokens, memory, what is kept where, and time that is told apart."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from baselines.accelerate import program as accelerate
from tests.baselines.bounded import check_bounded
from tests.checkpoints import (
    NEW_TOKENS,
    PROMPT_IDS,
    make_checkpoint,
    reference_tokens,
    shared_checkpoint,
)
from tpi.errors import ConfigError, ResourceError, WeightsError
from tpi.options import ComputeOptions
from tpi.program.events import parse_event
from tpi.program.spec import NodeSpec, Request, dump_spec

KINDS = ("mha", "gqa2", "tied", "llama3_rope", "bias", "qk_norm", "bfloat16", "multi_file")
ROOT = Path(__file__).parents[3]
SYSTEMS = ("accelerate", "accelerate-2024")
# 59 MB of float32: far more than a run needs beside it, and made in a second.
BIG = {"vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4}


def make_spec(folder: Path, dtype: str = "float32", **changes: Any) -> NodeSpec:
    spec = NodeSpec(
        system="accelerate", rank=0, world_size=1, session="0" * 32, bind="127.0.0.1",
        master=None, model_dir=folder, threads=1,
        compute=ComputeOptions(dtype=dtype, max_tokens=128),
        requests=(Request("r0", NEW_TOKENS, PROMPT_IDS),),
    )  # fmt: skip
    return replace(spec, **changes)


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(system, folder, **changes):
    """The tokens, and the model, which has been left."""
    tokens: list[int] = []
    with accelerate.load(make_spec(folder, system=system, **changes)) as model:
        model.generate(PROMPT_IDS, NEW_TOKENS, tokens.append)
        return tokens, model


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("accelerate", kind) for kind in KINDS),
        # It only loads in another way: tensors that are shared, 16 bit, of several files.
        *(("accelerate-2024", kind) for kind in ("gqa2", "tied", "bfloat16", "multi_file")),
    ],
)
def test_tokens_are_those_of_transformers(name, kind, tmp_path):
    tokens, model = run(name, shared_checkpoint(kind))
    assert tuple(tokens) == reference_tokens(shared_checkpoint(kind))
    assert model.facts["offloaded_modules"] > 3 * 7  # every product of every layer
    assert list(tmp_path.iterdir()) == []  # the offload folder is gone


@pytest.mark.parametrize("system", SYSTEMS)
def test_bfloat16_strays_no_further_than_its_rounding(system):
    folder = shared_checkpoint("bfloat16")
    tokens, _ = run(system, folder, dtype="bfloat16")
    check_bounded(tokens, folder)


@pytest.mark.parametrize("kind", ["gqa2", "tied", "bfloat16"])
def test_max_memory_keeps_what_fits(kind):
    folder = shared_checkpoint(kind)
    modules = []
    for max_memory in (1, 4_000_000, 1 << 30):
        tokens, model = run("accelerate", folder, options={"max_memory": max_memory})
        assert tuple(tokens) == reference_tokens(folder)
        modules.append(model.facts["offloaded_modules"])
    assert modules[0] > modules[1] > modules[2] == 0
    assert "nothing is offloaded" in model.facts["notes"][0]


def test_time_in_the_hooks_is_told():
    with accelerate.load(make_spec(shared_checkpoint("mha"))) as model:
        assert model.tracer.totals_ns["wait_weights"] / 1e9 == 0
        model.generate(PROMPT_IDS, 2, lambda token: None)
        assert 0 < model.tracer.totals_ns["wait_weights"] / 1e9 < 5


def test_every_wait_of_a_block_is_kept_if_asked_for():
    with accelerate.load(make_spec(shared_checkpoint("mha"))) as model:
        model.tracer.keep = True
        model.generate(PROMPT_IDS, 2, lambda token: None)
        spans = model.tracer.take()
        total_s = sum(span.end_ns - span.start_ns for span in spans) / 1e9
        assert total_s == pytest.approx(model.tracer.totals_ns["wait_weights"] / 1e9)
    # Every module's weights come in and go out once a token.
    assert len(spans) == 2 * 2 * model.facts["offloaded_modules"]
    assert all(before.end_ns <= after.start_ns for before, after in pairwise(spans))
    # The rotary angles belong to no block.
    assert list(dict.fromkeys(span.label for span in spans if span.label)) == [
        "embed.0", *(f"{kind}.{layer}" for layer in range(3) for kind in ("attn", "ffn")), "head.0",
    ]  # fmt: skip


def test_full_load_writes_every_tensor_to_the_working_directory(tmp_path):
    with accelerate.load(make_spec(shared_checkpoint("mha"), system="accelerate-2024")):
        (folder,) = tmp_path.iterdir()
        written = sum(file.stat().st_size for file in folder.glob("*.dat"))
    stored = (shared_checkpoint("mha") / "model.safetensors").stat().st_size
    assert written == pytest.approx(stored, rel=0.01)


@pytest.mark.parametrize("system", SYSTEMS)
def test_unknown_option_is_refused(system, tmp_path):
    with pytest.raises(ConfigError, match="unknown key 'window'"):
        accelerate.load(make_spec(tmp_path, system=system, options={"window": 2}))


@pytest.mark.parametrize("value", [0, -1, 2.5, "2GiB", True])
def test_max_memory_that_is_no_number_of_bytes_is_refused(tmp_path, value):
    with pytest.raises(ConfigError, match="max_memory must be bytes >= 1 or null"):
        accelerate.load(make_spec(tmp_path, options={"max_memory": value}))


@pytest.mark.parametrize("system", SYSTEMS)
def test_folder_that_is_missing_leaves_nothing_behind(system, tmp_path):
    with pytest.raises(WeightsError, match="no such folder"):
        accelerate.load(make_spec(tmp_path / "none", system=system))
    assert list(tmp_path.iterdir()) == []


def test_working_directory_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ResourceError, match="no offload folder"):
        accelerate.load(make_spec(shared_checkpoint("mha")))


PEAK = """
import sys, threading
from pathlib import Path
from baselines.accelerate.program import load
from tests.baselines.accelerate.test_program import make_spec
from tpi.program.procfs import own_number

import baselines.accelerate.offload  # what the libraries take is not the model's

start, peak, ended = own_number("status", "RssAnon"), 0, threading.Event()

def watch():
    global peak
    while not ended.wait(0.001):
        peak = max(peak, own_number("status", "RssAnon") - start)

watcher = threading.Thread(target=watch)
watcher.start()
with load(make_spec(Path(sys.argv[1]), system="SYSTEM")) as model:
    model.generate((1, 2, 3), 3, lambda token: None)
ended.set()
watcher.join()
print(peak * 1024)
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("big") / "model", "mha", **BIG)


def anonymous_peak(system: str, folder: Path) -> float:
    """In weights of the model."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK.replace("SYSTEM", system), str(folder)],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    peak = int(done.stdout.splitlines()[-1])
    return peak / (folder / "model.safetensors").stat().st_size


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_today_no_more_than_a_share_of_the_model_is_in_memory(big):
    assert anonymous_peak("accelerate", big) < 0.2  # 0.03 was measured


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_in_2024_the_whole_model_was(big):
    assert anonymous_peak("accelerate-2024", big) > 0.95


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("system", SYSTEMS)
def test_program_measures_itself_and_says_what_it_does(system, big, tmp_path):
    spec = make_spec(big, system=system, requests=(Request("r0", 4, (1, 2, 3)),))
    dump_spec(spec, tmp_path / "spec.json")
    process = subprocess.Popen(
        [sys.executable, "-m", accelerate.__name__, str(tmp_path / "spec.json")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go r0\n")
    process.stdin.flush()
    events = [parse_event(line) for line in process.stdout]
    log = process.communicate()[1]
    assert process.returncode == 0, log
    assert [e.name for e in events if e.name != "token"] == ["ready", "request", "counters", "end"]
    assert "page cache" in str(events[0].fields["notes"])
    counters = events[-2]
    assert counters.number("wait_weights_s") > 0
    assert counters.number("compute_s") > 0
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("model.layers.12.self_attn.q_proj", ("attn", 12)),
        ("model.layers.0.input_layernorm", ("attn", 0)),
        ("model.layers.3.post_attention_layernorm", ("ffn", 3)),
        ("model.layers.3.mlp.down_proj", ("ffn", 3)),
        ("model.embed_tokens", ("embed", 0)),
        ("model.norm", ("head", 0)),
        ("lm_head", ("head", 0)),
        ("", ("", 0)),
    ],
)
def test_block_of_a_module_is_told_by_its_name(module, block):
    from baselines.accelerate.offload import block_of  # loads the library

    assert block_of(module) == block
