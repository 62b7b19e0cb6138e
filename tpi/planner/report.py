"""`tpi plan`: prints, without weights, what each device will hold, need and wait for.

`run` reads the options, asks `device_plan.make_report` and writes a table or JSON; what was
assumed is printed with the answer. Needs no torch.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tpi.arguments import add_compute, compute_of, count, numbers, size
from tpi.errors import EXIT_OK
from tpi.model_config import DTYPES, load_config, load_preset
from tpi.options import ComputeOptions, window_word
from tpi.planner.device_plan import DeviceRow, PlanOptions, PlanReport, Rates, make_report
from tpi.planner.propositions import LayerTimes
from tpi.units import format_bytes, format_seconds

_HEADINGS = (
    "rank", "heads", "KV", "FFN", "shard", "window", "retained", "arena", "read/step",
    "peak", "step", "steady state",
)  # fmt: skip
_KINDS = ("ffn", "attn", "head")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tpi plan`."""
    compute, rates = ComputeOptions(), Rates()
    add = parser.add_argument
    add("--model", required=True, metavar="MODEL", help="a preset's name, or a folder")
    add("--devices", type=count, required=True, metavar="N")
    add_compute(parser, "--memory")
    for flag, kind, default, metavar, words in (
        ("--max-batch", count, compute.max_batch, "N", "sequences at once"),
        ("--max-tokens", count, compute.max_tokens, "N", "prompt and new tokens"),
        ("--disk-rate", size, int(rates.disk_bps), "SIZE", "bytes a second; default 1GB"),
        ("--compute-rate", size, int(rates.compute_bps), "SIZE", "of weights; default 8GB"),
        ("--link-delay-ms", _number, 1.0, "MS", "one way; default 1"),
        ("--link-mbps", _number, 300.0, "MBPS", "Mbit/s; default 300"),
        ("--shares", numbers, None, "2,1,1", "weights of the devices; default: even"),
        ("--times", _times, None, "A,F,R,LA,LF",
         "measured, in ms: attention, ffn, allreduce, loading attention, loading ffn"),
    ):  # fmt: skip
        add(flag, type=kind, default=default, metavar=metavar, help=words)
    add("--storage", choices=DTYPES, default="bfloat16", help="dtype of the shards")
    add("--json", action="store_true", help="print values, not a table")


def run(args: argparse.Namespace) -> int:
    """Print the plan; returns the exit status."""
    rates = Rates(
        disk_bps=args.disk_rate,
        compute_bps=args.compute_rate,
        link_delay_s=args.link_delay_ms / 1000,
        link_bps=args.link_mbps * 1e6,
    )
    options = PlanOptions(
        devices=args.devices, shares=args.shares, storage=args.storage,
        compute=compute_of(args), rates=rates, times=args.times,
    )  # fmt: skip
    folder = Path(args.model)
    config = load_config(folder) if folder.is_dir() else load_preset(args.model)
    report = make_report(args.model, config, options)
    if args.json:
        text = json.dumps(msgspec.to_builtins(report) | {"step_s": report.step_s}, indent=1) + "\n"
    else:
        text = render(report)
    sys.stdout.write(text)
    return EXIT_OK


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number > 0")
    return value


def _times(text: str) -> LayerTimes:
    values = numbers(text)
    if len(values) != 5 or not all(0 <= value < float("inf") for value in values):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected five times >= 0, in ms")
    return LayerTimes(*(value / 1000 for value in values))


def render(report: PlanReport) -> str:
    """Write the table, then assumptions and totals."""
    options, compute = report.options, report.options.compute
    shape = f"{report.model} on {options.devices} devices, {options.storage} storage, "
    shape += f"{compute.dtype} compute, {compute.max_batch} x {compute.max_tokens} tokens"
    if compute.memory_budget is not None:
        shape += f", {format_bytes(compute.memory_budget)} of memory each"
    lines = [shape, "", *_table([_HEADINGS, *(_cells(row) for row in report.rows)]), ""]
    lines += [_assumptions(report), _total(report)]
    return "\n".join(lines) + "\n"


def _cells(row: DeviceRow) -> tuple[str, ...]:
    retained = ", ".join(f"{row.retained[k]} {k}" for k in _KINDS if row.retained.get(k))
    steady = "holds" if row.is_steady else f"stalls {row.stall_s / row.step_s:.0%}"
    arena, read, peak = map(
        format_bytes, (row.arena_bytes, row.streamed_bytes_per_step, row.peak_bytes)
    )
    return (
        *map(str, (row.rank, row.num_heads, row.num_kv_heads, row.ffn_columns)),
        format_bytes(row.shard_bytes), str(window_word(row.window)), retained or "-",
        arena, read, peak, format_seconds(row.step_s), steady,
    )  # fmt: skip


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.rjust(w) for cell, w in zip(r, widths, strict=True)) for r in rows]


def _assumptions(report: PlanReport) -> str:
    rates, times = report.options.rates, report.options.times
    allreduce = f"{report.options.compute.allreduce} allreduce {format_seconds(report.allreduce_s)}"
    if times is not None:
        parts = (times.attn_s, times.ffn_s, times.attn_load_s, times.ffn_load_s)
        attn, ffn, attn_load, ffn_load = map(format_seconds, parts)
        return (
            f"times given: attention {attn}, ffn {ffn}, loading {attn_load} and {ffn_load}, "
            f"{allreduce}"
        )
    return (
        f"assumed: disk {rates.disk_bps / 1e9:g} GB/s, products {rates.compute_bps / 1e9:g} GB/s "
        f"of weights, links {rates.link_delay_s * 1e3:g} ms and {rates.link_bps / 1e6:g} Mbit/s: "
        f"{allreduce}"
    )


def _total(report: PlanReport) -> str:
    read = sum(row.streamed_bytes_per_step for row in report.rows)
    peak = max(row.peak_bytes for row in report.rows)
    return (
        f"largest peak {format_bytes(peak)}, {format_seconds(report.step_s)} a token, "
        f"{format_bytes(read)} read by all devices a token"
    )
