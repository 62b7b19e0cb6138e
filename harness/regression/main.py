"""Compare this tree with its base commit: `lab regression`.

Counters come first (`counters.py`), which are the same on any machine, then timings
(`timings.py`). `verdict.py` decides what a regression is. The exit status is 1 for a regression,
and 0 also if there is nothing to compare with.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from harness.regression.base import Base, NoBaselineError, checked_out, describe_head, find_base
from harness.regression.counters import compare_counters
from harness.regression.timings import ROUNDS, STARTS, Amount, measure_timings
from harness.regression.tree import Tree
from harness.regression.verdict import (
    NO_BASELINE,
    UNCLEAR,
    Finding,
    markdown,
    rich_table,
)
from harness.run.failure import run_command
from testbed.host.hostlock import host_lock
from tpi.command_line import Parser
from tpi.errors import EXIT_OK, ConfigError
from tpi.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
EXIT_REGRESSION = 1
_WIDTH = 150  # where there is no terminal to ask


def compare(
    repo: Path, base: Base, amount: Amount, options: list[str], console: Console
) -> list[Finding]:
    """Check the base out, measure both trees, and give the base's files back."""

    def note(text: str) -> None:
        console.print(f"bench: {text} ...", highlight=False, markup=False)

    with ExitStack() as stack:
        before = Tree("base", stack.enter_context(checked_out(repo, base.commit)))
        after = Tree("head", repo)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tpi-bench-")))
        if not (before.root / "tpi" / "__init__.py").is_file():
            raise NoBaselineError(f"{base.commit[:12]} has no tpi to measure")
        for tree in (before, after):
            tree.check_imports()
        # Programs take the lock themselves while they count; probes do not.
        findings = compare_counters(before, after, scratch, options, note)
        with host_lock(allow_concurrent=bool(options)):
            return findings + measure_timings(before, after, scratch, amount, note)


def conclude(findings: Sequence[Finding], accepted: Sequence[str]) -> tuple[int, str]:
    """The exit status and the line that says why."""
    unknown = sorted(set(accepted) - {f.what for f in findings})
    if unknown:
        raise ConfigError(f"--accept: nothing is called {unknown[0]!r}; the names are the table's")
    bad = [f for f in findings if f.fails and f.what not in accepted]
    if bad:
        named = "; ".join(f"{f.what}: {f.verdict}, {f.base} to {f.head}, {f.change}" for f in bad)
        return EXIT_REGRESSION, f"regression: {named}"
    without = sum(f.verdict == NO_BASELINE for f in findings)
    unclear = [f.what for f in findings if f.verdict == UNCLEAR]
    line = f"no regression: {len(findings) - without} compared, {without} without a baseline"
    if unclear:
        line += f"; too noisy to tell a tenth, run it again: {', '.join(unclear)}"
    return EXIT_OK, line


def main(argv: Sequence[str] | None = None, repo: Path = ROOT) -> int:
    """Run from the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)

    def run() -> int:
        try:
            return _run(repo, args, console)
        except NoBaselineError as exc:
            console.print(f"bench: no baseline yet: {exc}", highlight=False, markup=False)
            return exc.exit_status

    return run_command("bench", run, "interrupted")


def _run(repo: Path, args: argparse.Namespace, console: Console) -> int:
    amount = Amount(args.starts, args.rounds)
    if args.out is not None:  # refused before minutes have passed
        args.out.parent.mkdir(parents=True, exist_ok=True)
        if args.out.is_dir():
            raise ConfigError(f"--out {args.out}: is a folder, expected a file")
    options = ["allow_concurrent=true"] if args.allow_concurrent else []
    base = find_base(repo, args.base)
    title = f"{describe_head(repo)} against {base.commit[:12]} ({base.how})"
    console.print(f"bench: {title}", highlight=False, markup=False)
    findings = compare(repo, base, amount, options, console)
    console.print(rich_table(findings))
    status, line = conclude(findings, args.accept)
    console.print(f"bench: {line}", highlight=False, markup=False, soft_wrap=True)
    if args.out is not None:
        write_atomic(args.out, markdown(title, findings, line).encode())
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lab regression", description="Compare this tree with its base commit, in one job."
    )
    parser.add_argument(
        "--base", metavar="REF", help="commit to compare with (default: where this branch left "
        "origin/main, or the commit before HEAD)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--starts", type=int, default=STARTS, metavar="N")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument(
        "--accept", action="append", default=[], metavar="NAME",
        help="a row of the table that may get worse, since it is meant to; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--allow-concurrent", action="store_true", help="run beside another run on this host"
    )
    return parser
