"""The driver with fake work: what it runs, what it leaves, how it goes on, and what it says."""

import io
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace

import pytest
from rich.console import Console

from harness.paper import main as paper
from harness.paper.driver import Driver
from harness.paper.index_writer import PaperIndex, folder_lock
from harness.paper.plan import Study
from harness.paper.work import WorkStatus
from results.paper.index import INDEX_FILE, Entry, Index, read_index, write_index
from testbed.base import DeviceError
from tpi.errors import ConfigError, WeightsError

OK = WorkStatus("done", "ok: 1 s a token", "tpi-0000000000000001", kind="measured")


def entry(row, exhibit="table1", column="on"):
    return Entry(exhibit, row, column, "tpi", (f"model={row}",))


@dataclass
class FakeWork:
    """Stands as `outlook` says, and as `after` says once it was run; running it may raise."""

    title: str
    outlook: WorkStatus
    after: WorkStatus | None = None
    raises: BaseException | None = None
    takes_s: float = 0.0
    runs: int = 0
    clock: list[float] = field(default_factory=lambda: [0.0])
    exhibit: str = "table1"
    study: Study | None = None

    @property
    def entries(self):
        return [entry(self.title, self.exhibit)]

    @property
    def exhibits(self):
        return frozenset({self.exhibit})

    def look(self):
        return self.after if self.runs and self.after else self.outlook

    def run(self, outlook, log):
        assert outlook == self.look()
        self.runs += 1
        self.clock[0] += self.takes_s
        log.print(f"inside {self.title}")
        sys.stderr.write("progress\n")
        if self.raises:
            raise self.raises


INVALID = WorkStatus("todo", "invalid: a link was slow", "tpi-0000000000000007", kind="invalid")


def todo(name, after=OK, predicted_s=60.0, **more):
    return FakeWork(name, WorkStatus("todo", predicted_s=predicted_s), after, **more)


class Setup:
    """Makes drivers; what the last one says is in `out`, what its runs say in `log`."""

    def __init__(self, folder):
        self.folder = folder
        self.out, self.log = io.StringIO(), io.StringIO()

    def __call__(self, *works, alone=lambda: None, others=()):
        now = [0.0]
        for work in works:
            work.clock = now
        index = PaperIndex(
            self.folder, "smoke", [e for work in (*works, *others) for e in work.entries]
        )
        self.out, self.log = io.StringIO(), io.StringIO()
        out, log = (Console(file=f, width=120) for f in (self.out, self.log))
        return Driver(works, index, out, log, clock=lambda: now[0], alone=alone, others=others)


@pytest.fixture
def driver(tmp_path):
    return Setup(tmp_path)


def in_index(tmp_path):
    return {e.row: (e.run_id, e.refusal or e.failure) for e in read_index(tmp_path).entries}


def test_only_what_is_to_do_is_run(tmp_path, driver):
    works = [todo("a"), FakeWork("b", OK), FakeWork("c", WorkStatus("refused", "no Docker"))]
    assert driver(*works).run() == 0
    assert [work.runs for work in works] == [1, 0, 0]
    assert in_index(tmp_path) == {
        "a": ("tpi-0000000000000001", ""),
        "b": ("tpi-0000000000000001", ""),
        "c": ("", "no Docker"),
    }
    out = driver.out.getvalue()
    assert "done 1, refused 1, failed 0, to do 1: about 60 s" in out
    assert "[1/1] a ... 60 s, about 60 s left" in out
    assert "    ok: 1 s a token" in out
    assert "refused: c: no Docker" in out


def test_a_failure_keeps_going_and_makes_the_status(tmp_path, driver):
    failed = WorkStatus("failed", "crashed: it fell over", "tpi-0000000000000009")
    works = [
        todo("a", after=failed),
        todo("b", after=WorkStatus("todo"), raises=WeightsError("rank-0: truncated")),
        todo("c", after=INVALID),
        todo("d", after=WorkStatus("todo")),
        todo("e"),
    ]
    assert driver(*works).run() == 1
    assert [work.runs for work in works] == [1, 1, 2, 1, 1]  # what was disturbed, once more
    assert in_index(tmp_path) == {
        "a": ("tpi-0000000000000009", ""),  # its record says how it ended
        "b": ("", "rank-0: truncated"),
        "c": ("tpi-0000000000000007", ""),
        "d": ("", "it left no record"),
        "e": ("tpi-0000000000000001", ""),
    }
    last = driver.out.getvalue().splitlines()[-5:]
    again = "; again: make table1 SCALE=smoke RETRY=1"
    assert last[0] == f"failed: a: crashed: it fell over{again}"
    assert last[1] == f"failed: b: rank-0: truncated{again}"
    assert last[-1] == "5 runs: measured 1, simulated 0, oom 0, infeasible 0, refused 0, failed 4"
    failures = {e.row: (e.refusal, e.failure) for e in read_index(tmp_path).entries}
    assert failures["b"] == ("", "rank-0: truncated")


