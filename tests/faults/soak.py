"""Many runs in a row, every third killed at a random moment; then nothing may be left.

    python -m tests.faults.soak --runs 50 --seed 1 [--testbed docker|local] [--folder DIR]

Prints a line per run and a verdict; exit status 0 if nothing was left and every record reads back.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from testbed.host.hostlock import host_lock
from tests.faults.harnesses import DOCKER, LOCAL, Site, await_gone, kill

EVERY = 3
RUN_TIMEOUT_S = 120.0
GONE_S = 30.0


@dataclass
class Row:
    """One run."""

    number: int
    status: int
    wall_s: float
    killed_s: float | None = None
    gone_s: float = 0.0

    def __str__(self) -> str:
        """As a line of the table."""
        how = "" if self.killed_s is None else f"{self.killed_s:8.2f}"
        return f"{self.number:4} {how:>8} {self.status:7} {self.wall_s:8.2f} {self.gone_s:8.2f}"


def main(argv: list[str] | None = None) -> int:
    """Soak."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--testbed", choices=("docker", "local"), default="docker")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="tpi-soak-", dir=asked.folder) as name:
        site = Site(Path(name), DOCKER if asked.testbed == "docker" else LOCAL)
        return soak(site, asked.runs, asked.seed)


def soak(site: Site, runs: int, seed: int) -> int:
    """Run, kill, look; gives the exit status."""
    draw = random.Random(seed)
    before = site.leftovers()
    say(f"seed {seed}; every {EVERY}rd of {runs} runs is killed")
    say(" run killed_s  status   wall_s   gone_s")
    first = one_run(site, 0, None)  # makes the weights, and tells how long a run takes
    rows = [first]
    for number in range(1, runs):
        killed = number % EVERY == EVERY - 1
        # The first run also makes the weights, so it takes longer than the others.
        whole_s = min(row.wall_s for row in rows if row.killed_s is None)
        rows.append(one_run(site, number, draw.uniform(0, whole_s) if killed else None))
    rows.append(one_run(site, runs, None))  # the next start clears what a killed one could not
    return judge(site, rows, before)


def one_run(site: Site, number: int, kill_s: float | None) -> Row:
    """One run, of a record of its own, killed after so many seconds."""
    start_s = time.monotonic()
    with site.start(f"workload.seed={number}") as process:
        try:
            out, err = process.communicate(timeout=RUN_TIMEOUT_S if kill_s is None else kill_s)
        except subprocess.TimeoutExpired as exc:
            if kill_s is None:
                raise SystemExit(f"run {number} hangs: {exc}") from exc
            kill(process)
        else:
            if process.returncode:
                say(out + err)
    wall_s = time.monotonic() - start_s
    row = Row(number, process.returncode, wall_s, kill_s if process.returncode == -9 else None)
    row.gone_s = await_gone(site, GONE_S)
    say(str(row))
    return row


def judge(site: Site, rows: list[Row], before: list[str]) -> int:
    """Look for what is left, print what was found."""
    finished = [row for row in rows if row.killed_s is None]
    problems = [f"run {row.number} ended with {row.status}" for row in finished if row.status]
    problems += [f"left: {what}" for what in site.leftovers() if what not in before]
    problems += [f"left: {folder}" for folder in site.scratch()]
    problems += site.problems()
    with host_lock(allow_concurrent=False, folder=site.locks) as contention:
        problems += ["the host lock shows others"] * contention.seen()
    killed = len(rows) - len(finished)
    slowest_s = max(row.gone_s for row in rows)
    say(f"{len(finished)} runs finished, {killed} were killed; all gone after {slowest_s:.2f} s")
    for problem in problems:
        say(f"PROBLEM {problem}")
    say("nothing is left, every record reads back" if not problems else "FAILED")
    return 1 if problems else 0


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
