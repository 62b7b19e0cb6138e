"""A whole device, decoding: against the disk's rate, the memory's rate, and Transformers.

One rank in this process. What is compared takes turns within one run, so that a busy machine slows
both alike; the first turn warms up and does not count. Every timed run's tokens are compared with
those of its counterpart.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.benchmarks.test_bench_window import say
from tests.loopback import MemoryMesh
from tpi.build_engine import open_engine, plan_rank
from tpi.engine import Engine, Prompt
from tpi.model_config import ModelConfig, RopeScaling, load_preset
from tpi.options import ComputeOptions
from tpi.sampling import Sampler
from tpi.trace import Tracer
from tpi.weights.blockfile import Manifest, open_shard_folder
from tpi.weights.direct_io import read_rate_bps
from tpi.weights.hf_folder import write_hf_folder
from tpi.weights.shard import make_shard_plan
from tpi.weights.split import split
from tpi.weights.synthetic import SyntheticSource

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

MIB = 1 << 20
TURNS = 5
# The width and FFN of Llama 2-7B with 8 layers: 3.3 GiB in bfloat16.
DISK_MODEL = replace(load_preset("llama2-7b"), num_layers=8)
# TinyLlama's shape: 1.1 B parameters.
RESIDENT_MODEL = ModelConfig(
    architecture="llama", num_layers=22, hidden_size=2048, num_heads=32, num_kv_heads=4,
    head_size=64, ffn_size=5632, vocab_size=32000, max_positions=2048, rms_eps=1e-5,
    rope_theta=10000.0, rope=RopeScaling(), qkv_bias=False, out_bias=False, ffn_bias=False,
    qk_norm=False, tied_embeddings=False, dtype="float32", eos_token_ids=(2,), bos_token_id=1,
)  # fmt: skip
PROMPT = tuple(range(100, 116))


@pytest.fixture(scope="module")
def disk_model(tmp_path_factory) -> Manifest:
    return make_shards(DISK_MODEL, "bfloat16", tmp_path_factory.mktemp("disk"))


def make_shards(model: ModelConfig, dtype: str, folder: Path) -> Manifest:
    split(SyntheticSource(model, dtype=dtype), make_shard_plan(model, 1), folder)
    return open_shard_folder(folder / "rank-0", verify=False)


@contextmanager
def device(manifest: Manifest, **options):
    """An engine of its own, ready to decode."""
    (mesh,) = MemoryMesh.group(1)
    settings = ComputeOptions(max_tokens=2048, **options)
    with mesh, open_engine(manifest, mesh, settings, Tracer()) as (engine, _, _):
        yield engine


def decode(engine: Engine, new_tokens: int, prompt=PROMPT) -> tuple[float, float, list[int]]:
    """TTFT and seconds per decoded token, and the tokens."""
    stamps, tokens = [time.perf_counter()], []
    for (token,) in engine.generate(Prompt((tuple(prompt),)), new_tokens, Sampler()):
        stamps.append(time.perf_counter())
        tokens.append(token)
    latency_s = (stamps[-1] - stamps[1]) / max(1, len(tokens) - 1)
    return stamps[1] - stamps[0], latency_s, tokens


def streamed_paths(manifest: Manifest, retained=frozenset()) -> list[Path]:
    return [e.path for e in manifest.blocks if e.id.kind != "embed" and e.id not in retained]


def compare_with_disk(manifest: Manifest, retained, **options) -> float:
    """Share of the disk's best rate that decoding reads at, median over turns."""
    paths = streamed_paths(manifest, retained)
    num_bytes = sum(path.stat().st_size for path in paths)
    rates: dict[str, list[float]] = {n: [] for n in ("decode", "4", "16", "64", "one place")}
    tokens = []
    with device(manifest, **options) as engine:
        for turn in range(TURNS + 1):
            before = engine.disk_bytes
            _, latency_s, made = decode(engine, 4)
            rows = engine.disk_bytes - before - 4 * num_bytes
            assert 0 <= rows <= 8192 * (4 + len(PROMPT))  # bytes counted: the streamed ones, rows
            tokens.append(made)
            found = {"decode": num_bytes / latency_s}
            for mib in (4, 16, 64):
                found[str(mib)] = read_rate_bps(paths, mib * MIB, 256 * MIB)
            found["one place"] = read_rate_bps(paths, 4 * MIB)  # into cache: shown, not judged by
            if turn:
                for name, rate in found.items():
                    rates[name].append(rate / 1e9)
    assert all(made == tokens[0] for made in tokens)
    median = {name: statistics.median(values) for name, values in rates.items()}
    disk = max(median["4"], median["16"], median["64"])
    say(
        f"  {num_bytes / 1e9:.2f} GB a token; decode {median['decode']:.2f} GB/s; disk at 4, 16, "
        f"64 MiB {median['4']:.2f} {median['16']:.2f} {median['64']:.2f}, 4 MiB into one place "
        f"{median['one place']:.2f}; share {median['decode'] / disk:.3f}"
    )
    return median["decode"] / disk


