"""All ranks of a cluster as threads of this process, over memory channels."""

import threading
from pathlib import Path

from tests.loopback import MemoryMesh
from tpi.build_engine import open_engine
from tpi.engine import Prompt
from tpi.errors import TpiError
from tpi.options import ComputeOptions
from tpi.sampling import Sampler
from tpi.trace import Tracer
from tpi.weights.blockfile import open_shard_folder


class Result:
    """Tokens by step (a tuple of one token a sequence), logits by step, disk bytes by rank.

    `sent` has by rank, for every pass, messages and bytes sent in it.
    """

    def __init__(self, world_size):
        self.tokens = []
        self.logits = []
        self.sent: list[list[tuple[int, int]]] = [[] for _ in range(world_size)]
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


def _record_sent(engine, sent):
    """After every pass, note what was sent in it."""
    before = (0, 0)

    def after_step():
        nonlocal before
        now = (engine.counters.messages_sent, engine.counters.bytes_sent)
        sent.append((now[0] - before[0], now[1] - before[1]))
        before = now

    engine.after_step = after_step


def run_cluster(
    shards: Path, prompts, new_tokens: int, *, requests=1, manifests=None, **options
) -> Result:
    """Generate greedily on all ranks of a split folder; raises the master's error."""
    if manifests is None:
        world_size = len(list(shards.glob("rank-*/manifest.json")))
        manifests = [
            open_shard_folder(shards / f"rank-{r}", verify=False) for r in range(world_size)
        ]
    settings = cluster_options(prompts, new_tokens, **options)

    def open_rank(rank, mesh, tracer):
        return open_engine(manifests[rank], mesh, settings, tracer, poison=True)

    return run_engines(len(manifests), open_rank, prompts, new_tokens, requests=requests)


def cluster_options(prompts, new_tokens: int, **options) -> ComputeOptions:
    """Room for the prompts and their answers."""
    prompts = [prompts] if isinstance(prompts[0], int) else prompts
    limits = {"max_batch": len(prompts), "max_tokens": max(map(len, prompts)) + new_tokens}
    return ComputeOptions(**(limits | options))


def run_engines(
    world_size: int, open_rank, prompts, new_tokens: int, *, requests=1, meshes=None
) -> Result:
    """Generate greedily on all ranks, each opened by `open_rank(rank, mesh, tracer)`."""
    prompts = [prompts] if isinstance(prompts[0], int) else prompts
    result = Result(world_size)
    meshes = meshes or MemoryMesh.group(world_size)

    def serve(rank, mesh):
        try:
            with mesh, open_rank(rank, mesh, Tracer()) as parts:
                engine = parts[0]
                _record_sent(engine, result.sent[rank])
                if rank == 0:
                    _lead(engine, prompts, new_tokens, requests, result)
                else:
                    while engine.follow() is not None:
                        engine.take_part()
                result.disk_bytes[rank] = engine.disk_bytes
        except TpiError as exc:
            result.errors[rank] = exc

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
