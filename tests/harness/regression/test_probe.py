"""Every probe times something in this tree, and what a tree lacks is told."""

import json
import subprocess
import sys

import pytest

from harness.regression import probe
from harness.regression.timings import Amount, Server, measure_timings
from harness.regression.tree import ProgramError, Tree
from tests.harness.regression.trees import ERRORS, make_tree
from tests.test_layout import ROOT, _imports
from tpi.errors import ConfigError


@pytest.fixture(autouse=True)
def of_this_tree(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # as `Tree.env` does


@pytest.mark.timeout(60)
@pytest.mark.slow  # the first imports torch
@pytest.mark.parametrize("name", ["matvec", "wire", "window"])
def test_probe_in_one_process(tmp_path, name):
    with probe.PROBES[name](tmp_path) as once:
        assert 0 < once() < 10


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["allreduce", "import", "token"])
def test_probe_of_many_processes(tmp_path, name):
    with probe.PROBES[name](tmp_path) as once:
        assert 0 < once() < 10
        assert 0 < once() < 10


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_allreduces_of_a_step_are_two_a_layer(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", probe.__file__, "spans", str(tmp_path)],
        env=Tree("head", ROOT).env, capture_output=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["allreduces"] == 2 * 8  # layers of `tiny`


def test_probe_imports_nothing_of_the_project_but_tpi():
    import ast
    from pathlib import Path

    found = _imports(ast.parse(Path(probe.__file__).read_text()))
    assert {name.split(".")[0] for name in found} <= {*sys.stdlib_module_names, "tpi", "torch"}


def test_amount_is_checked():
    with pytest.raises(ConfigError, match="--starts must be at least 2, got 1"):
        Amount(starts=1)
    with pytest.raises(ConfigError, match=r"--rounds must be in 1\.\.63, got 64"):
        Amount(rounds=64)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_tree_that_lacks_everything_has_no_baseline_for_anything(tmp_path):
    base = make_tree(tmp_path / "base", errors=ERRORS)
    with Server(base, tmp_path / "served") as server:
        server.wait_until_ready()
        # An interpreter that cannot import `tpi.cli` is what that probe finds too.
        assert set(server.missing) == set(probe.PROBES)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_head_that_lacks_a_probe_is_an_error(tmp_path):
    head = make_tree(tmp_path / "head", "head", errors=ERRORS)
    base = make_tree(tmp_path / "base", errors=ERRORS)
    with pytest.raises(ProgramError, match="head: probe matvec cannot run"):
        measure_timings(base, head, tmp_path / "scratch", Amount(), lambda _: None)
