"""Keeps run records: `<results_dir>/<run_id>/run.json` and one samples file per repeat.

Files are written atomically: after a crash or a full disk there is the old file or the new one. A
samples file counts once `run.json` lists it with its hash; the repeat of one that is not listed is
done again. Nothing that is listed is ever overwritten.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from results.records.codec import decode_record, decode_repeat, encode_record, encode_repeat
from results.records.hashing import split_run_id
from results.records.measure import measure, summarize
from results.records.schema import RecordError, Repeat, RepeatMetrics, RunRecord, SampleFile
from tpi.errors import ResourceError, map_errors
from tpi.files import sync_folder, write_atomic

_RECORD = "run.json"


class RunStore:
    """The run records below one folder."""

    def __init__(self, results_dir: Path) -> None:
        self._dir = results_dir

    def folder(self, run_id: str) -> Path:
        """Where a run is kept."""
        return self._dir / run_id

    def latest(self, base_id: str) -> RunRecord | None:
        """The newest run of that identity, if any; an unusable one is an error, not passed over."""
        run_id = self.latest_id(base_id)
        return self.read(run_id) if run_id else None

    def latest_id(self, base_id: str) -> str:
        """The name of the newest run of that identity; empty if there is none yet."""
        return (self._attempts(base_id) or [""])[-1]

    def next_id(self, base_id: str) -> str:
        """Name for measuring once more: `base_id`, then `base_id-2`, `base_id-3` ..."""
        attempts = self._attempts(base_id)
        if not attempts:
            return base_id
        number = (split_run_id(attempts[-1]) or ("", 1))[1]
        return f"{base_id}-{number + 1}"

    def read(self, run_id: str) -> RunRecord:
        """Read and check a record and its samples; a RecordError says what is wrong."""
        path = self.folder(run_id) / _RECORD
        with map_errors({OSError: RecordError}, f"record {path}"):
            record = decode_record(_read_file(path), f"record {path}")
        if record.run_id != run_id:
            raise RecordError(f"record {path}: is of run {record.run_id}")
        self.repeats(record)
        return record

    def repeats(self, record: RunRecord) -> list[Repeat]:
        """All repeats of a record, in order; a RecordError if a samples file was changed."""
        return [self._read_repeat(record.run_id, sample) for sample in record.samples]

    def measured(self, record: RunRecord) -> list[RepeatMetrics]:
        """The metrics of every repeat that ended well; raises as `repeats`."""
        return [measure(repeat) for repeat in self.repeats(record) if repeat.status == "ok"]

    def append(self, record: RunRecord, repeat: Repeat) -> RunRecord:
        """Keep one more repeat; status, tokens and metrics of the record follow from all of them.

        A repeat that is not `ok` makes a record without metrics: a failure is not averaged away.

        Raises:
            ResourceError: The disk is full or cannot be written; what was there is intact.
        """
        index = len(record.samples)
        if repeat.index != index:
            raise RecordError(f"record {record.run_id}: repeat {repeat.index}, expected {index}")
        data = encode_repeat(repeat)
        name = f"samples-{index:03d}.jsonl"
        sample = SampleFile(name, hashlib.sha256(data).hexdigest(), repeat.status)
        updated = _joined(record, [*self.repeats(record), repeat], sample)
        encode_record(updated)
        self._write(record.run_id, name, data)
        return self.write(updated)

    def write(self, record: RunRecord) -> RunRecord:
        """Write `run.json` and return the record."""
        self._write(record.run_id, _RECORD, encode_record(record))
        return record

    def scan(self) -> tuple[list[RunRecord], list[RecordError]]:
        """The latest record of every identity, by name, and what could not be used and why."""
        records, problems = [], []
        names = (split_run_id(p.name) for p in self._folders())
        for base_id in sorted({name[0] for name in names if name}):
            try:
                record = self.latest(base_id)
            except RecordError as exc:
                problems.append(exc)
            else:
                records += [record] if record else []
        return records, problems

    def _folders(self) -> list[Path]:
        if not self._dir.is_dir():
            return []
        return [p for p in self._dir.iterdir() if (p / _RECORD).is_file()]

    def _attempts(self, base_id: str) -> list[str]:
        names = ((split_run_id(p.name), p.name) for p in self._folders())
        found = [(split[1], name) for split, name in names if split and split[0] == base_id]
        return [name for _, name in sorted(found)]

    def _read_repeat(self, run_id: str, sample: SampleFile) -> Repeat:
        path = self.folder(run_id) / sample.file
        with map_errors({OSError: RecordError}, f"samples {path}"):
            data = _read_file(path)
        if hashlib.sha256(data).hexdigest() != sample.sha256:
            raise RecordError(
                f"samples {path}: changed after it was written; measure again with force=true"
            )
        return decode_repeat(data, f"samples {path}")

    def _write(self, run_id: str, name: str, data: bytes) -> None:
        folder = self.folder(run_id)
        with map_errors({OSError: ResourceError}, f"cannot write {folder / name}"):
            if not folder.is_dir():
                folder.mkdir(parents=True)
                sync_folder(folder.parent)
            write_atomic(folder / name, data)


def _read_file(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # to open a FIFO would wait for its writer
        raise RecordError(f"{path}: expected a regular file")
    return path.read_bytes()


def _joined(record: RunRecord, repeats: Sequence[Repeat], sample: SampleFile) -> RunRecord:
    good = [r for r in repeats if r.status == "ok"]
    last = repeats[-1]
    status, reason = (record.status, record.reason)
    if last.status != "ok":
        status, reason = last.status, last.reason
    elif status == "interrupted":
        status, reason = "ok", ""
    has_timing = good and status in ("ok", "interrupted")
    return replace(
        record,
        status=status,
        reason=reason,
        tokens=repeats[0].tokens,
        metrics=summarize([measure(r) for r in good]) if has_timing else None,
        samples=(*record.samples, sample),
    )
