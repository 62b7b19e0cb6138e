"""Copy exhibits with the records behind them: `lab publish FOLDER OUT --only table1`.

OUT gets an index of those exhibits, every record and samples file that it needs, and `SHA256SUMS`
for `sha256sum -c`. Nothing unreadable is published, and nothing is overwritten.
"""

import hashlib
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from results.paper.cells.result_set import read_result_set
from results.paper.index import INDEX_FILE, read_index, write_index
from results.paper.render.main import exhibits_named
from tpi.command_line import Parser
from tpi.errors import EXIT_OK, ConfigError, ResourceError, TpiError, map_errors

SUMS_FILE = "SHA256SUMS"


def publish(folder: Path, out: Path, exhibits: Sequence[str]) -> list[str]:
    """Copy the records of some exhibits, and return their run ids.

    Raises:
        ConfigError: No such exhibit, no run of it, an unusable record, or `out` is there already.
    """
    names = exhibits_named(exhibits)
    index = read_index(folder)
    entries = tuple(entry for entry in index.entries if entry.exhibit in names)
    runs = list(dict.fromkeys(entry.run_id for entry in entries if entry.run_id))
    if not runs:
        raise ConfigError(f"{folder}: no run of {', '.join(names)}; nothing to publish")
    if out.exists():
        raise ConfigError(f"{out}: is there already; name a folder that is not")
    results = read_result_set(folder)
    named = re.compile(rf"\b({'|'.join(map(re.escape, runs))})(?![-\w])")
    for problem in results.problems:
        if named.search(problem):
            raise ConfigError(f"cannot be published: {problem}")
    with map_errors({OSError: ResourceError}, f"cannot write {out}"):
        for run in runs:
            (out / run).mkdir(parents=True)
            # What the record does not name has no digest, and is none of it.
            for name in ("run.json", *(sample.file for sample in results.records[run].samples)):
                shutil.copyfile(folder / run / name, out / run / name)
        write_index(out, replace(index, entries=entries, studies=()))
        files = [INDEX_FILE, *(f"{run}/run.json" for run in sorted(runs))]
        digests = [hashlib.sha256((out / name).read_bytes()).hexdigest() for name in files]
        lines = [f"{digest}  {name}" for digest, name in zip(digests, files, strict=True)]
        (out / SUMS_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = Parser(prog="lab publish", description="Copy exhibits with the records behind them.")
    parser.add_argument("folder", type=Path, help="with index.json and the run records")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument(
        "--only", nargs="+", required=True, metavar="EXHIBIT", help="table1 ..., validation"
    )
    args = parser.parse_args(argv)
    try:
        runs = publish(args.folder, args.out, args.only)
    except TpiError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return exc.exit_status
    sys.stdout.write(f"{len(runs)} records in {args.out}\n")
    return EXIT_OK
