"""What this machine can enforce on devices and links: `lab doctor [WEIGHTS_FOLDER]`.

Prints a table, and for what is missing the command that mends it. Exit status 0 if testbeds with
`backend: docker` can run here, else 1; plain processes (`testbed=local`) need nothing of it.
`testbed/doctor/checks.py` looks; read `checks` first.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from testbed.base import DeviceError
from testbed.doctor.checks import Machine
from tpi.command_line import Parser
from tpi.errors import TpiError

State = Literal["ok", "note", "missing"]

_WEIGHTS = Path("weights")
_GIB = 1 << 30
_STYLES: dict[State, str] = {"ok": "green", "note": "yellow", "missing": "bold red"}
_RENO = "reno"
_NO_QDISC = "qdisc kind is unknown"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        state: `missing` if docker testbeds cannot run without it, `note` if they can do less.
        found: What is there, or what follows.
        mend: The command that would mend it.
    """

    name: str
    state: State
    found: str
    mend: str = ""


def checks(machine: Machine) -> list[Check]:
    """Look at everything; what cannot even be looked at is missing."""
    looks: list[tuple[str, Callable[[Machine], list[Check]]]] = [
        ("Docker", _docker),
        ("device image", _image),
        ("control groups", _cgroup),
        ("root", _root),
        ("links", _links),
        ("C compiler", _compiler),
        ("TCP", _tcp),
        ("swap", _swap),
        ("disk of weights", _disk),
        ("cores", _cores),
        ("memory", _memory),
        ("leftovers", _leftovers),
    ]
    found = []
    for name, look in looks:
        try:
            found += look(machine)
        except (TpiError, OSError, ValueError, LookupError, StopIteration) as exc:
            found.append(Check(name, "missing", f"cannot be looked at: {_one_line(exc)}"))
    return found


def can_run(found: Sequence[Check]) -> bool:
    """Whether docker testbeds can run."""
    return all(check.state != "missing" for check in found)


