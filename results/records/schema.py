"""What a run leaves behind: the metrics, defined here alone, and the run record.

A *repeat* is one start of a system on fresh devices, with every event of every rank. A *run record*
joins the repeats of one system in one configuration. Times are in seconds, sizes in bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta, Struct

from results.records.notes import Note
from results.records.numbers import Amount, Count, Factor, Fraction
from results.records.run_config import RunConfig
from results.records.testbed_facts import DeviceFacts, RunCalibration, VerificationReport
from testbed.host.environment import HostFacts
from tpi.decode import Text, one_of
from tpi.errors import TpiError
from tpi.program.events import Event

SCHEMA_VERSION: Literal[2] = 2
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
Status = Annotated[str, one_of(STATUSES)]
TimeShare = Mapping[Annotated[str, one_of(TIME_SHARES)], Amount]
_FileName = Annotated[str, Meta(pattern=r"^[^/]*\Z", description="a file name")]


class RecordError(TpiError):
    """A run record or its samples cannot be used: older schema, changed, or incomplete."""

    code = "record"


class Spread(Struct, frozen=True, forbid_unknown_fields=True):
    """Median over repeats with a bootstrap 95 % interval low..high, from `n` repeats."""

    median: Amount
    low: Amount
    high: Amount
    n: Annotated[int, Meta(ge=1)]


class PeakMemory(Struct, frozen=True, forbid_unknown_fields=True):
    """Peak memory by rank, three ways; None where a testbed cannot tell."""

    rss_hwm: tuple[Count | None, ...] = ()  # VmHWM, what the paper's monitor reads: the headline
    anon_peak: tuple[Count | None, ...] = ()  # the largest sample of anonymous memory
    cgroup_peak: tuple[Count | None, ...] = ()  # charged to the cgroup, page cache included


@dataclass(frozen=True, slots=True)
class RepeatMetrics:
    """The metrics of one repeat's measured request, which makes n tokens; times are undilated.

    Attributes:
        load_s: Start of the first program to the last `ready`, less `verify_s`.
        verify_s: Longest time a device spent hashing a folder it opened for the first time.
        ttft_s: `go` read to first token, weights streamed in that pass included. The paper's TTFT
            without its scheduler includes loading: compare that with load_s + ttft_s.
        token_latency_s: (t_last - t_first) / (n - 1); None for n < 2.
        gaps_s: The n - 1 times between tokens, whose mean is `token_latency_s`.
        disk_bytes_per_token: Read by all devices after the first token, over n - 1; None for
            n < 2 or where a device does not count. So with bytes and messages on the wire.
        time_share: Mean over devices of the shares of the request's time (`go` to last token)
            by `TIME_SHARES`; empty where a device does not count.
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


class Metrics(Struct, frozen=True, forbid_unknown_fields=True):
    """Metrics over `ok` repeats: the largest peaks by rank, mean time shares, else medians."""

    load_s: Spread
    verify_s: Amount
    ttft_s: Spread
    token_latency_s: Spread | None
    peak_memory: PeakMemory
    disk_bytes_per_token: Amount | None
    wire_bytes_per_token: Amount | None
    messages_per_token: Amount | None
    time_share: TimeShare


class Check(Struct, frozen=True, forbid_unknown_fields=True):
    """How the tokens were checked, and the result."""

    kind: Annotated[str, one_of(CHECKS)] = "none"  # `none` only where the plan has no check
    passed: bool | None = None  # None if nothing was compared: by plan, or because the check broke
    agreement: Fraction | None = None  # of the tokens, equal to the reference's
    first_difference: Count | None = None  # position of the first token that differs, if one does
    detail: str = ""  # for people: what was compared with what, or why nothing was

    @property
    def is_broken(self) -> bool:
        """Whether a planned check gave no verdict."""
        return self.kind != "none" and self.passed is None


class ProgramEnd(Struct, frozen=True, forbid_unknown_fields=True):
    """How a rank's program ended."""

    code: int
    oom: bool


class LinkFaultDone(Struct, frozen=True, forbid_unknown_fields=True):
    """A change of a link that was made, or not: then `error` says why."""

    device: Count
    kind: str
    value: float
    t_ns: Count
    error: str = ""


