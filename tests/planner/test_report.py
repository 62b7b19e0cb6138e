import json
import resource
import subprocess
import sys

import pytest

from tpi.cli import main
from tpi.model_config import load_preset
from tpi.planner.device_plan import PlanOptions, Rates, make_report
from tpi.planner.propositions import LayerTimes
from tpi.planner.report import render

GIB = 1 << 30
ISSUE = ["plan", "--model", "llama2-70b", "--devices", "8", "--memory", "4GiB"]


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def test_table_has_a_line_a_device_and_says_what_was_assumed(capsys):
    assert main(ISSUE) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("llama2-70b on 8 devices, bfloat16 storage, float32 compute")
    assert lines[2].split()[:5] == ["rank", "heads", "KV", "FFN", "shard"]
    rows = lines[3:11]
    assert [row.split()[0] for row in rows] == [str(rank) for rank in range(8)]
    assert all("ffn" in row and "stalls" in row for row in rows)
    assert "assumed: disk 1 GB/s" in lines[12]
    assert lines[13].startswith("largest peak 3.9")


def test_json_holds_the_same_as_values(capsys):
    assert main([*ISSUE, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["rank"] for row in report["rows"]] == list(range(8))
    for row in report["rows"]:
        assert row["peak_bytes"] <= 4 * GIB
        assert row["retained"]["ffn"] >= 20
        assert row["shard_bytes"] > 15 * GIB
    assert report["step_s"] == max(row["step_s"] for row in report["rows"])


def test_papers_times_hold_on_workers_and_stall_for_the_head_on_the_master(capsys):
    out = plan(capsys, "--model", "llama2-7b", "--devices", "4", "--times", "11,17,14,18,30")
    rows = out.splitlines()[3:7]
    assert "stalls" in rows[0]
    assert all("holds" in row for row in rows[1:])
    assert "times given: attention 11 ms, ffn 17 ms, loading 18 ms and 30 ms" in out


def test_published_verdicts_stand_beside_ours():
    times = LayerTimes(0.011, 0.017, 0.014, 0.018, 0.030)
    report = make_report("llama2-7b", load_preset("llama2-7b"), PlanOptions(devices=4, times=times))
    worker = report.rows[1]
    assert (worker.published_loose, worker.published_tight, worker.ours_tight) == (
        True, False, True,
    )  # fmt: skip
    assert worker.is_steady
    assert report.rows[0].published_peak_bytes > 1000 * (1 << 20)  # embedding and head, whole


def test_disk_bound_step_is_the_bytes_over_the_rate():
    options = PlanOptions(devices=1, rates=Rates(disk_bps=1e8))
    (row,) = make_report("tiny", load_preset("tiny"), options).rows
    assert row.step_s == pytest.approx(row.streamed_bytes_per_step / 1e8, rel=0.01)


def test_window_all_streams_nothing_and_uneven_shares_show(capsys):
    out = plan(
        capsys, "--model", "llama2-7b", "--devices", "3", "--shares", "2,1,1", "--window", "all"
    )
    rows = [line.split() for line in out.splitlines()[3:6]]
    assert [row[1] for row in rows] == ["16", "8", "8"]
    assert "0 B read by all devices" in out


def test_rank_without_heads_or_columns_is_planned_too():
    options = PlanOptions(devices=3, shares=(1, 1, 0))
    report = make_report("tiny", load_preset("tiny"), options)
    assert report.rows[2].shard_bytes == 0
    assert render(report).count("\n") == 9


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--model", "llama2-7", "--devices", "2"], 2, "llama2-7b"),
        (["--model", "tiny", "--devices", "0"], 2, "expected a whole number >= 1"),
        (["--model", "tiny", "--devices", "2", "--memory", "lots"], 2, "expected a size"),
        (["--model", "tiny", "--devices", "2", "--window", "0"], 2, "expected a number of blocks"),
        (["--model", "tiny", "--devices", "2", "--times", "1,2,3"], 2, "expected five times"),
        (["--model", "tiny", "--devices", "2", "--link-mbps", "-1"], 2, "expected a number > 0"),
        (["--model", "tiny", "--devices", "2", "--shares", "1"], 2, "expected 2 numbers"),
        (["--model", "tiny", "--devices", "2", "--memory", "9MiB"], 15, "the least that works is"),
    ],
)
def test_impossible_requests_are_one_line(capsys, arguments, status, message):
    try:
        got = main(["plan", *arguments])
    except SystemExit as exc:  # argparse
        got = exc.code if isinstance(exc.code, int) else 1
    assert got == status
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_plan_takes_less_than_a_second_and_no_torch():
    code = "import sys; from tpi.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *ISSUE], check=True, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.endswith("False\n")
    # CPU time, since other work on the machine must not fail a test.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
