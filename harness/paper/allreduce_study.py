"""Allreduce latency over link delay, measured on the emulated network beside its closed forms.

    lab allreduce-study --out results/published/allreduce.json

The paper's Figure 3 and Proposition 2: star, tree and ring on N containers joined by links of
`--delays` (device to core, one way), for payloads of `--bytes`. All ranks start a round at the same
moment of the host's clock; its latency ends when the last rank has the sum. Containers' CPU is not
limited, and with `--dilation` k links are k times slower and times divided by k, so that what the
ranks' own processing adds counts 1/k. With `--out` the file is written after every delay, and what
it has of the same study is not measured again (`--fresh` does). Read `measure` first.
"""

import argparse
import os
import queue
import secrets
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NoReturn

from msgspec import Struct
from rich.console import Console
from rich.table import Table

from baselines.validators import check_choice, check_count, check_number
from harness.config.profiles import LINK_BACKENDS
from harness.paper.allreduce_file import Asked, keep_aside
from harness.run.emulation import open_testbed
from harness.run.scratch import scratch_folder
from harness.run.signals import GracefulShutdown
from results.paper.cells.allreduce import Point
from testbed.base import Device, DeviceError
from testbed.docker.watchdog import janitor
from testbed.host.hostlock import host_lock
from testbed.label import RunLabel
from testbed.limits.limits import DeviceLimits
from testbed.links.link import LinkSpec, wire_bytes
from tpi.comm.allreduces.registry import PAPER_ALLREDUCES, find_allreduce
from tpi.decode import decode
from tpi.errors import EXIT_INTERRUPTED, ConfigError, TpiError
from tpi.program.process import Inbox, Process, make_inbox

_HOPS_TO_CORE = 2  # of the paper's topology: device, gateway, core
_START_S, _LEAD_S, _ANSWER_S = 180.0, 0.05, 60.0
_DELAY_S, _DEVICE_CPU_S = 5.0, 3.0  # links and containers, and importing torch on each
_WARMUP_ROUNDS = 3  # the window of every connection grows to the payload


class _Sum(Struct, frozen=True, forbid_unknown_fields=True):
    """What a rank of `harness.paper.allreduce_rank` says: `up` alone, or `sum` with all of it."""

    event: str
    round: int = 0
    end_ns: int = 0
    late_ns: int = 0
    ok: bool = True


def expected_s(
    algorithm: str, world_size: int, num_bytes: int, link: LinkSpec
) -> tuple[float, float]:
    """(least time with shared ports and headers, the paper's: link latency alone)."""
    allreduce = find_allreduce(algorithm)
    bound = allreduce.cost_s(
        world_size=world_size,
        num_bytes=wire_bytes(num_bytes),
        delay_s=2 * link.delay_s,
        rate_bps=link.rate_bps or 1e12,
    )
    hop_s = link.delay_s / _HOPS_TO_CORE
    return bound, allreduce.published_link_s(hop_s=hop_s, world_size=world_size)


def measure(
    devices: Sequence[Device], cells: Sequence[tuple[str, int]], rounds: int, period_s: float,
    dilation: float,
) -> Iterator[tuple[tuple[str, int], list[float]]]:  # fmt: skip
    """Yield the latencies of each (algorithm, payload), in seconds as they passed here.

    Raises:
        DeviceError: A rank ended, did not answer, or its sum is wrong.
    """
    inbox = make_inbox()
    processes = _start(devices, cells, inbox, dilation)
    try:
        _hear(inbox, len(devices), _START_S * dilation)
        for number, cell in enumerate(cells):
            latencies = []
            for _ in range(_WARMUP_ROUNDS + rounds):
                at_ns = time.monotonic_ns() + int(_LEAD_S * 1e9)
                for process in processes:
                    process.send(f"{number} {at_ns}")
                said = _hear(inbox, len(devices), _ANSWER_S + period_s)
                if not all(event.ok for event in said):
                    raise DeviceError(f"allreduce {cell[0]} of {cell[1]} bytes: a wrong sum")
                latencies.append((max(event.end_ns for event in said) - at_ns) / 1e9)
            yield cell, latencies[_WARMUP_ROUNDS:]
    finally:
        for process in processes:
            process.release()
        for process in processes:
            process.wait(5.0)


def _start(
    devices: Sequence[Device], cells: Sequence[tuple[str, int]], inbox: Inbox, dilation: float
) -> list[Process]:
    session = secrets.token_hex(16)
    master = f"{devices[0].address}:{devices[0].free_port()}"
    rounds = [{"algorithm": algorithm, "num_bytes": count} for algorithm, count in cells]
    return [
        device.run(
            [device.python, "-m", "harness.paper.allreduce_rank"],
            inbox,
            {
                "rank": rank,
                "world_size": len(devices),
                "session": session,
                "bind": device.address,
                "master": master,
                "time_scale": dilation,
                "rounds": rounds,
            },
        )
        for rank, device in enumerate(devices)
    ]


