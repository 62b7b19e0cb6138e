"""One rank's part in a generation: the master's loop and the worker's loop.

The master embeds the tokens of a step, broadcasts the hidden state, walks the layers like every
other rank, applies the LM head and picks the next token. A worker waits for a broadcast, walks the
layers, and waits again: it never sees a token id. The way down to the wire is `Engine.generate` ->
`step` -> `_forward` -> `Llama.forward` -> `AllReduce.all_reduce` -> `transfer`. An engine that
walks the layers in another way differs in `_forward` only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from tpi.comm.allreduce import Reducer
from tpi.comm.broadcast import Broadcast, Received, StepBroadcast
from tpi.comm.transport import Transport
from tpi.comm.wire import FrameType, Op
from tpi.errors import ConfigError, FrameError
from tpi.model.llama import Llama
from tpi.model_config import ModelConfig
from tpi.options import ComputeOptions
from tpi.sampling import Sampler
from tpi.trace import Tracer
from tpi.weights.embedding import EmbeddingRows
from tpi.weights.window import Window


@dataclass(frozen=True, slots=True)
class Prompt:
    """The token ids of one request, one row a sequence; rows may differ in length."""

    ids: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Tokens of the longest row; the others are padded on the left."""
        return max(len(row) for row in self.ids)

    @property
    def pads(self) -> tuple[int, ...]:
        """How many tokens each row is padded by, on the left."""
        return tuple(self.length - len(row) for row in self.ids)


@dataclass(frozen=True, slots=True)
class EngineComponents:
    """What every engine is made of; only the master has an embedding and head tiles."""

    model: ModelConfig
    llama: Llama
    window: Window
    transport: Transport
    embedding: EmbeddingRows | None
    options: ComputeOptions
    num_head_tiles: int
    tracer: Tracer

    @property
    def max_elements(self) -> int:
        """Elements of the largest hidden state."""
        return self.options.step_rows * self.model.hidden_size


