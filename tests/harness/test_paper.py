"""The driver with fake work: what it runs, what it leaves, how it goes on, and what it says."""

import io
import re
import sys
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from harness import paper
from harness.paper import Driver
from harness.paper_index import PaperIndex
from harness.paper_work import Outlook
from results.index import INDEX_FILE, Entry, Index, read_index, write_index
from testbed.base import DeviceError
from tpi.errors import ConfigError, WeightsError

OK = Outlook("done", "ok: 1 s a token", "tpi-1")


def entry(row, exhibit="table1", column="on"):
    return Entry(exhibit, row, column, "tpi", (f"model={row}",))


@dataclass
class FakeWork:
    """Stands as `outlook` says, and as `after` says once it was run; running it may raise."""

    title: str
    outlook: Outlook
    after: Outlook | None = None
    raises: BaseException | None = None
    takes_s: float = 0.0
    runs: int = 0
    clock: list[float] = field(default_factory=lambda: [0.0])
    exhibit: str = "table1"

    @property
    def entries(self):
        return [entry(self.title, self.exhibit)]

    @property
    def exhibits(self):
        return frozenset({self.exhibit})

    def look(self):
        return self.after if self.runs and self.after else self.outlook

    def run(self, outlook, log):
        assert outlook == self.outlook
        self.runs += 1
        self.clock[0] += self.takes_s
        log.print(f"inside {self.title}")
        sys.stderr.write("progress\n")
        if self.raises:
            raise self.raises


def todo(name, after=OK, predicted_s=60.0, **more):
    return FakeWork(name, Outlook("todo", predicted_s=predicted_s), after, **more)


class Setup:
    """Makes drivers; what the last one says is in `out`, what its runs say in `log`."""

    def __init__(self, folder):
        self.folder = folder
        self.out, self.log = io.StringIO(), io.StringIO()

    def __call__(self, *works, alone=lambda: None):
        now = [0.0]
        for work in works:
            work.clock = now
        index = PaperIndex(self.folder, "smoke", [e for work in works for e in work.entries])
        self.out, self.log = io.StringIO(), io.StringIO()
        out, log = (Console(file=f, width=120) for f in (self.out, self.log))
        return Driver(works, index, out, log, clock=lambda: now[0], alone=alone)


@pytest.fixture
def driver(tmp_path):
    return Setup(tmp_path)


def in_index(tmp_path):
    return {e.row: (e.run_id, e.refusal) for e in read_index(tmp_path).entries}


def test_only_what_is_to_do_is_run(tmp_path, driver):
    works = [todo("a"), FakeWork("b", OK), FakeWork("c", Outlook("refused", "no Docker"))]
    assert driver(*works).run() == 0
    assert [work.runs for work in works] == [1, 0, 0]
    assert in_index(tmp_path) == {"a": ("tpi-1", ""), "b": ("tpi-1", ""), "c": ("", "no Docker")}
    out = driver.out.getvalue()
    assert "done 1, refused 1, failed 0, to do 1: about 60 s" in out
    assert "[1/1] a ... 60 s, about 60 s left" in out
    assert "    ok: 1 s a token" in out
    assert "refused: c: no Docker" in out


def test_a_failure_keeps_going_and_makes_the_status(tmp_path, driver):
    failed = Outlook("failed", "crashed: it fell over", "tpi-9")
    works = [
        todo("a", after=failed),
        todo("b", after=Outlook("todo"), raises=WeightsError("rank-0: truncated")),
        todo("c", after=Outlook("todo", "invalid: a link was slow", "tpi-7")),
        todo("d", after=Outlook("todo")),
        todo("e"),
    ]
    assert driver(*works).run() == 1
    assert all(work.runs == 1 for work in works)
    assert in_index(tmp_path) == {
        "a": ("tpi-9", ""),  # its record says how it ended
        "b": ("", "rank-0: truncated"),
        "c": ("tpi-7", ""),
        "d": ("", "it left no record"),
        "e": ("tpi-1", ""),
    }
    last = driver.out.getvalue().splitlines()[-5:]
    assert last[0] == "failed: a: crashed: it fell over"
    assert last[1] == "failed: b: rank-0: truncated"
    assert last[-1] == "done 1, refused 0, failed 4"


