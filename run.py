"""Measure systems side by side and print the table: `python run.py --help`.

From here the path is: `compose` (command line -> configuration) -> `plan` (what will be done) ->
`Experiment` (weights, repeats, records) -> `rich_table`. Read `run` first.
"""

import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.available import split_available
from harness.compose import Composed, compose_all, help_text
from harness.experiment import Experiment
from harness.findings import disk_share
from harness.host import probe_host
from harness.live import Live
from harness.plan import make_plan
from harness.plan_text import describe
from harness.prompt import prompt_ids
from results.schema import RunRecord
from results.tables import make_rows, note_lines, rich_table
from testbed.local import NOTES
from tpi.config import load_config, load_preset
from tpi.errors import EXIT_INTERRUPTED, EXIT_OK, TpiError

_WIDTH = 120  # where there is no terminal to ask


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    # Ending politely on SIGTERM is the same as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    try:
        if {"--help", "-h"} & set(args):
            console.print(help_text(), markup=False, soft_wrap=True)
            return EXIT_OK
        return max(run(composed, console) for composed in compose_all(args))
    except TpiError as exc:
        print(f"run.py: {exc}", file=sys.stderr)
        return exc.exit_status
    except KeyboardInterrupt:
        print("run.py: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


def run(composed: Composed, console: Console) -> int:
    """Plan one configuration, say what it will do, do it, print the table."""
    path = composed.config.model.path
    name = composed.config.model.name
    model = load_preset(name) if path is None else load_config(Path(path))
    config, unavailable = split_available(composed.config, model, is_all=composed.all_systems)
    prompt = prompt_ids(config, model)
    host = probe_host(Path(config.weights.dir))
    plan = make_plan(config, model, len(prompt), host)
    experiment = Experiment(plan, host, prompt, Live())
    grid = Table.grid(padding=(0, 2))
    for heading, text in describe(plan, host, experiment.to_write, experiment.pending):
        grid.add_row(heading, Text(text))  # as Text: brackets are no markup
    console.print(grid, "")
    results_dir = Path(config.results_dir)
    try:
        experiment.run()
    except KeyboardInterrupt:
        show(experiment.records, results_dir, console)
        raise
    show([*experiment.records, *unavailable], results_dir, console)
    return experiment.exit_status


def show(records: Sequence[RunRecord], results_dir: Path, console: Console) -> None:
    """Print the table, what it leaves out, and where the records lie."""
    shares = [disk_share(record) for record in records]
    rows = [
        replace(record, notes=(*record.notes, share)) if share else record
        for record, share in zip(records, shares, strict=True)
    ]
    table = rich_table(rows)
    table.caption = None  # it would be wrapped to the table's width
    # Cells are never cut short: a terminal that is too narrow wraps the lines itself.
    wide = Console(highlight=False, file=console.file, width=max(console.width, _WIDTH))
    wide.print("", table, "")
    kept = [results_dir / record.run_id for record in records if record.run_id]
    folders = [f"record: {folder}" for folder in kept if folder.is_dir()]
    for line in (*note_lines(make_rows(rows)), *NOTES, *folders):
        console.print(line, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
