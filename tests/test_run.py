"""`run.py` from the command line, with fake systems, and once with the real ones."""

import json
import re
import signal
import subprocess
import sys

import pytest

import run
from harness import launching
from harness.compose import CONF_DIR
from results.store import RunStore
from tests.harness.micro import write_model

ROOT = CONF_DIR.parent


@pytest.fixture
def fakes(monkeypatch):
    """Every system is the fake one; what it does is set by its name."""

    def set_up(**behaviour):
        for name in launching.PROGRAMS:
            words = ("-m", "tests.fake_system", json.dumps(behaviour.get(name, {})))
            monkeypatch.setitem(launching.PROGRAMS, name, words)

    set_up()
    return set_up


@pytest.fixture
def arguments(tmp_path):
    folder = write_model(tmp_path / "a model", tokenizer=True)
    return [
        "model=folder", f"model.path={folder}", f"weights.dir={tmp_path}/weights", "devices=2",
        f"results_dir={tmp_path}/runs", "repeats=1", "workload.new_tokens=4",
    ]  # fmt: skip


def row(text, system):
    table = text[text.index("TTFT") :].splitlines()
    return next(line.rstrip() for line in table if re.match(rf"{system} +\w+ ", line))


@pytest.mark.usefixtures("fakes")
def test_run_prints_plan_table_and_where_records_lie(tmp_path, arguments, capsys):
    assert run.main([*arguments, "workload.prompt=hello world, [hello]"]) == 0
    out, err = capsys.readouterr()
    for word in ("model ", "weights ", "tpi ", "check ", "runs ", "time ", "needs", "2 devices"):
        assert word in out
    assert "equal" in row(out, "tpi")
    assert "ok" in row(out, "transformers")
    folders = re.findall(r"record: (.*)", out)
    assert len(folders) == 2
    record = RunStore(tmp_path / "runs").read(folders[0].rpartition("/")[2])
    assert record.config["prompt_ids"] == [1, 2, 0, 0, 1, 0]  # commas and brackets are unknown
    assert "tpi, repeat 1: ok" in err


def test_run_wrong_tokens_end_with_status_1(fakes, arguments, capsys):
    fakes(tpi={"tokens": [3, 3, 3, 3]})
    assert run.main(arguments) == 1
    assert "wrong_output" in row(capsys.readouterr().out, "tpi")


def test_run_prompt_file(fakes, tmp_path, arguments):
    (tmp_path / "prompt.txt").write_text("world")
    assert run.main([*arguments, f"workload.prompt_file={tmp_path}/prompt.txt"]) == 0


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["workload.prompt=hello"], ["model=tiny has no tokenizer", "workload.prompt_tokens=N"]),
        (["workload.prompt_tokens=3000"], ["3032 positions", "2048"]),
        (["systems=[tpi]", "shares=[1,2,3]"], ["shares: got 3 numbers, expected devices=4"]),
        (["memory_budget=1MiB"], ["memory_budget", "least"]),
        (["weights=folder"], ["weights=folder", "no folder"]),
        (["max_minutes=0.01"], ["max_minutes: got 0.01"]),
        (
            ["systems=[tpi,pipeline,transformers-tp]", "devices=9"],
            ["pipeline cannot run: ", "9 devices", "8 layers", "; transformers-tp cannot run: "],
        ),
        (["device.memory=4GiB"], ["device.memory", "cannot be limited"]),
        (["weights.dir=/proc/nowhere"], ["weights.dir"]),
        (["results_dir=/proc/nowhere"], ["results_dir"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_mistakes_end_with_status_2_and_one_line(tmp_path, monkeypatch, capsys, extra, words):
    monkeypatch.chdir(tmp_path)
    assert run.main(["model=tiny", *extra]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_missing_package_is_refused_by_name_and_a_row_through_all(
    fakes, arguments, monkeypatch, capsys
):
    monkeypatch.setattr(
        "harness.available.find_spec", lambda name: name if name == "torch" else None
    )
    assert run.main([*arguments, "systems=[tpi,transformers]"]) == 2
    assert "transformers cannot run: the package" in capsys.readouterr().err
    monkeypatch.setattr("harness.plan._plan_check", lambda *_: ("none", "not here"))
    assert run.main([*arguments, "systems=all"]) == 0
    out = capsys.readouterr().out
    assert "unavailable" in row(out, "transformers")
    assert "the package transformers is not installed" in out


def test_sweep_runs_every_combination(fakes, arguments, capsys):
    assert run.main(["-m", *arguments, "window=1,2", "systems=[tpi,transformers]"]) == 0
    out = capsys.readouterr().out
    assert len(set(re.findall(r"record: .*/(tpi-.*)", out))) == 2
    assert len(set(re.findall(r"record: .*/(transformers-.*)", out))) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_everything_with_130(arguments, number):
    hang = json.dumps({"misdeed": "hang"})
    code = (
        "import sys, signal, run\n"
        "from harness import launching\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"launching.PROGRAMS['tpi'] = ('-m', 'tests.fake_system', {hang!r})\n"
        f"sys.exit(run.main({[*arguments, 'systems=[tpi]']!r}))\n"
    )
    argv = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=ROOT, text=True, stdout=pipe, stderr=pipe) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("tpi, repeat 1"):
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=15)
    assert process.returncode == 130, err
    assert "interrupted" in row(out, "tpi")
    assert "the same command goes on" in err
    left = subprocess.run(
        ["pgrep", "-g", str(process.pid)], capture_output=True, text=True, check=False
    )
    assert left.stdout == ""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_real_systems_give_equal_tokens(tmp_path, capsys):
    folders = [f"weights.dir={tmp_path}/weights", f"results_dir={tmp_path}/runs"]
    more = ["repeats=1", "workload.new_tokens=6", "devices=2", "systems=[tpi,transformers]"]
    assert run.main(["model=tiny", *folders, *more]) == 0
    out = capsys.readouterr().out
    assert row(out, "tpi").endswith("equal")
    assert row(out, "transformers").endswith("equal")