def test_disk_bound_decode_reads_at_nine_tenths_of_the_disks_rate(disk_model):
    torch.set_num_threads(2)
    say("\ndisk-bound, window 2:")
    assert compare_with_disk(disk_model, frozenset(), window=2) >= 0.9


def test_memory_budget_halfway_reads_only_the_rest_at_the_disks_rate(disk_model):
    torch.set_num_threads(2)
    low = plan_rank(disk_model, ComputeOptions(max_tokens=2048, window=2))
    high = plan_rank(disk_model, ComputeOptions(max_tokens=2048, window=None))
    budget = (low.peak_bytes + high.peak_bytes) // 2
    choice = plan_rank(disk_model, ComputeOptions(max_tokens=2048, memory_budget=budget))
    assert choice.retained
    say(f"\nmemory_budget {budget / 1e9:.2f} GB, {len(choice.retained)} blocks retained:")
    share = compare_with_disk(disk_model, choice.retained, memory_budget=budget)
    assert 1 / share <= 1.10


def test_compute_bound_ttft_with_window_is_within_a_tenth_of_resident(disk_model):
    torch.set_num_threads(2)
    prompt = [(7 * i) % 32000 for i in range(1024)]
    ttft: dict[int | None, list[float]] = {2: [], None: []}
    tokens = []
    with ExitStack() as stack:
        engines = {
            window: stack.enter_context(device(disk_model, window=window, prefill_chunk=1024))
            for window in ttft
        }
        for turn in range(TURNS + 1):
            for window, engine in engines.items():
                ttft_s, _, made = decode(engine, 1, prompt)
                tokens.append(made)
                if turn:
                    ttft[window].append(ttft_s)
    assert all(made == tokens[0] for made in tokens)
    ratio = statistics.median(ttft[2]) / statistics.median(ttft[None])
    say(
        f"\ncompute-bound prefill of 1024 tokens: window 2 {statistics.median(ttft[2]):.2f} s, all "
        f"{statistics.median(ttft[None]):.2f} s, ratio {ratio:.3f}"
    )
    assert ratio <= 1.10


def compare_with_transformers(dtype: str, folder: Path) -> tuple[float, float]:
    """Token latency over Transformers', and share of the memory's read rate; one thread.

    In a process of its own, since OpenBLAS reads its number of threads once, when it is loaded.
    """
    model = replace(RESIDENT_MODEL, dtype=dtype)
    write_hf_folder(SyntheticSource(model), folder / "hf")
    manifest = make_shards(model, dtype, folder / "shards")
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.resident", dtype, str(folder), str(TURNS)],
        env=os.environ | dict.fromkeys(names, "1"),
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    seconds = json.loads(done.stdout.splitlines()[-1])
    ours, theirs, read = (seconds[name] for name in ("ours", "theirs", "read_1_gib"))
    num_bytes = sum(path.stat().st_size for path in streamed_paths(manifest))
    rate, memory = num_bytes / ours / 1e9, (1 << 30) / read / 1e9
    say(
        f"\nresident {dtype}, 1.1 B, 1 thread: ours {ours * 1e3:.0f} ms, Transformers "
        f"{theirs * 1e3:.0f} ms, ratio {ours / theirs:.3f}; weights at {rate:.1f} GB/s, memory "
        f"reads at {memory:.1f}, share {rate / memory:.3f}"
    )
    return ours / theirs, rate / memory


def test_resident_float32_decode_runs_at_the_memorys_rate(tmp_path):
    ratio, share = compare_with_transformers("float32", tmp_path)
    assert share >= 0.75
    assert ratio <= 1.0
    if ratio > 0.65:
        # Where torch's own product runs at the memory's rate nobody can be much faster than it.
        pytest.xfail(f"the aim is 0.65, got {ratio:.2f} at {share:.0%} of the memory's read rate")


def test_resident_bfloat16_decode_is_no_slower_than_transformers(tmp_path):
    ratio, _ = compare_with_transformers("bfloat16", tmp_path)
    assert ratio <= 1.0
