"""Baselines against their own library's documented example: none may be made weak by us.

Two processes take turns in one run, our program and `documented.py`, so that a busy machine slows
both alike; the first turn warms up and does not count. Tokens must be the same.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import pytest

from baselines.llamacpp.gguf_file import make_gguf
from tests.benchmarks.test_bench_engine import PROMPT, RESIDENT_MODEL
from tests.benchmarks.test_bench_window import say
from tpi.options import ComputeOptions
from tpi.program.events import Event, parse_event
from tpi.program.spec import NodeSpec, Request, dump_spec
from tpi.weights.hf_folder import write_hf_folder
from tpi.weights.synthetic import SyntheticSource

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
TURNS = 15
NEW_TOKENS = 5
THREADS = 1
MAX_RATIO = 1.05


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def checkpoint(request, tmp_path_factory) -> tuple[Path, str]:
    """A folder with the Hugging Face form and the GGUF file of one model, and its dtype."""
    folder = tmp_path_factory.mktemp(request.param)
    source = SyntheticSource(replace(RESIDENT_MODEL, dtype=request.param))
    write_hf_folder(source, folder / "hf")
    if find_spec("llama_cpp") is not None:
        make_gguf(source, folder / "gguf", request.param)
    return folder, request.param


@contextmanager
def started(arguments: list[str], folder: Path) -> Iterator[tuple[IO[str], IO[str]]]:
    """A Python process: its standard input and output. Its input closing ends it."""
    with (folder / f"{arguments[1]}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdin, process.stdout
        process.stdin.close()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def ours(pipes: tuple[IO[str], IO[str]], name: str) -> tuple[float, float, list[int]]:
    """TTFT and token latency of our program, and its tokens."""
    stdin, stdout = pipes
    stdin.write(f"go {name}\n")
    stdin.flush()
    events: list[Event] = []
    while not events or events[-1].name != "end":
        events.append(parse_event(stdout.readline()))
        assert events[-1].name != "error", events[-1].fields
    (go_ns,) = (e.t_ns for e in events if e.name == "request")
    stamps = [e.t_ns for e in events if e.name == "token"]
    latency_s = (stamps[-1] - stamps[0]) / 1e9 / (NEW_TOKENS - 1)
    tokens = [e.token for e in events if e.name == "token"]
    return (stamps[0] - go_ns) / 1e9, latency_s, tokens


def theirs(pipes: tuple[IO[str], IO[str]]) -> tuple[float, float, list[int]]:
    """The same of the documented example."""
    stdin, stdout = pipes
    stdin.write(f"{NEW_TOKENS}\n")
    stdin.flush()
    answer = json.loads(stdout.readline())
    return answer["ttft_s"], answer["latency_s"], answer["tokens"]


@pytest.mark.parametrize("system", ["transformers", "accelerate", "llamacpp"])
def test_baseline_is_as_fast_as_its_documented_example(system, checkpoint, tmp_path):
    if system == "llamacpp":
        pytest.importorskip("llama_cpp", reason="llama.cpp is an extra: make llamacpp")
    folder, dtype = checkpoint
    model_dir = folder / ("gguf" if system == "llamacpp" else "hf")
    names = [f"r{turn}" for turn in range(TURNS + 1)]
    spec = NodeSpec(
        system=system, rank=0, world_size=1, session="0" * 32, bind="127.0.0.1", master=None,
        model_dir=model_dir, threads=THREADS, compute=ComputeOptions(dtype=dtype, max_tokens=2048),
        requests=tuple(Request(name, NEW_TOKENS, PROMPT) for name in names),
    )  # fmt: skip
    dump_spec(spec, tmp_path / "spec.json")
    program = ["-m", f"baselines.{system}.program", str(tmp_path / "spec.json")]
    example = ["-m", "tests.benchmarks.documented", system, str(model_dir), dtype, str(THREADS)]
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    with started(program, tmp_path) as our_pipes, started(example, tmp_path) as their_pipes:
        assert parse_event(our_pipes[1].readline()).name == "ready"
        for turn, name in enumerate(names):
            # Whoever is second finds warmer caches, so they change places.
            runs = {"ours": partial(ours, our_pipes, name), "theirs": partial(theirs, their_pipes)}
            order = list(runs) if turn % 2 else list(reversed(runs))
            results = {who: runs[who]() for who in order}
            assert results["ours"][2] == results["theirs"][2]
            if turn:
                for who, (ttft_s, latency_s, _) in results.items():
                    found[who].append((ttft_s, latency_s))
    ratios = []
    for index, what in enumerate(("TTFT", "token latency")):
        a, b = (statistics.median(x[index] for x in found[who]) for who in ("ours", "theirs"))
        ratios.append(a / b)
        say(f"\n{system} {dtype} {what}: ours {a:.3f} s, documented {b:.3f} s, ratio {a / b:.3f}")
    assert max(ratios) <= MAX_RATIO
