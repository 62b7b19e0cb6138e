"""Scripted systems: times come out to the microsecond, and who breaks the contract is not timed."""

import json
import time
from dataclasses import replace
from itertools import accumulate

import pytest

import harness.run.reference
from harness.run.judge import judge
from harness.run.launch import make_launch
from harness.run.runner import Launch, run_repeat
from results.records.measure import measure
from results.records.store import RunStore
from testbed.local.local import LocalTestbed
from tests.harness.run.test_experiment import experiment
from tpi.options import ComputeOptions
from tpi.program.program_session import Deadlines
from tpi.program.protocol_checker import Contract, ContractError
from tpi.program.spec import Request

pytestmark = pytest.mark.timeout(60)  # real processes, on whatever machine

WARMUP, MEASURED = Request("warmup", 2, (1, 2, 3), warmup=True), Request("r0", 5, (1, 2, 3))
US = 1e-6
# Offsets of stamps from a base of the test's own, in nanoseconds; nobody waits for them.
READY_NS = (1_234_567_000, 2_345_678_901, 2_000_000_000)
VERIFY_S = (0.25, 0.1, 0.125)
REQUEST_NS = {"warmup": 3_000_000_000, "r0": 7_000_000_123}
TTFT_NS = 123_456_789
GAPS_NS = (1_000, 20_000_001, 3_000_000_000, 999)
TOKEN_NS = tuple(accumulate((REQUEST_NS["r0"] + TTFT_NS, *GAPS_NS)))


def said(event, at_ns, **fields):
    return {"event": event, "at_ns": at_ns, **fields}


def request_of(rank, request_id, token_ns, tokens):
    """What a rank says of one request."""
    end_ns = token_ns[-1]
    spoken = []
    if rank == 0:
        spoken = [said("request", REQUEST_NS[request_id], id=request_id)]
        for at_ns, token in zip(token_ns, tokens, strict=True):
            spoken.append(said("token", at_ns, id=request_id, token=token))
    return [
        *spoken,
        said("counters", end_ns, id=request_id, rank=rank),
        said("end", end_ns, id=request_id),
    ]


def script(world_size):
    """A whole repeat of every rank."""
    warmup_ns = (REQUEST_NS["warmup"] + 5, REQUEST_NS["warmup"] + 9)
    return [
        [
            said("ready", READY_NS[rank], verify_s=VERIFY_S[rank]),
            *request_of(rank, "warmup", warmup_ns, (0, 1)),
            *request_of(rank, "r0", TOKEN_NS, (0, 1, 2, 3, 4)),
        ]
        for rank in range(world_size)
    ]


def program(ranks, base_ns):
    """The program that plays it, with stamps from `base_ns` on."""
    return ("-m", "tests.scripted_system", json.dumps({"base_ns": base_ns, "ranks": ranks}))


def far_ns():
    """A base behind every start of a program, however slow this machine is."""
    return time.monotonic_ns() + 3600 * 10**9


def play(tmp_path, ranks, base_ns):
    launch = Launch(
        system="scripted",
        program=program(ranks, base_ns),
        model_dirs=(tmp_path,) * len(ranks),
        requests=(WARMUP, MEASURED),
        compute=ComputeOptions(max_tokens=16),
        deadlines=Deadlines(ready_s=30, token_s=10, end_s=10),
    )
    with LocalTestbed(tmp_path / "work") as testbed:
        outcome = run_repeat(launch, testbed)
    return outcome, judge(outcome, 0, "r0", 5)


@pytest.mark.parametrize("world_size", [1, 3])
def test_times_are_right_to_the_microsecond(tmp_path, world_size):
    before_ns, base_ns = time.monotonic_ns(), far_ns()
    outcome, repeat = play(tmp_path, script(world_size), base_ns)
    assert (repeat.status, repeat.reason) == ("ok", "")
    assert before_ns < outcome.start_ns[0] == min(outcome.start_ns) < base_ns
    metrics = measure(repeat)
    last_ready_ns = base_ns + (READY_NS[0] if world_size == 1 else READY_NS[1])
    load_s = (last_ready_ns - outcome.start_ns[0]) / 1e9 - 0.25
    assert metrics.load_s == pytest.approx(load_s, abs=US)
    assert metrics.verify_s == 0.25
    assert metrics.ttft_s == pytest.approx(0.123456789, abs=US)
    assert metrics.token_latency_s == pytest.approx(3.020002 / 4, abs=US)
    assert metrics.gaps_s == pytest.approx([1e-6, 0.020000001, 3.0, 0.999e-6], abs=1e-9)


def test_load_counts_from_the_first_start_to_the_last_ready_less_hashing(tmp_path):
    base_ns = far_ns()
    outcome, _ = play(tmp_path, script(3), base_ns)
    at_base = replace(outcome, start_ns=(base_ns + 2_000_000, base_ns, base_ns + 1_000_000))
    metrics = measure(judge(at_base, 0, "r0", 5))
    assert metrics.load_s == pytest.approx(2.345678901 - 0.25, abs=US)


