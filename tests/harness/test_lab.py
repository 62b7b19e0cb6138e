"""The command `lab`: its verbs, how it answers mistakes, how it ends."""

import importlib
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import pytest

from harness import lab
from tpi.errors import ConfigError


@pytest.fixture
def verb(monkeypatch):
    """Puts a `main` in the place of the module of `lab claims`."""

    def put(main):
        monkeypatch.setattr(importlib, "import_module", lambda _: SimpleNamespace(main=main))

    return put


def raises(exc):
    def main(_):
        raise exc

    return main


@pytest.mark.parametrize("name", lab.VERBS)
def test_verb_has_a_main_that_describes_its_arguments(name, capsys):
    module = importlib.import_module(lab.VERBS[name][0])
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: lab {name} ")


def test_help_names_every_verb_once(capsys):
    for argv in ([], ["--help"], ["-h"]):
        assert lab.main(argv) == 0
        words = [
            line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:2] == "  "
        ]
        assert words == list(lab.VERBS)


def test_help_imports_no_verb():
    code = (
        "import sys; from harness import lab; lab.main([]);"
        "slow = {'torch', 'numpy', 'matplotlib', 'rich', 'hydra', 'argparse', 'results'};"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_installed_command_is_this_one(request):
    with (request.config.rootpath / "pyproject.toml").open("rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    assert scripts["lab"] == f"{lab.__name__}:{lab.run.__name__}"


def test_arguments_and_exit_status_are_those_of_the_verb(verb):
    seen = []

    def main(args):
        seen.append(args)
        return 7

    verb(main)
    assert lab.main(["claims", "folder", "--x"]) == 7
    assert seen == [["folder", "--x"]]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["calbrate"], "lab: unknown verb 'calbrate'; did you mean calibrate?\n"),
        (["zzz"], "lab: unknown verb 'zzz'; see lab --help\n"),
        (["--version"], "lab: unknown verb '--version'; see lab --help\n"),
    ],
)
def test_unknown_verb_is_one_line(argv, said, capsys):
    assert lab.main(argv) == 2
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    ("exc", "status", "said"),
    [
        (ConfigError("one\ntwo"), 2, "lab claims: one two\n"),
        (KeyboardInterrupt(), 130, "lab claims: interrupted\n"),
    ],
)
def test_what_ends_a_verb_is_one_line(verb, exc, status, said, capsys):
    verb(raises(exc))
    assert lab.main(["claims", "folder"]) == status
    assert capsys.readouterr() == ("", said)


def test_reader_that_goes_away_is_no_error(verb, monkeypatch, capsys):
    verb(raises(BrokenPipeError()))
    monkeypatch.setattr(lab, "write_nowhere", lambda _: None)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: 1))
    assert lab.main(["claims", "folder"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "name", ["render", "report", "claims", "publish", "validate", "trace", "demo"]
)
def test_missing_argument_is_one_line(name, capsys):
    with pytest.raises(SystemExit) as ended:
        lab.main([name])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"lab {name}: ")
