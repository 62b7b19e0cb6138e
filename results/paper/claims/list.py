"""The paper's claims: what each says, the cells it needs, and the rule that decides it.

Sentences are paraphrases of arXiv:2410.00531v1, not quotations. A bound that the paper does not
give is ours, and the rule says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from results.paper.cell import Place
from results.paper.cells.allreduce import LINKS_MS
from results.paper.claims import memory, network, schedule, speed
from results.paper.claims.evidence import View
from results.paper.claims.verdict import Item, percent
from results.paper.render.layouts import FIGURE6_MODELS, LAPTOP_MODELS, MODELS
from tpi.comm.allreduces.registry import PAPER_ALLREDUCES

_70B = "llama2-70b"
_OLDER = "an older version of Accelerate, which loaded everything first"
_GIB = 1 << 30
_ALLREDUCES = tuple(
    network.allreduce_place(row, name) for row in LINKS_MS for name in PAPER_ALLREDUCES
)
_OVER = {"figure5a": ("4", "6", "8"), "figure5b": ("4", "6", "8"), "figure5c": ("300", "1000")}


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of the paper that can be checked."""

    name: str  # short and unique
    sentence: str  # what the paper says, in our words
    source: str  # where it says so
    rule: str  # what decides, in words; `decide` does it
    places: tuple[Place, ...]  # the cells that it needs
    decide: Callable[[View], Sequence[Item]]
    note: str = ""  # what a reader should know of our side; empty where there is nothing to add
    paper_is_of: str = ""  # where the paper's own numbers are of something else


def _below(
    name: str, system: str, exhibit: str, rows: Sequence[str], bound: float, other: str = ""
) -> Claim:
    column, less = name.removeprefix("below-"), percent(bound)
    first = "TTFT is without loading on both sides."
    if speed.their_metric(column, "ttft_s") != "ttft_s":
        first = (
            f"{system} loads all weights first: its TTFT is with loading and the start of its"
            " program, TPI-LLM's is from the request on, with the loads of that pass. The paper"
            " does not say whether the other's includes loading."
        )
    return Claim(
        name=name,
        sentence=f"Time to first token and token latency are at least {less} below {system}.",
        source=f"abstract and section 4, {exhibit[:-1].capitalize()} {exhibit[-1]}",
        rule=f"For every model that both run, 1 - TPI-LLM / {system} is at least {less} in both"
        " times; with repeats, the whole interval is. A model that the other cannot run does not"
        f" count. {first}",
        places=speed.speed_places(exhibit, rows, column),
        decide=partial(speed.below, exhibit=exhibit, rows=rows, column=column, bound=bound),
        paper_is_of=other,
    )


def _falls(name: str, exhibit: str, what: str, note: str = "") -> Claim:
    rows = _OVER[exhibit]
    return Claim(
        name=name,
        sentence=f"Token latency of Llama 2-70B falls markedly with {what}.",
        source=f"section 4, Figure {exhibit[-2:]}",
        rule=f"From {', '.join(rows)} each step takes at least 5 % off (the bound is ours).",
        places=tuple(speed.latency(exhibit, row) for row in rows),
        decide=partial(speed.falls_over, exhibit=exhibit, rows=rows, bound=0.05),
        note=note,
    )


def _oom(name: str, column: str, words: str, other: str = "") -> Claim:
    place = Place("table3", "llama2-13b", column, "token_latency_s")
    return Claim(
        name=name,
        sentence=f"Accelerate runs out of memory at Llama 2-13B on one laptop{words}.",
        source="section 4, Table 3",
        rule="The run ends because memory ran out.",
        places=(place,),
        decide=partial(memory.runs_out_of_memory, place=place),
        paper_is_of=other,
    )


