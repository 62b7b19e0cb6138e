"""The paper's tables and figures: the rows, columns and metrics of each, and their names.

`sections.py` lays cells into these shapes. Source of every shape: arXiv:2410.00531v1.
"""

from dataclasses import dataclass

from results.paper.cell import VALIDATION
from tpi.comm.allreduces.registry import PAPER_ALLREDUCES

VALIDATION_TITLE = "Simulated beside measured"
MODELS = (
    *("llama2-3b", "llama2-7b", "llama2-13b", "llama2-70b"),
    *("llama3.1-8b", "llama3.1-70b", "yi-34b"),
)
# The paper's laptops ran no 70B model; its Figure 6 has the Llama 2 models alone.
LAPTOP_MODELS = ("llama2-3b", "llama2-7b", "llama2-13b", "llama3.1-8b", "yi-34b")
FIGURE6_MODELS = MODELS[:4]
_LAPTOP_SYSTEMS = ("transformers", "accelerate", "accelerate-2024", "transformers-window", "tpi")
_OFF_ON = tuple(f"{switch}/{count}" for switch in ("off", "on") for count in (2, 4, 6, 8))
# Our time to first token is the one of these that the paper's value is.
FIRST = ("ttft_s", "first_token_s")
TIMES = (FIRST, ("token_latency_s",))
# Systems that load all weights before they begin. The paper does not say whether their times to
# first token include that, so ours stand there without and with it.
LOADS_FIRST = ("transformers", "accelerate-2024", "standalone", "mp", "galaxy")
MEMORY = (("peak_memory_bytes",),)
_SHARES = (("allreduce_share",), ("compute_share",), ("wait_weights_share",))

