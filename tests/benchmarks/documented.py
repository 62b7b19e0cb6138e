"""The example of a library's documentation, timed: what a person writes who has only read that.

Arguments: "transformers" or "accelerate", folder, dtype, threads. For each line on standard input,
the number of new tokens, it generates once and answers with one line of JSON.
"""

import json
import sys
import tempfile
import time
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


def main() -> None:
    system, folder, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    with tempfile.TemporaryDirectory() as offload:
        how: dict[str, Any] = {"device_map": {"": "disk"}, "offload_folder": offload}
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), **(how if system == "accelerate" else {})
        )
        inputs = {"input_ids": torch.tensor([PROMPT]), "attention_mask": torch.ones(1, len(PROMPT))}
        for line in sys.stdin:
            count, stamps = int(line), Stamps()
            start_s = time.perf_counter()
            model.generate(
                **inputs, do_sample=False, min_new_tokens=count, max_new_tokens=count,
                streamer=stamps,
            )  # fmt: skip
            first_s, last_s = stamps.at_s[1], stamps.at_s[-1]
            answer = {
                "ttft_s": first_s - start_s,
                "latency_s": (last_s - first_s) / (count - 1),
                "tokens": stamps.tokens[len(PROMPT) :],
            }
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
