"""Allreduce latency over link delay, measured on the emulated network beside its closed forms.

    lab allreduce-study --out results/published/allreduce.json

The paper's Figure 3 and Proposition 2: star, tree and ring on N containers joined by links of
`--delays` (device to core, one way), for payloads of `--bytes`. All ranks start a round at the same
moment of the host's clock; its latency ends when the last rank has the sum. Containers' CPU is not
limited. With `--dilation` k, links are k times slower and times divided by k, so that the ranks'
own processing counts 1/k. With `--out` the file is written after every delay, and its points of the
same study are not measured again (`--fresh` does).
"""

import argparse
import os
import queue
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NoReturn

from msgspec import Struct
from rich.console import Console
from rich.table import Table

from harness.paper.allreduce_file import Asked, keep_aside
from harness.run.emulation import open_testbed
from harness.run.failure import run_command
from harness.run.scratch import scratch_folder
from results.paper.cells.allreduce import Point
from testbed.base import Device, DeviceError
from testbed.docker.watchdog import watchdog
from testbed.host.hostlock import host_lock
from testbed.host.label import RunLabel
from testbed.limits.limits import DevicePlan
from testbed.links.link import LinkSpec, wire_bytes
from tpi.comm.allreduces.registry import PAPER_ALLREDUCES, find_allreduce
from tpi.decode import decode
from tpi.errors import EXIT_OK, ConfigError
from tpi.program.process import Inbox, Process, make_inbox

_HOPS_TO_CORE = 2  # of the paper's topology: device, gateway, core
_START_S, _LEAD_S, _ANSWER_S = 180.0, 0.05, 60.0
_DELAY_S, _DEVICE_CPU_S = 5.0, 3.0  # links and containers, and importing torch on each
_WARMUP_ROUNDS = 3  # the window of every connection grows to the payload


class _Sum(Struct, frozen=True, forbid_unknown_fields=True):
    """An event of `allreduce_rank`: `up` alone, or `sum` with all fields."""

    event: str
    round: int = 0
    end_ns: int = 0
    ok: bool = True


def expected_s(
    algorithm: str, world_size: int, num_bytes: int, link: LinkSpec
) -> tuple[float, float]:
    """(least time with shared ports and headers, the paper's: link latency alone)."""
    allreduce = find_allreduce(algorithm)
    bound = allreduce.cost_s(
        world_size=world_size, num_bytes=wire_bytes(num_bytes), delay_s=2 * link.delay_s,
        rate_bps=link.rate_bps or 1e12,
    )  # fmt: skip
    hop_s = link.delay_s / _HOPS_TO_CORE
    return bound, allreduce.published_link_s(hop_s=hop_s, world_size=world_size)


def measure(
    devices: Sequence[Device], asked: Asked, period_s: float
) -> Iterator[tuple[tuple[str, int], list[float]]]:
    """Yield the latencies of each (algorithm, payload), in undilated seconds.

    Raises:
        DeviceError: A rank ended, did not answer, or its sum is wrong.
    """
    inbox = make_inbox()
    with ExitStack() as stack:
        processes = _start(devices, asked, inbox)
        stack.callback(_release, processes)
        _collect(inbox, len(devices), _START_S * asked.dilation)
        for number, cell in enumerate(asked.cells):
            latencies = []
            for _ in range(_WARMUP_ROUNDS + asked.rounds):
                at_ns = time.monotonic_ns() + int(_LEAD_S * 1e9)
                for process in processes:
                    process.send(f"{number} {at_ns}")
                sums = _collect(inbox, len(devices), _ANSWER_S + period_s)
                if not all(event.ok for event in sums):
                    raise DeviceError(f"allreduce {cell[0]} of {cell[1]} bytes: a wrong sum")
                latency_s = (max(event.end_ns for event in sums) - at_ns) / 1e9
                latencies.append(latency_s / asked.dilation)
            yield cell, latencies[_WARMUP_ROUNDS:]


def _start(devices: Sequence[Device], asked: Asked, inbox: Inbox) -> list[Process]:
    common = {
        "world_size": len(devices),
        "session": secrets.token_hex(16),
        "master": f"{devices[0].address}:{devices[0].free_port()}",
        "time_scale": asked.dilation,
        "rounds": [{"algorithm": name, "num_bytes": count} for name, count in asked.cells],
    }
    return [
        device.run(
            [device.python, "-m", "baselines.allreduce_rank"],
            inbox,
            {"rank": rank, "bind": device.address, **common},
        )
        for rank, device in enumerate(devices)
    ]


def _release(processes: Sequence[Process]) -> None:
    for process in processes:
        process.release()
    for process in processes:
        process.wait(5.0)


def _collect(inbox: Inbox, count: int, timeout_s: float) -> list[_Sum]:
    """One event of every rank."""
    events: list[_Sum] = []
    while len(events) < count:
        try:
            output = inbox.get(timeout=timeout_s)
        except queue.Empty:
            raise DeviceError(f"allreduce: no answer of a rank within {timeout_s:g} s") from None
        if output.exit is not None:
            last = output.exit.log_tail.strip().splitlines()[-1:] or ["it said nothing"]
            raise DeviceError(f"allreduce: rank {output.device} ended: {last[0]}")
        events.append(decode(output.line, _Sum, f"allreduce: rank {output.device}", DeviceError))
    return events


