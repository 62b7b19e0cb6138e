"""One piece of work of the paper's driver: a run that serves one cell or several, or a study.

`look` says whether it is done, what stands in its way, or how long it will take, and starts
nothing; `run` does it. A record that is `ok` or `oom` is done, and one that is `infeasible` as long
as its plan is refused; `invalid` and `interrupted` are run again. `crashed`, `timeout` and
`wrong_output` are results that fail the whole, as does a record that cannot be used: they are run
again when asked to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from harness.config.compose import Composed, compose
from harness.paper import allreduce_study
from harness.paper.allreduce_file import Asked
from harness.paper.plan import Study
from harness.plan.types import Plan
from harness.run import session
from harness.run.run_key import run_name
from harness.run.weights import check_space, locate
from results.paper.index import Entry
from results.records.schema import RecordError, RunRecord
from results.records.store import RunStore
from tpi.errors import ConfigError, TpiError
from tpi.units import format_bytes, format_seconds

_DONE = ("ok", "oom", "infeasible")


@dataclass(frozen=True, slots=True)
class WorkStatus:
    """How a piece of work stands.

    Attributes:
        state: `done`, `todo`, `refused` (this machine lacks what it takes), or `failed` (it went
            wrong, or is asked for in a way that cannot be).
        reason: Why it is refused or failed; its figures if it is done.
        kind: `measured`, `simulated`, `oom` or `infeasible` if it is done; before, the status of
            the record that there is.
    """

    state: str
    reason: str = ""
    run_id: str = ""
    predicted_s: float = 0.0
    plan: Plan | None = None
    kind: str = ""


@dataclass
class RunWork:
    """One system in one configuration."""

    system: str
    overrides: tuple[str, ...]
    folder: Path
    retry: bool = False
    entries: list[Entry] = field(default_factory=list)
    study: None = None
    _composed: Composed | None = None

    @property
    def title(self) -> str:
        """What it is for and what is run, in a line."""
        first = self.entries[0]
        more = f" and {len(self.entries) - 1} more" if len(self.entries) > 1 else ""
        chosen = dict(o.partition("=")[::2] for o in self.overrides)
        where = chosen.get("testbed", "local")
        where += " simulated" if chosen.get("testbed.backend") == "sim" else ""
        model = chosen.get("model", "")
        of = f"{self.system} of {model}" if model not in ("", first.row) else self.system
        return f"{first.exhibit} {first.row} {first.column}{more}: {of} on {where}"

    @property
    def exhibits(self) -> frozenset[str]:
        """The tables and figures that need it."""
        return frozenset(entry.exhibit for entry in self.entries)

    def look(self) -> WorkStatus:
        """Say how it stands; nothing is started or written."""
        try:
            plan = session.prepare(self._compose())
        except TpiError as exc:
            return WorkStatus("failed", str(exc))
        (system,) = plan.systems
        store, base_id = RunStore(self.folder), run_name(plan, system, locate(plan))
        try:
            record = store.latest(base_id)
        except RecordError as exc:
            # Nothing older is taken in its place, and a changed record is not ours to remove: a
            # retry measures anew beside it.
            unusable = WorkStatus("failed", str(exc), store.latest_id(base_id))
            return _before(plan.forced(), unusable) if self.retry else unusable
        seen = WorkStatus("todo")
        if record is not None:
            seen = WorkStatus("todo", words_of(record), record.run_id, kind=record.status)
        if record is None:
            return _before(plan, seen)
        is_refused = record.status == "infeasible"
        if plan.runnable if is_refused else not record.is_finished(plan.config.repeats):
            return _before(plan, seen)
        if record.status in _DONE:
            measured = "simulated" if plan.is_simulated else "measured"
            return replace(
                seen, state="done", kind=measured if record.status == "ok" else seen.kind
            )
        if self.retry:
            return _before(plan.forced(), seen)
        return WorkStatus("failed", words_of(record), record.run_id)

    def run(self, outlook: WorkStatus, log: Console) -> None:
        """Do it; if it raises, what was measured is kept."""
        self.retry = False  # once
        if outlook.plan is not None:
            session.run(outlook.plan, log)

    def _compose(self) -> Composed:
        if self._composed is None:
            more = [f"systems=[{self.system}]", f"results_dir={self.folder}"]
            self._composed = compose([*self.overrides, *more])
        return self._composed


@dataclass
class StudyWork:
    """What a figure needs that is no run: its own file in the folder."""

    study: Study
    folder: Path
    retry: bool = False
    entries: tuple[Entry, ...] = ()

    @property
    def title(self) -> str:
        """What it is for and what is run, in a line."""
        return f"{self.study.exhibit}: study of {self.study.name} on Docker"

    @property
    def exhibits(self) -> frozenset[str]:
        """The tables and figures that need it."""
        return frozenset({self.study.exhibit})

    @property
    def path(self) -> Path:
        """The file that is kept."""
        return self.folder / f"{self.study.name}.json"

    @property
    def _asked(self) -> Asked:
        return allreduce_study.parse(self.study.arguments)

    def look(self) -> WorkStatus:
        """Say how it stands; nothing is started or written."""
        try:
            if self._asked.is_kept(self.path):
                return WorkStatus("done", str(self.path), kind="measured")
        except TpiError as exc:
            if not self.retry:
                return WorkStatus("failed", str(exc))
        try:
            predicted_s = allreduce_study.predicted_s(self._asked)
        except TpiError as exc:
            return WorkStatus("failed", str(exc))
        try:
            session.require_emulation("auto")
        except TpiError as exc:
            return WorkStatus("refused", str(exc))
        return WorkStatus("todo", predicted_s=predicted_s)

    def run(self, outlook: WorkStatus, log: Console) -> None:
        """Do it; if it raises, what was measured is kept."""
        del outlook
        arguments = [*self.study.arguments, f"--out={self.path}"]
        try:
            self._asked.is_kept(self.path)
        except ConfigError:  # it cannot be read
            arguments += ["--fresh"] if self.retry else []
        self.retry = False  # once
        allreduce_study.carry_out(arguments, log)


Work = RunWork | StudyWork


def works_of(
    entries: Sequence[Entry], studies: Sequence[Study], folder: Path, *, retry: bool
) -> list[Work]:
    """Entries and studies as work: one run for all entries that ask for the same.

    The order of overrides does not matter: a run in two works would be predicted twice.
    """
    runs: dict[tuple[str, tuple[str, ...]], RunWork] = {}
    for entry in entries:
        key = (entry.system, tuple(sorted(entry.overrides)))
        work = runs.setdefault(
            key, RunWork(entry.system, entry.overrides, folder=folder, retry=retry)
        )
        work.entries.append(entry)
    return [*runs.values(), *(StudyWork(study, folder, retry) for study in studies)]


def _before(plan: Plan, seen: WorkStatus) -> WorkStatus:
    """What stands in the way of a run, or how long it will take; `seen` is what there is of it."""
    if not plan.runnable:  # it is written down as infeasible, which takes no time
        refusal = plan.systems[0].refusal or ""
        return WorkStatus("todo", refusal, seen.run_id, plan=plan)
    try:
        check_space(plan, locate(plan))
        if plan.is_emulated:
            session.require_docker(plan)
    except TpiError as exc:
        return WorkStatus("refused", str(exc), seen.run_id)
    return replace(seen, state="todo", predicted_s=plan.predicted_s, plan=plan)


def words_of(record: RunRecord) -> str:
    """A record in a line: its figures, or why it has none."""
    if record.metrics is None:
        return f"{record.status}: {record.reason}"
    metrics = record.metrics
    words = [f"{record.status}: TTFT {format_seconds(metrics.ttft_s.median)}"]
    if metrics.token_latency_s is not None:
        words.append(f"{format_seconds(metrics.token_latency_s.median)} a token")
    peaks = [peak for peak in metrics.peak_memory.rss_hwm if peak is not None]
    if peaks:
        words.append(f"peak {format_bytes(max(peaks))}")
    return ", ".join(words)
