"""The table of systems agrees with the programs, the pages of options and the packages."""

import ast
from pathlib import Path

import pytest

from harness.command_line import CONF_DIR, groups
from harness.identity import versions_of
from harness.systems import REFERENCE, SYSTEMS

BASELINES = CONF_DIR.parent / "baselines"


def imported(module: str) -> set[str]:
    """Modules of `baselines/` that one of them imports, wherever in it."""
    tree = ast.parse((BASELINES / f"{module}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "baselines":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("baselines."):
            found.add(str(node.module).removeprefix("baselines."))
    return found


def closure(module: str) -> set[str]:
    found, todo = set(), {module}
    while todo:
        found |= todo
        todo = set().union(*map(imported, todo)) - found
    return found


@pytest.mark.parametrize("name", SYSTEMS)
def test_sources_are_all_that_the_program_is_made_of(name):
    system = SYSTEMS[name]
    if system.program[1] == "tpi.cli":
        assert system.sources == ()
        return
    module = system.program[1].removeprefix("baselines.")
    # What writes its weights decides the numbers that it computes with.
    weights = {"gguf_file"} if name == "llamacpp" else set()
    expected = set().union(*map(closure, {module} | weights))
    assert set(system.sources) == expected
    assert len(set(system.sources)) == len(system.sources)


def test_every_system_has_its_page_and_its_options():
    assert {*groups()["systems"]} == {*SYSTEMS, "all"}
    assert len({system.options for system in SYSTEMS.values()}) == len(SYSTEMS)
    assert REFERENCE in SYSTEMS


def test_extras_are_those_of_the_project():
    import tomllib

    project = tomllib.loads((Path(CONF_DIR).parent / "pyproject.toml").read_text())["project"]
    extras = {system.extra for system in SYSTEMS.values() if system.extra}
    assert extras == {*project["optional-dependencies"]} - {"dev"}


def test_versions_of_an_extra_are_known_by_the_names_it_is_installed_as():
    pytest.importorskip("llama_cpp", reason="an extra: make llamacpp")
    versions = versions_of("llamacpp")
    assert all(versions[name] for name in SYSTEMS["llamacpp"].distributions)
    assert "gguf" not in versions_of("tpi")
