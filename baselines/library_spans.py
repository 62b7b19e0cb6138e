"""The spans of a baseline: what its own clocks saw, and computing in between.

A library tells when it waits for weights or for other ranks; all else of a request's time counts as
computing, here as in the counters. So its `compute` spans are what lies between the others, cut
where a token was made. Read `request_spans` first.
"""

import re
from collections.abc import Sequence

from tpi.trace import Span

# Names of modules in Transformers' Llama-like models.
_LAYER = re.compile(r"model\.layers\.(\d+)\.(\w+)")
_FFN = ("mlp", "post_attention_layernorm")


def block_of(module: str) -> tuple[str, int]:
    """Kind and index of the block that a module belongs to, by its name; ("", 0) if of none."""
    if match := _LAYER.match(module):
        return "ffn" if match[2] in _FFN else "attn", int(match[1])
    if module == "model.embed_tokens":
        return "embed", 0
    return ("head", 0) if module in ("lm_head", "model.norm") else ("", 0)


def request_spans(seen: Sequence[Span], go_ns: int, token_ns: Sequence[int]) -> list[Span]:
    """Everything from `go` to the last token, in order: what was seen, and computing between.

    Args:
        seen: Spans that do not overlap, in order.
        go_ns: When the request began.
        token_ns: When each token was known.
    """
    spans: list[Span] = []
    kind, layer, now_ns = "", 0, go_ns
    end_ns = token_ns[-1] if token_ns else go_ns
    cuts = [(at_ns, None) for at_ns in token_ns]
    inside = [(s.start_ns, s) for s in seen if s.end_ns <= end_ns]
    marks: list[tuple[int, Span | None]] = [*cuts, *inside]
    for at_ns, span in sorted(marks, key=lambda mark: mark[0]):
        if at_ns < now_ns:  # of before the request
            continue
        if at_ns > now_ns:
            spans.append(Span("compute", now_ns, at_ns, kind, layer))
        now_ns = at_ns
        if span is not None:
            spans.append(span)
            kind, layer, now_ns = span.kind, span.layer, span.end_ns
    return spans
