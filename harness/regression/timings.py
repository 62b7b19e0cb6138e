"""Seconds of the probes in both trees, in turns.

Three programs are up at a time: of the base, of the head, and of the base once more. Each round
asks all three for every probe, in another order each time, so that none always comes after the
same one. All three are started anew several times, for one start's luck (where memory lies, which
core) is in all its rounds. Read `measure_timings` first.
"""

import itertools
import json
import select
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.regression import probe
from harness.regression.tree import LacksError, ProgramError, Tree, failure
from harness.regression.verdict import NO_BASELINE, Finding, Timing, judge_timing
from tpi.errors import ConfigError

STARTS, ROUNDS = 5, 6
_ORDERS = tuple(itertools.permutations(("base", "head", "again")))
_READY_S, _ANSWER_S, _END_S, _HURRY_S = 240.0, 120.0, 10.0, 1.0
_MOST_ROUNDS = probe.MOST_REQUESTS - 1  # one request warms up


@dataclass(frozen=True, slots=True)
class Amount:
    """How often everything is timed: starts of the programs, and rounds in each.

    Raises:
        ConfigError: One start knows no noise of starts; the requests of a start are limited.
    """

    starts: int = STARTS
    rounds: int = ROUNDS

    def __post_init__(self) -> None:
        if self.starts < 2:
            raise ConfigError(f"--starts must be at least 2, got {self.starts}")
        if not 1 <= self.rounds <= _MOST_ROUNDS:
            raise ConfigError(f"--rounds must be in 1..{_MOST_ROUNDS}, got {self.rounds}")


class Server:
    """`probe.py serve` in one tree; leaves with its context.

    Attributes:
        missing: Why which probes cannot run there.
    """

    def __init__(self, tree: Tree, folder: Path) -> None:
        self._tree = tree
        self._folder = folder
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
        said = self._answer(_READY_S)
        self._tree.check(said["tpi"])
        self.missing = said["missing"]

    def time(self, name: str) -> float:
        """Seconds of one probe."""
        if self._process.stdin is None:
            raise RuntimeError("a pipe was asked for")
        with suppress(BrokenPipeError):  # it is gone: its log says why
            self._process.stdin.write(f"{name}\n".encode())
            self._process.stdin.flush()
        return float(self._answer(_ANSWER_S)["seconds"])

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        if self._process.stdout is None:
            raise RuntimeError("a pipe was asked for")
        # One line is asked for at a time, so that nothing waits in the buffer that select misses.
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            raise ProgramError(f"{self._tree.name}: probe.py said nothing for {timeout_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            log = (self._folder / "serve.log").read_text(errors="replace")
            raise failure(f"{self._tree.name}: probe.py", self._process.wait(_END_S), log)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            # Closes its input; who is interrupted or has failed does not wait for its last answer.
            self._process.communicate(timeout=_END_S if exc is None else _HURRY_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._process.kill()  # what it started ends when its pipes do
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
            if start and (lost := lacks.keys() - missing.keys()):  # what was there does not go away
                name = min(lost)
                raise ProgramError(
                    f"base: probe {name} ran before start {start + 1}: {lacks[name]}"
                )
            missing |= lacks
            names = [name for name in probe.PROBES if name not in missing]
            _time_start(servers, {name: timings[name] for name in names}, amount.rounds, start)
        if not names:
            break
    return [_finding(name, timings[name], missing.get(name)) for name in probe.PROBES]


def _time_start(
    servers: Mapping[str, Server], timings: Mapping[str, Timing], rounds: int, start: int
) -> None:
    """Add to each timing what the rounds of one start took."""
    for timing in timings.values():
        timing.add_start()
    for number, (name, timing) in itertools.product(range(rounds), timings.items()):
        turns = probe.TURNS.get(name, probe.USUAL_TURNS)
        for turn in range(turns):
            order = _ORDERS[(start + number * turns + turn) % len(_ORDERS)]
            timing.add({side: servers[side].time(name) for side in order})


def _without_baseline(servers: Mapping[str, Server]) -> dict[str, str]:
    """Wait for all; what the base cannot run, and why. What the head cannot run is an error."""
    servers["head"].wait_until_ready()
    for name, why in servers["head"].missing.items():
        raise ProgramError(f"head: probe {name} cannot run: {why}")
    try:
        servers["base"].wait_until_ready()
        servers["again"].wait_until_ready()
    except LacksError as exc:
        return dict.fromkeys(probe.PROBES, str(exc))
    return {**servers["base"].missing, **servers["again"].missing}


def _finding(name: str, timing: Timing, why: str | None) -> Finding:
    what = f"time: {name}"
    return Finding(what, "-", "-", why, NO_BASELINE) if why else judge_timing(what, timing)
