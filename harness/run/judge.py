"""From observations to a verdict: the status of a repeat, and whether tokens are right. Pure.

`judge` turns a runner's `Outcome` into the `Repeat` that is kept. `check_exact` and `check_bounded`
compare tokens with the reference. Only `checked_status` decides what a failed check means for the
status: wrong tokens are `wrong_output`, and a planned check that broke is `invalid`.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from harness.run.runner import Outcome
from results.records.schema import Check, PeakMemory, ProgramEnd, RecordError, Repeat, RepeatFacts
from results.records.testbed_facts import DeviceFacts, VerificationReport
from tpi.decode import convert
from tpi.units import format_bytes

# Errors by which a rank reports what another one did: consequences, not causes.
_SECONDARY = ("peer_lost", "peer_silent", "peer_stalled", "comm")


def judge(
    outcome: Outcome, index: int, request_id: str, new_tokens: int, dilation: float = 1.0
) -> Repeat:
    """Decide how a repeat ended; `request_id` is the measured request."""
    status, reason = _status(outcome)
    if status == "ok" and outcome.proof.problems:
        first, *others = outcome.proof.problems
        more = f"; and {len(others)} more, see the record" if others else ""
        status, reason = "invalid", f"emulation: {first}{more}"
    repeat = Repeat(
        index=index,
        request_id=request_id,
        status=status,
        reason=reason,
        start_ns=outcome.start_ns,
        peak_memory=PeakMemory(
            rss_hwm=tuple(m.rss_hwm for m in outcome.meters),
            anon_peak=tuple(m.anon_peak for m in outcome.meters),
            cgroup_peak=tuple(m.cgroup_peak for m in outcome.meters),
        ),
        events=outcome.events,
        facts=_facts(outcome),
        dilation=dilation,
    )
    if status != "ok":
        return repeat
    if len(repeat.tokens) != new_tokens:
        text = (
            f"request {request_id}: {len(repeat.tokens)} tokens came, {new_tokens} were asked for"
        )
        return replace(repeat, status="crashed", reason=text)
    return repeat


def checked_status(repeat: Repeat, check: Check) -> Repeat:
    """The repeat with the status that follows from the check of its tokens.

    A check that was planned and broke leaves a timing without one: `invalid`.
    """
    if repeat.status == "ok" and check.is_broken:
        return replace(repeat, status="invalid", reason=check.detail)
    if repeat.status == "ok" and check.passed is False:
        return replace(repeat, status="wrong_output", reason=check.detail)
    return repeat


def check_exact(tokens: Sequence[int], reference: Sequence[int]) -> Check:
    """Tokens must equal the reference's, one by one."""
    same = [a == b for a, b in zip(tokens, reference, strict=False)]
    passed = len(tokens) == len(reference) and all(same)
    first = None if passed else [*same, False].index(False)
    return Check(
        kind="exact",
        passed=passed,
        agreement=sum(same) / max(len(reference), len(tokens), 1),
        first_difference=first,
        detail="" if passed else _difference(tokens, reference, first or 0),
    )


def check_bounded(
    tokens: Sequence[int],
    reference: Sequence[int],
    shortfalls: Sequence[float],
    error_bound: float,
) -> Check:
    """The reference logit of every token must lie near the largest one.

    `shortfalls` are, for each token, the largest reference logit less the token's own, with the
    system's tokens fed to the reference. Twice `error_bound` is allowed, Transformers' own largest
    |16-bit - float32| logit error.
    """
    exact = check_exact(tokens, reference)
    worst = max(shortfalls, default=0.0)
    passed = len(tokens) == len(reference) == len(shortfalls) and worst <= 2 * error_bound
    text = f"largest shortfall {worst:.3g}, allowed {2 * error_bound:.3g}"
    return Check(
        kind="bounded",
        passed=passed,
        agreement=exact.agreement,
        first_difference=exact.first_difference,
        detail=text if passed or worst > 2 * error_bound else exact.detail,
    )


def _status(outcome: Outcome) -> tuple[str, str]:
    # First, and even if all programs went on: the killed process may be a child of one.
    for rank, end in enumerate(outcome.exits):
        if end is not None and end.oom:
            return "oom", _out_of_memory(outcome, rank)
        if end is not None and end.host_oom:
            return "invalid", f"host_oom: rank {rank} was killed because the host had no memory"
    if outcome.failure is None:
        return "ok", ""
    if outcome.failure.status != "crashed" or outcome.failure.is_breach:
        return outcome.failure.status, outcome.failure.reason
    return _cause(outcome)


def _cause(outcome: Outcome) -> tuple[str, str]:
    """The first cause among everything that ranks reported, not its consequences."""
    for rank, end in enumerate(outcome.exits):
        if end is not None and end.code < 0 and not end.stopped:
            return "crashed", f"rank {rank}: ended early with signal {-end.code}"
    errors = [e for e in outcome.events if e.name == "error"]
    errors.sort(key=lambda e: (e.fields["code"] in _SECONDARY, e.t_ns))
    if not errors:
        return "crashed", outcome.failure.reason if outcome.failure else ""
    first = errors[0]
    status = "oom" if first.fields["code"] == "resource" else "crashed"
    return status, f"rank {first.rank}: {first.fields['message']}"


def _facts(outcome: Outcome) -> RepeatFacts:
    tails = ["" if e is None or outcome.failure is None else e.log_tail for e in outcome.exits]
    return RepeatFacts(
        exits=tuple(None if e is None else ProgramEnd(e.code, e.oom) for e in outcome.exits),
        devices=_devices(outcome),
        log_tails=tuple(tails),
        meter_words=tuple(m.words for m in outcome.meters),
        proof=_proof(outcome),
    )


def _devices(outcome: Outcome) -> tuple[DeviceFacts, ...]:
    facts = [dict(each) for each in outcome.facts]
    return convert(facts, tuple[DeviceFacts, ...], "device facts", RecordError)


def _proof(outcome: Outcome) -> VerificationReport | None:
    """What was measured of limits and links; None where there are none."""
    proof = outcome.proof
    if not proof.figures and not proof.problems:
        return None
    return convert(
        {**proof.figures, "problems": proof.problems}, VerificationReport, "proof", RecordError
    )


def _out_of_memory(outcome: Outcome, rank: int) -> str:
    """With the limit and the peak, where the device has a limit."""
    text = f"rank {rank}: killed, out of memory"
    devices = _devices(outcome)
    asked = devices[rank].asked if rank < len(devices) else None
    if asked is None or asked.memory is None:
        return text
    text += f" at its device's limit of {format_bytes(asked.memory)}"
    peak = outcome.meters[rank].cgroup_peak
    return text if peak is None else f"{text} (peak {format_bytes(peak)})"


def _difference(tokens: Sequence[int], reference: Sequence[int], index: int) -> str:
    if index >= min(len(tokens), len(reference)):
        return f"{len(tokens)} tokens, the reference has {len(reference)}"
    return f"token {index + 1} is {tokens[index]}, the reference has {reference[index]}"
