"""The command: how it ends, what it says, what it writes."""

import subprocess
from contextlib import nullcontext

import pytest

from harness.regression import main as command
from harness.regression.verdict import NO_BASELINE, UNCLEAR, Finding, markdown, rich_table
from testbed.base import DeviceError
from tests.harness.regression.test_base import commit, git
from tpi.errors import ConfigError

SAME = Finding("a", "1", "1", "0 (exactly)", "same")
MORE = Finding("b | c", "96", "97", "+1.04% (exactly)", "more")
NONE = Finding("d", "-", "5", "no run.py", NO_BASELINE)


@pytest.fixture
def repo(tmp_path):
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "tpi").mkdir()
    (folder / "tpi" / "__init__.py").write_text("")
    git(folder, "add", "tpi")
    commit(folder, "one")
    return folder


def measured(monkeypatch, *findings):
    monkeypatch.setattr(command, "compare_counters", lambda *_: list(findings))
    monkeypatch.setattr(command, "measure_timings", lambda *_: [])
    monkeypatch.setattr(command, "host_lock", lambda **_: nullcontext())


def test_what_is_too_noisy_passes_and_is_named(repo, monkeypatch, capsys):
    commit(repo, "two")
    measured(monkeypatch, SAME, Finding("time: x", "1 ms", "2 ms", "+30%", UNCLEAR))
    assert command.main([], repo) == 0
    said = capsys.readouterr().out
    assert "no regression: 2 compared, 0 without a baseline; too noisy to tell a tenth" in said
    assert "time: x" in said


def test_nothing_is_timed_beside_another_harness(repo, monkeypatch, capsys):
    commit(repo, "two")
    measured(monkeypatch, SAME)

    def another(*, allow_concurrent):
        assert not allow_concurrent
        raise DeviceError("another harness runs on this host")

    monkeypatch.setattr(command, "host_lock", another)
    assert command.main([], repo) != 0
    assert "another harness" in capsys.readouterr().err


def test_first_commit_is_a_notice(repo, capsys):
    assert command.main([], repo) == 0
    assert "no baseline yet" in capsys.readouterr().out


def test_base_without_tpi_is_a_notice(repo, capsys):
    git(repo, "rm", "-rq", "tpi")
    git(repo, "commit", "-qm", "without")
    commit(repo, "three")
    assert command.main([], repo) == 0
    assert "has no tpi to measure" in capsys.readouterr().out


def test_unknown_base_is_one_line(repo, capsys):
    assert command.main(["--base", "nonsense"], repo) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_regression_fails_with_one_line_and_the_table_in_the_file(
    repo, tmp_path, monkeypatch, capsys
):
    commit(repo, "two")
    measured(monkeypatch, SAME, MORE, NONE)
    out = tmp_path / "new" / "out.md"
    assert command.main(["--out", str(out)], repo) == 1
    said = capsys.readouterr().out
    line = "regression: b | c: more, 96 to 97, +1.04% (exactly)"
    assert said.splitlines()[-1] == f"bench: {line}"
    text = out.read_text()
    assert "| b \\| c | 96 | 97 | +1.04% (exactly) | more |" in text
    assert text.rstrip().endswith(line)


def test_file_that_cannot_be_written_is_refused_at_once(repo, tmp_path, capsys):
    assert command.main(["--out", str(tmp_path)], repo) == 2
    (tmp_path / "file").write_text("")
    assert command.main(["--out", str(tmp_path / "file" / "out.md")], repo) == 15
    assert capsys.readouterr().err.count("\n") == 2


def test_no_regression_passes_and_counts_what_had_no_baseline(repo, monkeypatch, capsys):
    commit(repo, "two")
    measured(monkeypatch, SAME, NONE)
    assert command.main([], repo) == 0
    assert "no regression: 1 compared, 1 without a baseline" in capsys.readouterr().out


def test_accepted_regression_passes(repo, monkeypatch):
    commit(repo, "two")
    measured(monkeypatch, SAME, MORE)
    assert command.main(["--accept", MORE.what], repo) == 0


def test_accepting_what_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="nothing is called 'x'"):
        command.conclude([SAME], ["x"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConfigError("no")])
def test_interrupted_comparison_leaves_no_worktree(repo, monkeypatch, error):
    commit(repo, "two")

    def fail(*_):
        raise error

    monkeypatch.setattr(command, "compare_counters", fail)
    assert command.main([], repo) in (2, 130)
    listed = subprocess.run(
        ["git", "-C", str(repo), "worktree", "list"], capture_output=True, text=True, check=True
    )
    assert listed.stdout.count("\n") == 1


def test_tables_have_a_row_each():
    findings = [SAME, MORE, NONE]
    assert rich_table(findings).row_count == 3
    assert markdown("title", findings, "verdict").count("\n|") == 5