def test_a_defect_in_one_run_is_one_failure_and_its_traceback_is_kept(tmp_path, driver):
    class Blind(FakeWork):
        def look(self):
            raise AttributeError("no such thing")

    works = [
        todo("a", after=WorkStatus("todo"), raises=ValueError("boom")), Blind("b", OK), todo("c"),
    ]  # fmt: skip
    assert driver(*works).run() == 1
    assert works[2].runs == 1
    assert in_index(tmp_path) == {
        "a": ("", "ValueError: boom; see log.txt"),
        "b": ("", "AttributeError: no such thing; see log.txt"),
        "c": (OK.run_id, ""),
    }
    assert "Traceback" in driver.log.getvalue()
    assert 'raise AttributeError("no such thing")' in driver.log.getvalue()


def test_the_end_counts_kinds(driver):
    works = [
        FakeWork("a", replace(OK, kind="simulated")), FakeWork("b", replace(OK, kind="oom")),
        FakeWork("c", WorkStatus("refused", "no Docker")),
    ]  # fmt: skip
    driver(*works).run()
    last = driver.out.getvalue().splitlines()[-1]
    assert last == "3 runs: measured 0, simulated 1, oom 1, infeasible 0, refused 1, failed 0"


def test_the_words_of_a_study_stand_in_the_index(tmp_path, driver):
    study = Study("allreduce", "figure3", ())
    work = FakeWork("s", WorkStatus("refused", "no Docker"), exhibit="figure3", study=study)
    driver(work).run()
    (kept,) = read_index(tmp_path).studies
    assert (kept.name, kept.exhibit, kept.refusal, kept.failure) == (
        "allreduce", "figure3", "no Docker", "",
    )  # fmt: skip
    work.outlook = replace(OK, run_id="")
    driver(work).run()
    assert read_index(tmp_path).studies[0].refusal == ""


def test_an_entry_has_the_version_of_its_source(tmp_path, driver):
    driver(todo("a"), FakeWork("b", WorkStatus("refused", "no Docker"))).run()
    index = read_index(tmp_path)
    assert [e.source for e in index.entries] == [index.sources["tpi"], ""]
    assert len(index.sources["tpi"]) == 12


def test_a_record_beside_an_error_is_what_counts(tmp_path, driver):
    work = todo("a", raises=WeightsError("late"))
    assert driver(work).run() == 0
    assert in_index(tmp_path)["a"] == ("tpi-0000000000000001", "")


def test_what_is_asked_for_wrongly_fails_the_whole(tmp_path, driver):
    works = [FakeWork("a", WorkStatus("failed", "unknown option\n'x'")), todo("b")]
    assert driver(*works).run() == 1
    assert works[1].runs == 1
    assert in_index(tmp_path)["a"] == ("", "unknown option 'x'")


def test_only_what_was_run_is_said_to_be_run_again(driver):
    old = WorkStatus("failed", "crashed: once", "tpi-0000000000000004")
    works = [FakeWork("a", WorkStatus("failed", "unknown option 'x'")), FakeWork("b", old)]
    assert driver(*works).run() == 1
    lines = [line for line in driver.out.getvalue().splitlines() if line.startswith("failed")]
    assert lines == [
        "failed: a: unknown option 'x'",
        "failed: b: crashed: once; again: make table1 SCALE=smoke RETRY=1",
    ]


def test_what_breaks_off_now_is_said_and_not_how_it_failed_before(driver):
    old = WorkStatus("failed", "crashed: once", "tpi-0000000000000004")
    driver(todo("a", after=old, raises=WeightsError("the disk is gone"))).run()
    assert "failed: a: the disk is gone;" in driver.out.getvalue()


def test_time_left_learns_nothing_from_what_broke_off(driver):
    works = [todo("a", after=WorkStatus("todo"), raises=WeightsError("at once"), takes_s=0.0)]
    driver(*works, *(todo(name, takes_s=60.0) for name in "bc")).run()
    left = re.findall(r"about (.*) left", driver.out.getvalue())
    assert left == ["3 min", "2 min", "60 s"]


