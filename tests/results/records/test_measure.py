import pytest

from results.records.measure import measure, summarize
from results.records.schema import PeakMemory, RecordError
from tests.results.examples import MIB, MS, make_repeat, token
from tpi.program.events import Event


def test_times_are_those_of_the_definitions():
    metrics = measure(make_repeat())
    assert metrics.load_s == pytest.approx(1.9, abs=1e-9)  # 1 s -> 3 s, less 0.1 s of hashing
    assert metrics.verify_s == 0.1
    assert metrics.ttft_s == pytest.approx(0.3, abs=1e-9)
    assert metrics.token_latency_s == pytest.approx(0.1, abs=1e-9)
    assert metrics.gaps_s == pytest.approx((0.1, 0.1), abs=1e-9)


def test_times_are_right_to_the_microsecond_after_years_of_uptime():
    years_ns = 10**18
    events = tuple(Event(e.name, e.t_ns + years_ns, e.fields, e.rank) for e in make_repeat().events)
    start_ns = (years_ns + 1_000 * MS, years_ns + 1_010 * MS)
    metrics = measure(make_repeat(events=events, start_ns=start_ns))
    assert metrics.ttft_s == pytest.approx(0.3, abs=1e-7)
    assert metrics.load_s == pytest.approx(1.9, abs=1e-7)


def test_bytes_and_messages_are_sums_over_devices_per_later_token():
    metrics = measure(make_repeat())
    assert metrics.disk_bytes_per_token == 2 * 600 / 2
    assert metrics.wire_bytes_per_token == 2 * 60 / 2
    assert metrics.messages_per_token == 2 * 20 / 2


def test_time_shares_are_of_the_request_and_sum_to_one():
    share = measure(make_repeat()).time_share  # go -> last token is 0.5 s
    assert share == pytest.approx(
        {"compute": 0.4, "allreduce": 0.2, "wait_weights": 0.1, "other": 0.3}
    )


def test_peak_is_the_larger_of_meter_and_program():
    peak = measure(make_repeat()).peak_memory
    assert peak.rss_hwm == (300 * MIB, 210 * MIB)
    assert peak.anon_peak == (150 * MIB, 140 * MIB)
    assert peak.cgroup_peak == (None, None)


def test_one_token_has_no_latency():
    events = [e for e in make_repeat().events if e.fields.get("token") not in (8, 9)]
    metrics = measure(make_repeat(events=tuple(events)))
    assert metrics.token_latency_s is None
    assert metrics.gaps_s == ()
    assert metrics.disk_bytes_per_token is None
    assert metrics.ttft_s == pytest.approx(0.3)


def test_program_that_counts_nothing_has_times_only():
    events = [e for e in make_repeat().events if e.name != "counters"]
    metrics = measure(make_repeat(events=tuple(events)))
    assert metrics.wire_bytes_per_token is None
    assert metrics.time_share == {}
    assert metrics.peak_memory.rss_hwm == (200 * MIB, 210 * MIB)
    assert metrics.token_latency_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("drop", "message"),
    [("ready", "rank 0 has 0 ready"), ("request", "0 request"), ("token", "no tokens")],
)
def test_incomplete_events_are_refused(drop, message):
    events = tuple(e for e in make_repeat().events if e.name != drop)
    with pytest.raises(RecordError, match=message):
        measure(make_repeat(events=events))


def test_tokens_stamped_before_their_request_are_refused():
    with pytest.raises(RecordError, match="out of order"):
        measure(make_repeat(events=(*make_repeat().events, token(5, 1))))


def test_tokens_are_those_of_the_measured_request():
    assert make_repeat().tokens == (7, 8, 9)


def test_run_takes_medians_of_times_and_the_largest_peaks():
    repeats = [
        measure(make_repeat(i, gap_ms=gap, peak_memory=PeakMemory(rss_hwm=(hwm * MIB, None))))
        for i, (gap, hwm) in enumerate([(100, 400), (120, 350), (200, 380)])
    ]
    metrics = summarize(repeats)
    assert metrics.token_latency_s is not None
    assert metrics.token_latency_s.median == pytest.approx(0.12)
    assert metrics.token_latency_s.low == pytest.approx(0.1)
    assert metrics.token_latency_s.high == pytest.approx(0.2)
    assert metrics.token_latency_s.n == metrics.load_s.n == 3
    assert metrics.peak_memory.rss_hwm == (400 * MIB, 100 * MIB)
    assert metrics.peak_memory.anon_peak == ()
    assert metrics.disk_bytes_per_token == 600
    assert sum(metrics.time_share.values()) == pytest.approx(1)