def report(found: Sequence[Check]) -> list[Table | Text]:
    """What is printed: the table, commands that mend, and what follows."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in found:
        state = Text(check.state, style=_STYLES[check.state])
        table.add_row(Text(check.name), state, Text(check.found))
    parts: list[Table | Text] = [table, Text("")]
    mends = [check for check in found if check.mend]
    if mends:
        parts.append(Text("What would mend it:"))
        parts += [Text(f"  {check.name}: {check.mend}") for check in mends]
        parts.append(Text(""))
    parts.append(Text(conclusion(found)))
    return parts


def show(found: Sequence[Check], console: Console) -> None:
    """Print the report."""
    for part in report(found):
        # A command is not to be broken where it is copied from.
        console.print(part, soft_wrap=isinstance(part, Text))


def conclusion(found: Sequence[Check]) -> str:
    """Whether docker testbeds can run, in a sentence."""
    if can_run(found):
        return "Docker testbeds can run here (testbed=klonet and others)."
    missing = ", ".join(check.name for check in found if check.state == "missing")
    return (
        f"Docker testbeds cannot run here (missing: {missing}).\n"
        "Plain processes can (testbed=local): they need nothing of this and limit nothing."
    )


def _docker(machine: Machine) -> list[Check]:
    try:
        about = machine.daemon()
    except TpiError as exc:
        return [_no_docker(machine, exc)]
    name, version = "Docker", f"{about.get('Version')}, API {about.get('ApiVersion')}"
    if "name=rootless" in (about.get("SecurityOptions") or ()):
        mend = "install Docker Engine as root: apt-get install docker.io"
        found = f"{version}, rootless: its control groups and namespaces are out of reach"
        return [Check(name, "missing", found, mend)]
    wanted = {"MemoryLimit": "memory limit", "CpuCfsQuota": "CPU quota", "PidsLimit": "pids limit"}
    lacks = [words for key, words in wanted.items() if about.get(key) is False]
    if lacks:
        return [Check(name, "missing", f"{version}, but this kernel has no {', '.join(lacks)}")]
    return [Check(name, "ok", version)]


def _no_docker(machine: Machine, exc: TpiError) -> Check:
    if not machine.is_docker_installed():
        return Check("Docker", "missing", "not installed", "apt-get install docker.io")
    if isinstance(exc.__cause__, PermissionError):
        mend = "usermod -aG docker $USER, then log in again; or run as root"
        return Check("Docker", "missing", "its socket may not be opened by this user", mend)
    if not isinstance(exc, DeviceError):
        return Check("Docker", "missing", _one_line(exc), "unset DOCKER_HOST")
    mend = "systemctl start docker, or as root: dockerd"
    return Check("Docker", "missing", "installed, but the daemon does not answer", mend)


def _image(machine: Machine) -> list[Check]:
    try:
        tag, problem = machine.image()
    except TpiError:
        return [Check("device image", "missing", "not known without the daemon")]
    if problem is None:
        return [Check("device image", "ok", tag)]
    return [Check("device image", "missing", f"{tag} is not there", "make image")]


def _cgroup(machine: Machine) -> list[Check]:
    return [Check("control groups", "ok", machine.cgroup())]


def _root(machine: Machine) -> list[Check]:
    if machine.is_root():
        return [Check("root", "ok", "interfaces and swap can be made")]
    found = "not root: a run of one device needs none, links and swap do"
    return [Check("root", "note", found, "sudo -E make doctor")]


def _links(machine: Machine) -> list[Check]:
    problems = machine.links()
    works = [name for name, problem in problems.items() if problem is None]
    told = {_one_line(problem) for problem in problems.values()}
    if not works and len(told) == 1:
        return [Check("links", "missing", told.pop())]
    state: State = "note" if works else "missing"
    instead = f"; link.backend=auto takes {works[0]}" if works else ""
    return [
        Check(f"link {name}", "ok", "tried, works")
        if problem is None
        else _bad_link(name, state, _one_line(problem), instead)
        for name, problem in problems.items()
    ]


def _bad_link(name: str, state: State, problem: str, instead: str) -> Check:
    if _NO_QDISC in problem:
        mend = "modprobe sch_netem, where the kernel comes with it"
        return Check(f"link {name}", state, f"not in this kernel{instead}", mend)
    return Check(f"link {name}", state, f"{problem}{instead}")


def _compiler(machine: Machine) -> list[Check]:
    path = machine.compiler()
    if path is not None:
        return [Check("C compiler", "ok", str(path))]
    found = "none: the switch of links runs in Python, with longer tails"
    return [Check("C compiler", "note", found, "apt-get install gcc libc6-dev")]


def _tcp(machine: Machine) -> list[Check]:
    known = machine.congestion_controls()
    if _RENO in known:
        return [Check("TCP", "ok", f"congestion control {_RENO} of {', '.join(known)}")]
    return [Check("TCP", "missing", f"no congestion control {_RENO}, only {', '.join(known)}")]


def _swap(machine: Machine) -> list[Check]:
    total, used, problem = machine.swap()
    if problem is not None:
        return [Check("swap", "note", f"devices can have none: {problem}")]
    if total:
        return [Check("swap", "ok", f"{_gib(total)}, {_gib(total - used)} of it free")]
    if machine.is_root():
        return [Check("swap", "ok", "none on; testbed.make_swap=true makes a file for a run")]
    mend = (
        f"fallocate -l 8G {machine.folder}/swapfile && chmod 600 {machine.folder}/swapfile"
        f" && mkswap {machine.folder}/swapfile && swapon {machine.folder}/swapfile"
    )
    return [Check("swap", "note", "none on: devices with swap are refused", mend)]


def _disk(machine: Machine) -> list[Check]:
    try:
        return [Check("disk of weights", "ok", f"{machine.disk()}, under {machine.folder}")]
    except TpiError as exc:
        return [Check("disk of weights", "note", _one_line(exc))]


def _cores(machine: Machine) -> list[Check]:
    there, ours = machine.cores()
    if ours < there:
        return [Check("cores", "note", f"{ours} of {there}: this process may use no others")]
    return [Check("cores", "ok", str(there))]


def _memory(machine: Machine) -> list[Check]:
    return [Check("memory", "ok", f"{_gib(machine.memory())} available")]


def _leftovers(machine: Machine) -> list[Check]:
    dead = [f"swap file {path}" for path in machine.dead_swap()]
    try:
        dead += [f"container {name}" for name in machine.dead_containers()]
        images = machine.old_images()
    except TpiError:
        return [Check("leftovers", "note", "containers are not known without the daemon")]
    rows = []
    if dead:
        rows.append(Check("leftovers", "note", f"{', '.join(dead)}; the next run removes them"))
    if images:
        mend = f"docker rmi {' '.join(images)}"
        rows.append(Check("old images", "note", ", ".join(images), mend))
    return rows or [Check("leftovers", "ok", "none")]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"


def _one_line(what: object) -> str:
    return " ".join(str(what).split())


def main(argv: Sequence[str] | None = None) -> int:
    """Look, print, and return the exit status."""
    parser = Parser(
        prog="lab doctor", description="Say what this machine can emulate, and what is missing."
    )
    parser.add_argument("folder", nargs="?", type=Path, default=_WEIGHTS, metavar="WEIGHTS_FOLDER")
    with closing(Machine(parser.parse_args(argv).folder)) as machine:
        found = checks(machine)
    show(found, Console(highlight=False))
    return 0 if can_run(found) else 1
