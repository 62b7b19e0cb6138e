"""What this machine can enforce on devices and links: `lab doctor [WEIGHTS_FOLDER]`.

Prints a table, and for what is missing the command that mends it. Exit status 0 if testbeds with
`backend: docker` can run here, else 1; plain processes (`testbed=local`) need none of it.
`checks.py` looks; this module judges and prints.
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
    """One thing that was looked at: what was found, and the command that would mend it.

    Attributes:
        state: `missing` if docker testbeds cannot run without it, `note` if they can do less.
    """

    name: str
    state: State
    found: str
    mend: str = ""


def checks(machine: Machine) -> list[Check]:
    """Look at everything; what cannot even be looked at is missing."""
    found = []
    for name, check in _CHECKS.items():
        try:
            result = check(machine)
            found += result if isinstance(result, list) else [Check(name, *result)]
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


# What is known of one thing: its state, what was found, and the command that would mend it.
_Finding = tuple[State, str] | tuple[State, str, str]


def _docker(machine: Machine) -> _Finding:
    try:
        about = machine.daemon()
    except TpiError as exc:
        return _no_docker(machine, exc)
    version = f"{about.get('Version')}, API {about.get('ApiVersion')}"
    if "name=rootless" in (about.get("SecurityOptions") or ()):
        mend = "install Docker Engine as root: apt-get install docker.io"
        found = f"{version}, rootless: its control groups and namespaces are out of reach"
        return "missing", found, mend
    wanted = {"MemoryLimit": "memory limit", "CpuCfsQuota": "CPU quota", "PidsLimit": "pids limit"}
    lacks = [words for key, words in wanted.items() if about.get(key) is False]
    if lacks:
        return "missing", f"{version}, but this kernel has no {', '.join(lacks)}"
    return "ok", version


def _no_docker(machine: Machine, exc: TpiError) -> _Finding:
    if not machine.is_docker_installed():
        return "missing", "not installed", "apt-get install docker.io"
    if isinstance(exc.__cause__, PermissionError):
        mend = "usermod -aG docker $USER, then log in again; or run as root"
        return "missing", "its socket may not be opened by this user", mend
    if not isinstance(exc, DeviceError):
        return "missing", _one_line(exc), "unset DOCKER_HOST"
    mend = "systemctl start docker, or as root: dockerd"
    return "missing", "installed, but the daemon does not answer", mend


def _image(machine: Machine) -> _Finding:
    try:
        tag, problem = machine.image()
    except TpiError:
        return "missing", "not known without the daemon"
    return ("ok", tag) if problem is None else ("missing", f"{tag} is not there", "make image")


def _root(machine: Machine) -> _Finding:
    if machine.is_root():
        return "ok", "interfaces and swap can be made"
    found = "not root: a run of one device needs none, links and swap do"
    return "note", found, "sudo -E make doctor"


def _links(machine: Machine) -> list[Check] | _Finding:
    problems = machine.links()
    works = [name for name, problem in problems.items() if problem is None]
    reasons = {_one_line(problem) for problem in problems.values()}
    if not works and len(reasons) == 1:
        return "missing", reasons.pop()
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


def _compiler(machine: Machine) -> _Finding:
    path = machine.compiler()
    if path is not None:
        return "ok", str(path)
    found = "none: the switch of links runs in Python, with longer tails"
    return "note", found, "apt-get install gcc libc6-dev"


def _tcp(machine: Machine) -> _Finding:
    known = machine.congestion_controls()
    if _RENO in known:
        return "ok", f"congestion control {_RENO} of {', '.join(known)}"
    return "missing", f"no congestion control {_RENO}, only {', '.join(known)}"


def _swap(machine: Machine) -> _Finding:
    total, used, problem = machine.swap()
    if problem is not None:
        return "note", f"devices can have none: {problem}"
    if total:
        return "ok", f"{_gib(total)}, {_gib(total - used)} of it free"
    if machine.is_root():
        return "ok", "none on; testbed.make_swap=true makes a file for a run"
    file = f"{machine.folder}/swapfile"
    mend = f"fallocate -l 8G {file} && chmod 600 {file} && mkswap {file} && swapon {file}"
    return "note", "none on: devices with swap are refused", mend


def _disk(machine: Machine) -> _Finding:
    try:
        return "ok", f"{machine.disk()}, under {machine.folder}"
    except TpiError as exc:
        return "note", _one_line(exc)


def _cores(machine: Machine) -> _Finding:
    there, ours = machine.cores()
    if ours < there:
        return "note", f"{ours} of {there}: this process may use no others"
    return "ok", str(there)


def _leftovers(machine: Machine) -> list[Check] | _Finding:
    dead = [f"swap file {path}" for path in machine.dead_swap()]
    try:
        dead += [f"container {name}" for name in machine.dead_containers()]
        images = machine.old_images()
    except TpiError:
        return "note", "containers are not known without the daemon"
    rows = []
    if dead:
        rows.append(Check("leftovers", "note", f"{', '.join(dead)}; the next run removes them"))
    if images:
        mend = f"docker rmi {' '.join(images)}"
        rows.append(Check("old images", "note", ", ".join(images), mend))
    return rows or ("ok", "none")


_CHECKS: dict[str, Callable[[Machine], list[Check] | _Finding]] = {
    "Docker": _docker,
    "device image": _image,
    "control groups": lambda machine: ("ok", machine.cgroup()),
    "root": _root,
    "links": _links,
    "C compiler": _compiler,
    "TCP": _tcp,
    "swap": _swap,
    "disk of weights": _disk,
    "cores": _cores,
    "memory": lambda machine: ("ok", f"{_gib(machine.memory())} available"),
    "leftovers": _leftovers,
}


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
