"""All ranks of a cluster as threads of this process, over memory channels."""

import threading
from dataclasses import replace
from pathlib import Path

from tpi.comm.memory import MemoryMesh
from tpi.engine import Prompt
from tpi.errors import TpiError
from tpi.node import EngineOptions, open_engine
from tpi.sampling import Sampler
from tpi.trace import Tracer
from tpi.weights.blockfile import open_shard_folder


class Result:
    """Tokens by step (a tuple of one token a sequence), logits by step, disk bytes by rank."""

    def __init__(self, world_size):
        self.tokens = []
        self.logits = []
        self.disk_bytes = [0] * world_size
        self.errors: list[TpiError | None] = [None] * world_size

    def row(self, index=0):
        return [step[index] for step in self.tokens]


class _Recorder(Sampler):
    def __init__(self, result):
        super().__init__()
        self._result = result

    def pick(self, logits_BV):
        self._result.logits.append(logits_BV.clone())
        return super().pick(logits_BV)


def _lead(engine, prompts, new_tokens, requests, result):
    prompt = Prompt(tuple(tuple(p) for p in prompts))
    for index in range(requests):
        result.tokens.clear()
        result.tokens += engine.generate(prompt, new_tokens, _Recorder(result), index)
        engine.end_request(new_tokens - 1)
    engine.end_session()


def run_cluster(
    shards: Path, prompts, new_tokens: int, *, requests=1, manifests=None, **options
) -> Result:
    """Generate greedily on all ranks of a split folder; raises the master's error."""
    prompts = [prompts] if isinstance(prompts[0], int) else prompts
    if manifests is None:
        world_size = len(list(shards.glob("rank-*/manifest.json")))
        manifests = [
            open_shard_folder(shards / f"rank-{r}", verify=False) for r in range(world_size)
        ]
    longest = max(map(len, prompts))
    engine_options = replace(
        EngineOptions(max_batch=len(prompts), max_tokens=longest + new_tokens, poison=True),
        **options,
    )
    result = Result(len(manifests))

    def serve(rank, mesh):
        try:
            with mesh, open_engine(manifests[rank], mesh, engine_options, Tracer()) as parts:
                engine = parts[0]
                if rank == 0:
                    _lead(engine, prompts, new_tokens, requests, result)
                else:
                    engine.serve(lambda _request, _steps: None)
                result.disk_bytes[rank] = engine.disk_bytes
        except TpiError as exc:
            result.errors[rank] = exc

    meshes = MemoryMesh.group(len(manifests))
    threads = [
        threading.Thread(target=serve, args=(r, mesh)) for r, mesh in enumerate(meshes[1:], 1)
    ]
    for thread in threads:
        thread.start()
    serve(0, meshes[0])
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    for error in result.errors:
        if error is not None:
            raise error
    return result