class RepeatFacts(Struct, frozen=True, forbid_unknown_fields=True):
    """What else is known of a repeat."""

    exits: tuple[ProgramEnd | None, ...] = ()  # None where a program's end was not seen
    devices: tuple[DeviceFacts, ...] = ()
    log_tails: tuple[str, ...] = ()  # the last lines of each program's log, after a failure
    meter_words: tuple[Mapping[str, str], ...] = ()  # by rank, why a peak is missing
    proof: VerificationReport | None = None
    link_faults: tuple[LinkFaultDone, ...] = ()
    contended: bool = False  # another harness ran on this host at the same time
    simulated: bool = False


class Repeat(Struct, frozen=True, forbid_unknown_fields=True):
    """One start of a system, with all its events, whose times are not divided by the dilation."""

    index: Count
    request_id: str  # the measured request; events of warm-up requests are kept too
    status: Status
    reason: str
    start_ns: tuple[Count, ...]  # by rank, CLOCK_MONOTONIC just before the program was started
    peak_memory: PeakMemory  # as the testbed's meters saw it
    events: tuple[Event, ...]
    facts: RepeatFacts = RepeatFacts()
    dilation: Factor = 1.0

    def of_request(self, name: str, rank: int | None = None) -> list[Event]:
        """The measured request's events of one name, of one rank if that is given."""
        return [
            event
            for event in self.events
            if (event.name, event.request_id) == (name, self.request_id)
            and rank in (None, event.rank)
        ]

    def counters(self, names: Sequence[str]) -> list[Event]:
        """The last counters of the request by rank; none unless every rank counted all `names`."""
        found = [self.of_request("counters", rank)[-1:] for rank in range(len(self.start_ns))]
        last = [event for events in found for event in events]
        counted = [isinstance(e.fields.get(n), int | float) for e in last for n in names]
        return last if len(counted) == len(found) * len(names) and all(counted) else []

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token ids of the measured request, in order."""
        return tuple(event.token for event in self.of_request("token"))


class SampleFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The file that keeps one repeat, and its SHA-256 when it was written."""

    file: _FileName
    sha256: Text
    status: Status


class CalibratedHost(Struct, frozen=True, forbid_unknown_fields=True):
    """The machine that a simulator's costs were measured on; `words` is for people."""

    words: str = ""
    cpu_model: str = ""
    cores: Count = 0


class RunEnvironment(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a run was made; a simulation has a `calibrated_host` instead of a `host`."""

    host: HostFacts | None = None
    calibrated_host: CalibratedHost | None = None
    devices: tuple[DeviceFacts, ...] = ()  # of the last repeat
    testbed_notes: tuple[str, ...] = ()  # what the testbed does not limit, and how it was set up


class RunRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """`run.json`: one system in one configuration on one testbed."""

    run_id: Text  # the folder: a hash of what decides the numbers, `-2` ... where measured again
    system: Text
    status: Status
    reason: str = ""  # why `status` is not `ok`, in one line
    check: Check = Check()
    config: RunConfig = RunConfig()
    environment: RunEnvironment = RunEnvironment()
    calibration: RunCalibration = RunCalibration()
    tokens: tuple[Count, ...] = ()  # of the first repeat
    metrics: Metrics | None = None  # None unless `status` is `ok` or `interrupted`
    samples: tuple[SampleFile, ...] = ()
    notes: tuple[Note, ...] = ()  # fewer repeats than asked, k of L distinct layers, no O_DIRECT
    schema_version: Literal[2] = SCHEMA_VERSION

    @property
    def is_simulated(self) -> bool:
        """Whether nothing in it was measured."""
        return self.config.testbed.backend == "sim"

    @property
    def num_ok(self) -> int:
        """How many repeats ended well."""
        return sum(s.status == "ok" for s in self.samples)

    def is_finished(self, repeats: int) -> bool:
        """Whether nothing is left to do; a failure is a result, an invalid run is not."""
        if self.status in ("ok", "interrupted"):
            return self.num_ok >= repeats
        return self.status != "invalid"