def _hear(inbox: Inbox, count: int, timeout_s: float) -> list[_Sum]:
    """One line of every rank."""
    said: list[_Sum] = []
    while len(said) < count:
        try:
            output = inbox.get(timeout=timeout_s)
        except queue.Empty:
            raise DeviceError(f"allreduce: no answer of a rank within {timeout_s:g} s") from None
        if output.exit is not None:
            last = output.exit.log_tail.strip().splitlines()[-1:] or ["it said nothing"]
            raise DeviceError(f"allreduce: rank {output.device} ended: {last[0]}")
        said.append(decode(output.line, _Sum, f"allreduce: rank {output.device}", DeviceError))
    return said


def study(arguments: argparse.Namespace, console: Console) -> list[Point]:
    """Measure every delay that the file does not have yet, and keep it after each."""
    asked, out = _asked(arguments), arguments.out
    found = {} if out is None or arguments.fresh else asked.to_go_on_from(out)
    for number, delay_ms in enumerate(asked.delays, start=1):
        if delay_ms in found:
            continue
        measured = measure_delay(arguments, delay_ms)
        if out is not None and (aside := keep_aside(out, _in_order(asked, found))):
            console.print(f"what {out} had of another study is in {aside}", soft_wrap=True)
        found[delay_ms] = measured
        if out is not None:
            asked.keep(out, _in_order(asked, found))
        console.print(f"{delay_ms:g} ms measured, {number} of {len(asked.delays)} delays")
    return _in_order(asked, found)


def _in_order(asked: Asked, found: Mapping[float, Sequence[Point]]) -> list[Point]:
    return [point for delay_ms in asked.delays for point in found.get(delay_ms, ())]


def measure_delay(arguments: argparse.Namespace, delay_ms: float) -> list[Point]:
    """Measure every algorithm and payload on links of one delay."""
    cells = list(product(PAPER_ALLREDUCES, arguments.bytes))
    link = LinkSpec(delay_ms / 1e3, arguments.rate_mbps * 1e6, 0.0, 16 << 20)
    dilated = link.dilated(arguments.dilation)
    with (
        scratch_folder(Path(arguments.work_dir).absolute()) as folder,
        open_testbed(
            folder,
            [DeviceLimits(threads=1)] * arguments.devices,
            [dilated] * arguments.devices,
            mounts=(),
            link_backend=arguments.backend,
            dilation=arguments.dilation,
        ) as testbed,
    ):
        devices = testbed.up(arguments.devices)
        longest = max(
            expected_s(name, arguments.devices, max(arguments.bytes), dilated)[0]
            for name in PAPER_ALLREDUCES
        )
        seen = measure(devices, cells, arguments.rounds, 3 * longest, arguments.dilation)
        return [_point(cell, delay_ms, link, latencies, arguments) for cell, latencies in seen]


def _point(
    cell: tuple[str, int],
    delay_ms: float,
    link: LinkSpec,
    seen: Sequence[float],
    arguments: argparse.Namespace,
) -> Point:
    algorithm, num_bytes = cell
    undilated = [value / arguments.dilation for value in seen]
    quartiles = statistics.quantiles(undilated, n=4) if len(undilated) > 1 else undilated * 3
    bound_s, published_s = expected_s(algorithm, arguments.devices, num_bytes, link)
    return Point(
        algorithm, delay_ms, num_bytes, arguments.devices, statistics.median(undilated),
        quartiles[0], quartiles[-1], len(seen), bound_s, published_s,
    )  # fmt: skip


def show(points: Sequence[Point], console: Console) -> None:
    """Print measured beside expected."""
    table = Table(box=None, padding=(0, 1))
    for title in ("delay", "payload", "algorithm", "measured", "bound", "ratio", "the paper's"):
        table.add_column(title, justify="left" if title == "algorithm" else "right")
    for point in points:
        table.add_row(
            f"{point.delay_ms:g} ms",
            f"{point.num_bytes} B",
            point.algorithm,
            f"{point.median_s * 1e3:.2f} ms",
            f"{point.bound_s * 1e3:.2f} ms",
            f"{point.median_s / point.bound_s:.2f}" if point.bound_s else "-",
            f"{point.published_s * 1e3:.2f} ms",
        )
    console.print(table)


def markdown(points: Sequence[Point]) -> str:
    """The same as Markdown: a row a delay, in each cell the measured latency and the bound."""
    columns = sorted({(point.num_bytes, point.algorithm) for point in points}, key=_column)
    cells = {(point.delay_ms, point.num_bytes, point.algorithm): point for point in points}
    lines = [
        "| delay to core | " + " | ".join(f"{name}, {count} B" for count, name in columns) + " |",
        "|---:|" + "---:|" * len(columns),
    ]
    for delay_ms in dict.fromkeys(point.delay_ms for point in points):
        row = [cells[delay_ms, *column] for column in columns]
        words = [f"{point.median_s * 1e3:.2f} ({point.bound_s * 1e3:.2f})" for point in row]
        lines.append(f"| {delay_ms:g} ms | " + " | ".join(words) + " |")
    return "\n".join(lines)


