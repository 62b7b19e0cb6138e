"""The program side of the contract, for baselines that run on one device.

A baseline supplies `load`, which reads the weights and returns a `Model`; `main` does the rest:
the spec, `go ID` lines, events with their stamps, counters, errors and exit status. Read `main`
first. Standard output carries events only; whatever a library prints goes to standard error.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tpi.errors import EXIT_INTERRUPTED, EXIT_OK, ConfigError, ResourceError, TpiError
from tpi.events import CommandReader, EventWriter, Go
from tpi.log import setup_logging
from tpi.procfs import own_number, peak_rss_bytes
from tpi.spec import NodeSpec, load_spec

log = logging.getLogger(__name__)

_EXIT_DEFECT = 1


class Model(Protocol):
    """A loaded model that makes tokens greedily."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the `ready` event says about it."""

    def generate(
        self, prompt_ids: Sequence[int], new_tokens: int, on_token: Callable[[int], None]
    ) -> None:
        """Call `on_token` with each of exactly `new_tokens` ids as soon as it is known.

        Raises:
            ConfigError: The prompt does not fit the model.
        """


Load = Callable[[NodeSpec], Model]


@dataclass(frozen=True, slots=True)
class _Counters:
    """What the kernel counted for this process so far, in bytes."""

    disk_bytes: int
    rss_hwm: int

    @classmethod
    def now(cls) -> "_Counters":
        return cls(
            disk_bytes=own_number("io", "read_bytes"),
            rss_hwm=peak_rss_bytes(),
        )


class Lease:
    """Ends the process when whoever started it is gone, unless it is idle and ends by itself."""

    def __init__(self) -> None:
        self._lost = threading.Event()
        self._is_busy = False

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

    def check(self) -> None:
        """End the process if the lease was lost before it was busy."""
        if self._lost.is_set():
            raise SystemExit(EXIT_INTERRUPTED)


def main(load: Load, argv: Sequence[str] | None = None) -> int:
    """Serve the requests of the spec that `argv` names; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    events = EventWriter.claim_stdout()
    try:
        if len(arguments) != 1:
            raise ConfigError("usage: python -m baselines.SYSTEM SPEC")
        _serve(load_spec(Path(arguments[0])), load, events)
    except TpiError as exc:
        log.error("%s", exc)  # noqa: TRY400  # a line for people; the trace says nothing to them
        events.error(exc)
        return exc.exit_status
    except MemoryError as exc:
        error = ResourceError(f"out of memory: {exc}")
        events.error(error)
        return error.exit_status
    except (KeyboardInterrupt, BrokenPipeError):
        return EXIT_INTERRUPTED
    except Exception as exc:
        log.exception("a defect of this program")
        events.error(exc)
        return _EXIT_DEFECT
    return EXIT_OK


def _serve(spec: NodeSpec, load: Load, events: EventWriter) -> None:
    setup_logging(spec.rank)
    # SIGTERM ends it even inside a long call, which a Python handler would wait for.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if spec.world_size != 1 or spec.max_batch != 1:
        raise ConfigError(f"{spec.system}: runs on one device with batch 1")
    lease = Lease()
    commands = CommandReader(on_lease_lost=lease.lost).start()
    with lease.busy():
        model = load(spec)
    events.emit("ready", verify_s=0.0, **model.facts)
    for _ in spec.requests:
        go = commands.next()
        if go is None:
            return
        with lease.busy():
            _serve_request(spec, go, model, events)
        # Idle before `end`: whoever reads that may close our input at once, and we end well then.
        events.emit("end", id=go.request_id)


def _serve_request(spec: NodeSpec, go: Go, model: Model, events: EventWriter) -> None:
    request = spec.request(go.request_id)
    marks = [_Counters.now()]
    events.emit("request", t_ns=go.t_ns, id=request.id)

    def on_token(token: int) -> None:
        events.emit("token", id=request.id, token=token)
        if len(marks) == 1:
            marks.append(_Counters.now())

    model.generate(request.prompt_ids or (), request.new_tokens, on_token)
    last = _Counters.now()
    events.emit(
        "counters",
        id=request.id,
        rank=spec.rank,
        steps=request.new_tokens,
        disk_bytes=last.disk_bytes - marks[0].disk_bytes,
        disk_bytes_decode=last.disk_bytes - marks[-1].disk_bytes,
        wire_bytes_sent=0,
        wire_bytes_sent_decode=0,
        messages_sent=0,
        messages_sent_decode=0,
        rss_hwm=last.rss_hwm,
    )
