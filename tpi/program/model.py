"""What a program serves: a `Model`, and what it counts."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from tpi.program.spec import NodeSpec, Request
from tpi.trace import Tracer


@dataclass(frozen=True, slots=True)
class Spent:
    """What a rank has read and sent since its start; None is what nobody can count."""

    disk_bytes: int = 0
    wire_bytes: int | None = 0
    messages: int | None = 0

    def since(self, start: "Spent", suffix: str = "") -> dict[str, int | None]:
        """The counters of a stretch, by their names in a `counters` event."""
        return {
            f"disk_bytes{suffix}": self.disk_bytes - start.disk_bytes,
            f"wire_bytes_sent{suffix}": _less(self.wire_bytes, start.wire_bytes),
            f"messages_sent{suffix}": _less(self.messages, start.messages),
        }


def _less(later: int | None, earlier: int | None) -> int | None:
    return None if later is None or earlier is None else later - earlier


class Passes(NamedTuple):
    """The forward passes of a request: how many, and what was spent when it had its first token."""

    num_steps: int
    first: Spent


class Model(Protocol):
    """This rank's part of a loaded model."""

    facts: Mapping[str, Any]  # what the `ready` event says about it
    tracer: Tracer  # gets "compute", "allreduce" and "wait_weights"

    def spent(self) -> Spent:
        """The sums so far."""

    def generate(self, request: Request, go_ns: int, on_token: Callable[[int], int]) -> Passes:
        """Do this rank's part of a request that began at `go_ns`.

        `on_token` is called with each id as soon as it is known, and returns its stamp; not on a
        worker that sees no tokens.

        Raises:
            ConfigError: The prompt does not fit the model.
        """

    def follow(self) -> Request | None:
        """On a worker: wait for the master's next request; None when there are no more."""

    def check(self) -> None:
        """Look after the peers; called again and again while there is no request."""


OpenedModel = AbstractContextManager[Model]
# Refuses a spec that cannot work. Entering the context loads the weights; leaving it ends the
# session, which a master tells its workers.
OpenModel = Callable[[NodeSpec], OpenedModel]
