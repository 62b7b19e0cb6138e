"""What a repeat tells beside its times, and how it is put in words.

Notes that programs gave, the devices' facts, and the disk's own rate beside a run that streamed
much from it.
"""

from msgspec.structs import replace

from harness.run import weights as weight_sets
from harness.run.weights import WeightSet
from results.records.measure import measure
from results.records.notes import Contended, DiskShare, LinkFaults, LinkFaultsFailed, Note, Said
from results.records.schema import Check, Repeat, RunRecord
from tpi.program.events import Event
from tpi.units import format_seconds

# A disk's own rate is worth knowing beside a run that streams at least this much per token.
_STREAMING_BYTES = 256 << 20


def with_findings(record: RunRecord, repeat: Repeat, check: Check, weights: WeightSet) -> RunRecord:
    """The record with what one more repeat tells; `repeat` itself is added by the store."""
    calibration = record.calibration
    if repeat.status == "ok" and (rate_bps := _disk_rate(repeat, weights)):
        rates = (*calibration.disk_read_bps, rate_bps)
        calibration = replace(calibration, disk_read_bps=rates)
    if proof := repeat.facts.proof:
        calibration = replace(calibration, proofs=(*calibration.proofs, proof))
    return replace(
        record,
        check=check,
        calibration=calibration,
        environment=replace(record.environment, devices=repeat.facts.devices),
        notes=tuple(dict.fromkeys((*record.notes, *_said(repeat), *disturbed(repeat)))),
    )


def _disk_rate(repeat: Repeat, weights: WeightSet) -> float | None:
    """What the disk gives now, beside a repeat that streamed much from it; else None."""
    per_token = measure(repeat).disk_bytes_per_token or 0
    return weight_sets.read_rate_bps(weights) if per_token >= _STREAMING_BYTES else None


def disk_share(record: RunRecord) -> DiskShare | None:
    """At which rate a run streamed, and which share of what its disks can give that is.

    Devices whose disks are limited are measured by their limits together, on the emulated clock;
    else all share this host's disk, by its own best rate, on this host's clock.
    """
    rates, metrics = record.calibration.disk_read_bps, record.metrics
    if not rates or metrics is None:
        return None
    if metrics.token_latency_s is None or not metrics.disk_bytes_per_token:
        return None
    factor = record.calibration.dilation.factor
    rate_bps = metrics.disk_bytes_per_token / metrics.token_latency_s.median
    if caps := _disk_caps(record):
        return DiskShare(rate_bps, factor * sum(caps), len(caps))
    return DiskShare(rate_bps / factor, max(rates))


def _disk_caps(record: RunRecord) -> list[int]:
    """Read rates that the devices of this system are held to; none unless all are."""
    used = len(record.config.predicted_peak_bytes)  # one a device
    limits = record.calibration.limits[:used]
    caps = [each.read_bps for each in limits if each.read_bps]
    return caps if len(caps) == len(limits) else []


def _said(repeat: Repeat) -> list[Said]:
    """Notes that programs gave with `ready`; each once, whichever ranks said it."""
    ready = [event for event in repeat.events if event.name == "ready"]
    notes = (note for event in ready for note in _notes_of(event))
    return [Said(text) for text in dict.fromkeys(notes)]


def _notes_of(event: Event) -> list[str]:
    notes = event.fields.get("notes")
    return list(map(str, notes)) if isinstance(notes, list) else []


def disturbed(repeat: Repeat) -> list[Note]:
    """What a reader must know of a repeat's surroundings."""
    notes: list[Note] = [Contended()] if repeat.facts.contended else []
    if faults := repeat.facts.link_faults:
        errors = [fault.error for fault in faults if fault.error]
        notes.append(LinkFaults(len(faults) - len(errors)))
        if errors:
            notes.append(LinkFaultsFailed(len(errors), errors[0]))
    return notes


def in_words(repeat: Repeat, done: str = "ok") -> str:
    """How a repeat ended, in one line; `done` is what one that is ok is called."""
    if repeat.status != "ok":
        return f"{repeat.status}: {repeat.reason}"
    metrics = measure(repeat)
    text = f"{done}, TTFT {format_seconds(metrics.ttft_s)}"
    if metrics.token_latency_s is not None:
        text += f", {format_seconds(metrics.token_latency_s)}/token"
    return text
