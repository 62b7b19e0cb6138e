"""`tpi plan`: prints, without weights, what each device will hold, need and wait for.

`run` reads the options, asks `device_plan.make_report` and writes a table or JSON; what was
assumed is printed with the answer. Needs no torch.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tpi.errors import EXIT_OK, ConfigError
from tpi.model_config import DTYPES, load_config, load_preset
from tpi.planner.device_plan import DeviceRow, PlanOptions, PlanReport, Rates, make_report
from tpi.planner.window_replay import LayerTimes
from tpi.units import format_bytes, format_seconds, parse_bytes

_HEADINGS = (
    "rank", "heads", "KV", "FFN", "shard", "window", "retained", "arena", "read/step",
    "peak", "step", "steady state",
)  # fmt: skip
_KINDS = ("ffn", "attn", "head")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tpi plan`."""
    add = parser.add_argument
    add("--model", required=True, metavar="MODEL", help="a preset's name, or a folder")
    add("--devices", type=_count, required=True, metavar="N")
    add("--memory", type=_size, metavar="SIZE", help="what a device may use, such as 4GiB")
    add("--window", type=_window, default=2, metavar="N|all", help="default 2, if no --memory")
    add("--shares", type=_numbers, metavar="2,1,1", help="weights of the devices; default: even")
    add("--storage", choices=DTYPES, default="bfloat16", help="dtype of the shards")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of computing")
    add("--max-batch", type=_count, default=1, metavar="N", help="sequences at once")
    add("--max-tokens", type=_count, default=128, metavar="N", help="prompt and new tokens")
    add("--prefill-chunk", type=_count, default=512, metavar="N", help="prompt tokens in a step")
    add("--allreduce", default="star", metavar="NAME", help="star, tree, ring, ... (default star)")
    add("--wire-dtype", choices=("float32", "bfloat16"), default="float32")
    add(
        "--disk-rate", type=_size, default=10**9, metavar="SIZE", help="bytes a second; default 1GB"
    )
    add(
        "--compute-rate",
        type=_size,
        default=8 * 10**9,
        metavar="SIZE",
        help="of weights; default 8GB",
    )
    add("--link-delay-ms", type=_number, default=1.0, metavar="MS", help="one way; default 1")
    add("--link-mbps", type=_number, default=300.0, metavar="MBPS", help="Mbit/s; default 300")
    add(
        "--times", type=_times, metavar="A,F,R,LA,LF",
        help="measured, in ms: attention, ffn, allreduce, loading attention, loading ffn",
    )  # fmt: skip
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
        devices=args.devices, shares=args.shares, memory=args.memory, window=args.window,
        storage=args.storage, dtype=args.dtype, max_batch=args.max_batch,
        max_tokens=args.max_tokens, prefill_chunk=args.prefill_chunk, allreduce=args.allreduce,
        wire_dtype=args.wire_dtype, rates=rates, times=args.times,
    )  # fmt: skip
    folder = Path(args.model)
    config = load_config(folder) if folder.is_dir() else load_preset(args.model)
    report = make_report(args.model, config, options)
    if args.json:
        text = json.dumps(asdict(report) | {"step_s": report.step_s}, indent=1) + "\n"
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


def _count(text: str) -> int:
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number >= 1")


def _window(text: str) -> int | None:
    return None if text == "all" else _count(text)


def _size(text: str) -> int:
    try:
        return parse_bytes(text, "size")
    except ConfigError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.strip("[]").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers such as 2,1,1") from None


def _times(text: str) -> LayerTimes:
    values = _numbers(text)
    if len(values) != 5 or not all(0 <= value < float("inf") for value in values):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected five times >= 0, in ms")
    return LayerTimes(*(value / 1000 for value in values))


def render(report: PlanReport) -> str:
    """Write the table, then assumptions and totals."""
    options = report.options
    shape = f"{report.model} on {options.devices} devices, {options.storage} storage, "
    shape += f"{options.dtype} compute, {options.max_batch} x {options.max_tokens} tokens"
    if options.memory is not None:
        shape += f", {format_bytes(options.memory)} of memory each"
    lines = [shape, "", *_table([_HEADINGS, *(_cells(row) for row in report.rows)]), ""]
    lines += [_assumptions(report), _total(report)]
    return "\n".join(lines) + "\n"


def _cells(row: DeviceRow) -> tuple[str, ...]:
    retained = ", ".join(f"{row.retained[k]} {k}" for k in _KINDS if row.retained.get(k))
    steady = "holds" if row.is_steady else f"stalls {row.stall_s / row.step_s:.0%}"
    return (
        str(row.rank),
        str(row.num_heads),
        str(row.num_kv_heads),
        str(row.ffn_columns),
        format_bytes(row.shard_bytes),
        "all" if row.window is None else str(row.window),
        retained or "-",
        format_bytes(row.arena_bytes),
        format_bytes(row.streamed_bytes_per_step),
        format_bytes(row.peak_bytes),
        format_seconds(row.step_s),
        steady,
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.rjust(w) for cell, w in zip(r, widths, strict=True)) for r in rows]


def _assumptions(report: PlanReport) -> str:
    rates, times = report.options.rates, report.options.times
    allreduce = f"{report.options.allreduce} allreduce {format_seconds(report.allreduce_s)}"
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
