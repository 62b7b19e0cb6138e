"""Transformers' own tensor parallelism over gloo: `-m baselines.transformers.program_tp SPEC`.

It needs no other software: `from_pretrained` with `DistributedConfig(tp_size=N)`, one process a
device, then `generate` on all of them. Each rank reads its slices of the checkpoint and
keeps them; the embedding and the LM head are split too, and every rank has the prompt and picks
the tokens. It has no options. `problems` says what it cannot do; it needs neither torch
nor Transformers.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from baselines.library_program import LibraryModel, main
from baselines.options import SystemOptions
from tpi.errors import EXIT_OK, ConfigError
from tpi.model_config import ModelConfig, load_config
from tpi.program.spec import NodeSpec, Request, own_options

if TYPE_CHECKING:
    from baselines.transformers.collectives import CollectiveClock
    from baselines.transformers.gloo import GlooGroup
    from baselines.transformers.loading import Generator


class TransformersTpOptions(SystemOptions, frozen=True, kw_only=True):
    """None."""


_NOTE = "messages are not counted: gloo does not tell; bytes are those of all TCP connections"


def problems(model: ModelConfig, world_size: int) -> list[str]:
    """Everything that keeps this model from being shared by so many devices.

    Found by trying: FFN and vocabulary may be cut unevenly, heads may not; both dtypes work.
    """
    heads = {"attention heads": model.num_heads, "key-value heads": model.num_kv_heads}
    return [
        f"{world_size} devices do not divide the model's {count} {name} evenly; "
        f"use a number of devices that does"
        for name, count in heads.items()
        if count % world_size
    ]


class TensorParallelModel(LibraryModel):
    """This rank's share of the model, and the group of those who have the rest."""

    def __init__(self, model: "Generator", group: "GlooGroup", clock: "CollectiveClock") -> None:
        self._model = model
        self._group = group
        self.tracer = clock.tracer
        self.facts: Mapping[str, Any] = {**model.facts, "notes": [_NOTE]}

    def generate(
        self, prompt_ids: Sequence[int], new_tokens: int, on_token: Callable[[int], None]
    ) -> None:
        """Call `on_token` with each new id; all ranks must do so at the same time."""
        with self._group.peers_named("a request"):
            self._model.generate(prompt_ids, new_tokens, on_token)

    def sent(self) -> tuple[int | None, None]:
        """Bytes sent so far; nobody counts messages."""
        from baselines.transformers.collectives import sent_bytes

        return sent_bytes(), None

    def announce(self, request: Request) -> None:
        """On the master: tell the workers what comes next."""
        self._group.announce(request)

    def follow(self) -> tuple[str, Sequence[int]] | None:
        """On a worker: wait for the master's next request."""
        return self._group.follow()

    def __exit__(self, *exc_info: object) -> None:
        self._group.close(well=exc_info[0] is None)


def load(spec: NodeSpec) -> LibraryModel:
    """Join the others, then load this rank's share; one device alone is plain Transformers.

    Raises:
        ConfigError: So many devices cannot share this model.
    """
    own_options(spec, TransformersTpOptions)
    for problem in problems(load_config(spec.model_dir), spec.world_size):
        raise ConfigError(f"transformers-tp: {problem}")
    # Only here: a wrong spec is refused before the library's seconds of import.
    from baselines.transformers.loading import Generator, load_model

    if spec.world_size == 1:
        return Generator(load_model(spec.model_dir, spec.compute.dtype, spec.threads))
    from transformers.distributed.configuration_utils import DistributedConfig

    from baselines.transformers.collectives import CollectiveClock
    from baselines.transformers.gloo import GlooGroup

    group = GlooGroup(spec)
    clock = CollectiveClock()
    sharing = DistributedConfig(tp_size=spec.world_size)
    with group.peers_named("the load"):
        model = load_model(
            spec.model_dir, spec.compute.dtype, spec.threads, distributed_config=sharing
        )
    return TensorParallelModel(Generator(model), group, clock)


if __name__ == "__main__":
    status = main(load, shared=True)
    if status != EXIT_OK:
        # Once a peer is gone, gloo's threads may abort the interpreter while it ends.
        sys.stderr.flush()
        os._exit(status)