def _column(column: tuple[int, str]) -> tuple[int, int]:
    return column[0], PAPER_ALLREDUCES.index(column[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    try:
        with GracefulShutdown():
            carry_out(sys.argv[1:] if argv is None else argv, Console(highlight=False))
    except TpiError as exc:
        sys.stderr.write(f"allreduce_study: {exc}\n")
        return exc.exit_status
    except OSError as exc:
        sys.stderr.write(f"allreduce_study: {exc}\n")
        return DeviceError.exit_status
    except KeyboardInterrupt:
        sys.stderr.write("allreduce_study: interrupted; with --out the same command goes on\n")
        return EXIT_INTERRUPTED
    return 0


def carry_out(argv: Sequence[str], console: Console) -> None:
    """Measure what the arguments ask for, show it, and keep it where they say.

    Raises:
        TpiError: They cannot be used, or a device failed.
    """
    arguments = _parsed(argv)
    with host_lock(allow_concurrent=False), janitor(RunLabel.mine("all")):
        points = study(arguments, console)
    show(points, console)


def is_kept(argv: Sequence[str], path: Path) -> bool:
    """Whether a file has everything that the arguments ask for.

    Raises:
        ConfigError: They cannot be used, or the file is there and is no study.
    """
    return _asked(_parsed(argv)).is_kept(path)


def _asked(arguments: argparse.Namespace) -> Asked:
    return Asked(
        devices=arguments.devices,
        delays=tuple(arguments.delays),
        bytes=tuple(arguments.bytes),
        rounds=arguments.rounds,
        rate_mbps=arguments.rate_mbps,
        dilation=arguments.dilation,
    )


def predicted_s(argv: Sequence[str]) -> float:
    """About how long the study takes: devices that start, and rounds.

    Raises:
        ConfigError: The arguments cannot be used.
    """
    arguments = _parsed(argv)
    seconds = 0.0
    for delay_ms, num_bytes, name in product(arguments.delays, arguments.bytes, PAPER_ALLREDUCES):
        link = LinkSpec(delay_ms / 1e3, arguments.rate_mbps * 1e6, 0.0, 16 << 20)
        one_s = expected_s(name, arguments.devices, num_bytes, link)[0] * arguments.dilation
        seconds += (_WARMUP_ROUNDS + arguments.rounds) * (_LEAD_S + one_s)
    start_s = arguments.devices * _DEVICE_CPU_S / len(os.sched_getaffinity(0))
    for _ in arguments.delays:
        seconds += _DELAY_S + start_s
    return seconds


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as any other mistake: plans have such arguments in them."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of ending the program."""
        raise ConfigError(f"{message}; see --help")


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="lab allreduce-study")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--delays", type=_numbers, default=[0, 1, 2, 4, 6, 8, 10],
                        help="ms, device to core, one way")  # fmt: skip
    parser.add_argument("--bytes", type=_counts, default=[4, 32768])
    parser.add_argument("--rate-mbps", type=float, default=300)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dilation", type=float, default=8)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--work-dir", default="weights")
    parser.add_argument("--out", type=Path, help="where the figures are kept, as JSON")
    parser.add_argument("--fresh", action="store_true", help="measure again what the file has")
    arguments = parser.parse_args(argv)
    _check(arguments)
    return arguments


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be measured, before anything starts."""
    check_count("--devices", arguments.devices, low=2, high=64)
    check_count("--rounds", arguments.rounds, low=1, high=10_000)
    check_number("--dilation", arguments.dilation, low=1, high=1000)
    check_number("--rate-mbps", arguments.rate_mbps, low=0.001, high=1e6)
    check_choice("--backend", arguments.backend, LINK_BACKENDS)
    for name, values in (("--delays", arguments.delays), ("--bytes", arguments.bytes)):
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{name}: got {values}, expected at least one value, each once")
    for delay_ms in arguments.delays:
        check_number("--delays", delay_ms, low=0, high=60_000)
    for num_bytes in arguments.bytes:
        check_count("--bytes", num_bytes, low=4, high=64 << 20)
        if num_bytes % 4:
            raise ConfigError(f"--bytes: got {num_bytes}, expected a multiple of 4, whole floats")
    if arguments.out is not None:
        if arguments.out.is_dir():
            raise ConfigError(f"--out: {arguments.out} is a folder, expected a file")
        arguments.out.parent.mkdir(parents=True, exist_ok=True)


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers as in 0,1,2") from None


def _counts(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers as in 4,32768") from None
