"""Every file of conf/ composes; what a user can mistype is one line with the nearest name."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from omegaconf import OmegaConf

import run
from baselines.accelerate.program import AccelerateOptions
from baselines.galaxy.options import GalaxyOptions
from baselines.registry import find_system, system_names
from baselines.tpi.system import TpiOptions, WindowOptions
from harness.config.command_line import CONF_DIR, groups, quoted
from harness.config.compose import compose, help_text
from tpi.errors import ConfigError
from tpi.model_config import preset_names

FILES = [(axis, name) for axis, names in groups().items() for name in names]


@pytest.mark.parametrize(("axis", "name"), FILES, ids="/".join)
def test_every_file_composes(axis, name, tmp_path):
    more = [f"model.path={tmp_path}"] if (axis, name) == ("model", "folder") else []
    if axis in ("device", "link") and name not in ("local", "ideal"):
        more = ["testbed=docker"]  # plain processes cannot be limited
    if name == "home3":
        more = ["devices=3"]
    composed = compose([f"{axis}={name}", *more])
    if axis == "experiment":  # what it chooses is on the other axes
        assert composed.config.testbed.backend == "docker"
        return
    chosen = getattr(composed.config, axis)
    if axis == "systems":
        assert set(chosen) == ({*system_names()} if name == "all" else {name})
        for system, options in chosen.items():  # a page says what the code takes by itself
            assert options == find_system(system).options(**_given(options))
    elif axis in ("model", "testbed", "device", "link"):
        assert chosen.name == name


def _given(options):
    """What pages leave to the run: dtype and threads of Transformers."""
    return {k: v for k, v in structs.asdict(options).items() if k in ("dtype", "threads")}


def test_every_preset_is_a_model_and_the_other_way_round():
    assert {*groups()["model"]} == {*preset_names(), "folder"}


def test_defaults_are_the_documented_ones():
    config = compose([]).config
    assert list(config.systems) == ["tpi", "transformers"]
    assert config.systems["tpi"] == TpiOptions(window=2)
    assert (config.dtype, config.repeats, config.max_minutes) == ("float32", 3, 30)
    assert (config.workload.prompt_tokens, config.workload.new_tokens) == (32, 32)
    assert config.weights.max_bytes == 16 << 30
    assert config.results_dir == "results/runs"
    assert config.trace is False


def test_trace_is_true_or_false():
    assert compose(["trace=true"]).config.trace is True
    with pytest.raises(ConfigError, match=r"^trace: "):
        compose(["trace=maybe"])


def test_short_names_reach_the_systems():
    args = ["window=all", "memory_budget=4GiB", "allreduce=ring", "shares=[2,1,1,0]", "threads=2"]
    config = compose([*args, "wire_dtype=bfloat16"]).config
    assert config.systems["tpi"] == TpiOptions(
        window="all",
        memory_budget=4 << 30,
        allreduce="ring",
        wire_dtype="bfloat16",
        shares=[2, 1, 1, 0],
    )
    assert config.device.threads == 2


def test_options_of_one_system_are_reached_by_its_name():
    args = ["systems.accelerate.max_memory=2GiB", "systems.transformers-window.window=3"]
    config = compose(["systems=all", *args, "systems.galaxy.overlap=false"]).config
    assert config.systems["accelerate"] == AccelerateOptions(max_memory=2 << 30)
    assert config.systems["galaxy"] == GalaxyOptions(overlap=False)
    assert config.systems["transformers-window"] == WindowOptions(window=3)
    assert config.systems["tpi"] == TpiOptions(window=2)


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world",
        "What's new?",
        'say "hi"',
        "a=b",
        "${oc.env:HOME}",
        "[1,2",
        "null",
        " x ",
        "~",
    ],
)
def test_free_text_arrives_as_it_was_typed(text):
    assert compose([f"workload.prompt={text}"]).config.workload.prompt == text


def test_paths_arrive_as_they_were_typed(tmp_path):
    folder = tmp_path / "a=b, ~c's"
    folder.mkdir()
    config = compose(["model=folder", f"model.path={folder}", f"results_dir={folder}/r"]).config
    assert config.model.path == str(folder)
    assert config.results_dir == f"{folder}/r"


def test_all_is_told_from_names():
    assert compose(["systems=all"]).all_systems
    assert not compose(["systems=[tpi,transformers]"]).all_systems


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["windo=3"], ["unknown option 'windo'", "did you mean window?"]),
        (["prompt=hi"], ["did you mean workload.prompt?"]),
        (["model.pat=x"], ["did you mean model.path?"]),
        (["+foo=1"], ["unknown option '+foo'"]),
        (["++windo=1"], ["unknown option '++windo'", "did you mean window?"]),
        (["~window"], ["expected KEY=VALUE"]),
        (["x.y.z=3"], ["unknown option 'x.y.z'", "--help"]),
        (["devices"], ["got 'devices', expected KEY=VALUE"]),
        (["--cfg"], ["--cfg", "expected one argument"]),
        (["--cfg", "jobs"], ["--cfg", "'jobs'", "'job'"]),
        (["--cgf", "job"], ["unknown flag '--cgf'", "did you mean --cfg?"]),
        (["--multirun", "--cfg", "job"], ["Only one of"]),
        (["--experimental-rerun", "file"], ["--experimental-rerun", "unpickles"]),
        (["--exp=file"], ["--experimental-rerun", "unpickles"]),
        (["--config-dir", "/no/such"], ["/no/such"]),
        (["-cn", "nothing"], ["nothing"]),
        (["-m", "hydra/launcher=slurn"], ["hydra/launcher: unknown 'slurn'", "basic"]),
        (["devices=none"], ["devices: got 'none', expected a whole number"]),
        (["device.cores=many"], ["device.cores: got 'many', expected a number"]),
        (["force=perhaps"], ["force: got 'perhaps', expected true or false"]),
        (["-m", "model=tiny,tony"], ["model: unknown 'tony'", "did you mean tiny?"]),
        (["-m", "systems=[tpi],[tpi,tpi]"], ["named twice"]),
        (["-m", "window=2,0"], ["window: got 0"]),
        (["model=tony"], ["model: unknown 'tony'", "did you mean tiny?"]),
        (["systems=[tpi,transformer]"], ["did you mean transformers?"]),
        (["systems=[tpi,tpi]"], ["named twice"]),
        (["systems=[]"], ["systems"]),
        (["testbed=dokker"], ["testbed: unknown 'dokker'", "did you mean docker?"]),
        (["systems=[transformers]", "systems.tpi.window=1"], ["tpi is not among the systems"]),
        (["window=[2"], ["window=[2", "quotes"]),
        (["window=1,2"], ["several values", "-m"]),
        (["window="], ["window: got ''"]),
        (["memory_budget=4GX"], ["memory_budget: got '4GX'"]),
        (["model=folder"], ["model.path=DIR"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_mistakes_are_one_line(args, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run.main(args) == 2
    out, message = capsys.readouterr()
    assert out == ""
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message
    assert not list(tmp_path.iterdir())  # neither a record nor a folder of Hydra's


@given(text=st.text(st.sampled_from("\\'\"${}ab,= []~\n:()"), max_size=8))
@settings(max_examples=300, deadline=None)
def test_quoted_text_is_read_as_it_was_typed(text):
    override = OverridesParser.create().parse_override(f"key={quoted(text)}")
    # A sweeper passes it on in Hydra's own quotes.
    again = OverridesParser.create().parse_override(f"key={override.get_value_element_as_str()}")
    for each in (override, again):
        tree = OmegaConf.create({"key": str(each.value())})
        assert OmegaConf.to_container(tree, resolve=True) == {"key": text}


def test_hydra_answers_instead_of_a_run(capsys):
    assert run.main(["--cfg", "job", "window=3", "workload.prompt=Hello, world"]) == 0
    out, err = capsys.readouterr()
    assert "window: 3" in out
    assert "prompt: Hello, world" in out
    assert err == ""
    assert run.main(["--cfg", "hydra", "-p", "hydra.sweep", "sweep_dir=x"]) == 0
    assert run.main(["--info", "searchpath"]) == 0
    assert str(CONF_DIR) in capsys.readouterr().out
    assert run.main(["--hydra-help"]) == 0
    assert run.main(["-sc", "install=bash"]) == 0
    assert "complete " in capsys.readouterr().out


def test_completion_knows_options_and_choices(capsys, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "python run.py model=llama2-7")
    monkeypatch.setenv("COMP_POINT", "29")
    assert run.main(["-sc", "query=bash"]) == 0
    assert "model=llama2-70b" in capsys.readouterr().out


def test_pages_of_ones_own_are_found(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: tiny\npath: null\n")
    (tmp_path / "night.yaml").write_text("defaults: [config, _self_]\nrepeats: 7\n")
    words = ["--config-dir", str(tmp_path), "-cn", "night", "model=mine", "--cfg", "job"]
    assert run.main(words) == 0
    assert "repeats: 7" in capsys.readouterr().out


@pytest.mark.parametrize("override", ["experiment=disk-bound", "+experiment=disk-bound"])
def test_experiments_are_chosen_as_hydras_users_do(override):
    assert compose([override]).config.device.disk_read_mb_s == 100


def test_help_names_every_short_option_and_axis():
    text = help_text()
    for word in (*groups(), "window", "max_minutes", "workload.prompt_file", "results_dir"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("args", "status"), [(["--help"], 0), (["devices=none"], 2), (["model=llama2-71b"], 2)]
)
def test_run_py_answers_without_torch(args, status):
    code = (
        "import sys, run\n"
        f"status = run.main({args!r})\n"
        "bad = {'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imports {bad}' if bad else status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CONF_DIR.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert len(done.stderr.splitlines()) == (1 if status else 0)


def test_entry_is_short():
    assert len((Path(CONF_DIR).parent / "run.py").read_text().splitlines()) < 100
