"""Imports go one way, some modules stay free of torch, and nothing shipped can run foreign code."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHIPPED = ("tpi", "harness", "testbed", "baselines", "results")
FILES = [ROOT / "run.py", *(p for d in SHIPPED for p in sorted((ROOT / d).rglob("*.py")))]
MAY_IMPORT = {
    "tpi": {"tpi"},
    "testbed": {"testbed", "tpi"},
    "baselines": {"baselines", "testbed", "tpi"},
    "results": {"results", "baselines", "testbed", "tpi"},
    "harness": {"harness", "results", "baselines", "testbed", "tpi"},
}
TORCH_FREE = (
    "tpi.errors", "tpi.ranks", "tpi.trace", "tpi.model_config", "tpi.program.spec",
    "tpi.program.events", "tpi.cli", "tpi.weights.shard", "tpi.weights.blockfile",
    "tpi.planner.window_replay", "tpi.planner.report", "tpi.comm.wire", "harness.config.config",
    "harness.plan.plan", "results.records.schema", "results.records.comparison_table", "run",
    "results.paper.values.paper_values", "results.paper.cells.computed",
    "results.paper.authors_model.times", "results.paper.render.main",
    "results.paper.claims.judge", "results.paper.report.main", "baselines.simulated",
    "testbed.sim.calibration", "results.paper.cells.sim_compare", "harness.run.simulation",
    "harness.calibrate.main",
)  # fmt: skip
BANNED_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
BANNED_ATTRIBUTES = {
    ("torch", "load"), ("torch", "save"), ("yaml", "load"), ("yaml", "unsafe_load"),
    ("os", "system"), ("os", "popen"),
}  # fmt: skip


def _imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


def violations(source: str) -> list[str]:
    """What a shipped file must not contain, found in its syntax tree."""
    tree = ast.parse(source)
    bad = [m for m in _imports(tree) if m.split(".")[0] in BANNED_MODULES]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        func = node.func
        if isinstance(func, ast.Name) and func.id in BANNED_CALLS:
            bad.append(f"{func.id}()")
        if isinstance(func, ast.Attribute):
            if isinstance(func.value, ast.Name) and (func.value.id, func.attr) in BANNED_ATTRIBUTES:
                bad.append(f"{func.value.id}.{func.attr}()")
            if func.attr in ("recv_pyobj", "send_pyobj"):
                bad.append(func.attr)
        for keyword in node.keywords:
            value = keyword.value
            true = isinstance(value, ast.Constant) and value.value is True
            if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and (
                true or not isinstance(value, ast.Constant)
            ):
                bad.append(f"{keyword.arg}=True")
    return bad


def test_no_file_holds_what_runs_foreign_code():
    found = {str(path.relative_to(ROOT)): violations(path.read_text()) for path in FILES}
    assert {name: bad for name, bad in found.items() if bad} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "eval('1')", "exec('1')",
        "torch.load('x')", "subprocess.run('x', shell=True)", "np.load('x', allow_pickle=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)", "yaml.load('x')",
        "subprocess.run('x', shell=flag)",
    ],
)  # fmt: skip
def test_violations_are_seen(source):
    assert violations(source)


def test_model_eval_is_not_the_builtin():
    assert violations("model.eval()") == []


def test_imports_go_one_way():
    upward = {}
    for path in FILES[1:]:
        package = path.relative_to(ROOT).parts[0]
        ours = {m.split(".")[0] for m in _imports(ast.parse(path.read_text()))}
        if bad := ours & {*SHIPPED, "run"} - MAY_IMPORT[package]:
            upward[str(path.relative_to(ROOT))] = bad
    assert upward == {}


def test_only_the_entry_knows_hydra():
    for path in FILES:
        if {"hydra", "omegaconf"} & {
            m.split(".")[0] for m in _imports(ast.parse(path.read_text()))
        }:
            assert path.name in ("command_line.py", "compose.py", "hydra_app.py"), path


def test_modules_that_must_start_fast_import_no_torch():
    code = (
        "import importlib, sys\n"
        f"for name in {TORCH_FREE!r}:\n"
        "    importlib.import_module(name)\n"
        "    bad = {'torch', 'transformers', 'accelerate'} & set(sys.modules)\n"
        "    if bad: sys.exit(f'{name} imports {bad}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _runtime_imports(tree: ast.AST) -> set[str]:
    """Modules that a file imports anywhere but for type checkers alone."""
    found = set()
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        todo += ast.iter_child_nodes(node)
    return found


def import_circle(sources: dict[str, str]) -> list[str]:
    """Modules that import each other in a circle, those in functions included; [] if none do."""
    graph = {
        name: {m for m in _runtime_imports(ast.parse(text)) if m in sources and m != name}
        for name, text in sources.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as exc:
        return list(exc.args[1])
    return []


def test_no_modules_import_each_other():
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in FILES}
    sources = {name.removesuffix(".__init__"): p.read_text() for name, p in names.items()}
    assert import_circle(sources) == []


def test_circles_are_seen():
    inside = "def f():\n    from p import a"
    for_types = "if TYPE_CHECKING:\n    from p import a"
    assert set(import_circle({"p": "", "p.a": "import p.b", "p.b": inside})) == {"p.a", "p.b"}
    assert import_circle({"p": "", "p.a": "import p.b", "p.b": for_types}) == []


def test_programs_of_devices_lie_where_containers_find_them():
    """A container gets a few packages of ours, and no others."""
    from testbed.docker.testbed import _SOURCES

    started = re.compile(r'device\.python, (?:"-S", )?"-m", "(\w+)\.')
    packages = {name for path in FILES for name in started.findall(path.read_text())}
    assert packages
    assert packages <= set(_SOURCES)
