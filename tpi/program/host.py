"""The program of one rank, whatever its system: a spec in, events out.

A system supplies a function that opens its `Model` (`model.py`); `main` does the rest: the spec,
`go ID` lines, events with their stamps, counters, spans, errors and the exit status. The master
obeys its standard input, workers follow the master. Nothing here needs torch, so that the spec's
number of threads is known before torch is loaded.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tpi.errors import EXIT_INTERRUPTED, EXIT_OK, ConfigError, TpiError
from tpi.program.events import CommandReader, EventWriter
from tpi.program.lease import (
    InterruptedByUser,
    Lease,
    ends_at_once,
    ends_by_exception,
    out_of_memory_named,
)
from tpi.program.model import Model, OpenModel
from tpi.program.procfs import peak_rss_bytes
from tpi.program.spec import NodeSpec, Request, load_spec
from tpi.ranks import MASTER_RANK
from tpi.trace import rows_of

log = logging.getLogger(__name__)

_EXIT_DEFECT = 1
# An idle rank ends by itself when its input closes; if it does not, its lease ends it.
_LEASE_GRACE_S = 5.0
# While there is no request, how often the master looks after its peers.
_WATCH_INTERVAL_S = 0.2


def main(open_model: OpenModel, argv: Sequence[str] | None = None, *, at_once: bool = False) -> int:
    """Serve the one spec that `argv` names; returns the exit status. See `serve`."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if len(arguments) != 1:
            raise ConfigError("expected one argument, the path of a spec.json")
        spec = open_spec(Path(arguments[0]))
    except TpiError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_status
    return serve(spec, open_model, at_once=at_once)


def open_spec(path: Path) -> NodeSpec:
    """Read a spec, and tell thread pools that are loaded later how many threads to have.

    Raises:
        ConfigError: The spec cannot be used.
    """
    spec = load_spec(path)
    # The pools read these once, when torch and numpy are loaded.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(spec.threads)
    return spec


def serve(spec: NodeSpec, open_model: OpenModel, *, at_once: bool = False) -> int:
    """Serve one rank as its spec says; returns the exit status.

    `at_once` is for models whose long calls a signal's exception would have to wait for.
    """
    _setup_logging(spec.rank)
    # Standard output carries events only; whatever a library prints goes to standard error.
    events = EventWriter.claim_stdout()
    try:
        with ends_at_once() if at_once else ends_by_exception() as end:
            lease = Lease(_LEASE_GRACE_S * spec.time_scale, end)
            with out_of_memory_named(spec.rank):
                _serve(spec, open_model, events, lease)
    except TpiError as exc:
        log.error("%s", exc)  # noqa: TRY400  # a line for people; the trace says nothing to them
        return _report(events, exc, exc.exit_status)
    except (InterruptedByUser, KeyboardInterrupt, BrokenPipeError) as exc:
        log.info("interrupted: %s", exc)
        return EXIT_INTERRUPTED
    except Exception as exc:
        log.exception("a defect of this program")
        return _report(events, exc, _EXIT_DEFECT)
    return EXIT_OK


def _setup_logging(rank: int) -> None:
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s rank={rank} %(name)s: %(message)s",
        force=True,
    )


def _report(events: EventWriter, error: Exception, status: int) -> int:
    with suppress(BrokenPipeError):  # nobody listens any more
        events.error(error)
    return status


def _serve(spec: NodeSpec, open_model: OpenModel, events: EventWriter, lease: Lease) -> None:
    opened = open_model(spec)  # what a system refuses, it refuses before anything is started
    commands = CommandReader(on_lease_lost=lease.lost).start()
    with ExitStack() as stack:
        with lease.busy():
            model = stack.enter_context(opened)
        events.emit("ready", **model.facts)
        # A worker follows: a request begins when it hears that the master has begun it.
        followed = ((begun, time.monotonic_ns()) for begun in iter(model.follow, None))
        is_master = spec.rank == MASTER_RANK
        for request, go_ns in _asked(spec, commands, model) if is_master else followed:
            with lease.busy():
                _serve_request(spec, request, go_ns, model, events)
            # Idle before `end`: whoever reads that may close our input at once, and we end well.
            events.emit("end", id=request.id)


def _asked(spec: NodeSpec, commands: CommandReader, model: Model) -> Iterator[tuple[Request, int]]:
    """What standard input asks for, and when that came."""
    num_left = len(spec.requests)
    while num_left:
        try:
            go = commands.next(_WATCH_INTERVAL_S)
        except TimeoutError:
            model.check()
            continue
        if go is None:
            return
        yield spec.request(go.request_id), go.t_ns
        num_left -= 1


def _serve_request(
    spec: NodeSpec, request: Request, go_ns: int, model: Model, events: EventWriter
) -> None:
    is_master = spec.rank == MASTER_RANK

    def on_token(token: int) -> int:
        stamp_ns = time.monotonic_ns()
        if is_master:
            events.emit("token", t_ns=stamp_ns, id=request.id, token=token)
        return stamp_ns

    start, start_ns = model.spent(), _times_ns(model)
    if is_master:
        events.emit("request", t_ns=go_ns, id=request.id)
    passes = model.generate(request, go_ns, on_token)
    last, times_ns = model.spent(), zip(start_ns, _times_ns(model), strict=True)
    compute_s, allreduce_s, wait_s = ((after - before) / 1e9 for before, after in times_ns)
    events.emit(
        "counters",
        id=request.id,
        rank=spec.rank,
        steps=passes.num_steps,
        **last.since(start),
        **last.since(passes.first, "_decode"),
        compute_s=compute_s,
        allreduce_s=allreduce_s,
        wait_weights_s=wait_s,
        rss_hwm=peak_rss_bytes(),
    )
    if spec.keep_spans:
        cut, spans = model.tracer.is_full, model.tracer.take()
        if not request.warmup:  # the spans of a warm-up are forgotten
            events.spans(request.id, spec.rank, rows_of(spans), cut=cut)


def _times_ns(model: Model) -> list[int]:
    return [model.tracer.totals_ns[name] for name in ("compute", "allreduce", "wait_weights")]
