"""Run records and repeats as JSON, checked when written and when read.

run.json             the fields of `schema.RunRecord`, and `record_sha256` of all the rest
samples-000.jsonl    line 1: the fields of `schema.Repeat` but `events`, with `num_events`;
                     then one event a line: {"rank": 0, "event": "token", "t_ns": 1,
                         "fields": {"id": "r0", "token": 7}}
"""

import hashlib
import json
from collections.abc import Mapping

import msgspec
from msgspec import Struct, structs

from results.records import migration
from results.records.numbers import Count
from results.records.schema import (
    SCHEMA_VERSION,
    TIME_SHARES,
    RecordError,
    Repeat,
    RunRecord,
)
from tpi.decode import Text, convert, decode
from tpi.errors import map_errors
from tpi.files import parse_json
from tpi.program.events import EventError, check_event

_DIGEST = "record_sha256"
Json = dict[str, object]


class _FirstLine(Repeat, frozen=True, kw_only=True):
    """Line 1 of a samples file."""

    num_events: Count


class _EventLine(Struct, frozen=True, forbid_unknown_fields=True):
    """Any other line."""

    rank: Count
    event: Text
    t_ns: Count
    fields: Mapping[str, object]


def encode_record(record: RunRecord) -> bytes:
    """JSON of a record, read back and checked; a RecordError says what does not fit."""
    where = f"record {record.run_id}"
    with map_errors({TypeError: RecordError, ValueError: RecordError}, where):
        body: Json = msgspec.to_builtins(record, str_keys=True)
        data = json.dumps({**body, _DIGEST: _digest(body)}, indent=1, allow_nan=False).encode()
    decode_record(data, where)
    return data


def decode_record(data: bytes, where: str) -> RunRecord:
    """Read a record; a RecordError, opening with `where`, says what does not fit or was changed."""
    raw = _object(data, where)
    version = raw.get("schema_version")
    if version not in (migration.OLD_VERSION, SCHEMA_VERSION):
        raise RecordError(
            f"{where}: schema version {version}, this program reads {SCHEMA_VERSION};"
            " measure again with force=true"
        )
    if raw.pop(_DIGEST, None) != _digest(raw):
        raise RecordError(f"{where}: was changed after it was written")
    if version == migration.OLD_VERSION:
        raw = migration.upgraded_record(raw, where)
    record = convert(raw, RunRecord, where, RecordError)
    _check_record(record, where)
    return record


def encode_repeat(repeat: Repeat) -> bytes:
    """JSON lines of a repeat, read back and checked; a RecordError says what does not fit."""
    where = f"repeat {repeat.index}"
    with map_errors({TypeError: RecordError, ValueError: RecordError}, where):
        head = {**structs.asdict(repeat), "num_events": len(repeat.events)}
        del head["events"]
        lines = [msgspec.to_builtins(head)] + [
            {"rank": e.rank, "event": e.name, "t_ns": e.t_ns, "fields": e.fields}
            for e in repeat.events
        ]
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    data = text.encode()
    decode_repeat(data, where)
    return data


def decode_repeat(data: bytes, where: str) -> Repeat:
    """Read a repeat; a RecordError, opening with `where`, names a line that does not fit."""
    first, *lines = data.split(b"\n")
    raw = _object(first, where)
    if "events" in raw:
        raise RecordError(f"{where}: line 1: unknown key 'events'")
    head = convert({**raw, "events": ()}, _FirstLine, f"{where}: line 1", RecordError)
    if len(lines) != head.num_events + 1 or lines[-1] != b"":
        raise RecordError(f"{where}: is cut short: {len(lines) - 1} of {head.num_events} events")
    events = []
    for line in lines[:-1]:
        found = decode(line, _EventLine, f"{where}: event", RecordError)
        with map_errors({EventError: RecordError}, where):
            body = {"event": found.event, "t_ns": found.t_ns, **found.fields}
            events.append(check_event(body, found.rank))
    fields = {name: getattr(head, name) for name in Repeat.__struct_fields__}
    return Repeat(**{**fields, "events": tuple(events)})


def _object(data: bytes, where: str) -> Json:
    try:
        raw = parse_json(data, where, RecordError)
    except RecordError as exc:
        if isinstance(exc.__cause__, ValueError):
            reason = f"not JSON, perhaps half written: {exc.__cause__}"
            raise RecordError(f"{where}: {reason}") from exc
        raise
    return convert(raw, Json, where, RecordError)


def _check_record(record: RunRecord, where: str) -> None:
    """What the fields say together."""
    has_timing = record.metrics is not None
    if record.status == "ok" and not has_timing:
        raise RecordError(f"{where}: status ok without metrics")
    if has_timing and record.status not in ("ok", "interrupted"):
        raise RecordError(f"{where}: metrics with status {record.status}: a failure has no timing")
    if record.status == "ok" and record.check.passed is False:
        raise RecordError(f"{where}: status ok, but the check of the tokens failed")
    if record.status != "ok" and not record.reason:
        raise RecordError(f"{where}: status {record.status} without a reason")
    if record.metrics is not None and len(record.metrics.time_share) not in (0, len(TIME_SHARES)):
        raise RecordError(f"{where}: metrics.time_share must have all of {TIME_SHARES}, or none")


def _digest(body: Json) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
