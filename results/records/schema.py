"""What a run leaves behind: the metrics, defined here and nowhere else, and the run record.

A *repeat* is one start of a system on fresh devices; it keeps every event of every rank. A *run
record* joins the repeats of one system in one configuration. `measure.py` computes the metrics
from a repeat's events, `codec.py` turns records into JSON and checks them, `store.py` keeps them.
Read `RepeatMetrics` first. All times are in seconds, all sizes in bytes.
"""

from collections.abc import Mapping
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
    """Peak memory by rank, three ways; None where a testbed cannot tell.

    Attributes:
        rss_hwm: VmHWM of the program, what the paper's monitor reads: the headline.
        anon_peak: Largest sampled anonymous memory.
        cgroup_peak: What the device's cgroup charged at most, page cache included.
    """

    rss_hwm: tuple[Count | None, ...] = ()
    anon_peak: tuple[Count | None, ...] = ()
    cgroup_peak: tuple[Count | None, ...] = ()


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


class Metrics(Struct, frozen=True, forbid_unknown_fields=True):
    """The metrics of a run: over its `ok` repeats.

    Times are a `Spread`; `peak_memory` is the largest of any repeat by rank; bytes, messages and
    `verify_s` are medians; `time_share` is a mean.
    """

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
    """How the tokens were checked, and what came out.

    Attributes:
        kind: One of `CHECKS`; `none` only where the plan has no check.
        passed: None if nothing was compared: by plan (kind `none`), or because the check broke.
        agreement: Fraction of tokens equal to the reference's.
        first_difference: Position of the first token that differs; None if none does.
        detail: For people: what was compared with what, or why nothing was.
    """

    kind: Annotated[str, one_of(CHECKS)] = "none"
    passed: bool | None = None
    agreement: Fraction | None = None
    first_difference: Count | None = None
    detail: str = ""

    @property
    def is_broken(self) -> bool:
        """Whether a planned check gave no verdict: what it should have checked proves nothing."""
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
    """What else is known of a repeat.

    Attributes:
        exits: By rank; None where a program's end was not seen.
        devices: What each said of itself.
        log_tails: The last lines of each program's log, where something failed.
        meter_words: By rank, why a peak is missing.
        proof: Of limits and links; None where there are none.
        contended: Whether another harness ran on this host at the same time.
        simulated: Whether the simulator answered in the place of programs.
    """

    exits: tuple[ProgramEnd | None, ...] = ()
    devices: tuple[DeviceFacts, ...] = ()
    log_tails: tuple[str, ...] = ()
    meter_words: tuple[Mapping[str, str], ...] = ()
    proof: VerificationReport | None = None
    link_faults: tuple[LinkFaultDone, ...] = ()
    contended: bool = False
    simulated: bool = False


class Repeat(Struct, frozen=True, forbid_unknown_fields=True):
    """One start of a system, with everything it said.

    Attributes:
        request_id: The measured request; events of warm-up requests are kept too.
        start_ns: By rank, CLOCK_MONOTONIC just before the program was started.
        peak_memory: As the testbed's meters saw it.
        facts: What else is known of this repeat.
        dilation: How many times slower than the devices everything ran; times of events are as
            they were, metrics are divided by it.
    """

    index: Count
    request_id: str
    status: Status
    reason: str
    start_ns: tuple[Count, ...]
    peak_memory: PeakMemory
    events: tuple[Event, ...]
    facts: RepeatFacts = RepeatFacts()
    dilation: Factor = 1.0

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token ids of the measured request, in order."""
        return tuple(
            e.token for e in self.events if e.name == "token" and e.request_id == self.request_id
        )


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
    """Where a run was made.

    Attributes:
        host: Its `versions` are those of what the system's numbers come from; None in a simulation.
        calibrated_host: Of a simulation.
        devices: What each said of itself in the last repeat.
        testbed_notes: What the testbed does not limit, and how it was set up.
    """

    host: HostFacts | None = None
    calibrated_host: CalibratedHost | None = None
    devices: tuple[DeviceFacts, ...] = ()
    testbed_notes: tuple[str, ...] = ()


class RunRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """`run.json`: one system in one configuration on one testbed.

    Attributes:
        run_id: Name of the folder: the hash of what decides the numbers, `-2`, `-3` ... after it
            where it was measured again.
        reason: Why `status` is not `ok`, in one line.
        config: The resolved configuration.
        environment: Facts of the host and of each device.
        calibration: What was enforced on the devices, and what was measured of it.
        tokens: Of the first repeat.
        metrics: Over the `ok` repeats; None unless `status` is `ok` or `interrupted`.
        notes: Fewer repeats than asked, k of L distinct layers, no O_DIRECT ...
    """

    run_id: Text
    system: Text
    status: Status
    reason: str = ""
    check: Check = Check()
    config: RunConfig = RunConfig()
    environment: RunEnvironment = RunEnvironment()
    calibration: RunCalibration = RunCalibration()
    tokens: tuple[Count, ...] = ()
    metrics: Metrics | None = None
    samples: tuple[SampleFile, ...] = ()
    notes: tuple[Note, ...] = ()
    schema_version: Literal[2] = SCHEMA_VERSION

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
