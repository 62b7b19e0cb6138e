"""What a repeat tells beside its times, and how it is put in words.

Notes that programs gave, the devices' facts, and the disk's own rate beside a run that streamed
much from it.
"""

from dataclasses import replace

from harness.run import weights as weight_sets
from harness.run.weights import WeightSet
from results.records.measure import measure
from results.records.schema import Check, Repeat, RunRecord
from tpi.units import format_seconds

# A disk's own rate is worth knowing beside a run that streams at least this much per token.
_STREAMING_BYTES = 256 << 20


def with_findings(record: RunRecord, repeat: Repeat, check: Check, weights: WeightSet) -> RunRecord:
    """The record with what one more repeat tells; `repeat` itself is added by the store."""
    calibration = dict(record.calibration)
    if repeat.status == "ok" and (rate_bps := _disk_rate(repeat, weights)):
        rates = calibration.get("disk_read_bps")
        calibration["disk_read_bps"] = [*(rates if isinstance(rates, list) else []), rate_bps]
    proofs = calibration.get("proofs")
    if proof := repeat.facts.get("proof"):
        calibration["proofs"] = [*(proofs if isinstance(proofs, list) else []), proof]
    return replace(
        record,
        check=check,
        calibration=calibration,
        environment={**record.environment, "devices": repeat.facts["devices"]},
        notes=tuple(dict.fromkeys((*record.notes, *_said(repeat), *disturbed(repeat)))),
    )


def _disk_rate(repeat: Repeat, weights: WeightSet) -> float | None:
    """What the disk gives now, beside a repeat that streamed much from it; else None."""
    per_token = measure(repeat).disk_bytes_per_token or 0
    return weight_sets.read_rate_bps(weights) if per_token >= _STREAMING_BYTES else None


def disk_share(record: RunRecord) -> str | None:
    """At which rate a run streamed, and which share of what its disks can give that is.

    Devices whose disks are limited are measured by their limits together, on the emulated clock;
    else all share this host's disk, by its own best rate, on this host's clock.
    """
    rates = record.calibration.get("disk_read_bps")
    metrics = record.metrics
    if not isinstance(rates, list) or not rates or metrics is None:
        return None
    if metrics.token_latency_s is None or not metrics.disk_bytes_per_token:
        return None
    dilation = record.calibration.get("dilation")
    factor = float(dilation["factor"]) if isinstance(dilation, dict) else 1.0
    rate_bps = metrics.disk_bytes_per_token / metrics.token_latency_s.median
    if caps := _disk_caps(record):
        most_bps = factor * sum(caps)
        what = f"what the disks of {len(caps)} device{'s' * (len(caps) > 1)} may give"
    else:
        rate_bps, most_bps = rate_bps / factor, max(rates)
        what = "what the disk gives one reader of the same files"
    return (
        f"streamed {rate_bps / 1e9:.2f} GB/s, {rate_bps / most_bps:.0%} of {what}"
        f" ({most_bps / 1e9:.2f} GB/s)"
    )


def _disk_caps(record: RunRecord) -> list[int]:
    """Read rates that the devices of this system are held to; none unless all are."""
    limits = record.calibration.get("limits")
    used = record.config.get("predicted_peak_bytes")  # one a device
    if not isinstance(limits, list) or not isinstance(used, list):
        return []
    caps = [each.get("read_bps") for each in limits[: len(used)] if isinstance(each, dict)]
    return [cap for cap in caps if cap] if all(caps) else []


def _said(repeat: Repeat) -> list[str]:
    """Notes that programs gave with `ready`; each once, whichever ranks said it."""
    said: dict[str, None] = {}
    for item in repeat.events:
        notes = item.event.fields.get("notes") if item.event.name == "ready" else None
        said.update({str(note): None for note in notes} if isinstance(notes, list) else {})
    return list(said)


def disturbed(repeat: Repeat) -> list[str]:
    """What a reader must know of a repeat's surroundings."""
    notes = []
    if repeat.facts.get("contended"):
        notes.append("contended: another harness ran on this host at the same time")
    faults = repeat.facts.get("link_faults")
    if isinstance(faults, list) and faults:
        errors = [str(fault["error"]) for fault in faults if "error" in fault]
        count = len(faults) - len(errors)
        notes.append(f"link faults were made during the measured request: {count} changes")
        if errors:
            notes.append(f"link faults that could not be made: {len(errors)}, {errors[0]}")
    return notes


def in_words(repeat: Repeat) -> str:
    """How a repeat ended, in one line."""
    if repeat.status != "ok":
        return f"{repeat.status}: {repeat.reason}"
    metrics = measure(repeat)
    text = f"ok, TTFT {format_seconds(metrics.ttft_s)}"
    if metrics.token_latency_s is not None:
        text += f", {format_seconds(metrics.token_latency_s)}/token"
    return text
