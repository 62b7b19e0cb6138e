"""One number of a table or figure of the paper: its place, its value, its evidence.

A `Place` is the same for the paper's own value and for ours. It may have several cells (reported,
measured, simulated), which are shown side by side and never averaged. All values are SI: seconds,
bytes, shares of one. `results/paper/cells/result_set.py` collects cells from run records.
"""

from dataclasses import dataclass

from tpi.errors import ConfigError

EVIDENCE = (
    "measured",  # from a run record of real programs; `scale` and `dilation` say of what
    "simulated",  # from a run record of the simulator
    "computed",  # by a formula or a replay alone: nothing was run
    "reported",  # what the paper says
    "infeasible",  # impossible on the machine at hand; `detail` has the numbers
)
# How a cell is drawn: its evidence, dilated measurements set apart, or that there is no result.
KINDS = ("measured", "dilated", "simulated", "computed", "reported", "absent")
SCALES = ("smoke", "small", "full")
MISSING_REASONS = (
    "oom",  # a device's memory ran out: a result
    "infeasible",
    "failed",  # it ran and gave no timing (crashed, timeout, invalid, wrong output)
    "unusable",  # the record cannot be read: changed, older, half written
    "not run",
    "not found",  # the paper does not say
)
EXHIBITS = (
    *(f"table{number}" for number in range(1, 9)),
    *("figure1a", "figure1b", "figure1c", "figure3", "figure4"),
    *("figure5a", "figure5b", "figure5c", "figure6"),
)
VALIDATION = "validation"  # not of the paper: runs that check the simulator
ALL_EXHIBITS = (*EXHIBITS, VALIDATION)
# Metric -> unit. A run record gives the first ones.
METRICS = {
    "ttft_s": "s",  # request to first token, without loading
    "first_token_s": "s",  # loading and request to first token: the paper's TTFT without scheduler
    "token_latency_s": "s",
    "peak_memory_bytes": "bytes",  # VmHWM of the largest device
    "compute_share": "share",  # of the request's time, mean over devices; so the two below
    "allreduce_share": "share",
    "wait_weights_share": "share",
    "allreduce_s": "s",
    "size_bytes": "bytes",
    "count": "",
    "rate_bps": "bit/s",
    "delay_s": "s",
    "text": "",
}


def _check(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: got {value!r}, expected one of {choices}")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a number stands."""

    exhibit: str  # one of `ALL_EXHIBITS`
    row: str  # a preset's name (`llama2-3b`), or a row or x value of a figure (`8`)
    column: str  # a column or a series: `on`, `off/4`, `accelerate`, `star`
    metric: str  # one of `METRICS`

    def __post_init__(self) -> None:
        _check("exhibit", self.exhibit, ALL_EXHIBITS)
        _check("metric", self.metric, tuple(METRICS))

    def __str__(self) -> str:
        return f"{self.exhibit} {self.row} {self.column} {self.metric}"


@dataclass(frozen=True, slots=True)
class StudiedNetwork:
    """What the study of allreduce latency ran on; `rate_mbps` is None where it does not say."""

    devices: int
    rate_mbps: float | None = None

    def __str__(self) -> str:
        rate = "" if self.rate_mbps is None else f" at {self.rate_mbps:g} Mbit/s"
        return f"{self.devices} devices{rate}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One value for a place, and what it rests on."""

    place: Place
    evidence: str  # one of `EVIDENCE`
    value: float | None = None  # None where there is no number; `missing_reason` then says why
    low: float | None = None  # with `high` the 95 % interval, None where there is none
    high: float | None = None
    n: int = 0  # repeats that it rests on; 0 where it was not measured
    missing_reason: str = ""  # one of `MISSING_REASONS`; empty where there is a number
    text: str = ""  # a fact that is not a number (`Apple M1`)
    scale: str = ""  # one of `SCALES`, of what was measured or simulated
    backend: str = ""  # of the testbed: `local`, `docker`, `sim`
    dilation: float = 1.0  # by which measured times were divided
    run_id: str = ""  # the record that it comes from
    source: str = ""  # of a reported value: table, page or section
    detail: str = ""  # for people: a doubt, a reason with its numbers
    network: StudiedNetwork | None = None  # of the study of allreduce latency

    def __post_init__(self) -> None:
        _check("evidence", self.evidence, EVIDENCE)
        if self.missing_reason:
            _check("missing_reason", self.missing_reason, MISSING_REASONS)
        elif self.value is None and not self.text:
            raise ConfigError(f"{self.place}: neither a value nor a reason why there is none")

    @property
    def is_simulated(self) -> bool:
        """Whether the simulator is behind it, with a number or without."""
        return self.evidence == "simulated" or self.backend == "sim"

    @property
    def kind(self) -> str:
        """One of `KINDS`; `oom` is a result like any number."""
        is_absent = self.missing_reason in ("not run", "unusable", "infeasible")
        if self.missing_reason == "not found" and self.evidence != "reported":
            is_absent = True
        if is_absent or self.evidence == "infeasible":
            return "absent"
        return "dilated" if self.evidence == "measured" and self.dilation != 1 else self.evidence

    @property
    def ran(self) -> bool:
        """Whether something really ran: everything else is of the paper's size."""
        return self.kind in ("measured", "dilated")
