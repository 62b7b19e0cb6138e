"""The table of systems agrees with the programs, the pages of options and the packages."""

from pathlib import Path

import pytest

from baselines.registry import REFERENCE, all_systems, find_system, system_names
from harness.config.command_line import CONF_DIR, groups
from harness.run.run_key import versions_of


def test_every_system_has_its_page_and_its_options():
    assert {*groups()["systems"]} == {*system_names(), "all"}
    assert len({system.options for system in all_systems()}) == len(system_names())
    assert find_system(REFERENCE).name == REFERENCE


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
