"""Seconds of the probes in both trees, in turns.

Three programs run at a time: the base, the head, and the base again. Each round asks all three for
every probe, in another order each time. All three are started anew several times, because the luck
of a start (where memory lies, which core) is in all its rounds.
"""

import itertools
import select
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from harness.regression import probe
from harness.regression.tree import Answer, LacksError, ProgramError, Tree, failure
from harness.regression.verdict import NO_BASELINE, Finding, Timing, judge_timing
from tpi.decode import decode
from tpi.errors import ConfigError

STARTS, ROUNDS = 5, 6
_ORDERS = tuple(itertools.permutations(("base", "head", "again")))
_READY_S, _ANSWER_S, _END_S, _HURRY_S = 240.0, 120.0, 10.0, 1.0
_MOST_ROUNDS = probe.MOST_REQUESTS - 1  # one request warms up


class _Ready(Answer, frozen=True):
    missing: dict[str, str]


@dataclass(frozen=True, slots=True)
class Amount:
    """How often everything is timed: starts of the programs, and rounds in each.

    Raises:
        ConfigError: One start shows no noise of starts; the requests of a start are limited.
    """

    starts: int = STARTS
    rounds: int = ROUNDS

    def __post_init__(self) -> None:
        if self.starts < 2:
            raise ConfigError(f"--starts must be at least 2, got {self.starts}")
        if not 1 <= self.rounds <= _MOST_ROUNDS:
            raise ConfigError(f"--rounds must be in 1..{_MOST_ROUNDS}, got {self.rounds}")


class Server:
    """`probe.py serve` in one tree, which ends with the context; `missing` has lacking probes."""

    def __init__(self, tree: Tree, folder: Path) -> None:
        self._tree, self._folder = tree, folder
        self.missing: Mapping[str, str] = {}

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "serve.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", probe.__file__, "serve", str(self._folder)],
                cwd=self._tree.root, env=self._tree.env, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log,
                start_new_session=True,  # Ctrl-C comes to us alone; closing its input ends it
            )  # fmt: skip
        return self

    def wait_until_ready(self) -> None:
        """Wait until all probes are made.

        Raises:
            ProgramError: It ended instead.
            ConfigError: It imports another tree's modules.
        """
        self.missing = self._tree.read(self._answer(_READY_S), _Ready).missing

    def time(self, name: str) -> float:
        """Seconds of one probe."""
        if self._process.stdin is None:
            raise RuntimeError("a pipe was asked for")
        with suppress(BrokenPipeError):  # it is gone: its log says why
            self._process.stdin.write(f"{name}\n".encode())
            self._process.stdin.flush()
        return decode(self._answer(_ANSWER_S), float, "probe.py", ProgramError)

    def _answer(self, timeout_s: float) -> bytes:
        if self._process.stdout is None:
            raise RuntimeError("a pipe was asked for")
        # One answer at a time: nothing waits in a buffer, which select would not see.
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            raise ProgramError(f"{self._tree.name}: probe.py said nothing for {timeout_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            log = (self._folder / "serve.log").read_text(errors="replace")
            raise failure(f"{self._tree.name}: probe.py", self._process.wait(_END_S), log)
        return line

    def __exit__(self, kind: object, exc: object, tb: object) -> None:
        try:
            # Closes its input. After an error nobody needs its last answer.
            self._process.communicate(timeout=_END_S if exc is None else _HURRY_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._process.kill()  # its children end when their pipes do
            self._process.communicate()


def measure_timings(
    base: Tree, head: Tree, scratch: Path, amount: Amount, note: Callable[[str], None]
) -> list[Finding]:
    """Time all probes in both trees.

    Raises:
        ProgramError: The head cannot run a probe, or the base fails though it has all it needs.
    """
    trees = {"base": base, "head": head, "again": base}
    timings = {name: Timing([], [], []) for name in probe.PROBES}
    missing: dict[str, str] = {}
    for start in range(amount.starts):
        note(f"timings: start {start + 1} of {amount.starts}, {amount.rounds} rounds")
        with ExitStack() as stack:
            servers = {
                side: stack.enter_context(Server(tree, scratch / side))
                for side, tree in trees.items()
            }
            lacks = _without_baseline(servers)
            if start and (lost := lacks.keys() - missing.keys()):
                name = min(lost)
                raise ProgramError(
                    f"base: probe {name} ran before start {start + 1}: {lacks[name]}"
                )
            missing |= lacks
            names = [name for name in probe.PROBES if name not in missing]
            _time_start(servers, {name: timings[name] for name in names}, amount.rounds, start)
        if not names:
            break
    return [
        Finding(f"time: {name}", "-", "-", missing[name], NO_BASELINE)
        if missing.get(name)
        else judge_timing(f"time: {name}", timings[name])
        for name in probe.PROBES
    ]


def _time_start(
    servers: Mapping[str, Server], timings: Mapping[str, Timing], rounds: int, start: int
) -> None:
    """Add the rounds of one start to each timing."""
    for timing in timings.values():
        timing.add_start()
    for number, (name, timing) in itertools.product(range(rounds), timings.items()):
        turns = probe.TURNS.get(name, probe.USUAL_TURNS)
        for turn in range(turns):
            order = _ORDERS[(start + number * turns + turn) % len(_ORDERS)]
            timing.add({side: servers[side].time(name) for side in order})


def _without_baseline(servers: Mapping[str, Server]) -> dict[str, str]:
    """Wait for all; returns what the base cannot run and why. The head must run everything."""
    servers["head"].wait_until_ready()
    for name, why in servers["head"].missing.items():
        raise ProgramError(f"head: probe {name} cannot run: {why}")
    try:
        servers["base"].wait_until_ready()
        servers["again"].wait_until_ready()
    except LacksError as exc:
        return dict.fromkeys(probe.PROBES, str(exc))
    return {**servers["base"].missing, **servers["again"].missing}