class Engine:
    """The forward passes of one rank over its window and its mesh."""

    def __init__(
        self, components: EngineComponents, broadcast: StepBroadcast, reducer: Reducer
    ) -> None:
        self._components = components
        self._llama = components.llama
        self._window = components.window
        self._tracer = components.tracer
        self._is_master = components.transport.ranks.is_master
        self.counters = components.transport.counters
        self._broadcast = broadcast
        self._reducer = reducer
        self._request = 0
        self.num_steps = 0
        self.after_step: Callable[[], None] = lambda: None
        self._begun: Received | None = None

    def generate(
        self, prompt: Prompt, new_tokens: int, sampler: Sampler, request: int = 0
    ) -> Iterator[tuple[int, ...]]:
        """Yield the next token of every sequence, `new_tokens` times; workers know it by `request`.

        Raises:
            ConfigError: the prompt does not fit the limits of this session.
        """
        self.check_fits(prompt, new_tokens)
        self._request = request
        logits_BV = self._prefill(prompt)
        position = prompt.length
        for index in range(new_tokens):
            tokens = sampler.pick(logits_BV)
            yield tokens
            if index + 1 < new_tokens:
                ids_BS = torch.tensor(tokens, dtype=torch.long).view(-1, 1)
                logits_BV = self.step(ids_BS, position)
                position += 1

    def check_fits(self, prompt: Prompt, new_tokens: int) -> None:
        """Refuse a request that the KV cache or the model cannot hold, before anything is sent."""
        total = prompt.length + new_tokens
        options = self._components.options
        if not prompt.ids or min(len(row) for row in prompt.ids) < 1:
            raise ConfigError("prompt: got no tokens, expected at least one")
        if len(prompt.ids) > options.max_batch:
            raise ConfigError(
                f"prompt: {len(prompt.ids)} sequences, max_batch is {options.max_batch}"
            )
        if total > options.max_tokens:
            raise ConfigError(
                f"prompt of {prompt.length} + {new_tokens} new tokens = {total}, "
                f"the KV cache holds max_tokens={options.max_tokens}"
            )
        size = self._components.model.vocab_size
        for row in prompt.ids:
            for position, token in enumerate(row):
                if not 0 <= token < size:  # not which: workers read this too, and see no token
                    raise ConfigError(
                        f"prompt: the token at position {position} is outside the vocabulary "
                        f"0..{size - 1}"
                    )

    def _prefill(self, prompt: Prompt) -> torch.Tensor:
        rows = [[0] * pad + list(row) for pad, row in zip(prompt.pads, prompt.ids, strict=True)]
        ids_BS = torch.tensor(rows, dtype=torch.long)
        chunk = self._components.options.step_tokens
        for start in range(0, prompt.length, chunk):
            part_BS = ids_BS[:, start : start + chunk]
            pads = prompt.pads if start == 0 else None
            last = start + chunk >= prompt.length
            logits_BV = self.step(part_BS, start, pads=pads, want_logits=last)
        return logits_BV

    @torch.inference_mode()
    def step(
        self,
        ids_BS: torch.Tensor,
        start: int,
        *,
        pads: tuple[int, ...] | None = None,
        want_logits: bool = True,
    ) -> torch.Tensor:
        """One forward pass: S tokens a sequence after `start` cached ones.

        `pads` is given on the first step of a request only, and resets the KV cache everywhere.

        Shapes: (B, S) int64 -> (B, V) float32 logits of the last position; (B, 0) if not wanted.
        """
        first = pads is not None
        info = Broadcast(
            step=self.num_steps, start=start, first=first, request=self._request,
            pads=pads if pads is not None and any(pads) else (),
        )  # fmt: skip
        hidden_BSD = self._embed(ids_BS)
        if first:
            self._llama.reset(ids_BS.shape[0], info.pads or None)
        hidden_BD = self._forward(hidden_BSD, info)
        if want_logits:
            logits_BV = self._llama.head(hidden_BD, self._window, self._components.num_head_tiles)
        else:
            self._window.skip_to_start()
            logits_BV = hidden_BD[:, :0]
        self._step_done()
        return logits_BV

    def _embed(self, ids_BS: torch.Tensor) -> torch.Tensor:
        embedding = self._components.embedding
        if embedding is None:
            raise RuntimeError("only the master can start a step")
        with self._tracer.span("embed"):
            rows_ND = embedding.rows(ids_BS.flatten().tolist())
            return rows_ND.to(torch.float32).view(*ids_BS.shape, -1)

    def end_request(self, num_decode_steps: int) -> None:
        """Tell the workers that the request is complete."""
        self._broadcast.end_request(request=self._request, num_decode_steps=num_decode_steps)

    def end_session(self) -> None:
        """Tell the workers that nothing more will come."""
        self._broadcast.end_session()

    @property
    def disk_bytes(self) -> int:
        """Bytes read from disk for the blocks and rows that were taken so far."""
        embedding = self._components.embedding
        rows = 0 if embedding is None else embedding.bytes_read
        return self._window.streamed_bytes + rows

    def _forward(self, hidden_BSD: torch.Tensor, info: Broadcast) -> torch.Tensor:
        """Take the hidden state of a step through all layers of all ranks.

        Shapes: (B, S, D) float32 -> (B, D), the last position; on a worker anything.
        """
        if self._is_master:
            self._broadcast.send(hidden_BSD, info)
        hidden_BSD = self._llama.forward(hidden_BSD, info.start, self._window, self._reduce)
        return hidden_BSD[:, -1]

    def _step_done(self) -> None:
        self.num_steps += 1
        self.after_step()

    def _reduce(self, partial_BSD: torch.Tensor, layer: int, kind: str, last: bool) -> None:
        op = Op.ATTN if kind == "attn" else Op.FFN
        reduce = self._reducer.reduce if last else self._reducer.all_reduce
        reduce(partial_BSD, step=self.num_steps, layer=layer, op=op)

    def follow(self) -> int | None:
        """Wait until the master begins a request; its number, or None at the session's end.

        Raises:
            FrameError: the master ends a request that it has not begun.
        """
        received = self._broadcast.receive(self.num_steps)
        if received.control is FrameType.END_REQUEST:
            raise FrameError(f"rank 0 ended request {received.info.request} before its first step")
        self._begun = None if received.control is FrameType.END_SESSION else received
        return None if self._begun is None else received.info.request

    def take_part(self) -> int:
        """Walk the steps of the request that `follow` found; how many of them were decode steps.

        Raises:
            FrameError: the master ends the session within the request.
        """
        received, self._begun = self._begun, None
        if received is None:
            raise RuntimeError("only a worker that follows can take part")
        while received.control is None:
            self._worker_step(received.hidden_BSD, received.info)
            received = self._broadcast.receive(self.num_steps)
        if received.control is not FrameType.END_REQUEST:
            raise FrameError("rank 0 ended the session within a request")
        return received.num_decode_steps

    @torch.inference_mode()
    def _worker_step(self, hidden_BSD: torch.Tensor, info: Broadcast) -> None:
        if info.first:
            self._request = info.request
            self._llama.reset(hidden_BSD.shape[0], info.pads or None)
        self._forward(hidden_BSD, info)
        self._step_done()
