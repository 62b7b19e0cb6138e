"""What a baseline's model is: how it makes tokens, and what it may know of its own costs.

Every baseline has a `Model`. One that knows what it spent is `Costed`, and when, `Traced`; one that
is shared by several ranks is `Shared`: its master announces each request, its workers follow.
`Snapshot` is what kernel and model counted up to a moment; the difference of two makes a request's
counters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from tpi.errors import ConfigError
from tpi.program.procfs import own_number
from tpi.program.spec import Request
from tpi.trace import Tracer


class Model(Protocol):
    """A loaded model that makes tokens greedily. A context manager is left at the end."""

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


@dataclass(frozen=True, slots=True)
class Spent:
    """What a model has spent since its start; None is what nobody can count."""

    wait_weights_s: float = 0.0
    allreduce_s: float = 0.0
    wire_bytes: int | None = 0
    messages: int | None = 0


@runtime_checkable
class Costed(Protocol):
    """A model that knows what it spent; any other has neither waited nor sent."""

    def spent(self) -> Spent:
        """The sums so far."""


@runtime_checkable
class Traced(Protocol):
    """A model that can tell when it waited; any other computes all the time."""

    @property
    def tracer(self) -> Tracer:
        """Gets "wait_weights" and "allreduce"."""


@runtime_checkable
class Shared(Protocol):
    """A model of several ranks."""

    def announce(self, request: Request) -> None:
        """On the master: tell the workers what comes next."""

    def follow(self) -> tuple[str, Sequence[int]] | None:
        """On a worker: wait for the master's next request, its id and prompt; None at the end."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What kernel and model counted so far."""

    disk_bytes: int
    spent: Spent

    @classmethod
    def of(cls, model: Model) -> "Snapshot":
        """Now, of this process and its model."""
        spent = model.spent() if isinstance(model, Costed) else Spent()
        return cls(own_number("io", "read_bytes"), spent)

    def since(self, start: "Snapshot", suffix: str = "") -> dict[str, int | None]:
        """The counters of a stretch, by their names."""
        return {
            f"disk_bytes{suffix}": self.disk_bytes - start.disk_bytes,
            f"wire_bytes_sent{suffix}": _less(self.spent.wire_bytes, start.spent.wire_bytes),
            f"messages_sent{suffix}": _less(self.spent.messages, start.spent.messages),
        }


def _less(later: int | None, earlier: int | None) -> int | None:
    return None if later is None or earlier is None else later - earlier


def refuse_prompt(
    prompt_ids: Sequence[int], new_tokens: int, vocab_size: int, positions: int
) -> None:
    """Refuse what would fail deep inside a library, or silently run past a model's positions.

    Raises:
        ConfigError: No ids, an id outside the vocabulary, or more tokens than positions.
    """
    if not prompt_ids:
        raise ConfigError("the prompt is empty")
    if max(prompt_ids) >= vocab_size:
        raise ConfigError(f"token id {max(prompt_ids)}, the vocabulary has {vocab_size}")
    if len(prompt_ids) + new_tokens > positions:
        raise ConfigError(
            f"{len(prompt_ids)} + {new_tokens} tokens, the model has {positions} positions"
        )
