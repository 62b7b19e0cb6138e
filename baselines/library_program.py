"""The program of a system that is a library's model: `main` serves what `load` returns.

A `LibraryModel` makes tokens; a subclass that counts, waits or is shared by several ranks overrides
the methods for it. `_Hosted` makes the host's `Model` (`tpi/program/model.py`) of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from msgspec.structs import replace

from tpi.errors import ConfigError
from tpi.program import host
from tpi.program.model import Model, OpenedModel, Passes, Spent
from tpi.program.procfs import own_number
from tpi.program.spec import NodeSpec, Request
from tpi.ranks import MASTER_RANK
from tpi.trace import Span, Tracer


class LibraryModel:
    """A loaded model that makes tokens greedily, alone unless it says more.

    Attributes:
        facts: What the `ready` event says about it.
        tracer: Gets "wait_weights" and "allreduce"; in all other time it computes.
    """

    facts: Mapping[str, Any]
    tracer: Tracer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Give back what it holds; called at the end."""

    def generate(
        self, prompt_ids: Sequence[int], new_tokens: int, on_token: Callable[[int], None]
    ) -> None:
        """Call `on_token` with each of exactly `new_tokens` ids as soon as it is known.

        Raises:
            ConfigError: The prompt does not fit the model.
        """
        raise NotImplementedError

    def sent(self) -> tuple[int | None, int | None]:
        """Bytes and messages so far; None is what nobody can count."""
        return 0, 0

    def announce(self, request: Request) -> None:
        """On the master: tell the workers what comes next."""

    def follow(self) -> tuple[str, Sequence[int]] | None:
        """On a worker: wait for the master's next request, its id and prompt; None at the end."""
        raise ConfigError("it has no workers")


Load = Callable[[NodeSpec], LibraryModel]


def main(load: Load, argv: Sequence[str] | None = None, *, shared: bool = False) -> int:
    """Serve the requests of the spec that `argv` names; `shared` models run on several devices."""

    def open_model(spec: NodeSpec) -> OpenedModel:
        if spec.compute.max_batch != 1 or (spec.world_size != 1 and not shared):
            devices = "" if shared else "on one device "
            raise ConfigError(
                f"{spec.system}: runs {devices}with batch 1, "
                f"got {spec.world_size} devices and batch {spec.compute.max_batch}"
            )
        return _loaded(spec, load)

    return host.main(open_model, argv, at_once=True)


@contextmanager
def _loaded(spec: NodeSpec, load: Load) -> Iterator[Model]:
    with load(spec) as model:
        yield _Hosted(spec, model)


class _Hosted:
    """A library's model as the host's: what it does not count itself is counted around it."""

    def __init__(self, spec: NodeSpec, model: LibraryModel) -> None:
        self.facts: Mapping[str, Any] = {"verify_s": 0.0, **model.facts}
        self.tracer = getattr(model, "tracer", None) or Tracer()
        self.tracer.keep = spec.keep_spans
        self._spec = spec
        self._model = model

    def spent(self) -> Spent:
        """Bytes that the kernel read from disk for this process, and what the model sent."""
        return Spent(own_number("io", "read_bytes"), *self._model.sent())

    def generate(self, request: Request, go_ns: int, on_token: Callable[[int], int]) -> Passes:
        """Have the library generate; from `go` to the last token it computes unless it waits."""
        if self._spec.rank == MASTER_RANK:
            self._model.announce(request)
        token_ns: list[int] = []
        first = [self.spent()]
        waited_ns = self._waited_ns()

        def count(token: int) -> None:
            token_ns.append(on_token(token))
            if len(token_ns) == 1:
                first.append(self.spent())

        self._model.generate(request.prompt_ids or (), request.new_tokens, count)
        tracer, end_ns = self.tracer, token_ns[-1] if token_ns else go_ns
        compute_ns = end_ns - go_ns - (self._waited_ns() - waited_ns)
        tracer.totals_ns["compute"] += max(0, compute_ns)
        if tracer.keep:
            # Nothing is known of the time after the last span that was kept.
            known_ns = tracer.spans[-1].end_ns if tracer.is_full else end_ns
            known = [at_ns for at_ns in token_ns if at_ns <= known_ns]
            tracer.spans[:] = request_spans(tracer.spans, go_ns, known)
        return Passes(request.new_tokens, first[-1])

    def _waited_ns(self) -> int:
        return self.tracer.totals_ns["wait_weights"] + self.tracer.totals_ns["allreduce"]

    def follow(self) -> Request | None:
        """Wait for what the master announces."""
        begun = self._model.follow()
        if begun is None:
            return None
        request_id, prompt_ids = begun
        return replace(self._spec.request(request_id), prompt_ids=tuple(prompt_ids))

    def check(self) -> None:
        """A library's peers are found lost when they are needed."""


def request_spans(seen: Sequence[Span], go_ns: int, token_ns: Sequence[int]) -> list[Span]:
    """Everything from `go` to the last token, in order: what was `seen`, and computing between.

    The spans that were seen do not overlap and are in order.
    """
    spans: list[Span] = []
    kind, layer, now_ns = "", 0, go_ns
    end_ns = token_ns[-1] if token_ns else go_ns
    cuts = [(at_ns, None) for at_ns in token_ns]
    inside = [(s.start_ns, s) for s in seen if s.end_ns <= end_ns]
    moments: list[tuple[int, Span | None]] = [*cuts, *inside]
    for at_ns, span in sorted(moments, key=lambda moment: moment[0]):
        if at_ns < now_ns:  # before the request
            continue
        if at_ns > now_ns:
            spans.append(Span("compute", now_ns, at_ns, kind, layer))
        now_ns = at_ns
        if span is not None:
            spans.append(span)
            kind, layer, now_ns = span.kind, span.layer, span.end_ns
    return spans


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
