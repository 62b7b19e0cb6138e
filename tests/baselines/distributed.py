"""What the tests of distributed baselines share: shards made once, and the checks of tokens."""

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.checkpoints import (
    NEW_TOKENS,
    PROMPT_IDS,
    make_checkpoint,
    reference_logits,
    shared_checkpoint,
)
from tests.nodes import Nodes
from tests.test_processes import shortfalls
from tpi.weights.checkpoint import open_checkpoint
from tpi.weights.shard import make_shard_plan
from tpi.weights.split import split


@contextmanager
def splitter(num_layers: int = 3) -> Iterator[Callable[..., tuple[Path, Path]]]:
    """A function from kind, world size and shares to a checkpoint and its shards."""
    root = Path(tempfile.mkdtemp(prefix="tpi-test-split-"))

    @functools.cache
    def checkpoint(kind: str) -> Path:
        if num_layers == 3:
            return shared_checkpoint(kind)
        return make_checkpoint(root / kind, kind, num_hidden_layers=num_layers)

    @functools.cache
    def make(kind: str, world_size: int, shares=None) -> tuple[Path, Path]:
        source = open_checkpoint(checkpoint(kind))
        out = root / f"{kind}-{world_size}-{shares}"
        split(source, make_shard_plan(source.config, world_size, shares), out)
        return checkpoint(kind), out

    yield make
    shutil.rmtree(root)


def check_logits(result, folder: Path) -> None:
    """Largest logit error within 1e-4 of the largest logit, over all steps."""
    expected_SV = reference_logits(folder, [*PROMPT_IDS, *result.row()[:-1]])
    got_SV = torch.cat(result.logits)
    expected_SV = expected_SV[len(PROMPT_IDS) - 1 :]
    assert (got_SV - expected_SV).abs().max() <= 1e-4 * expected_SV.abs().max()


def check_bounded(tokens: list[int], folder: Path) -> None:
    """No reference logit of a token lies further below the largest than bfloat16 explains."""
    ids = [*PROMPT_IDS, *tokens[:-1]]
    logits_SV = reference_logits(folder, ids)[len(PROMPT_IDS) - 1 :]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        rounded_SV = model(torch.tensor([ids])).logits[0, len(PROMPT_IDS) - 1 :].float()
    allowed = 2 * float((rounded_SV - logits_SV).abs().max())
    assert len(tokens) == NEW_TOKENS
    assert max(shortfalls(logits_SV, tokens)) <= allowed
    # The bound means something: the same tokens in another order break it nearly everywhere.
    moved = shortfalls(logits_SV, tokens[1:] + tokens[:1])
    assert sum(s > allowed for s in moved) > len(tokens) // 2


def run_request(specs, tmp_path: Path, module: str) -> Nodes:
    """One request on real processes of a baseline, to a good end."""
    nodes = Nodes(specs, tmp_path, module)
    with nodes:
        nodes.wait_for("ready", ranks=range(len(specs)))
        nodes.go("r0")
        nodes.wait_for("end", ranks=range(len(specs)))
        assert nodes.exit_codes(range(len(specs))) == [0] * len(specs)
    return nodes
