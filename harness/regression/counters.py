"""Counters of a tree: bytes, messages, allreduces, memory, imports. The same on any machine.

They come from records of the tree's own `run.py` with the model `tiny`, from a worker's spans, and
from the modules that a worker imports before its weights.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from harness.regression import probe
from harness.regression.tree import Answer, LacksError, ProgramError, Tree
from harness.regression.verdict import Finding, judge_counter, judge_names
from results.records.schema import RecordError, RunRecord
from results.records.store import RunStore

DEVICES = (2, 4)
SYSTEMS = ("tpi", "tpi-resident")
# By how much a count may grow. On a busy machine, the largest device's sampled memory varied by
# 0.22 % in 4 runs of 4 devices and by 0.1 % in 3 of 2; all else was the same to the byte.
TOLERANCES: Mapping[str, float] = {
    "disk bytes per token": 0.01,
    "wire bytes per token": 0.01,
    "messages per token": 0.0,
    "peak anonymous memory": 0.01,
    "allreduces per token": 0.0,
    "modules": 0.01,
}
PACKAGES = "worker: packages imported"
_MODULES = "worker: modules"
_ALLREDUCES = "tpi, 2 devices: allreduces per token"
_LIST_MODULES = (
    # As in `probe.py`: a module that the tree lacks must not come from an editable install.
    "import json, sys; sys.meta_path[:] = [f for f in sys.meta_path "
    "if not getattr(f, '__module__', '').startswith('__editable__')]; import tpi.cli; "
    "import tpi.program.node; "
    "sys.stdout.write(json.dumps({'tpi': sys.modules['tpi'].__file__, 'names': list(sys.modules)}))"
)


class _Spans(Answer, frozen=True):
    allreduces: float


class _Modules(Answer, frozen=True):
    names: list[str]


@dataclass
class Counts:
    """Counters of one tree by name, its packages, and why a source of them is missing."""

    values: dict[str, float] = field(default_factory=dict)
    packages: frozenset[str] | None = None
    missing: dict[str, str] = field(default_factory=dict)


def compare_counters(
    base: Tree, head: Tree, scratch: Path, options: list[str], note: Callable[[str], None]
) -> list[Finding]:
    """Count in both trees; `options` go to each `run.py` as well.

    Raises:
        ProgramError: The head cannot run, or the base fails though it has all that is needed.
    """
    counts = []
    for tree in (head, base):
        note(f"counters of the {tree.name}")
        counts.append(_count(tree, scratch / f"counters-{tree.name}", options))
    after, before = counts
    for what, why in after.missing.items():
        raise ProgramError(f"{what}: {why}")
    return judge_counts(before, after)


def judge_counts(before: Counts, after: Counts) -> list[Finding]:
    """Compare all that either tree counts."""
    findings = []
    for what in sorted({*before.values, *after.values}):
        why = "the head does not count it"
        if what not in before.values:
            why = before.missing.get(_source(what), "the base does not count it")
        base, head = before.values.get(what), after.values.get(what)
        tolerance = TOLERANCES[what.rpartition(": ")[2]]
        findings.append(judge_counter(what, base, head, tolerance, why))
    why = before.missing.get(_source(PACKAGES), "")
    return [*findings, judge_names(PACKAGES, before.packages, after.packages or (), why)]


def _count(tree: Tree, scratch: Path, options: list[str]) -> Counts:
    """Count everything; a source that the tree cannot run is noted as missing."""
    scratch.mkdir(parents=True)
    counts = Counts()
    sources: dict[str, Callable[[], None]] = {
        "run": partial(_count_runs, tree, scratch, options, counts),
        "spans": partial(_count_spans, tree, scratch, counts),
        "worker": partial(_count_imports, tree, counts),
    }
    for source, count in sources.items():
        try:
            count()
        except (LacksError, RecordError) as exc:
            counts.missing[source] = str(exc)
    return counts


def _count_runs(tree: Tree, scratch: Path, options: list[str], counts: Counts) -> None:
    for devices in DEVICES:
        results = scratch / f"runs-{devices}"
        tree.run(
            "run.py", "model=tiny", f"devices={devices}", f"systems=[{','.join(SYSTEMS)}]",
            "repeats=1", "workload.prompt_tokens=8", "workload.new_tokens=6",
            f"results_dir={results}", f"weights.dir={scratch / 'weights'}", *options,
        )  # fmt: skip
        records, problems = RunStore(results).scan()
        for problem in problems:
            raise problem
        for record in records:
            counts.values |= run_counts(record, devices)


def run_counts(record: RunRecord, devices: int) -> dict[str, float]:
    """The counters of a record, memory of the largest device; raises ProgramError if it failed."""
    metrics = record.metrics
    if record.status != "ok" or metrics is None:
        raise ProgramError(f"{record.system}, {devices} devices: {record.status}: {record.reason}")
    found: dict[str, float | None] = {
        "disk bytes per token": metrics.disk_bytes_per_token,
        "wire bytes per token": metrics.wire_bytes_per_token,
        "messages per token": metrics.messages_per_token,
        "peak anonymous memory": max(filter(None, metrics.peak_memory.anon_peak), default=None),
    }
    where = f"{record.system}, {devices} devices"
    return {f"{where}: {name}": value for name, value in found.items() if value is not None}


def _count_spans(tree: Tree, scratch: Path, counts: Counts) -> None:
    spans = tree.ask(_Spans, "-P", probe.__file__, "spans", str(scratch))
    counts.values[_ALLREDUCES] = spans.allreduces


def _count_imports(tree: Tree, counts: Counts) -> None:
    names = tree.ask(_Modules, "-c", _LIST_MODULES).names
    counts.values[_MODULES] = len(names)
    counts.packages = packages_of(names)


def packages_of(modules: list[str]) -> frozenset[str]:
    """The packages that modules belong to, without those that come with Python."""
    tops = {name.partition(".")[0] for name in modules}
    return frozenset(tops - set(sys.stdlib_module_names) - {"__main__", "__mp_main__"})


def _source(what: str) -> str:
    """Which of the three sources of `_count` a counter comes from."""
    if what == _ALLREDUCES:
        return "spans"
    return "worker" if what in (_MODULES, PACKAGES) else "run"
