"""What a run leaves behind: the metrics, defined here and nowhere else, and the run record.

A *repeat* is one start of a system on fresh devices; it keeps every event of every rank. A *run
record* joins the repeats of one system in one configuration. `measure.py` computes the metrics
from a repeat's events, `codec.py` turns records into JSON and checks them, `store.py` keeps them.
Read `RepeatMetrics` first. All times are in seconds, all sizes in bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tpi.errors import TpiError
from tpi.program.events import Event

SCHEMA_VERSION = 1
STATUSES = (
    "ok",  # it ran, and its tokens passed the check
    "oom",  # a device's memory limit killed it
    "timeout",  # it exceeded its time budget
    "crashed",  # it reported an error, broke the contract of its output, or ended early or badly
    "invalid",  # devices, links or the check of its tokens did not hold what they promise
    "wrong_output",  # it ran, and its tokens are wrong: there is no timing
    "infeasible",  # predicted not to fit; it was not started
    "interrupted",  # stopped by the user; it goes on where it stopped
)
CHECKS = (
    "exact",  # tokens equal those of the reference run, in float32
    "bounded",  # reference logits of its tokens are near the largest; see DESIGN, metrics
    "two_layer",  # no reference fits in memory: exact, of the same shape cut to two layers
    "two_layer_bounded",  # likewise, and bounded
    "none",  # nothing to compare with; the reason is in `detail`
)
TIME_SHARES = ("compute", "allreduce", "wait_weights", "other")


class RecordError(TpiError):
    """A run record or its samples cannot be used: older schema, changed, or incomplete."""

    code = "record"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median over repeats with a bootstrap 95 % interval low..high, from `n` repeats."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Peak memory by rank, three ways; None where a testbed cannot tell.

    Attributes:
        rss_hwm: VmHWM of the program, what the paper's monitor reads: the headline.
        anon_peak: Largest sampled anonymous memory.
        cgroup_peak: What the device's cgroup charged at most, page cache included.
    """

    rss_hwm: tuple[int | None, ...] = ()
    anon_peak: tuple[int | None, ...] = ()
    cgroup_peak: tuple[int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class RepeatMetrics:
    """The metrics of one repeat's measured request, which makes n tokens; times are undilated.

    Attributes:
        load_s: Start of the first program to the last `ready`, less `verify_s`.
        verify_s: Longest time a device spent hashing a folder it opened for the first time.
        ttft_s: `go` read to first token; weights streamed during the pass count. The paper's
            figure without its scheduler includes loading: compare that with load_s + ttft_s.
        token_latency_s: (t_last - t_first) / (n - 1); None for n < 2.
        gaps_s: The n - 1 times between tokens, whose mean is `token_latency_s`.
        disk_bytes_per_token: Read by all devices after the first token, over n - 1; None for
            n < 2 or where a device does not count.
        wire_bytes_per_token: Sent by all devices after the first token, over n - 1; as above.
        messages_per_token: Messages sent, likewise.
        time_share: Mean over devices of the shares of the request's time (`go` to last token)
            spent in compute, allreduce and waiting for weights; the rest is `other`. Empty where
            a device does not count.
    """

    load_s: float
    verify_s: float
    ttft_s: float
    token_latency_s: float | None
    gaps_s: tuple[float, ...]
    peak_memory: PeakMemory
    disk_bytes_per_token: float | None
    wire_bytes_per_token: float | None
    messages_per_token: float | None
    time_share: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of a run: over its `ok` repeats.

    Times are a `Spread`; `peak_memory` is the largest of any repeat by rank; bytes, messages and
    `verify_s` are medians; `time_share` is a mean.
    """

    load_s: Spread
    verify_s: float
    ttft_s: Spread
    token_latency_s: Spread | None
    peak_memory: PeakMemory
    disk_bytes_per_token: float | None
    wire_bytes_per_token: float | None
    messages_per_token: float | None
    time_share: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Check:
    """How the tokens were checked, and what came out.

    Attributes:
        kind: One of `CHECKS`; `none` only where the plan has no check.
        passed: None if nothing was compared: by plan (kind `none`), or because the check broke.
        agreement: Fraction of tokens equal to the reference's.
        first_difference: Position of the first token that differs; None if none does.
        detail: For people: what was compared with what, or why nothing was.
    """

    kind: str = "none"
    passed: bool | None = None
    agreement: float | None = None
    first_difference: int | None = None
    detail: str = ""

    @property
    def is_broken(self) -> bool:
        """Whether a planned check gave no verdict: what it should have checked proves nothing."""
        return self.kind != "none" and self.passed is None


@dataclass(frozen=True, slots=True)
class RankEvent:
    """An event and the rank it came from."""

    rank: int
    event: Event


@dataclass(frozen=True, slots=True)
class Repeat:
    """One start of a system, with everything it said.

    Attributes:
        request_id: The measured request; events of warm-up requests are kept too.
        start_ns: By rank, CLOCK_MONOTONIC just before the program was started.
        peak_memory: As the testbed's meters saw it.
        facts: What else is known of this repeat (load of the host, exits, log tails).
        dilation: How many times slower than the devices everything ran; times of events are as
            they were, metrics are divided by it.
    """

    index: int
    request_id: str
    status: str
    reason: str
    start_ns: tuple[int, ...]
    peak_memory: PeakMemory
    events: tuple[RankEvent, ...]
    facts: Mapping[str, object] = field(default_factory=dict)
    dilation: float = 1.0

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token ids of the measured request, in order."""
        return tuple(
            e.event.token
            for e in self.events
            if e.event.name == "token" and e.event.request_id == self.request_id
        )


@dataclass(frozen=True, slots=True)
class SampleFile:
    """The file that keeps one repeat, and its SHA-256 when it was written."""

    file: str
    sha256: str
    status: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """`run.json`: one system in one configuration on one testbed.

    Attributes:
        run_id: Name of the folder: the hash of what decides the numbers, `-2`, `-3` ... after it
            where it was measured again.
        reason: Why `status` is not `ok`, in one line.
        config: The resolved configuration.
        environment: Facts of the host and of each device.
        calibration: What the testbed measured of its own limits and links.
        tokens: Of the first repeat.
        metrics: Over the `ok` repeats; None unless `status` is `ok` or `interrupted`.
        notes: For people: fewer repeats than asked, k of L distinct layers, no O_DIRECT ...
    """

    run_id: str
    system: str
    status: str
    reason: str = ""
    check: Check = field(default_factory=Check)
    config: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    calibration: Mapping[str, object] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    metrics: Metrics | None = None
    samples: tuple[SampleFile, ...] = ()
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def num_ok(self) -> int:
        """How many repeats ended well."""
        return sum(s.status == "ok" for s in self.samples)

    def is_finished(self, repeats: int) -> bool:
        """Whether nothing is left to do for so many repeats.

        A failure is a result too; what is invalid says nothing of the system.
        """
        if self.status == "invalid":
            return False
        if self.status in ("ok", "interrupted"):
            return self.num_ok >= repeats
        return True
