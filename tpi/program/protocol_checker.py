"""What a system's output must hold, checked line by line as it comes. Pure: no clock, no process.

A program speaks in events (`tpi/program/events.py`): `ready` once; then, for the request that was
asked for and no other, `request` (rank 0), as many tokens as asked (rank 0), `counters`, `spans` if
they are wanted, `end`; stamps never go back. So its output is bounded too: nothing may come twice.
Whoever breaks this is not timed: no number that such a program gives means anything.
"""

from collections import Counter
from collections.abc import Sequence

from tpi.errors import TpiError
from tpi.program.events import Event, EventError, parse_event
from tpi.program.spec import Request
from tpi.ranks import MASTER_RANK

# All events of a rank are kept, so their size is bounded: generous for notes, small per token.
_MAX_BYTES, _MAX_BYTES_PER_TOKEN = 1 << 20, 1 << 10
# And per rank for the spans of one request: `tpi.trace.MAX_SPANS` of them take a third of it.
_MAX_SPAN_BYTES = 48 << 20
_MASTERS = ("request", "token")


class ContractError(TpiError):
    """A program's output is not what it promised; the message opens with its rank."""

    code = "contract"


class Contract:
    """Takes every line of every rank, and knows what has been said so far.

    `requests` may be asked for. `keep_spans` says that spans are wanted, `may_stop` that a request
    may end before it has all its tokens.
    """

    def __init__(
        self, requests: Sequence[Request], *, keep_spans: bool = False, may_stop: bool = False
    ) -> None:
        self._may_stop = may_stop
        self._new_tokens = {request.id: request.new_tokens for request in requests}
        self._traced = {r.id for r in requests if keep_spans and not r.warmup}
        self._max_bytes = _MAX_BYTES + _MAX_BYTES_PER_TOKEN * sum(self._new_tokens.values())
        self._max_bytes += _MAX_SPAN_BYTES * len(self._traced)
        self._request_id = ""
        self._counts: Counter[tuple[int, str, str]] = Counter()
        self._num_bytes: Counter[int] = Counter()
        self._last_ns: dict[int, int] = {}

    def started(self, rank: int, start_ns: int) -> None:
        """Nothing that a rank says can have happened before its start."""
        self._last_ns[rank] = start_ns

    def asked(self, request_id: str) -> None:
        """From now on the master may speak of this request; of none if it is empty."""
        self._request_id = request_id

    def count(self, rank: int, name: str, request_id: str = "") -> int:
        """How often a rank has said this."""
        return self._counts[rank, name, request_id]

    def take(self, rank: int, line: bytes, *, truncated: bool = False) -> Event:
        """Check one line and take note of it.

        Raises:
            ContractError: It breaks the contract.
        """
        try:
            event = self._parse(rank, line, truncated=truncated)
            self._check_order(rank, event)
            if event.name != "error":
                self._check_count(rank, event)
        except EventError as exc:
            raise ContractError(f"rank {rank}: {exc}") from exc
        self._last_ns[rank] = event.t_ns
        self._counts[rank, event.name, event.request_id] += 1
        return event

    def _parse(self, rank: int, line: bytes, *, truncated: bool) -> Event:
        self._num_bytes[rank] += len(line)
        if truncated:
            raise EventError("a line too long for an event")
        if self._num_bytes[rank] > self._max_bytes:
            raise EventError(f"more than {self._max_bytes} bytes on standard output")
        return parse_event(line, rank)

    def _check_order(self, rank: int, event: Event) -> None:
        """When and by whom it may be said."""
        name, request_id = event.name, event.request_id
        if name not in ("ready", "error") and not self._is_running(rank, request_id):
            raise EventError(f"{name} of request {request_id!r}, which is not running")
        if name in _MASTERS and rank != MASTER_RANK:
            raise EventError(f"a {name} from a worker")
        if name == "token" and not self.count(rank, "request", request_id):
            raise EventError(f"request {request_id}: a token before its `request`")
        if name in ("counters", "spans") and event.number("rank") != rank:
            raise EventError(f"{name} of rank {event.number('rank')}")
        if name == "spans" and request_id not in self._traced:
            raise EventError(f"spans of request {request_id!r}, which nobody asked for")
        # An error may be stamped by a thread that stood aside; it ends the program anyway.
        if event.t_ns < self._last_ns.get(rank, 0) and name != "error":
            raise EventError(f"times go backwards, {name} is earlier than what came before it")

    def _is_running(self, rank: int, request_id: str) -> bool:
        """Whether a rank may speak of it: the master of what was asked, workers of any request."""
        known = {self._request_id} if rank == MASTER_RANK else set(self._new_tokens)
        return request_id in known - {""} and not self.count(rank, "end", request_id)

    def _check_count(self, rank: int, event: Event) -> None:
        """How often it may be said, and that nothing is missing at the end of a request."""
        name, request_id = event.name, event.request_id
        found = self.count(rank, name, request_id) + 1
        asked = self._new_tokens[request_id] if name == "token" else 1
        if found > asked and name != "spans":
            text = f"more than the {asked} {name} events" if name == "token" else f"a second {name}"
            raise EventError(f"{text} of request {request_id}" if request_id else text)
        if name == "end":
            self._check_whole(rank, request_id)

    def _check_whole(self, rank: int, request_id: str) -> None:
        expected = {"counters": 1}
        if rank == MASTER_RANK:
            expected = {"token": self._new_tokens[request_id], "request": 1, **expected}
        for name, asked in expected.items():
            found = self.count(rank, name, request_id)
            is_stop = name == "token" and self._may_stop and found > 0
            if found != asked and not is_stop:
                raise EventError(
                    f"request {request_id} ended with {found} {name} events, expected {asked}"
                )