BAR_CAPTION = (
    "Filled: measured; pale: measured on dilated devices, the factor beside it; hatched: simulated;"
    " dotted: computed; outline: the paper. A word stands where there is no value."
)
_TRACE_CAPTION = (
    "From the spans of one traced repeat of each run, master first. Filled: measured; pale:"
    " measured on dilated devices; hatched: simulated. Loading stands below what else goes on."
)


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of one exhibit.

    Attributes:
        rows: In the paper's order, as columns; cells may name more, which follow.
        sections: The metrics of each; a metric is a choice of names for the same thing. None at
            all: whatever metric a column's cells have (facts).
    """

    title: str
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    sections: tuple[tuple[tuple[str, ...], ...], ...] = ()
    is_run: bool = True  # whether runs fill it, so that a place without any is `not run`
    joins_columns: bool = False  # whether a row and a metric alone say what a value is
    has_table: bool = True  # whether its values say what it shows; a drawing of a trace has none
    caption: str = ""  # of a figure: how to read it


def _memory_over_devices(window: int) -> Layout:
    title = f"peak memory of the largest device over devices, window {window}"
    return Layout(title, MODELS, _OFF_ON, (MEMORY,))


def _laptops(count: int) -> Layout:
    title = f"time to first token and token latency, one laptop beside {count}"
    return Layout(title, LAPTOP_MODELS, _LAPTOP_SYSTEMS, ((TIMES[0],), (TIMES[1],)))


def _latency_over(what: str, rows: tuple[str, ...]) -> Layout:
    title = f"token latency of Llama 2-70B over {what}"
    return Layout(title, rows, ("tpi",), ((("token_latency_s",),),), caption=BAR_CAPTION)


LAYOUTS = {
    "table1": Layout(
        "memory scheduler off and on, 8 devices, window 2", MODELS, ("off", "on"), (TIMES, MEMORY)
    ),
    "table2": _memory_over_devices(2),
    "table3": _laptops(4),
    "table4": Layout(
        "block sizes of Llama 2-7B, 4 devices, float32",
        ("preprocess", "attention", "ffn", "postprocess"),
        is_run=False,
    ),
    "table5": Layout(
        "the models",
        MODELS,
        ("layers", "params", "hidden", "heads", "kv_heads", "required"),
        is_run=False,
    ),
    "table6": _memory_over_devices(4),
    "table7": Layout(
        "the laptops of the home testbed",
        ("macbook-pro", "macbook-air", "dell"),
        ("cpu", "cores", "memory", "bandwidth", "latency", "cuda", "number"),
        is_run=False,
    ),
    "table8": _laptops(3),
    "figure1a": Layout(
        "where the time goes, device by device",
        ("pipeline", "tpi"),
        has_table=False,
        caption=_TRACE_CAPTION,
    ),
    "figure1b": Layout(
        "shares of computation and communication",
        ("pipeline", "tpi"),
        ("share",),
        (_SHARES,),
        joins_columns=True,
        caption=f"{BAR_CAPTION} In model parallelism one device computes at a time: computation is"
        " that of all devices together, communication the time in which none computes.",
    ),
    "figure1c": Layout(
        "peak memory per device over devices, Llama 3.1-8B",
        ("1", "2", "4"),
        ("tensor-parallel", "theoretical", "tpi"),
        (MEMORY,),
        caption=BAR_CAPTION,
    ),
    "figure3": Layout(
        "allreduce latency over link latency",
        (),
        PAPER_ALLREDUCES,
        ((("allreduce_s",),),),
        caption="Points: measured, pale where devices were dilated. Full lines: computed from"
        " delays and ports that payloads share; dashed: the paper's count of hops alone. The ring"
        " leaves the panels.",
    ),
    "figure4": Layout("the window over time", ("window",), has_table=False, caption=_TRACE_CAPTION),
    "figure5a": _latency_over("devices", ("4", "6", "8")),
    "figure5b": _latency_over("CPU cores per device", ("4", "6", "8")),
    "figure5c": _latency_over("link bandwidth", ("300", "500", "1000")),
    "figure6": Layout(
        "the four systems",
        FIGURE6_MODELS,
        ("standalone", "mp", "galaxy", "tpi"),
        (TIMES,),
        caption=BAR_CAPTION,
    ),
}

_LABELS = {
    "llama2-3b": "Llama 2-3B",
    "llama2-7b": "Llama 2-7B",
    "llama2-13b": "Llama 2-13B",
    "llama2-70b": "Llama 2-70B",
    "llama3.1-8b": "Llama 3.1-8B",
    "llama3.1-70b": "Llama 3.1-70B",
    "yi-34b": "Yi-34B",
    "tpi": "TPI-LLM",
    "tensor-parallel": "tensor parallel",
    "mp": "MP",
    "pipeline": "model parallel",
    "standalone": "Standalone",
    "galaxy": "Galaxy",
    "transformers": "Transformers",
    "accelerate": "Accelerate",
    "accelerate-2024": "Accelerate 2024",
    "transformers-window": "Transformers + window",
    "kv_heads": "KV heads",
}
METRIC_LABELS = {
    "ttft_s": "TTFT",
    "first_token_s": "TTFT with loading",
    "token_latency_s": "token latency",
    "peak_memory_bytes": "peak memory",
    "compute_share": "computation",
    "allreduce_share": "communication",
    "wait_weights_share": "waiting for weights",
    "allreduce_s": "allreduce latency",
}


def label_of(name: str, exhibit: str = "") -> str:
    """A row's or column's name for people: `llama2-3b` is Llama 2-3B, `off/4` is off, 4 dev."""
    if name == "tpi" and exhibit in ("figure1a", "figure1b"):
        return "tensor parallel"  # what the paper calls it there
    head, slash, count = name.partition("/")
    label = _LABELS.get(head, head)
    if not slash:
        return label
    return f"{label}, {count} dev" if count.isdigit() else f"{label}, {count}"


def title_of(exhibit: str) -> str:
    """`Table 1: memory scheduler off and on ...`."""
    if exhibit == VALIDATION:
        return VALIDATION_TITLE
    kind = "Table" if exhibit.startswith("table") else "Figure"
    number = exhibit.removeprefix(kind.lower())
    return f"{kind} {number}: {LAYOUTS[exhibit].title}"