def test_record_holds_the_times_of_the_script(tmp_path):
    tpi, alone = program(script(2), far_ns()), program(script(1), far_ns())
    done = experiment(tmp_path, repeats=1)
    programs = {"tpi": tpi, "transformers": alone}
    done._repeats = replace(done._repeats, programs=programs)
    done.run()
    for record in done.records:
        assert (record.status, record.reason) == ("ok", "")
        assert record.metrics is not None
        assert record.metrics.token_latency_s is not None
        assert record.metrics.ttft_s.median == pytest.approx(0.123456789, abs=US)
        assert record.metrics.token_latency_s.median == pytest.approx(3.020002 / 4, abs=US)
        (repeat,) = RunStore(tmp_path / "runs").repeats(record)
        stamps = [e.t_ns for e in repeat.events if e.name == "token"]
        assert stamps[-1] - stamps[2] == sum(GAPS_NS)


BREACHES = {
    "junk": (0, 3, {"raw": "Loading weights: 100%\n"}, "rank 0: not an event: 'Loading"),
    "half a line": (1, 2, {"raw": '{"event": "end"'}, "rank 1: not an event"),
    "a second ready": (1, 1, said("ready", READY_NS[1]), "rank 1: a second ready"),
    "a second request": (0, 8, said("request", TOKEN_NS[0], id="r0"), "rank 0: a second request"),
    "an early token": (
        0, 3, said("token", REQUEST_NS["warmup"] + 5, id="r0", token=0),
        "rank 0: token of request 'r0', which is not running",
    ),
    "a token after the end": (
        0, 6, said("token", REQUEST_NS["warmup"] + 9, id="warmup", token=0),
        "rank 0: token of request 'warmup', which is not running",
    ),
    "one token more": (
        0, 12, said("token", TOKEN_NS[-1], id="r0", token=5),
        "rank 0: more than the 5 token events of request r0",
    ),
    "a token of a worker": (
        1, 3, said("token", TOKEN_NS[0], id="r0", token=5), "rank 1: a token from a worker",
    ),
    "a request of a worker": (
        1, 3, said("request", TOKEN_NS[0], id="r0"), "rank 1: a request from a worker",
    ),
    "no id": (0, 3, said("token", TOKEN_NS[0], token=5), "rank 0: event token: id is missing"),
    "another's counters": (
        1, 3, said("counters", TOKEN_NS[0], id="r0", rank=0), "rank 1: counters of rank 0",
    ),
    "times that go back": (
        0, 9, said("token", REQUEST_NS["warmup"], id="r0", token=5),
        "rank 0: times go backwards, token is earlier",
    ),
}  # fmt: skip


def contract_after(ranks, start_ns=0):
    """The contract once all of this was said, rank by rank."""
    contract = Contract((WARMUP, MEASURED))
    contract.asked("warmup")
    for rank, spoken in enumerate(ranks):
        contract.started(rank, start_ns)
        for item in spoken:
            fields = {k: v for k, v in item.items() if k not in ("at_ns", "raw")}
            line = item.get("raw") or json.dumps({**fields, "t_ns": item["at_ns"]})
            contract.take(rank, line.encode())
            if contract.count(0, "end", "warmup"):
                contract.asked("r0")
    return contract


def test_a_whole_repeat_keeps_the_contract():
    contract = contract_after(script(3))
    assert [contract.count(rank, "end", "r0") for rank in range(3)] == [1, 1, 1]
    assert contract.count(0, "token", "r0") == 5


@pytest.mark.parametrize("name", BREACHES)
def test_breach_is_named_with_its_rank(name):
    rank, index, item, reason = BREACHES[name]
    ranks = script(2)
    ranks[rank].insert(index, item)
    with pytest.raises(ContractError) as caught:
        contract_after(ranks)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize("request_id", ["warmup", "r0"])
@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("counters", "request {} ended with 0 counters events, expected 1"),
        ("token", "request {} ended with 0 token events, expected"),
        ("request", "request {}: a token before its `request`"),
    ],
)
def test_what_is_missing_is_seen_at_once(missing, reason, request_id):
    (spoken,) = script(1)
    lacking = [i for i in spoken if (i["event"], i.get("id")) != (missing, request_id)]
    with pytest.raises(ContractError) as caught:
        contract_after([lacking])
    assert str(caught.value).startswith(f"rank 0: {reason.format(request_id)}")


def test_stamp_from_before_the_start_goes_back():
    with pytest.raises(ContractError, match="rank 0: times go backwards, ready is earlier"):
        contract_after(script(1), start_ns=READY_NS[0] + 1)


