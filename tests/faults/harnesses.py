"""`run.py` as a process of its own with fake systems, and everything that it may leave behind.

`Site` is a folder with a tiny model, weights and results in it; `start` begins a run there.
`leftovers` looks for what costs something outside the harness's own process. Whatever a harness
starts inherits a variable from it, by which it is found whoever its parent is then.
"""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.config.command_line import CONF_DIR
from harness.run.launch import PROGRAMS
from results.records.store import RunStore
from tests.faults import beds
from tests.faults.faulty import program
from tests.harness.micro import write_model

ROOT = CONF_DIR.parent
MARK = "TPI_LAB_TEST"
LOCAL = ("testbed=local",)
# Small, so that any host has room for it, and with a delay that a loaded host gives rightly too.
DOCKER = ("testbed=docker", "device.memory=1GiB", "link.delay_ms=10", "testbed.dilation=1")
CODE = """
import json, pathlib, runpy, signal, sys
from harness.run import launch as launching
from testbed.host import hostlock
# One at a time in this test, whatever else runs on this host meanwhile.
hostlock._FOLDERS = (pathlib.Path(sys.argv.pop(1)),)
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
launching.PROGRAMS.update({k: tuple(v) for k, v in json.loads(sys.argv.pop(1)).items()})
sys.argv[0] = "run.py"
"""
MAIN = 'runpy.run_path("run.py", run_name="__main__")\n'


class Site:
    """Where runs of one test happen."""

    def __init__(self, folder: Path, testbed: Sequence[str]) -> None:
        """Make the model."""
        self.token = f"{MARK}={secrets.token_hex(8)}"
        self.folder = folder
        self.results = folder / "runs"
        self.weights = folder / "weights"
        self.locks = folder / "locks"
        self.locks.mkdir()
        self.locks.chmod(0o1777)
        # What containers read lies in a folder that pytest keeps to its user.
        folder.chmod(0o755)
        model = write_model(folder / "model")
        self._testbed = tuple(testbed)
        self._arguments = (
            "model=folder", f"model.path={model}", f"weights.dir={self.weights}", "devices=2",
            "repeats=1", "workload.prompt_tokens=4", "workload.new_tokens=4",
        )  # fmt: skip

    @contextmanager
    def start(
        self,
        *more: str,
        tpi: Mapping[str, object] | None = None,
        prelude: str = "",
        results: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> "Iterator[subprocess.Popen[str]]":
        """Run tpi and transformers, both fake; `tpi` has the misdeeds of the first.

        Args:
            more: Further arguments.
            tpi: Options of `faulty.py`.
            prelude: Python that runs first, in the harness's process.
            results: The folder of records; the site's unless given.
            env: Further variables.
        """
        programs = {name: program() for name in PROGRAMS} | {"tpi": program(**(tpi or {}))}
        name, _, value = self.token.partition("=")
        argv = [
            sys.executable, "-c", CODE + prelude + MAIN, str(self.locks), json.dumps(programs),
            *self._arguments,
            *self._testbed, "systems=[tpi,transformers]",
            f"results_dir={results or self.results}", *more,
        ]  # fmt: skip
        pipe = subprocess.PIPE
        with subprocess.Popen(
            argv, cwd=ROOT, text=True, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe,
            env={**os.environ, **(env or {}), name: value},
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    def run(self, *more: str, timeout_s: float = 60, **options: Any) -> tuple[int, str, str]:
        """Run to the end: (exit status, standard output, standard error)."""
        with self.start(*more, **options) as process:
            out, err = process.communicate(timeout=timeout_s)
        return process.returncode, out, err

    def leftovers(self) -> list[str]:
        """What the runs of this site have left that somebody has to pay for."""
        found = [f"process {pid} ({name})" for pid, name in processes(self.token)]
        found += [f"container {name}" for name in containers_of(self.folder)]
        return found + host_leftovers()

    def programs(self, harness: int) -> list[str]:
        """Programs that run on devices: children of the harness, or execs in containers."""
        if self._testbed == LOCAL:
            return [name for pid, name in processes(self.token) if pid != harness]
        with beds.client() as daemon:
            found = [daemon.inspect_container(name) for name in containers_of(self.folder)]
        return [str(each) for one in found for each in one["ExecIDs"] or ()]

    def problems(self) -> list[str]:
        """Records that do not read back."""
        return [str(problem) for problem in RunStore(self.results).scan()[1]]

    def scratch(self) -> list[Path]:
        """Folders of runs that are over, or of one that still runs."""
        return list(self.weights.glob(".run-*"))


def wait_for_line(process: "subprocess.Popen[str]", start: str) -> str:
    """Read standard error until a line begins so; gives all that was read."""
    read = ""
    if process.stderr is not None:
        for line in process.stderr:
            read += line
            if line.startswith(start):
                return read
    raise AssertionError(f"ended with {process.wait()} before {start!r}: {read}")


def await_hang(process: "subprocess.Popen[str]", site: Site) -> None:
    """Until the first repeat of tpi has devices with programs on them."""
    wait_for_line(process, "tpi, repeat 1")
    deadline = time.monotonic() + 30
    while not site.programs(process.pid):
        if time.monotonic() > deadline or process.poll() is not None:
            raise AssertionError(f"nothing was started; ended with {process.poll()}")
        time.sleep(0.02)


def await_gone(site: Site, timeout_s: float = 15) -> float:
    """Until nothing is left; gives the seconds that took."""
    start_s = time.monotonic()
    beds.await_none(site.leftovers, timeout_s)
    return time.monotonic() - start_s


def processes(token: str) -> list[tuple[int, str]]:
    """(number, name) of every process with a variable."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                environ = (folder / "environ").read_bytes().split(b"\0")
                name = (folder / "comm").read_text().strip()
            except OSError:
                continue
            if token.encode() in environ:
                found.append((int(folder.name), name))
    return found


def containers_of(folder: Path) -> list[str]:
    """Names of the containers that have something of a folder mounted."""
    if not beds.is_daemon_there():
        return []
    with beds.client() as daemon:
        return [
            str(each["Names"][0]).lstrip("/")
            for each in daemon.containers(all=True, filters={"label": "org.tpi-lab.run"})
            if any(str(mount.get("Source", "")).startswith(str(folder)) for mount in each["Mounts"])
        ]


def host_leftovers() -> list[str]:
    """TAP devices, named network namespaces and swap files that look like ours, of whatever run."""
    taps = [p.name for p in Path("/sys/class/net").iterdir() if re.match(r"tpi[0-9a-f]{6}", p.name)]
    folder = Path("/run/netns")
    spaces = [p.name for p in folder.iterdir() if "tpi" in p.name] if folder.is_dir() else []
    swaps = [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:]]
    return [
        *(f"TAP {name}" for name in taps),
        *(f"network namespace {name}" for name in spaces),
        *(f"swap {name}" for name in swaps if "tpi" in name),
    ]


def kill(process: "subprocess.Popen[str]") -> None:
    """As the kernel or an impatient user does."""
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
