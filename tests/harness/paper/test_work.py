"""Work of the paper's driver on real plans and records, with fake systems."""

import io
import json
import re
from dataclasses import replace

import pytest
from msgspec import structs
from rich.console import Console

from baselines.registry import system_names
from harness.paper import allreduce_study
from harness.paper.plan import Study
from harness.paper.work import RunWork, StudyWork, works_of
from harness.run import launch as launching
from harness.run import session
from results.paper.cells.allreduce import Point
from results.paper.index import Entry
from results.records.store import RunStore
from testbed.base import DeviceError
from testbed.host.rates import Host
from tests.harness.micro import HOST, write_model
from tpi.comm.allreduces.registry import PAPER_ALLREDUCES
from tpi.errors import WeightsError

pytestmark = pytest.mark.timeout(60)  # real processes, on whatever machine


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A host of its own: locks, memory, disk; `machine(free_disk=...)` changes it."""
    folder = tmp_path / "locks"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr("testbed.host.hostlock._FOLDERS", (folder,))

    def change(**facts: int) -> None:
        host: Host = replace(HOST, **facts)
        monkeypatch.setattr(session, "probe_host", lambda *_, **__: host)

    change()
    return change


@pytest.fixture
def fake(monkeypatch):
    """Every system is the fake one; `fake(misdeed=...)` makes it break the contract."""

    def behave(**how):
        for name in system_names():
            words = ("-m", "tests.fake_system", json.dumps(how))
            monkeypatch.setitem(launching.PROGRAMS, name, words)

    behave()
    return behave


@pytest.fixture
def work(tmp_path):
    """Makes a run on a model of kilobytes."""
    model = write_model(tmp_path / "model")

    def make(*overrides, system="transformers", retry=False):
        common = [
            "model=folder", f"model.path={model}", f"weights.dir={tmp_path}/weights", "devices=2",
            "repeats=1", "workload.prompt_tokens=4", "workload.new_tokens=4",
        ]  # fmt: skip
        entry = Entry("table1", "llama2-3b", "off", system, (*common, *overrides))
        return RunWork(system, entry.overrides, tmp_path / "runs", retry, [entry])

    return make


def log():
    return Console(file=io.StringIO(), width=120)


def finish(work):
    outlook = work.look()
    assert outlook.state == "todo"
    work.run(outlook, log())
    return work.look()


@pytest.mark.usefixtures("fake")
def test_a_run_is_looked_at_done_and_found_again(tmp_path, work):
    first = work()
    before = first.look()
    assert (before.state, before.run_id) == ("todo", "")
    assert before.predicted_s > 0
    assert not (tmp_path / "runs").exists()
    after = finish(first)
    assert after.state == "done"
    assert after.reason.startswith("ok: TTFT ")
    assert re.search(r"peak [\d.]+ MiB$", after.reason)
    assert RunStore(tmp_path / "runs").read(after.run_id).status == "ok"
    assert work().look() == after
    assert work("repeats=2").look().state == "todo"


def test_a_failure_is_kept_until_it_is_retried(work, fake):
    fake(misdeed="die")
    failed = finish(work())
    assert failed.state == "failed"
    assert failed.reason.startswith("crashed: ")
    assert work().look() == failed
    fake()
    retried = finish(work(retry=True))
    assert (retried.state, retried.run_id) == ("done", f"{failed.run_id}-2")
    assert work().look() == retried


def test_a_retry_that_fails_again_is_a_failure(work, fake):
    fake(misdeed="die")
    finish(work())
    again = finish(work(retry=True))
    assert again.state == "failed"
    assert again.run_id.endswith("-2")


@pytest.mark.usefixtures("fake")
def test_what_is_invalid_is_run_again(tmp_path, work):
    done = finish(work())
    store = RunStore(tmp_path / "runs")
    record = store.read(done.run_id)
    store.write(structs.replace(record, status="invalid", reason="a link was slow", metrics=None))
    outlook = work().look()
    assert (outlook.state, outlook.run_id) == ("todo", done.run_id)
    assert outlook.reason == "invalid: a link was slow"
    assert finish(work()).run_id == f"{done.run_id}-2"


@pytest.mark.usefixtures("fake")
def test_a_changed_record_is_named_and_not_run_over(tmp_path, work):
    done = finish(work())
    path = tmp_path / "runs" / done.run_id / "samples-000.jsonl"
    path.write_bytes(path.read_bytes()[:-2])
    outlook = work().look()
    assert (outlook.state, outlook.run_id) == ("failed", done.run_id)
    assert "changed after it was written" in outlook.reason


@pytest.mark.usefixtures("fake")
def test_a_record_that_cannot_be_used_is_measured_anew_by_a_retry(tmp_path, work):
    done = finish(work())
    path = tmp_path / "runs" / done.run_id / "run.json"
    path.write_bytes(path.read_bytes()[:200])
    spoilt = path.read_bytes()
    again = finish(work(retry=True))
    assert (again.state, again.run_id) == ("done", f"{done.run_id}-2")
    assert path.read_bytes() == spoilt
    assert work().look() == again


def test_a_simulation_that_cannot_be_used_is_done_anew_by_a_retry(tmp_path):
    overrides = ("model=tiny", "testbed=klonet", "testbed.backend=sim", "repeats=1",
                 "devices=2", "workload.new_tokens=3")  # fmt: skip
    entry = Entry("table1", "llama2-3b", "on", "tpi", overrides)
    done = finish(RunWork("tpi", overrides, tmp_path, False, [entry]))
    path = tmp_path / done.run_id / "run.json"
    path.write_bytes(path.read_bytes().replace(b'"ttft_s"', b'"ttft_S"', 1))
    assert RunWork("tpi", overrides, tmp_path, False, [entry]).look().state == "failed"
    again = finish(RunWork("tpi", overrides, tmp_path, True, [entry]))
    assert (again.run_id, again.kind) == (f"{done.run_id}-2", "simulated")


@pytest.mark.usefixtures("fake")
def test_what_does_not_fit_memory_is_written_down_and_measured_later(work, machine):
    machine(available_memory=64 << 20)
    assert work().look().predicted_s == 0
    outlook = finish(work())
    assert outlook.state == "done"
    assert outlook.reason.startswith("infeasible: needs ")
    machine()
    assert work().look().state == "todo"


def test_a_simulation_is_done_once_and_needs_nothing_of_this_host(tmp_path, machine):
    machine(available_memory=1, free_disk=1)
    entry = Entry("table1", "llama2-3b", "on", "tpi",
                  ("model=tiny", "testbed=klonet", "testbed.backend=sim", "repeats=1",
                   "devices=2", "workload.new_tokens=3"))  # fmt: skip

    def work(*, retry=False):
        return RunWork("tpi", entry.overrides, tmp_path / "runs", retry, [entry])

    done = finish(work())
    assert done.state == "done"
    assert done.reason.startswith("ok: TTFT ")
    assert work().look() == work(retry=True).look() == done


def test_what_does_not_fit_the_disk_is_refused_with_numbers(work, machine):
    machine(free_disk=1 << 20)
    outlook = work("weights.source=synthetic").look()
    assert outlook.state == "refused"
    assert "1 MiB are free" in outlook.reason


def test_a_testbed_that_is_not_there_is_refused(work, monkeypatch):
    def refuse(plan):
        raise DeviceError(f"no Docker for {plan.config.testbed.name}")

    monkeypatch.setattr(session, "require_docker", refuse)
    outlook = work("testbed=docker").look()
    assert (outlook.state, outlook.reason) == ("refused", "no Docker for docker")


@pytest.mark.parametrize(
    ("override", "words"), [("windo=3", "unknown option"), ("max_minutes=0.01", "max_minutes")]
)
def test_what_cannot_be_asked_for_has_failed(work, override, words):
    outlook = work(override).look()
    assert outlook.state == "failed"
    assert words in outlook.reason


def test_titles_say_what_is_run(work):
    assert work().title == "table1 llama2-3b off: transformers of folder on local"
    entry = Entry("table1", "llama2-3b", "on", "tpi",
                  ("model=llama2-3b", "testbed=klonet", "testbed.backend=sim"))  # fmt: skip
    run = RunWork("tpi", entry.overrides, work().folder, entries=[entry, entry])
    assert run.title == "table1 llama2-3b on and 1 more: tpi on klonet simulated"


def test_entries_that_ask_for_the_same_are_one_run(tmp_path):
    entries = [
        Entry("table1", "a", "on", "tpi", ("devices=8",)),
        Entry("table1", "a", "off", "tpi-resident", ("devices=8",)),
        Entry("figure6", "a", "tpi", "tpi", ("devices=8",)),
    ]
    either, other = ("devices=8", "repeats=2"), ("repeats=2", "devices=8")  # the order says nothing
    pair = [Entry("table1", "b", "on", "tpi", either), Entry("figure6", "b", "tpi", "tpi", other)]
    (run,) = works_of(pair, [], tmp_path, retry=False)
    assert run.entries == pair
    study = Study("allreduce", "figure3", ())
    *runs, last = works_of(entries, [study], tmp_path, retry=False)
    assert [list(run.entries) for run in runs] == [[entries[0], entries[2]], [entries[1]]]
    assert runs[0].exhibits == {"table1", "figure6"}
    assert last.exhibits == {"figure3"}
    assert not last.entries


ARGUMENTS = ("--devices=2", "--delays=1,2", "--bytes=4", "--rounds=2", "--dilation=1")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study whose devices answer at once."""
    monkeypatch.setattr(session, "require_emulation", lambda _: None)

    def measure(arguments, delay):
        return [
            Point(name, delay, 4, 2, 0.1, 0.1, 0.1, arguments.rounds, 0.1, 0.1)
            for name in PAPER_ALLREDUCES
        ]

    monkeypatch.setattr(allreduce_study, "measure_delay", measure)
    return lambda *more: StudyWork(Study("allreduce", "figure3", (*ARGUMENTS, *more)), tmp_path)


