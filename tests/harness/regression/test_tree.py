"""Programs of a tree import that tree and no other, and say in one line how they failed."""

import pytest

from harness.regression.tree import LacksError, ProgramError, Tree, failure
from tests.harness.regression.trees import make_tree
from tpi.errors import ConfigError


def test_program_imports_its_own_tree(tmp_path):
    tree = make_tree(tmp_path / "a")
    tree.check_imports()
    said = tree.run("-c", "import os, tpi, sys; sys.stdout.write(tpi.__file__ + ' ' + os.getcwd())")
    assert said == f"{tmp_path}/a/tpi/__init__.py {tmp_path}/a"


def test_tree_whose_modules_are_anothers_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()  # its `tpi` comes from wherever this environment has one
    with pytest.raises(ConfigError, match="its programs import"):
        Tree("base", tmp_path / "empty").check_imports()


def test_module_that_is_not_there_is_lacking(tmp_path):
    with pytest.raises(LacksError, match=r"base: python -c import tpi\.x: ModuleNotFoundError"):
        make_tree(tmp_path / "a").run("-c", "import tpi.x")


def test_program_that_fails_otherwise_is_an_error(tmp_path):
    with pytest.raises(ProgramError, match="out of luck") as caught:
        make_tree(tmp_path / "a").run("-c", "import sys; sys.exit('out of luck')")
    assert not isinstance(caught.value, LacksError)


def test_program_that_hangs_is_named(tmp_path):
    with pytest.raises(ProgramError, match=r"not done after 0\.2 s"):
        make_tree(tmp_path / "a").run("-c", "import sys; sys.stdin.read; [0 for _ in iter(int, 1)]",
                                      timeout_s=0.2)  # fmt: skip


@pytest.mark.parametrize(
    ("status", "stderr", "lacks"),
    [
        (2, "run.py: no option `devices`", True),
        (1, "Traceback\nAttributeError: no such thing\n\n", True),
        (1, "tpi.errors.ConfigError: spec: unknown key 'trace'", True),
        (15, "run.py: another harness runs on this host", False),
        (1, "ValueError: ImportError", False),
        (-9, "", False),
    ],
)
def test_what_counts_as_lacking(status, stderr, lacks):
    assert isinstance(failure("it", status, stderr), LacksError) == lacks