def test_all_that_a_rank_says_is_bounded_in_bytes():
    contract = Contract((Request("r0", 1000, (1,)),))
    contract.asked("r0")
    contract.take(0, b'{"event": "request", "t_ns": 0, "id": "r0"}')
    spare = b"x" * 60_000
    line = b'{"event": "token", "t_ns": 0, "id": "r0", "token": 1, "spare": "%s"}' % spare
    # 1 MiB and 1 KiB for each of 1000 tokens hold 34 such lines.
    for _ in range(34):
        contract.take(0, line)
    with pytest.raises(ContractError, match="rank 0: more than 2072576 bytes on standard output"):
        contract.take(0, line)


SPANS = said("spans", TOKEN_NS[-1], id="r0", rank=0, spans=[["compute", 1, 2, "attn.0"]])


def take_with_spans(*more, keep_spans=True):
    """A whole request with these things said before its end."""
    contract = Contract((WARMUP, MEASURED), keep_spans=keep_spans)
    contract.asked("r0")
    spoken = request_of(0, "r0", TOKEN_NS, (0, 1, 2, 3, 4))
    spoken[-1:-1] = more
    for item in spoken:
        fields = {k: v for k, v in item.items() if k != "at_ns"}
        contract.take(0, json.dumps({**fields, "t_ns": item["at_ns"]}).encode())
    return contract


def test_spans_come_in_as_many_events_as_they_need():
    assert take_with_spans(SPANS, SPANS, SPANS).count(0, "spans", "r0") == 3


@pytest.mark.parametrize(
    ("item", "keep_spans", "reason"),
    [
        (SPANS, False, "rank 0: spans of request 'r0', which nobody asked for"),
        ({**SPANS, "rank": 1}, True, "rank 0: spans of rank 1"),
        (
            {**SPANS, "spans": [["embed", 1, 2, ""]]},
            True,
            "rank 0: event spans: spans[0][0] must be",
        ),
        ({**SPANS, "id": "warmup"}, True, "rank 0: spans of request 'warmup', which is not run"),
    ],
)
def test_spans_that_break_the_contract_are_named(item, keep_spans, reason):
    with pytest.raises(ContractError) as caught:
        take_with_spans(item, keep_spans=keep_spans)
    assert str(caught.value).startswith(reason)


def test_spans_are_bounded_in_bytes_too():
    contract = Contract((MEASURED,), keep_spans=True)
    contract.asked("r0")
    contract.take(0, b'{"event": "request", "t_ns": 0, "id": "r0"}')
    spare = b"x" * 65_000
    line = b'{"event": "spans", "t_ns": 0, "id": "r0", "rank": 0, "spans": [], "x": "%s"}' % spare
    # 1 MiB, 1 KiB for each of 5 tokens, and 48 MiB hold 790 such lines.
    for _ in range(51_385_344 // len(line)):
        contract.take(0, line)
    with pytest.raises(ContractError, match="rank 0: more than 51385344 bytes"):
        contract.take(0, line)


# One of each status; `test_runner.py` has every misdeed.
MISDEEDS = [
    ({"misdeed": "few"}, "crashed"),
    ({"misdeed": "hang", "rank": 1}, "timeout"),
    ({"tokens": [0, 1, 2, 3, 9]}, "wrong_output"),
]


@pytest.fixture
def impatient(monkeypatch):
    """Whoever is silent for a third of a second hangs; and the reference is a fake one."""
    short = Deadlines(ready_s=30, token_s=0.3, end_s=0.3, last_words_s=0.2)
    monkeypatch.setattr(harness.run.reference, "_MODULE", "tests.fake_reference")
    monkeypatch.setattr(
        "harness.run.repeats.make_launch",
        lambda *args: replace(make_launch(*args), deadlines=short),
    )


@pytest.mark.parametrize(("behaviour", "status"), MISDEEDS, ids=str)
@pytest.mark.usefixtures("impatient")
def test_who_misbehaves_is_never_timed(tmp_path, behaviour, status):
    done = experiment(tmp_path, tpi=behaviour, systems={"tpi": {}}, repeats=2)
    done.run()
    (record,) = done.records
    assert (record.status, record.metrics) == (status, None)
    assert record.reason
    assert [sample.status for sample in record.samples] == [status]
    assert done.exit_status == 1


@pytest.mark.usefixtures("impatient")
def test_who_misbehaves_once_is_not_timed_by_its_other_repeats(tmp_path):
    experiment(tmp_path, systems={"tpi": {}}, repeats=1).run()
    done = experiment(tmp_path, tpi={"misdeed": "few"}, systems={"tpi": {}}, repeats=2)
    done.run()
    (record,) = done.records
    assert [sample.status for sample in record.samples] == ["ok", "crashed"]
    assert (record.status, record.metrics) == ("crashed", None)
