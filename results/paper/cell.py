"""One number of a table or figure of the paper, where it stands, and what it rests on.

A `Place` is where a number stands, the same for the paper's own value and for ours. A `Cell` is one
value for it with its evidence; a place may have several cells (what the paper reports, what was
measured, what was simulated), which are shown side by side and never averaged.
`results/paper/cells/result_set.py` collects them from run records. All values are SI: seconds,
bytes, shares of one.
"""

from dataclasses import dataclass

from tpi.errors import ConfigError

EVIDENCE = (
    "measured",  # from a run record of real programs; `scale` and `dilation` say of what
    "simulated",  # from a run record of the simulator
    "computed",  # by a formula or a replay alone: nothing was run
    "reported",  # what the paper says
    "infeasible",  # cannot be had on the machine at hand; `detail` has the numbers
)
SCALES = ("smoke", "small", "full")
# What a cell without a number says instead of one.
WORDS = (
    "oom",  # a device's memory ran out: a result
    "infeasible",
    "failed",  # it ran and gave no timing (crashed, timeout, invalid, wrong output)
    "unusable",  # there is a record, and it cannot be read: changed, older, half written
    "not run",
    "not found",  # the paper does not say
)
EXHIBITS = (
    *(f"table{number}" for number in range(1, 9)),
    *("figure1a", "figure1b", "figure1c", "figure3", "figure4"),
    *("figure5a", "figure5b", "figure5c", "figure6"),
)
VALIDATION = "validation"  # no exhibit of the paper: runs that the simulator is checked on
ALL_EXHIBITS = (*EXHIBITS, VALIDATION)  # whatever runs are made for
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


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a number stands.

    Attributes:
        exhibit: One of `ALL_EXHIBITS`.
        row: A preset's name (`llama2-3b`), or what the row or the x axis of a figure is (`8`).
        column: A column or a series: `on`, `off/4`, `accelerate`, `star` ...
        metric: One of `METRICS`.
    """

    exhibit: str
    row: str
    column: str
    metric: str

    def __post_init__(self) -> None:
        if self.exhibit not in ALL_EXHIBITS:
            raise ConfigError(f"exhibit: got {self.exhibit!r}, expected one of {ALL_EXHIBITS}")
        if self.metric not in METRICS:
            raise ConfigError(f"metric: got {self.metric!r}, expected one of {tuple(METRICS)}")

    def __str__(self) -> str:
        return f"{self.exhibit} {self.row} {self.column} {self.metric}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One value for a place, and what it rests on.

    Attributes:
        evidence: One of `EVIDENCE`.
        value: None where there is no number; `word` then says why.
        low: With `high` the 95 % interval, None where there is none.
        n: Repeats that it rests on; 0 where it was not measured.
        word: One of `WORDS`; empty where there is a number.
        text: Of a fact that is no number (`Apple M1`).
        scale: One of `SCALES`, of what was measured or simulated.
        backend: Of the testbed: `local`, `docker`, `sim`.
        dilation: By which measured times were divided.
        run_id: The record that it comes from.
        source: Of what was reported: table, page or section.
        detail: For people: a doubt, a reason with its numbers.
    """

    place: Place
    evidence: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    word: str = ""
    text: str = ""
    scale: str = ""
    backend: str = ""
    dilation: float = 1.0
    run_id: str = ""
    source: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        if self.evidence not in EVIDENCE:
            raise ConfigError(f"evidence: got {self.evidence!r}, expected one of {EVIDENCE}")
        if self.word and self.word not in WORDS:
            raise ConfigError(f"word: got {self.word!r}, expected one of {WORDS}")
        if self.value is None and not self.word and not self.text:
            raise ConfigError(f"{self.place}: neither a value nor a word")
