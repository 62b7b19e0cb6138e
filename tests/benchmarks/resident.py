"""One turn ours, one turn Transformers, one read of memory: medians as JSON, for the benchmark.

Arguments: dtype, folder with `hf` and `shards`, turns. One thread, as the environment says.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from baselines.transformers.loading import greedy, load_model
from tests.benchmarks.test_bench_engine import PROMPT, decode, device
from tpi.weights.blockfile import open_shard_folder

NEW_TOKENS = 9


def main() -> None:
    dtype, folder, turns = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    theirs = load_model(folder / "hf", dtype, threads=1)
    plain = torch.empty(1 << 28).fill_(1.0)  # 1 GiB
    seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "read_1_gib": []}
    manifest = open_shard_folder(folder / "shards" / "rank-0", verify=False)
    with device(manifest, dtype=dtype, window=None) as engine:
        for _ in range(turns + 1):
            _, ours_s, tokens = decode(engine, NEW_TOKENS)
            stamps: list[float] = []
            made: list[int] = []

            def on_token(token: int, stamps=stamps, made=made) -> None:
                stamps.append(time.perf_counter())
                made.append(token)

            greedy(theirs, list(PROMPT), NEW_TOKENS, on_token)
            start = time.perf_counter()
            plain.sum()
            seconds["read_1_gib"].append(time.perf_counter() - start)
            if dtype == "float32" and made != tokens:
                sys.exit(f"other tokens than Transformers: {tokens}, {made}")
            seconds["ours"].append(ours_s)
            seconds["theirs"].append((stamps[-1] - stamps[0]) / (NEW_TOKENS - 1))
    # The first turn warms up.
    result = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
