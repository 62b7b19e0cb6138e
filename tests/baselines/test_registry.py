"""The table of systems agrees with the programs, the pages of options and the packages."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from baselines import registry
from baselines.registry import REFERENCE, all_systems, find_system, system_names
from harness.config.command_line import CONF_DIR, groups
from harness.config.compose import compose, config_from
from harness.run.run_key import versions_of
from tests.testbed.sim.sims import free_calibration, make_run
from tpi.errors import ConfigError


def test_every_system_has_its_page_and_its_options():
    assert {*groups()["systems"]} == {*system_names(), "all"}
    assert len({system.options for system in all_systems()}) == len(system_names())
    assert find_system(REFERENCE).name == REFERENCE


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """As if a package with these systems were installed."""
    (tmp_path / "toy_systems.py").write_text(
        "from baselines.base import System\n"
        "from baselines.options import SystemOptions\n"
        "TOY = System('toy', SystemOptions, ('-m', 'toy_systems'))\n"
    )
    info = tmp_path / "toy_systems-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-systems\nVersion: 1.0\n")
    points = {"toy": "toy_systems:TOY"}

    def install(**more):
        lines = [f"{name} = {value}" for name, value in {**points, **more}.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *lines]))
        registry._load.cache_clear()

    install()
    monkeypatch.syspath_prepend(tmp_path)
    yield install
    registry._load.cache_clear()


@pytest.mark.usefixtures("toys")
def test_a_system_of_another_package_is_found_and_comes_last():
    assert find_system("toy") is all_systems()[-1]
    assert "toy" in groups()["systems"]
    assert config_from({"systems": {"toy": {}}}).systems["toy"] == find_system("toy").options()


@pytest.mark.usefixtures("toys")
def test_what_a_system_does_not_say_is_named():
    toy, run = find_system("toy"), make_run("toy")
    inputs: Any = None
    with pytest.raises(ConfigError, match="system toy: System does not say what it needs"):
        toy.predict(inputs, toy.options())
    with pytest.raises(ConfigError, match="toy is not simulated; choose among tpi"):
        registry.simulate(run, free_calibration())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("no_such_package:TOY", "system broken: no_such_package:TOY cannot be imported: Module"),
        ("pathlib:Path", "system broken: pathlib:Path is no class that derives from System"),
        ("toy_systems:TOY", "system broken: toy_systems:TOY has another name: 'toy'"),
    ],
)
def test_a_broken_package_is_refused_in_one_line(toys, entry, message):
    toys(broken=entry)
    with pytest.raises(ConfigError, match=message):
        find_system("broken")
    with pytest.raises(ConfigError, match=message):
        compose([])


def test_an_unknown_system_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown system 'galxy'; did you mean galaxy\?"):
        find_system("galxy")


def test_finding_systems_loads_neither_torch_nor_numpy():
    code = (
        "import sys; from baselines.registry import all_systems; all_systems()\n"
        "sys.exit(f'{bad}' if (bad := {'torch', 'numpy', 'transformers'} & {*sys.modules}) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(CONF_DIR).parent)


def test_extras_are_those_of_the_project():
    import tomllib

    project = tomllib.loads((Path(CONF_DIR).parent / "pyproject.toml").read_text())["project"]
    extras = {system.extra for system in all_systems() if system.extra}
    assert extras == {*project["optional-dependencies"]} - {"dev"}


def test_versions_of_an_extra_are_known_by_the_names_it_is_installed_as():
    pytest.importorskip("llama_cpp", reason="an extra: make llamacpp")
    versions = versions_of("llamacpp")
    assert all(versions[name] for name in find_system("llamacpp").distributions)
    assert "gguf" not in versions_of("tpi")
