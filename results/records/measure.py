"""From events to metrics, and from repeats to a run's metrics.

`schema.RepeatMetrics` says what each number means. Differences are taken between integer
nanoseconds, so that no digit is lost, and divided by the dilation.
"""

from collections.abc import Sequence
from itertools import pairwise

from results.records.schema import (
    TIME_SHARES,
    Metrics,
    PeakMemory,
    RecordError,
    Repeat,
    RepeatMetrics,
)
from results.records.stats import median, spread, spread_of_means
from tpi.program.events import Event
from tpi.ranks import MASTER_RANK


def measure(repeat: Repeat) -> RepeatMetrics:
    """Metrics of the measured request; a RecordError unless the events hold all of it."""
    ready = [_only(repeat, rank, "ready") for rank in range(len(repeat.start_ns))]
    go_ns = _only(repeat, MASTER_RANK, "request").t_ns
    token_ns = [e.t_ns for e in repeat.of_request("token", MASTER_RANK)]
    if not ready or not token_ns:
        raise RecordError(f"repeat {repeat.index}: no ranks or no tokens")
    if any(a > b for a, b in pairwise([go_ns, *token_ns])):
        raise RecordError(f"repeat {repeat.index}: tokens are stamped out of order")
    second = 1e9 * repeat.dilation
    gaps_s = tuple((b - a) / second for a, b in pairwise(token_ns))
    verify_s = max(e.number("verify_s") for e in ready) / repeat.dilation
    load_s = (max(e.t_ns for e in ready) - min(repeat.start_ns)) / second
    return RepeatMetrics(
        load_s=max(0.0, load_s - verify_s),
        verify_s=verify_s,
        ttft_s=(token_ns[0] - go_ns) / second,
        token_latency_s=(token_ns[-1] - token_ns[0]) / second / len(gaps_s) if gaps_s else None,
        gaps_s=gaps_s,
        peak_memory=_peak_memory(repeat),
        disk_bytes_per_token=_per_token(repeat, "disk_bytes_decode", len(gaps_s)),
        wire_bytes_per_token=_per_token(repeat, "wire_bytes_sent_decode", len(gaps_s)),
        messages_per_token=_per_token(repeat, "messages_sent_decode", len(gaps_s)),
        time_share=_time_share(repeat, (token_ns[-1] - go_ns) / 1e9),
    )


def summarize(repeats: Sequence[RepeatMetrics]) -> Metrics:
    """Join the metrics of repeats (at least one)."""
    gaps = [r.gaps_s for r in repeats if r.gaps_s]
    shares = [r.time_share for r in repeats if r.time_share]
    return Metrics(
        load_s=spread([r.load_s for r in repeats]),
        verify_s=median([r.verify_s for r in repeats]),
        ttft_s=spread([r.ttft_s for r in repeats]),
        token_latency_s=spread_of_means(gaps) if gaps else None,
        peak_memory=largest([r.peak_memory for r in repeats]),
        disk_bytes_per_token=_median_or_none([r.disk_bytes_per_token for r in repeats]),
        wire_bytes_per_token=_median_or_none([r.wire_bytes_per_token for r in repeats]),
        messages_per_token=_median_or_none([r.messages_per_token for r in repeats]),
        time_share={
            name: sum(share[name] for share in shares) / len(shares)
            for name in (TIME_SHARES if shares else ())
        },
    )


def largest(peaks: Sequence[PeakMemory]) -> PeakMemory:
    """The largest of each way of counting, rank by rank; None only if all are."""
    found = {}
    for way in PeakMemory.__struct_fields__:
        columns = zip(*filter(None, (getattr(peak, way) for peak in peaks)), strict=True)
        found[way] = tuple(max((v for v in c if v is not None), default=None) for c in columns)
    return PeakMemory(**found)


def _only(repeat: Repeat, rank: int, name: str) -> Event:
    found = repeat.of_request(name, rank)
    if name == "ready":  # a program is ready once, for all requests
        found = [e for e in repeat.events if (e.rank, e.name) == (rank, name)]
    if len(found) != 1:
        raise RecordError(
            f"repeat {repeat.index}: rank {rank} has {len(found)} {name} events, expected one"
        )
    return found[0]


def _per_token(repeat: Repeat, name: str, num_gaps: int) -> float | None:
    counters = repeat.counters([name])
    return sum(c.number(name) for c in counters) / num_gaps if counters and num_gaps else None


def _peak_memory(repeat: Repeat) -> PeakMemory:
    """The meters' peaks; VmHWM also as each program read it itself at the end."""
    own: list[int | None] = []
    for rank in range(len(repeat.start_ns)):
        events = [e for e in repeat.events if e.rank == rank and e.name == "counters"]
        own.append(max((int(e.number("rss_hwm")) for e in events), default=0) or None)
    return largest([repeat.peak_memory, PeakMemory(rss_hwm=tuple(own))])


def _time_share(repeat: Repeat, request_s: float) -> dict[str, float]:
    names = TIME_SHARES[:-1]
    counters = repeat.counters([f"{name}_s" for name in names])
    if not counters or request_s <= 0:
        return {}
    share = {
        name: sum(c.number(f"{name}_s") for c in counters) / len(counters) / request_s
        for name in names
    }
    return {**share, TIME_SHARES[-1]: max(0.0, 1.0 - sum(share.values()))}


def _median_or_none(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return median(known) if known else None