def test_a_study_is_done_once(tmp_path, study):
    before = study().look()
    assert before.state == "todo"
    assert 10 < before.predicted_s < 60
    study().run(before, log())
    assert (tmp_path / "allreduce.json").is_file()
    assert study().look().state == "done"
    assert study("--rounds=3").look().state == "todo"
    assert study("--delays=1").look().state == "done"
    for other in ("--rate-mbps=100", "--dilation=2", "--bytes=8", "--devices=3", "--delays=1,3"):
        assert study(other).look().state == "todo", other


def test_a_study_without_docker_is_refused(study, monkeypatch):
    def refuse(_):
        raise DeviceError("no Docker")

    monkeypatch.setattr(session, "require_emulation", refuse)
    assert study().look().state == "refused"


def test_a_study_of_nonsense_has_failed(tmp_path, study):
    assert study("--rounds=0").look().state == "failed"
    (tmp_path / "allreduce.json").write_text("{")
    outlook = study().look()
    assert outlook.state == "failed"
    assert "not a study of allreduce" in outlook.reason
    retried = StudyWork(study().study, tmp_path, retry=True)
    retried.run(retried.look(), log())
    assert retried.look().state == study().look().state == "done"


def test_an_error_of_a_study_is_raised(study, monkeypatch):
    def fail(*_):
        raise WeightsError("no")

    monkeypatch.setattr(allreduce_study, "measure_delay", fail)
    with pytest.raises(WeightsError):
        study().run(study().look(), log())


def test_a_study_that_was_interrupted_goes_on_after_its_last_delay(study, monkeypatch):
    whole, measured = allreduce_study.measure_delay, []

    def interrupted(arguments, delay):
        if delay == 2:
            raise KeyboardInterrupt
        return whole(arguments, delay)

    def counted(arguments, delay):
        measured.append(delay)
        return whole(arguments, delay)

    monkeypatch.setattr(allreduce_study, "measure_delay", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study().run(study().look(), log())
    assert study("--delays=1").look().state == "done"
    monkeypatch.setattr(allreduce_study, "measure_delay", counted)
    study().run(study().look(), log())
    assert measured == [2]
    assert study().look().state == "done"