def test_what_was_disturbed_is_measured_once_more(driver):
    class Recovers(FakeWork):
        def look(self):
            return self.outlook if not self.runs else INVALID if self.runs == 1 else OK

    work = Recovers("a", WorkStatus("todo", predicted_s=60.0))
    assert driver(work).run() == 0
    assert work.runs == 2
    assert "invalid: a link was slow; once more ..." in driver.out.getvalue()


def test_an_interrupt_keeps_the_index_and_the_rest_for_later(tmp_path, driver):
    half = WorkStatus("todo", "interrupted", "tpi-0000000000000003", 60.0)
    works = [todo("a"), todo("b", after=half, raises=KeyboardInterrupt()), todo("c")]
    with pytest.raises(KeyboardInterrupt):
        driver(*works).run()
    assert works[2].runs == 0
    assert in_index(tmp_path) == {
        "a": ("tpi-0000000000000001", ""),
        "b": ("tpi-0000000000000003", ""),
        "c": ("", ""),
    }


def test_another_harness_stops_the_whole(tmp_path, driver):
    def alone():
        raise DeviceError("another harness runs on this host")

    works = [todo("a", after=WorkStatus("todo"), raises=DeviceError("lock")), todo("b")]
    with pytest.raises(DeviceError, match="another harness"):
        driver(*works, alone=alone).run()
    assert works[1].runs == 0
    assert in_index(tmp_path) == {"a": ("", ""), "b": ("", "")}


def test_a_device_that_fails_is_one_failure(driver):
    works = [todo("a", after=WorkStatus("todo"), raises=DeviceError("no link")), todo("b")]
    assert driver(*works).run() == 1
    assert works[1].runs == 1


def test_time_left_is_corrected_by_what_has_passed(driver):
    works = [todo(name, takes_s=180.0) for name in "abcd"]
    driver(*works).run()
    left = re.findall(r"\.\.\. (.*), about (.*) left", driver.out.getvalue())
    # 60 s were predicted each; a minute of belief in that is worn down by what is seen.
    assert left[0] == ("60 s", "4 min")
    assert left[1] == ("2 min", "6 min")
    assert left[3] == ("2 min", "2 min")


def test_what_is_quick_gets_one_line(driver):
    driver(todo("a", predicted_s=1.0)).run()
    assert driver.out.getvalue().splitlines()[2] == "[1/1] a: ok: 1 s a token"


def test_what_runs_print_goes_to_the_log(driver, capsys):
    driver(todo("a")).run()
    assert "== a" in driver.log.getvalue()
    assert "inside a" in driver.log.getvalue()
    assert "progress" in driver.log.getvalue()
    assert capsys.readouterr().err == ""
    assert "inside" not in driver.out.getvalue()


def test_dry_run_says_everything_and_starts_nothing(tmp_path, driver):
    works = [todo("a"), FakeWork("b", OK), FakeWork("c", WorkStatus("refused", "no Docker"))]
    assert driver(*works).dry_run() == 0
    assert not (tmp_path / INDEX_FILE).exists()
    assert not any(work.runs for work in works)
    lines = driver.out.getvalue().splitlines()
    assert lines[2:] == ["todo    a, 60 s", "done    b: ok: 1 s a token", "refused c: no Docker"]
    assert driver(FakeWork("a", WorkStatus("failed", "x"))).dry_run() == 1


def test_one_table_keeps_what_stands_behind_the_others(tmp_path):
    others = [entry("a", "table2"), entry("old", "table2")]
    stale = Entry("table1", "b", "on", "tpi", ("model=other",), "tpi-0000000000000005")
    kept = [Entry(**{**_fields(e), "run_id": "tpi-0000000000000004"}) for e in others]
    write_index(tmp_path, Index("smoke", (*kept, stale)))
    index = PaperIndex(tmp_path, "smoke", [entry("a", "table2"), entry("b")])
    index.note([entry("b")], "tpi-0000000000000006")
    index.write()
    found = {(e.exhibit, e.row): e.run_id for e in read_index(tmp_path).entries}
    assert found == {
        ("table2", "a"): "tpi-0000000000000004",
        ("table1", "b"): "tpi-0000000000000006",
    }


def _fields(e):
    return {name: getattr(e, name) for name in e.__slots__}


def test_a_folder_of_another_scale_is_refused(tmp_path):
    write_index(tmp_path, Index("full"))
    with pytest.raises(ConfigError, match="holds the scale full, not smoke"):
        PaperIndex(tmp_path, "smoke", [])


