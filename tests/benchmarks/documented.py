"""The example of a library's documentation, timed: what a person writes who has only read that.

Arguments: "transformers", "accelerate" or "llamacpp", folder, dtype, threads. For each line on
standard input, the number of new tokens, it generates once and answers with one line of JSON.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from tests.benchmarks.test_bench_engine import PROMPT


class Stamps(BaseStreamer):
    """When each token came; the first call hands over the prompt."""

    def __init__(self) -> None:
        self.at_s: list[float] = []
        self.tokens: list[int] = []

    def put(self, value) -> None:
        self.at_s.append(time.perf_counter())
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        pass


def with_transformers(system: str, folder: str, dtype: str) -> Iterator[Stamps]:
    """`from_pretrained` and `generate`, with `accelerate` offloaded to disk."""
    with tempfile.TemporaryDirectory() as offload:
        how: dict[str, Any] = {"device_map": {"": "disk"}, "offload_folder": offload}
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), **(how if system == "accelerate" else {})
        )
        inputs = {"input_ids": torch.tensor([PROMPT]), "attention_mask": torch.ones(1, len(PROMPT))}
        for line in sys.stdin:
            count, stamps = int(line), Stamps()
            stamps.at_s.append(time.perf_counter())
            model.generate(
                **inputs, do_sample=False, min_new_tokens=count, max_new_tokens=count,
                streamer=stamps,
            )  # fmt: skip
            del stamps.at_s[1], stamps.tokens[: len(PROMPT)]  # of the prompt
            yield stamps


def with_llamacpp(folder: str, dtype: str, threads: int) -> Iterator[Stamps]:
    """The high-level interface: `Llama` and its `generate`, greedy."""
    import llama_cpp

    # Its cache is float16 by default, which is not float32 arithmetic.
    cache = llama_cpp.GGML_TYPE_F32 if dtype == "float32" else llama_cpp.GGML_TYPE_F16
    llm = llama_cpp.Llama(
        model_path=f"{folder}/model.gguf", n_ctx=2048, n_threads=threads,
        n_threads_batch=threads, type_k=cache, type_v=cache, verbose=False,
    )  # fmt: skip
    for line in sys.stdin:
        count, stamps = int(line), Stamps()
        llm.reset()  # else it would find the prompt of the turn before in its cache
        stamps.at_s.append(time.perf_counter())
        for token in llm.generate(list(PROMPT), temp=0.0):
            stamps.put(torch.tensor(token))
            if len(stamps.tokens) == count:
                break
        yield stamps


def main() -> None:
    system, folder, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    is_llamacpp = system == "llamacpp"
    runs = (
        with_llamacpp(folder, dtype, int(threads))
        if is_llamacpp
        else with_transformers(system, folder, dtype)
    )
    for stamps in runs:
        start_s, first_s, *_, last_s = stamps.at_s
        answer = {
            "ttft_s": first_s - start_s,
            "latency_s": (last_s - first_s) / (len(stamps.tokens) - 1),
            "tokens": stamps.tokens,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
