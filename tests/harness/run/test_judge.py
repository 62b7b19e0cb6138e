import pytest

from harness.run.judge import check_bounded, check_exact, checked_status, judge
from harness.run.runner import Outcome
from results.records.schema import Check
from testbed.base import Meters
from tpi.program.events import Event
from tpi.program.process import Exit
from tpi.program.program_session import Failure


def event(rank, name, t_ns, /, **fields):
    return Event(name, t_ns, fields, rank)


def outcome(events, exits=(0, 0), failure=None):
    ends = tuple(Exit(code, stopped=False, oom=code == -9, t_ns=0) for code in exits)
    return Outcome((0,) * len(exits), tuple(events), ends, (Meters(),) * len(exits), ({},), failure)


GOOD = [
    event(0, "request", 1, id="r0"), event(0, "token", 2, id="r0", token=5),
    event(0, "token", 3, id="r0", token=6), event(0, "counters", 4, id="r0"),
    event(1, "counters", 4, id="r0", rank=1), event(0, "end", 5, id="r0"),
    event(1, "end", 5, id="r0"),
]  # fmt: skip


def test_judge_good_repeat_is_ok():
    repeat = judge(outcome(GOOD), 3, "r0", 2)
    assert (repeat.status, repeat.index, repeat.tokens) == ("ok", 3, (5, 6))


def test_judge_other_number_of_tokens_is_crashed():
    repeat = judge(outcome(GOOD), 0, "r0", 3)
    assert (repeat.status, repeat.reason) == (
        "crashed", "request r0: 2 tokens came, 3 were asked for",
    )  # fmt: skip


def test_judge_breach_of_the_contract_is_the_cause_whatever_others_report():
    events = [event(1, "error", 10, code="weights", message="attn-003 truncated")]
    failure = Failure("crashed", "rank 0: not an event", is_breach=True)
    repeat = judge(outcome(events, (0, 14), failure), 0, "r0", 2)
    assert (repeat.status, repeat.reason) == ("crashed", "rank 0: not an event")


def test_judge_out_of_memory_wins_over_what_others_saw():
    failure = Failure("crashed", "rank 0: peer lost")
    repeat = judge(outcome([], exits=(10, -9), failure=failure), 0, "r0", 2)
    assert (repeat.status, repeat.reason) == ("oom", "rank 1: killed, out of memory")


def test_judge_names_the_cause_not_the_consequence():
    events = [
        event(0, "error", 10, code="peer_lost", message="rank 1 is gone"),
        event(1, "error", 20, code="weights", message="attn-003 truncated"),
    ]
    failure = Failure("crashed", "rank 0: rank 1 is gone")
    repeat = judge(outcome(events, (10, 14), failure), 0, "r0", 2)
    assert (repeat.status, repeat.reason) == ("crashed", "rank 1: attn-003 truncated")


def test_judge_resource_error_is_out_of_memory():
    events = [event(0, "error", 1, code="resource", message="out of memory")]
    repeat = judge(outcome(events, (15, 0), Failure("crashed", "x")), 0, "r0", 2)
    assert repeat.status == "oom"


def test_check_exact_equal():
    check = check_exact((1, 2, 3), (1, 2, 3))
    assert (check.passed, check.agreement, check.first_difference) == (True, 1.0, None)


def test_check_exact_names_the_first_difference():
    check = check_exact((1, 9, 3), (1, 2, 3))
    assert (check.passed, check.first_difference) == (False, 1)
    assert check.agreement == pytest.approx(2 / 3)
    assert check.detail == "token 2 is 9, the reference has 2"


def test_check_exact_other_length_differs():
    assert check_exact((1, 2), (1, 2, 3)).passed is False
    assert check_exact((), (1,)).passed is False


@pytest.mark.parametrize(("worst", "passed"), [(0.19, True), (0.21, False)])
def test_check_bounded_allows_twice_the_error(worst, passed):
    check = check_bounded((1, 9), (1, 2), (0.0, worst), 0.1)
    assert (check.passed, check.agreement, check.first_difference) == (passed, 0.5, 1)


def test_check_bounded_needs_every_token():
    assert check_bounded((1,), (1, 2), (0.0,), 0.1).passed is False


def test_checked_status_wrong_tokens_are_never_ok():
    repeat = judge(outcome(GOOD), 0, "r0", 2)
    wrong = checked_status(repeat, Check("exact", passed=False, detail="token 1 is 5"))
    assert (wrong.status, wrong.reason) == ("wrong_output", "token 1 is 5")
    assert checked_status(repeat, Check(detail="too large for a reference")).status == "ok"


def test_checked_status_without_the_planned_check_is_invalid():
    broken = checked_status(judge(outcome(GOOD), 0, "r0", 2), Check("bounded", detail="died"))
    assert (broken.status, broken.reason) == ("invalid", "died")
