"""Run records and repeats as JSON, checked when written and when read.

run.json             one object: the fields of `schema.RunRecord`, and `record_sha256`, the
                     SHA-256 of the object without it, so that a changed byte is noticed
samples-000.jsonl    line 1: the fields of `schema.Repeat` but `events`, with `num_events`;
                     then one event a line: {"rank": 0, "event": "token", "t_ns": 1,
                         "fields": {"id": "r0", "token": 7}}
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from results.records.schema import (
    CHECKS,
    SCHEMA_VERSION,
    STATUSES,
    TIME_SHARES,
    Check,
    Metrics,
    PeakMemory,
    RankEvent,
    RecordError,
    Repeat,
    RunRecord,
    SampleFile,
    Spread,
)
from tpi.errors import ConfigError, map_errors
from tpi.program.events import EventError, check_event
from tpi.program.spec import Fields, is_int

_DIGEST = "record_sha256"


def encode_record(record: RunRecord) -> bytes:
    """JSON of a record, read back and checked before it is handed out.

    Raises:
        RecordError: Something in it does not fit the schema.
    """
    try:
        body = json.loads(json.dumps(asdict(record), allow_nan=False))
    except (TypeError, ValueError) as exc:
        raise RecordError(f"record {record.run_id}: {exc}") from exc
    data = json.dumps({**body, _DIGEST: _digest(body)}, indent=1, allow_nan=False).encode()
    decode_record(data, f"record {record.run_id}")
    return data


def decode_record(data: bytes, where: str) -> RunRecord:
    """Read a record and check every field.

    Raises:
        RecordError: Not JSON, of another schema version, changed after it was written, or a
            field is missing, unknown or does not fit; the message opens with `where`.
    """
    raw = _load(data, where)
    version = raw.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{where}: schema version {version}, this program reads {SCHEMA_VERSION};"
            " measure again with force=true"
        )
    if raw.pop(_DIGEST, None) != _digest(raw):
        raise RecordError(f"{where}: was changed after it was written")
    with map_errors({ConfigError: RecordError}, where):
        record = _record(Fields(raw, "run.json"))
    _check_record(record, where)
    return record


def encode_repeat(repeat: Repeat) -> bytes:
    """JSON lines of a repeat.

    Raises:
        RecordError: Something in it does not fit the schema.
    """
    head = asdict(repeat)
    head["num_events"] = len(head.pop("events"))
    lines = [head, *(_event_to_json(e) for e in repeat.events)]
    try:
        data = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()
    except (TypeError, ValueError) as exc:
        raise RecordError(f"repeat {repeat.index}: {exc}") from exc
    decode_repeat(data, f"repeat {repeat.index}")
    return data


def decode_repeat(data: bytes, where: str) -> Repeat:
    """Read a repeat and check every field.

    Raises:
        RecordError: A line is missing, cut or does not fit; the message opens with `where`.
    """
    first, *lines = data.split(b"\n")
    raw = _load(first, where)
    with map_errors({ConfigError: RecordError, EventError: RecordError}, where):
        fields = Fields(raw, "line 1")
        num_events = fields.take_int("num_events", 0)
        if len(lines) != num_events + 1 or lines[-1] != b"":
            raise RecordError(f"{where}: is cut short: {len(lines) - 1} of {num_events} events")
        events = tuple(_event(line) for line in lines[:-1])
        repeat = Repeat(
            index=fields.take_int("index", 0),
            request_id=fields.take("request_id", "a string", _is_str),
            status=fields.take_choice("status", STATUSES),
            reason=fields.take("reason", "a string", _is_str),
            start_ns=tuple(fields.take("start_ns", "a list of integers", _list_of(_is_count))),
            peak_memory=_peak_memory(fields.take("peak_memory", "an object", _is_object)),
            events=events,
            facts=fields.take("facts", "an object", _is_object),
            # Absent in records from before there was one.
            dilation=fields.take("dilation", "a factor >= 1", _is_factor, 1.0),
        )
        fields.finish()
    return repeat


def _record(fields: Fields) -> RunRecord:
    metrics = fields.take("metrics", "an object or null", _or_null(_is_object))
    samples = fields.take("samples", "a list of objects", _list_of(_is_object))
    record = RunRecord(
        run_id=fields.take_str("run_id"),
        system=fields.take_str("system"),
        status=fields.take_choice("status", STATUSES),
        reason=fields.take("reason", "a string", _is_str),
        check=_check(Fields(fields.take("check", "an object", _is_object), "run.json check")),
        config=_config(fields.take("config", "an object", _is_object)),
        environment=fields.take("environment", "an object", _is_object),
        calibration=_calibration(fields.take("calibration", "an object", _is_object)),
        tokens=tuple(fields.take("tokens", "a list of token ids", _list_of(_is_count))),
        metrics=None if metrics is None else _metrics(Fields(metrics, "run.json metrics")),
        samples=tuple(_sample(Fields(s, "run.json samples")) for s in samples),
        notes=tuple(fields.take("notes", "a list of strings", _list_of(_is_str))),
        schema_version=fields.take_int("schema_version", SCHEMA_VERSION),
    )
    fields.finish()
    return record


def _calibration(raw: dict[str, Any]) -> dict[str, Any]:
    """Check what tables are made from; a local record has none of it."""
    fields, where = Fields(raw, "run.json calibration"), "run.json calibration"
    if "dilation" in raw:
        dilation = Fields(fields.take("dilation", "an object", _is_object), f"{where} dilation")
        dilation.take("factor", "a factor >= 1", _is_factor)
    for limits in fields.take("limits", "a list of objects", _list_of(_is_object), ()):
        of_device = Fields(limits, f"{where} limits")
        for name in ("memory", "read_bps"):
            of_device.take(name, "a number or null", _or_null(_is_number), None)
    for link in fields.take("links", "a list of objects", _list_of(_is_object), ()):
        of_link = Fields(link, f"{where} links")
        of_link.take("delay_s", "a number", _is_number)
        of_link.take("rate_bps", "a number or null", _or_null(_is_number))
        of_link.take("loss_frac", "a fraction", _is_fraction)
    return raw


def _config(raw: dict[str, Any]) -> dict[str, Any]:
    """Check what tables are made from."""
    fields = Fields(raw, "run.json config")
    for name, options in fields.take("systems", "an object", _is_object, {}).items():
        of_system = Fields(options, f"run.json config systems.{name}")
        of_system.take("shares", "a list of numbers or null", _or_null(_list_of(_is_number)), None)
    for axis in ("testbed", "link", "device", "model"):
        fields.take(axis, "an object", _is_object, {})
    return raw


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


def _check(fields: Fields) -> Check:
    check = Check(
        kind=fields.take_choice("kind", CHECKS),
        passed=fields.take("passed", "true, false or null", _or_null(_is_bool)),
        agreement=fields.take("agreement", "a fraction or null", _or_null(_is_fraction)),
        first_difference=fields.take("first_difference", "a position", _or_null(_is_count)),
        detail=fields.take("detail", "a string", _is_str),
    )
    fields.finish()
    return check


def _metrics(fields: Fields) -> Metrics:
    def number(name: str) -> Any:
        return fields.take(name, "a number >= 0 or null", _or_null(_is_number))

    metrics = Metrics(
        load_s=_spread(fields.take("load_s", "an object", _is_object)),
        verify_s=fields.take("verify_s", "a number >= 0", _is_number),
        ttft_s=_spread(fields.take("ttft_s", "an object", _is_object)),
        token_latency_s=_spread_or_none(
            fields.take("token_latency_s", "an object or null", _or_null(_is_object))
        ),
        peak_memory=_peak_memory(fields.take("peak_memory", "an object", _is_object)),
        disk_bytes_per_token=number("disk_bytes_per_token"),
        wire_bytes_per_token=number("wire_bytes_per_token"),
        messages_per_token=number("messages_per_token"),
        time_share=fields.take("time_share", "an object of shares", _is_time_share),
    )
    fields.finish()
    return metrics


def _spread(raw: Mapping[str, Any]) -> Spread:
    fields = Fields(raw, "run.json metrics")
    median, low, high = (
        fields.take(name, "a number >= 0", _is_number) for name in ("median", "low", "high")
    )
    result = Spread(median, low, high, fields.take_int("n", 1))
    fields.finish()
    return result


def _spread_or_none(raw: Mapping[str, Any] | None) -> Spread | None:
    return None if raw is None else _spread(raw)


def _peak_memory(raw: Mapping[str, Any]) -> PeakMemory:
    fields = Fields(raw, "peak_memory")
    by_rank = _list_of(_or_null(_is_count))
    names = ("rss_hwm", "anon_peak", "cgroup_peak")
    peak = PeakMemory(*(tuple(fields.take(n, "a list of bytes", by_rank)) for n in names))
    fields.finish()
    return peak


def _sample(fields: Fields) -> SampleFile:
    sample = SampleFile(
        file=fields.take("file", "a file name", lambda v: _is_str(v) and "/" not in v),
        sha256=fields.take_str("sha256"),
        status=fields.take_choice("status", STATUSES),
    )
    fields.finish()
    return sample


def _event_to_json(entry: RankEvent) -> dict[str, object]:
    event = entry.event
    return {"rank": entry.rank, "event": event.name, "t_ns": event.t_ns, "fields": event.fields}


def _event(line: bytes) -> RankEvent:
    fields = Fields(_load(line, "event"), "event")
    rank = fields.take_int("rank", 0)
    body = {"event": fields.take_str("event"), "t_ns": fields.take("t_ns", "a time", _is_count)}
    body |= fields.take("fields", "an object", _is_object)
    fields.finish()
    return RankEvent(rank, check_event(body))


def _load(data: bytes, where: str) -> dict[str, Any]:
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise RecordError(f"{where}: not JSON, perhaps half written: {exc}") from exc
    if not isinstance(raw, dict):
        raise RecordError(f"{where}: not a JSON object")
    return raw


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _is_str(value: object) -> bool:
    return isinstance(value, str)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_count(value: object) -> bool:
    return is_int(value, 0, 1 << 63)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e30


def _is_factor(value: object) -> bool:
    return _is_number(value) and value >= 1  # type: ignore[operator]  # _is_number narrows it


def _is_fraction(value: object) -> bool:
    return _is_number(value) and value <= 1  # type: ignore[operator]  # _is_number narrows it


def _is_time_share(value: object) -> bool:
    if not isinstance(value, dict) or set(value) not in (set(), set(TIME_SHARES)):
        return False
    return all(_is_number(share) for share in value.values())


def _or_null(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or fits(value)


def _list_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(fits(item) for item in value)
