"""The spans of a run as a trace file: `lab trace RECORD [--repeat N] [--out F]`.

A file in the JSON form that Perfetto (ui.perfetto.dev) and Chrome (about:tracing) open: a process
for each device, in it a thread for each kind of span (compute, allreduce, load, wait), and marks at
rank 0's tokens. Time is in microseconds since the request, undilated.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from results.records.schema import RecordError, Repeat, RunRecord
from results.records.spans import RankSpan, is_cut, spans_of
from results.records.store import RunStore
from tpi.command_line import Parser
from tpi.errors import ConfigError, ResourceError, TpiError, map_errors
from tpi.files import check_out, write_atomic
from tpi.ranks import MASTER_RANK
from tpi.trace import SPAN_NAMES


def trace_events(repeat: Repeat, system: str = "") -> list[dict[str, object]]:
    """The events of a trace file, devices named; a ConfigError if the run kept no spans."""
    spans = spans_of(repeat)
    if not spans:
        raise ConfigError(f"repeat {repeat.index} has no spans; run it again with trace=true")
    events: list[dict[str, object]] = []
    for rank in sorted({span.rank for span in spans}):
        own = sorted((s for s in spans if s.rank == rank), key=lambda s: SPAN_NAMES.index(s.name))
        events += _process(rank, f"{system} rank {rank}".strip(), own)
    return [*events, *_tokens(repeat)]


def _process(rank: int, name: str, spans: Sequence[RankSpan]) -> list[dict[str, object]]:
    """One process of the trace, with a thread for each kind of span."""
    threads = {kind: tid for tid, kind in enumerate(dict.fromkeys(s.name for s in spans))}
    return [
        _named("process_name", rank, 0, name),
        *(_named("thread_name", rank, tid, kind) for kind, tid in threads.items()),
        *(
            {
                "name": span.label or span.name, "cat": span.name, "ph": "X",
                "pid": rank, "tid": threads[span.name],
                "ts": 1e6 * span.start_s, "dur": 1e6 * span.end_s - 1e6 * span.start_s, "args": {},
            }
            for span in spans
        ),
    ]  # fmt: skip


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, object]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _tokens(repeat: Repeat) -> list[dict[str, object]]:
    """A mark across rank 0's process at each token."""
    (go,) = repeat.of_request("request", MASTER_RANK)
    return [
        {
            "name": f"token {number}", "cat": "token", "ph": "i", "s": "p",
            "pid": MASTER_RANK, "tid": 0, "ts": (token.t_ns - go.t_ns) / repeat.dilation / 1e3,
        }
        for number, token in enumerate(repeat.of_request("token"), 1)
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = Parser(prog="lab trace", description="Write a traced run's spans for ui.perfetto.dev.")
    parser.add_argument("record", type=Path, help="folder of a run record")
    parser.add_argument("--repeat", type=int, default=0, help="which one; 0 is the first")
    parser.add_argument("--out", type=Path, default=Path("trace.json"), help="file to write")
    given = parser.parse_args(argv)
    try:
        check_out(given.out, keep=[given.record / "run.json"])
        record, repeat = _read(given.record, given.repeat)
        with map_errors({ConfigError: ConfigError}, str(given.record)):
            events = trace_events(repeat, record.system)
        facts = {"run_id": record.run_id, "repeat": repeat.index, "is_cut": is_cut(repeat)}
        body = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": facts}
        with map_errors({OSError: ResourceError}, f"cannot write {given.out}"):
            write_atomic(given.out, json.dumps(body, allow_nan=False).encode())
    except TpiError as exc:
        sys.stderr.write(f"trace: {exc}\n")
        return exc.exit_status
    cut = "; its last part was not kept" if is_cut(repeat) else ""
    sys.stdout.write(f"{given.out}: spans of {record.run_id}, repeat {repeat.index}{cut}\n")
    return 0


def _read(folder: Path, index: int) -> tuple[RunRecord, Repeat]:
    if not (folder / "run.json").is_file():
        raise RecordError(f"{folder}: no run record, expected a folder with run.json")
    store = RunStore(folder.resolve().parent)
    record = store.read(folder.resolve().name)
    repeats = store.repeats(record)
    if not 0 <= index < len(repeats):
        raise ConfigError(f"--repeat: got {index}, {folder} has {len(repeats)}, counted from 0")
    return record, repeats[index]
