"""One rank of a gloo group that runs several checkpoints after each other, for tests.

Arguments: a spec (rank, world size, addresses), then dtype and folder in pairs. Prints one line of
JSON for each pair, and first what a known allreduce sent.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers.distributed.configuration_utils import DistributedConfig

from baselines.transformers.collectives import CollectiveClock, sent_bytes
from baselines.transformers.gloo import GlooGroup
from baselines.transformers.loading import greedy, load_model
from tests.checkpoints import NEW_TOKENS, PROMPT_IDS
from tpi.program.spec import load_spec

ALLREDUCE_BYTES = 1 << 20


def main() -> None:
    spec = load_spec(Path(sys.argv[1]))
    group = GlooGroup(spec)
    clock = CollectiveClock()
    before = sent_bytes() or 0
    dist.all_reduce(torch.ones(ALLREDUCE_BYTES // 4))
    dist.barrier()
    say(sent=(sent_bytes() or 0) - before, seconds=clock.tracer.totals_ns["allreduce"] / 1e9)
    for dtype, folder in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        sharing = DistributedConfig(tp_size=spec.world_size)
        model = load_model(Path(folder), dtype, 1, distributed_config=sharing)
        tokens: list[int] = []
        greedy(model, PROMPT_IDS, NEW_TOKENS, tokens.append)
        say(tokens=tokens, bytes=sum(local_bytes(p) for p in model.parameters()))
    dist.barrier()  # the master's store must outlive the others
    group.close(well=False)


def local_bytes(parameter):
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local.numel() * local.element_size()


def say(**fields) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
