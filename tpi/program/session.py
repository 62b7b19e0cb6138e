"""One rank's requests: who starts them, and what each cost.

The master takes `go ID` lines and emits tokens; a worker follows the master. Both take a snapshot
of their counters after every step, so that a request's cost splits into the passes up to the first
token and the decode passes after it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from tpi.engine import Engine, Prompt
from tpi.errors import FrameError
from tpi.program.events import CommandReader, EventWriter, Go
from tpi.program.procfs import peak_rss_bytes
from tpi.program.spec import NodeSpec, Request, SystemOptions
from tpi.ranks import Ranks
from tpi.sampling import Sampler
from tpi.trace import Tracer, rows_of

# While there is no request, how often the master looks after its peers.
_WATCH_INTERVAL_S = 0.2


class Lease(Protocol):
    """Who is told whether this rank is at work."""

    busy: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counters of one rank at one moment; times in nanoseconds."""

    disk_bytes: int
    wire_bytes: int
    messages: int
    compute_ns: int
    allreduce_ns: int
    wait_ns: int


class Session:
    """Serves the requests of a spec on one rank."""

    def __init__(
        self,
        spec: NodeSpec,
        options: SystemOptions,
        engine: Engine,
        tracer: Tracer,
        events: EventWriter,
        lease: Lease,
        watch: Callable[[], None],
    ) -> None:
        self._spec = spec
        self._options = options
        self._engine = engine
        self._lease = lease
        self._watch = watch
        self._tracer = tracer
        self._events = events
        self._ranks = Ranks(spec.rank, spec.world_size)
        self._snapshots: list[Snapshot] = []

    def run(self, commands: CommandReader) -> None:
        """Serve until the requests are done (or, on a worker, the master says so)."""
        self._engine.after_step = self._snap
        if not self._ranks.is_master:
            self._snap()
            self._lease.busy = False  # its work is the master's, which has a lease of its own
            self._engine.serve(self._worker_request_ended)
            return
        for _ in self._spec.requests:
            self._lease.busy = False
            go = self._next(commands)
            if go is None:
                break
            self._lease.busy = True
            self._master_request(self._spec.request(go.request_id), go.t_ns)
        self._lease.busy = False
        self._engine.end_session()

    def _next(self, commands: CommandReader) -> Go | None:
        """Wait for a command, and look after the peers meanwhile."""
        while True:
            try:
                return commands.next(_WATCH_INTERVAL_S)
            except TimeoutError:
                self._watch()

    def _master_request(self, request: Request, go_ns: int) -> None:
        prompt = Prompt((request.prompt_ids or (),))
        self._engine.check_fits(prompt, request.new_tokens)
        self._snap()
        self._events.emit("request", t_ns=go_ns, id=request.id)
        num_tokens = 0
        for (token,) in self._tokens(prompt, request):
            self._events.emit("token", id=request.id, token=token)
            num_tokens += 1
        self._engine.end_request(num_tokens - 1)
        self._finish(request, num_tokens - 1)

    def _tokens(self, prompt: Prompt, request: Request) -> Iterator[tuple[int, ...]]:
        options = self._options
        sampler = Sampler(
            temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
            seed=options.seed,
        )  # fmt: skip
        index = self._spec.requests.index(request)
        for tokens in self._engine.generate(prompt, request.new_tokens, sampler, index):
            yield tokens
            if tokens[0] in options.stop_ids:
                return

    def _worker_request_ended(self, index: int, num_decode_steps: int) -> None:
        if not 0 <= index < len(self._spec.requests):
            raise FrameError(
                f"rank 0 ended request {index}, the spec has {len(self._spec.requests)}"
            )
        self._finish(self._spec.requests[index], num_decode_steps)
        self._snap()

    def _snap(self) -> None:
        engine, totals = self._engine, self._tracer.totals_ns
        self._snapshots.append(
            Snapshot(
                engine.disk_bytes, engine.wire_bytes, engine.messages,
                totals["compute"], totals["allreduce"], totals["wait_weights"],
            )
        )  # fmt: skip

    def _finish(self, request: Request, num_decode_steps: int) -> None:
        first, last = self._snapshots[0], self._snapshots[-1]
        if not 0 <= num_decode_steps < len(self._snapshots):
            raise FrameError(
                f"rank 0 counts {num_decode_steps} decode steps, "
                f"here were {len(self._snapshots) - 1} steps"
            )
        mark = self._snapshots[-1 - num_decode_steps]
        self._events.emit(
            "counters",
            id=request.id,
            rank=self._spec.rank,
            steps=len(self._snapshots) - 1,
            disk_bytes=last.disk_bytes - first.disk_bytes,
            disk_bytes_decode=last.disk_bytes - mark.disk_bytes,
            wire_bytes_sent=last.wire_bytes - first.wire_bytes,
            wire_bytes_sent_decode=last.wire_bytes - mark.wire_bytes,
            messages_sent=last.messages - first.messages,
            messages_sent_decode=last.messages - mark.messages,
            compute_s=(last.compute_ns - first.compute_ns) / 1e9,
            allreduce_s=(last.allreduce_ns - first.allreduce_ns) / 1e9,
            wait_weights_s=(last.wait_ns - first.wait_ns) / 1e9,
            rss_hwm=peak_rss_bytes(),
        )
        if self._spec.keep_spans:
            self._write_spans(request)
        self._events.emit("end", id=request.id)
        self._snapshots.clear()

    def _write_spans(self, request: Request) -> None:
        """Write out the spans since the last request; those of a warm-up are forgotten."""
        cut = self._tracer.is_full
        spans = self._tracer.take()
        if not request.warmup:
            self._events.spans(request.id, self._spec.rank, rows_of(spans), cut=cut)
