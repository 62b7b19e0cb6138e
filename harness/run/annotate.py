"""What a repeat adds to a record beside its times: notes, facts, and the disk's own rate."""

from msgspec.structs import replace

from harness.run import weights as weight_sets
from harness.run.weights import WeightSet
from results.records.measure import measure
from results.records.notes import Contended, DiskShare, LinkFaults, LinkFaultsFailed, Note, Said
from results.records.schema import Check, Repeat, RunRecord
from tpi.units import format_seconds

# The disk's own rate is measured beside a run that streams at least this much per token.
_STREAMING_BYTES = 256 << 20


def with_findings(record: RunRecord, repeat: Repeat, check: Check, weights: WeightSet) -> RunRecord:
    """The record with the findings of one more repeat; the store adds the repeat itself."""
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
    """The disk's rate now, beside a repeat that streamed much from it; else None."""
    per_token = measure(repeat).disk_bytes_per_token or 0
    return weight_sets.read_rate_bps(weights) if per_token >= _STREAMING_BYTES else None


def disk_share(record: RunRecord) -> DiskShare | None:
    """The rate at which a run streamed, and its share of what the disks can give.

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
    """Notes that programs gave with `ready`; each once, whichever ranks gave it."""
    given = [event.fields.get("notes") for event in repeat.events if event.name == "ready"]
    notes = (str(note) for each in given if isinstance(each, list) for note in each)
    return [Said(text) for text in dict.fromkeys(notes)]


def disturbed(repeat: Repeat) -> list[Note]:
    """Disturbances of a repeat that a reader must know."""
    notes: list[Note] = [Contended()] if repeat.facts.contended else []
    if faults := repeat.facts.link_faults:
        errors = [fault.error for fault in faults if fault.error]
        notes.append(LinkFaults(len(faults) - len(errors)))
        if errors:
            notes.append(LinkFaultsFailed(len(errors), errors[0]))
    return notes


def in_words(repeat: Repeat, done: str = "ok") -> str:
    """How a repeat ended, in one line; `done` is the word for one that is ok."""
    if repeat.status != "ok":
        return f"{repeat.status}: {repeat.reason}"
    metrics = measure(repeat)
    text = f"{done}, TTFT {format_seconds(metrics.ttft_s)}"
    if metrics.token_latency_s is not None:
        text += f", {format_seconds(metrics.token_latency_s)}/token"
    return text