def test_a_record_beside_an_error_is_what_counts(tmp_path, driver):
    work = todo("a", raises=WeightsError("late"))
    assert driver(work).run() == 0
    assert in_index(tmp_path)["a"] == ("tpi-1", "")


def test_what_is_asked_for_wrongly_fails_the_whole(tmp_path, driver):
    works = [FakeWork("a", Outlook("failed", "unknown option\n'x'")), todo("b")]
    assert driver(*works).run() == 1
    assert works[1].runs == 1
    assert in_index(tmp_path)["a"] == ("", "unknown option 'x'")


def test_an_interrupt_keeps_the_index_and_the_rest_for_later(tmp_path, driver):
    half = Outlook("todo", "interrupted", "tpi-3", 60.0)
    works = [todo("a"), todo("b", after=half, raises=KeyboardInterrupt()), todo("c")]
    with pytest.raises(KeyboardInterrupt):
        driver(*works).run()
    assert works[2].runs == 0
    assert in_index(tmp_path) == {"a": ("tpi-1", ""), "b": ("tpi-3", ""), "c": ("", "")}


def test_another_harness_stops_the_whole(tmp_path, driver):
    def alone():
        raise DeviceError("another harness runs on this host")

    works = [todo("a", after=Outlook("todo"), raises=DeviceError("lock")), todo("b")]
    with pytest.raises(DeviceError, match="another harness"):
        driver(*works, alone=alone).run()
    assert works[1].runs == 0
    assert in_index(tmp_path) == {"a": ("", ""), "b": ("", "")}


def test_a_device_that_fails_is_one_failure(driver):
    works = [todo("a", after=Outlook("todo"), raises=DeviceError("no link")), todo("b")]
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
    works = [todo("a"), FakeWork("b", OK), FakeWork("c", Outlook("refused", "no Docker"))]
    assert driver(*works).dry_run() == 0
    assert not (tmp_path / INDEX_FILE).exists()
    assert not any(work.runs for work in works)
    lines = driver.out.getvalue().splitlines()
    assert lines[2:] == ["todo    a, 60 s", "done    b: ok: 1 s a token", "refused c: no Docker"]
    assert driver(FakeWork("a", Outlook("failed", "x"))).dry_run() == 1


def test_one_table_keeps_what_stands_behind_the_others(tmp_path):
    others = [entry("a", "table2"), entry("old", "table2")]
    stale = Entry("table1", "b", "on", "tpi", ("model=other",), "tpi-5")
    kept = [Entry(**{**_fields(e), "run_id": "tpi-4"}) for e in others]
    write_index(tmp_path, Index("smoke", (*kept, stale)))
    index = PaperIndex(tmp_path, "smoke", [entry("a", "table2"), entry("b")])
    index.note([entry("b")], run_id="tpi-6", refusal="")
    index.write()
    found = {(e.exhibit, e.row): e.run_id for e in read_index(tmp_path).entries}
    assert found == {("table2", "a"): "tpi-4", ("table1", "b"): "tpi-6"}


def _fields(e):
    return {name: getattr(e, name) for name in e.__slots__}


def test_a_folder_of_another_scale_is_refused(tmp_path):
    write_index(tmp_path, Index("full"))
    with pytest.raises(ConfigError, match="holds the scale full, not smoke"):
        PaperIndex(tmp_path, "smoke", [])


def test_a_broken_index_is_made_anew(tmp_path):
    (tmp_path / INDEX_FILE).write_text('{"schema_version": 1, "sca')
    PaperIndex(tmp_path, "smoke", [entry("a")]).write()
    assert in_index(tmp_path) == {"a": ("", "")}


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
    assert "table1.md" in capsys.readouterr().out
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
        "paper: interrupted; the same command goes on where it stopped\n"
    )


def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys):
    assert paper.main(["--only", "tabel1", "--dir", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == ("paper: exhibit: unknown 'tabel1'; did you mean table1?\n")
    assert not (tmp_path / "x").exists()