CLAIMS = (
    _below(
        "below-accelerate", "today's Accelerate", "table3", LAPTOP_MODELS, 0.8, _OLDER
    ),
    _below(
        "below-accelerate-2024",
        "Accelerate as the paper met it (it loads everything first)",
        "table3", LAPTOP_MODELS, 0.8,
    ),
    _below("below-transformers", "Transformers", "table3", LAPTOP_MODELS, 0.9),
    _below("below-galaxy", "Galaxy", "figure6", FIGURE6_MODELS, 0.9),
    Claim(
        name="memory-70b",
        sentence="The scheduler takes 90 % off the peak memory of Llama 2-70B on 8 devices: 3.1 GB"
        " a device are enough.",
        source="abstract and section 4, Tables 1 and 2",
        rule="1 - on / off is at least 90 %, and the largest device's peak is at most 3.15 GiB (3.1"
        " as printed). Tables 1 and 2 both have this setting: without the scheduler one may run out"
        " of memory, which leaves the other's ratio; with it, neither may.",
        places=tuple(
            memory.memory_place(exhibit, _70B, column)
            for exhibit, column in (
                ("table1", "off"), ("table1", "on"), ("table2", "off/8"), ("table2", "on/8"),
            )
        ),
        decide=partial(memory.saves_memory, row=_70B, bound=0.9, most_bytes=3.15 * _GIB),
    ),
    Claim(
        name="memory-flat",
        sentence="With the scheduler, peak memory hardly depends on the number of devices.",
        source="sections 2 and 4, Figure 1c and Table 2",
        rule="For every model the largest peak over 2, 4, 6 and 8 devices is at most 25 % above the"
        " smallest (the bound is ours). A run without a peak leaves its model undecided, unless the"
        " others are further apart already.",
        places=memory.peaks_over_devices(["table2"]),
        decide=partial(memory.flat_over_devices, rows=MODELS, bound=0.25),
        note="What is flat in the paper is the embedding and head, whole on the master. Here they"
        " are never held, so the peak is lower and what is left of it does fall with devices.",
    ),
    Claim(
        name="memory-proposition-5",
        sentence="Peak memory is that of Proposition 5, with one empirical factor gamma.",
        source="section 3.3, Proposition 5, equations (7) and (8)",
        rule="One gamma fits every cell with the scheduler in Tables 2 and 6 within 15 % (the bound"
        " is ours), by the master's equation, whose peak is the largest; cells too far apart"
        " disprove it, however many are missing.",
        places=memory.peaks_over_devices(memory.WINDOWS),
        decide=partial(memory.follows_proposition_5, bound=0.15),
        note="Its master holds embedding and head whole; ours does not, so that its equation is of"
        " another program. `tpi/planner/memory.py` has the one that ours obeys.",
    ),
    Claim(
        name="star-first",
        sentence="The star has the lowest allreduce latency, then the tree, then the ring.",
        source="section 3.2, Proposition 2 and Figure 3",
        rule="With a payload of 4 bytes, star < tree < ring at every link latency of Figure 3 above"
        " 0 (1 to 10 ms) between 8 devices, their intervals apart.",
        places=_ALLREDUCES,
        decide=network.star_is_first,
    ),
    Claim(
        name="links-8-16-56",
        sentence="With 8 devices an allreduce passes 8 links by star, 16 by tree and 56 by ring.",
        source="section 3.2 and appendix A.7",
        rule="At every link latency of Figure 3 from 1 ms on, between 8 devices, the tree takes 2"
        " and the ring 7 times as long as the star, within 15 % (the bound is ours).",
        places=_ALLREDUCES,
        decide=partial(network.ratio_of_links, tolerance=0.15),
    ),
    Claim(
        name="latency-bounds",
        sentence="Link latency, not bandwidth, bounds the allreduce.",
        source="section 3.2, Proposition 1; its proof leaves out that payloads share the master's"
        " port",
        rule="At 1 ms a link, 300 Mbit/s and 8 devices, a star of 32 KiB takes at most twice as"
        " long as one of 4 bytes: the payload is no more than half of it.",
        places=(network.allreduce_place(network.KLONET_MS, "star"),),
        decide=network.latency_bounds,
    ),
    Claim(
        name="shares-of-time",
        sentence="Communication is 2 % of the time of model parallelism and 70 % of that of tensor"
        " parallelism.",
        source="section 2, Figure 1b",
        rule="It is at most 5 % of the one and at least 50 % of the other (the bounds are ours)."
        " Of a pipeline it is the time in which no device computes.",
        places=tuple(
            Place("figure1b", row, "run", "allreduce_share") for row in ("pipeline", "tpi")
        ),
        decide=partial(schedule.shares_of_time, most=0.05, least=0.5),
    ),
    _falls("falls-with-devices", "figure5a", "the number of devices"),
    _falls(
        "falls-with-cores", "figure5b", "the cores of a device",
        "Decoding is bound by the rate at which all cores together read memory"
        " (`device.mem_gbps`): cores beyond those that reach it change nothing here.",
    ),
    Claim(
        name="hardly-with-bandwidth",
        sentence="Token latency of Llama 2-70B hardly falls with bandwidth.",
        source="section 4, Figure 5c",
        rule="From 300 to 1000 Mbit/s it falls by at most 10 % (the bound is ours).",
        places=tuple(speed.latency("figure5c", row) for row in _OVER["figure5c"]),
        decide=partial(speed.hardly_falls, exhibit="figure5c", rows=_OVER["figure5c"], bound=0.1),
    ),
    Claim(
        name="loads-hide",
        sentence="In the steady state, loading weights hides behind computing and communicating.",
        source="section 3.3, Propositions 3, 4 and 6",
        rule="With the scheduler, devices wait for weights at most 5 % of the time (the bound is"
        " ours), for every model of Table 1. Of the paper, which gives no such share: latency is at"
        " most 5 % above that without the scheduler.",
        places=tuple(schedule.waiting_place(row) for row in MODELS),
        decide=partial(schedule.loads_hide, rows=MODELS, bound=0.05),
    ),
    Claim(
        name="scheduler-costs",
        sentence="Where a model fits without it, the scheduler makes tokens slower.",
        source="Table 1, our reading: its text does not say so",
        rule="Latency with the scheduler is above that without, for every model of Table 1 that"
        " fits without; with repeats, the whole interval of the ratio is.",
        places=tuple(
            Place("table1", row, column, "token_latency_s")
            for row in MODELS for column in ("off", "on")
        ),
        decide=partial(speed.scheduler_cost, rows=MODELS),
    ),
    _oom("accelerate-oom", "accelerate", ", with today's version", _OLDER),
    _oom("accelerate-2024-oom", "accelerate-2024", ", loading everything first"),
    Claim(
        name="same-tokens",
        sentence="The generated sequence is that of inference on a single server.",
        source="section 4, on the home testbed",
        rule="The check of every float32 run of TPI-LLM found the tokens of its reference equal. A"
        " check of two layers of the shape that holds says nothing of the whole, and counts for"
        " nothing.",
        places=(),
        decide=schedule.same_tokens,
    ),
)  # fmt: skip