def study(asked: Asked, console: Console) -> list[Point]:
    """Measure every delay that the file lacks, and write the file after each."""
    out = asked.out
    found = {} if out is None or asked.fresh else asked.to_go_on_from(out)
    for number, delay_ms in enumerate(asked.delays, start=1):
        if delay_ms in found:
            continue
        measured = measure_delay(asked, delay_ms)
        if out is not None and (aside := keep_aside(out, _in_order(asked, found))):
            console.print(f"what {out} had of another study is in {aside}", soft_wrap=True)
        found[delay_ms] = measured
        if out is not None:
            asked.keep(out, _in_order(asked, found))
        console.print(f"{delay_ms:g} ms measured, {number} of {len(asked.delays)} delays")
    return _in_order(asked, found)


def _in_order(asked: Asked, found: Mapping[float, Sequence[Point]]) -> list[Point]:
    return [point for delay_ms in asked.delays for point in found.get(delay_ms, ())]


def measure_delay(asked: Asked, delay_ms: float) -> list[Point]:
    """Measure every algorithm and payload on links of one delay."""
    dilated = asked.link(delay_ms).dilated(asked.dilation)
    with (
        scratch_folder(Path(asked.work_dir).absolute()) as folder,
        open_testbed(
            folder,
            [DevicePlan(link=dilated)] * asked.devices,
            mounts=(),
            link_backend=asked.backend,
            dilation=asked.dilation,
        ) as testbed,
    ):
        devices = testbed.up(asked.devices)
        longest_s = max(
            expected_s(name, asked.devices, max(asked.bytes), dilated)[0]
            for name in PAPER_ALLREDUCES
        )
        measured = measure(devices, asked, 3 * longest_s)
        return [_point(asked, delay_ms, *cell, seconds) for cell, seconds in measured]


def _point(
    asked: Asked, delay_ms: float, algorithm: str, num_bytes: int, seconds: Sequence[float]
) -> Point:
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [*seconds] * 3
    bound_s, published_s = expected_s(algorithm, asked.devices, num_bytes, asked.link(delay_ms))
    return Point(
        algorithm, delay_ms, num_bytes, asked.devices, statistics.median(seconds),
        quartiles[0], quartiles[-1], len(seconds), bound_s, published_s,
    )  # fmt: skip


_COLUMNS: Mapping[str, Callable[[Point], str]] = {
    "delay": lambda point: f"{point.delay_ms:g} ms",
    "payload": lambda point: f"{point.num_bytes} B",
    "algorithm": lambda point: point.algorithm,
    "measured": lambda point: f"{point.median_s * 1e3:.2f} ms",
    "bound": lambda point: f"{point.bound_s * 1e3:.2f} ms",
    "ratio": lambda point: f"{point.median_s / point.bound_s:.2f}" if point.bound_s else "-",
    "the paper's": lambda point: f"{point.published_s * 1e3:.2f} ms",
}


def show(points: Sequence[Point], console: Console) -> None:
    """Print measured beside expected."""
    table = Table(box=None, padding=(0, 1))
    for title in _COLUMNS:
        table.add_column(title, justify="left" if title == "algorithm" else "right")
    for point in points:
        table.add_row(*(cell(point) for cell in _COLUMNS.values()))
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    given = sys.argv[1:] if argv is None else argv
    run = partial(carry_out, given, Console(highlight=False))
    words = "interrupted; with --out the same command goes on"
    return run_command("allreduce_study", run, words)


def carry_out(argv: Sequence[str], console: Console) -> int:
    """Run the study that the arguments ask for and show it; raises TpiError if it cannot be."""
    asked = parse(argv)
    with host_lock(allow_concurrent=False), watchdog(RunLabel.mine("all")):
        points = study(asked, console)
    show(points, console)
    return EXIT_OK


def predicted_s(asked: Asked) -> float:
    """About how long the study takes: devices that start, and rounds."""
    start_s = asked.devices * _DEVICE_CPU_S / len(os.sched_getaffinity(0))
    seconds = len(asked.delays) * (_DELAY_S + start_s)
    for delay_ms in asked.delays:
        for name, num_bytes in asked.cells:
            one_s = expected_s(name, asked.devices, num_bytes, asked.link(delay_ms))[0]
            seconds += (_WARMUP_ROUNDS + asked.rounds) * (_LEAD_S + one_s * asked.dilation)
    return seconds


class _Parser(argparse.ArgumentParser):
    """Raises errors instead of ending the program: plans contain such arguments too."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def parse(argv: Sequence[str]) -> Asked:
    """The options in the arguments; raises ConfigError if they cannot be used."""
    parser = _Parser(prog="lab allreduce-study")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--delays", type=_list_of(float, "0,1,2"), default=(0, 1, 2, 4, 6, 8, 10),
                        help="ms, device to core, one way")  # fmt: skip
    parser.add_argument("--bytes", type=_list_of(int, "4,32768"), default=(4, 32768))
    parser.add_argument("--rate-mbps", type=float, default=300)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dilation", type=float, default=8)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--work-dir", default="weights")
    parser.add_argument("--out", type=Path, help="where the figures are kept, as JSON")
    parser.add_argument("--fresh", action="store_true", help="measure again what the file has")
    asked = Asked(**vars(parser.parse_args(argv)))
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
    return asked


def _list_of(
    number: type[float] | type[int], example: str
) -> Callable[[str], tuple[float | int, ...]]:
    def read(text: str) -> tuple[float | int, ...]:
        try:
            return tuple(number(word) for word in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"got {text!r}, expected numbers as in {example}"
            ) from None

    return read
