"""The program side of the contract, for baselines: a spec in, events out.

A baseline supplies `load`, which reads the weights and returns a `Model` (`model.py`); `main` does
the rest: the spec, `go ID` lines, events with their stamps, counters, errors and exit status. Of a
model that several ranks share the master obeys `go ID` lines and the workers follow. Read `main`
first. Standard output carries events only; whatever a library prints goes to standard error.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from baselines.library_model import Model, Shared, Snapshot, Traced
from baselines.library_spans import request_spans
from tpi.errors import EXIT_INTERRUPTED, EXIT_OK, ConfigError, TpiError
from tpi.program.events import CommandReader, EventWriter
from tpi.program.lease import out_of_memory_named
from tpi.program.log import setup_logging
from tpi.program.procfs import peak_rss_bytes
from tpi.program.spec import NodeSpec, Request, load_spec
from tpi.ranks import MASTER_RANK
from tpi.trace import Tracer, rows_of

log = logging.getLogger(__name__)

_EXIT_DEFECT = 1
# An idle rank ends by itself when its input closes; if it does not, this ends it.
_LEASE_GRACE_S = 5.0


Load = Callable[[NodeSpec], Model]


class Lease:
    """Ends the process when whoever started it is gone; if it is idle, not before a grace."""

    def __init__(self, grace_s: float = _LEASE_GRACE_S) -> None:
        self._lost = threading.Event()
        self._is_busy = False
        self._grace_s = grace_s

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While the body runs, losing the lease ends the process at once."""
        self._is_busy = True
        try:
            self.check()
            yield
        finally:
            # After an error too: its event and its exit status matter more than the lease.
            self._is_busy = False

    def lost(self) -> None:
        """Called by the thread that reads standard input, when that closes."""
        self._lost.set()
        if self._is_busy:
            # The main thread may be deep inside a matrix product or a page fault.
            os._exit(EXIT_INTERRUPTED)
        timer = threading.Timer(self._grace_s, os._exit, (EXIT_INTERRUPTED,))
        timer.daemon = True
        timer.start()

    def check(self) -> None:
        """End the process if the lease was lost before it was busy."""
        if self._lost.is_set():
            raise SystemExit(EXIT_INTERRUPTED)


def main(load: Load, argv: Sequence[str] | None = None, *, shared: bool = False) -> int:
    """Serve the requests of the spec that `argv` names; returns the exit status.

    `load` of a `shared` system, one that runs on several devices, returns a `Shared` model.
    """
    arguments = sys.argv[1:] if argv is None else argv
    events = EventWriter.claim_stdout()
    try:
        if len(arguments) != 1:
            raise ConfigError("usage: python -m baselines.SYSTEM SPEC")
        spec = load_spec(Path(arguments[0]))
        _check_devices(spec, shared)
        with out_of_memory_named(spec.rank):
            _serve(spec, load, events)
    except TpiError as exc:
        log.error("%s", exc)  # noqa: TRY400  # a line for people; the trace says nothing to them
        events.error(exc)
        return exc.exit_status
    except (KeyboardInterrupt, BrokenPipeError):
        return EXIT_INTERRUPTED
    except Exception as exc:
        log.exception("a defect of this program")
        events.error(exc)
        return _EXIT_DEFECT
    return EXIT_OK


def _check_devices(spec: NodeSpec, shared: bool) -> None:
    if spec.max_batch != 1 or (spec.world_size != 1 and not shared):
        devices = "" if shared else "on one device "
        raise ConfigError(
            f"{spec.system}: runs {devices}with batch 1, "
            f"got {spec.world_size} devices and batch {spec.max_batch}"
        )


def _serve(spec: NodeSpec, load: Load, events: EventWriter) -> None:
    setup_logging(spec.rank)
    # SIGTERM ends it even inside a long call, which a Python handler would wait for.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    lease = Lease(_LEASE_GRACE_S * spec.time_scale)
    commands = CommandReader(on_lease_lost=lease.lost).start()
    with lease.busy():
        model = load(spec)
    if spec.keep_spans and isinstance(model, Traced):
        model.tracer.keep = True
    is_master = spec.rank == MASTER_RANK
    with model if isinstance(model, AbstractContextManager) else nullcontext():
        events.emit("ready", verify_s=0.0, **model.facts)
        for request, go_ns in _asked(spec, commands) if is_master else _followed(spec, model):
            with lease.busy():
                _serve_request(spec, request, go_ns, model, events)
            # Idle before `end`: whoever reads that may close our input at once, and we end well.
            events.emit("end", id=request.id)


def _asked(spec: NodeSpec, commands: CommandReader) -> Iterator[tuple[Request, int]]:
    """What standard input asks for, and when that came."""
    for _ in spec.requests:
        go = commands.next()
        if go is None:
            return
        yield spec.request(go.request_id), go.t_ns


def _followed(spec: NodeSpec, model: Model) -> Iterator[tuple[Request, int]]:
    """What the master has begun, and when we heard of it."""
    if not isinstance(model, Shared):
        raise ConfigError(f"{spec.system}: has no workers, got rank {spec.rank}")
    while (begun := model.follow()) is not None:
        request_id, prompt_ids = begun
        request = replace(spec.request(request_id), prompt_ids=tuple(prompt_ids))
        yield request, time.monotonic_ns()


@dataclass(slots=True)
class _Progress:
    """Where one request stands: snapshots before it and at its first token, last stamp."""

    last_ns: int
    marks: list[Snapshot] = field(default_factory=list)
    token_ns: list[int] = field(default_factory=list)


def _serve_request(
    spec: NodeSpec, request: Request, go_ns: int, model: Model, events: EventWriter
) -> None:
    progress = _Progress(go_ns, [Snapshot.of(model)])
    is_master = spec.rank == MASTER_RANK
    if is_master:
        events.emit("request", t_ns=go_ns, id=request.id)
        if isinstance(model, Shared):
            model.announce(request)

    def on_token(token: int) -> None:
        progress.last_ns = time.monotonic_ns()
        progress.token_ns.append(progress.last_ns)
        if is_master:
            events.emit("token", t_ns=progress.last_ns, id=request.id, token=token)
        if len(progress.marks) == 1:
            progress.marks.append(Snapshot.of(model))

    model.generate(request.prompt_ids or (), request.new_tokens, on_token)
    last = Snapshot.of(model)
    first = progress.marks[0]
    wait_s = last.spent.wait_weights_s - first.spent.wait_weights_s
    allreduce_s = last.spent.allreduce_s - first.spent.allreduce_s
    events.emit(
        "counters",
        id=request.id,
        rank=spec.rank,
        steps=request.new_tokens,
        **last.since(first),
        **last.since(progress.marks[-1], "_decode"),
        compute_s=max(0.0, (progress.last_ns - go_ns) / 1e9 - wait_s - allreduce_s),
        allreduce_s=allreduce_s,
        wait_weights_s=wait_s,
        rss_hwm=peak_rss_bytes(),
    )
    if spec.keep_spans:
        _write_spans(spec.rank, request, go_ns, progress.token_ns, model, events)


def _write_spans(
    rank: int,
    request: Request,
    go_ns: int,
    token_ns: Sequence[int],
    model: Model,
    events: EventWriter,
) -> None:
    tracer = model.tracer if isinstance(model, Traced) else Tracer()
    cut, seen = tracer.is_full, tracer.take()
    if cut:  # of what came later nothing is known
        token_ns = [at_ns for at_ns in token_ns if at_ns <= seen[-1].end_ns]
    spans = request_spans(seen, go_ns, token_ns)
    if not request.warmup:
        events.spans(request.id, rank, rows_of(spans), cut=cut)
