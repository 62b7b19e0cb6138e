"""Every file of conf/ composes; what a user can mistype is one line with the nearest name."""

import subprocess
import sys
from pathlib import Path

import pytest

from baselines.options import AccelerateOptions, GalaxyOptions, TpiOptions, WindowOptions
from baselines.registry import SYSTEMS
from harness.config.compose import CONF_DIR, compose, compose_all, groups, help_text
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
        assert set(chosen) == ({*SYSTEMS} if name == "all" else {name})
        for system, options in chosen.items():  # a page says what the code takes by itself
            assert options == SYSTEMS[system].options(**_given(options))
    elif axis in ("model", "testbed", "device", "link"):
        assert chosen.name == name


def _given(options):
    """What pages leave to the run: dtype and threads of Transformers."""
    return {k: v for k, v in vars(options).items() if k in ("dtype", "threads")}


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
        (["~window"], ["expected KEY=VALUE"]),
        (["x.y.z=3"], ["unknown option 'x.y.z'", "--help"]),
        (["devices"], ["got 'devices', expected KEY=VALUE"]),
        (["--cfg"], ["unknown flag '--cfg'"]),
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
def test_mistakes_are_one_line(args, words):
    with pytest.raises(ConfigError) as error:
        compose_all(args)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_sweep_gives_every_combination_and_leaves_text_alone():
    args = ["-m", "window=1,all", "devices=range(1,3)", "workload.prompt=a,b"]
    found = []
    for composed in compose_all(args):
        tpi = composed.config.systems["tpi"]
        assert isinstance(tpi, TpiOptions)
        found.append((tpi.window, composed.config.devices, composed.config.workload.prompt))
    assert found == [(1, 1, "a,b"), (1, 2, "a,b"), ("all", 1, "a,b"), ("all", 2, "a,b")]


def test_sweep_checks_every_combination_before_anything_starts():
    with pytest.raises(ConfigError, match="window: got 0"):
        compose_all(["-m", "window=2,0"])


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