def test_a_broken_index_is_made_anew_from_all_work(tmp_path, driver):
    (tmp_path / INDEX_FILE).write_text('{"schema_version": 1, "sca')
    other = FakeWork("b", OK, exhibit="table2")
    assert driver(todo("a"), others=[other]).run() == 0
    assert in_index(tmp_path) == {"a": (OK.run_id, ""), "b": (OK.run_id, "")}
    first = driver.out.getvalue().splitlines()[0]
    assert "not JSON" in first
    assert first.endswith("; keeping it as index.json.old; making it anew from the records")
    assert (tmp_path / "index.json.old").read_text() == '{"schema_version": 1, "sca'


def test_an_index_that_is_gone_is_made_anew_too(tmp_path, driver):
    (tmp_path / OK.run_id).mkdir()
    (tmp_path / OK.run_id / "run.json").touch()
    driver(todo("a"), others=[FakeWork("b", OK)]).run()
    assert in_index(tmp_path)["b"] == (OK.run_id, "")
    driver(todo("a"), others=[FakeWork("b", WorkStatus("todo"))]).run()
    assert in_index(tmp_path)["b"] == (OK.run_id, "")  # a good one is believed


def test_two_drivers_do_not_work_in_one_folder(tmp_path, works, rendered, capsys):
    with folder_lock(tmp_path):
        assert paper.main(["--dir", str(tmp_path)]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "another `make paper` works there" in line
    assert not any(work.runs for work in works)
    assert paper.main(["--dir", str(tmp_path)]) == 0
    assert len(rendered) == 1


@pytest.fixture
def rendered(monkeypatch):
    """What was asked to be rendered."""
    asked = []

    def render(folder, exhibits):
        asked.append((folder, exhibits))
        return [folder / "table1.md"]

    monkeypatch.setattr(paper, "_render", render)
    return asked


@pytest.fixture
def works(monkeypatch):
    """The work that the command line finds."""
    found = [todo("llama2-3b"), todo("llama2-7b", exhibit="table2")]
    monkeypatch.setattr(paper, "works_of", lambda *_, **__: found)
    return found


def test_command_line_runs_one_table_and_renders_it(tmp_path, works, rendered, capsys):
    assert paper.main(["--only", "table1", "--dir", str(tmp_path / "new")]) == 0
    assert [work.runs for work in works] == [1, 0]
    assert rendered == [(tmp_path / "new", ["table1"])]
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last == [
        f"1 file in {tmp_path / 'new' / 'rendered'}",
        f"next: lab report {tmp_path / 'new'}",
    ]
    assert "inside llama2-3b" in (tmp_path / "new" / "log.txt").read_text()


def test_command_line_renders_what_there_is_after_a_failure(tmp_path, works, rendered):
    works[0].raises, works[0].after = WeightsError("no"), None
    assert paper.main(["--dir", str(tmp_path)]) == 1
    assert len(rendered) == 1


def test_command_line_ends_on_an_interrupt(tmp_path, works, rendered, capsys):
    works[0].raises = KeyboardInterrupt()
    assert paper.main(["--dir", str(tmp_path)]) == 130
    assert rendered == []
    assert capsys.readouterr().err == (
        "paper: interrupted; the same command goes on where it stopped, and what there is so far"
        f" is drawn by: lab render {tmp_path}\n"
    )


def test_commands_are_those_of_the_makefile_where_it_has_them(tmp_path, monkeypatch, works,
                                                              rendered, capsys):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    works[0].after = WorkStatus("failed", "crashed: x", "tpi-0000000000000009")
    assert paper.main(["--only", "table1", "--scale", "small"]) == 1
    out = capsys.readouterr().out
    assert "crashed: x; again: make table1 SCALE=small RETRY=1" in out
    assert out.endswith("next: make report SCALE=small\n")


def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys):
    assert paper.main(["--only", "tabel1", "--dir", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == ("paper: exhibit: unknown 'tabel1'; did you mean table1?\n")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("retry", "words"), [("1", ["--retry"]), ("", []), ("0", [])])
def test_makefile_passes_a_retry_on(request, retry, words):
    command = ["make", "--no-print-directory", "-n", "-o", "setup"]
    command += ["table1", "SCALE=small", f"RETRY={retry}"]
    said = subprocess.run(
        command, cwd=request.config.rootpath, capture_output=True, text=True, check=True
    )
    last = said.stdout.splitlines()[-1].split()
    assert last[1:] == ["paper", "--scale", "small", *words, "--only", "table1"]
