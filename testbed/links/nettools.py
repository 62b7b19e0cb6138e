"""Runs the network tools: `ip` and others, in a namespace, without a shell, with a deadline.

`namespace_of` keeps hold of a process's namespace: if its process id is given to another process
meanwhile, the path still cannot lead into another namespace, least of all into the host's.
`HeldNamespace` is a namespace of our own that ends with us, however we end.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from testbed.base import DeviceError
from tpi.files import ClosedAtExit

_TIMEOUT_S, _END_S = 30.0, 5.0
# Where the tools are, also for a root whose PATH is a user's.
_ADMIN_FOLDERS = ("/usr/sbin", "/sbin")
_PACKAGES = {
    **dict.fromkeys(("ip", "tc", "bridge"), "iproute2"),
    **dict.fromkeys(("nsenter", "unshare"), "util-linux"),
    "sysctl": "procps",
}
_READY = b"ready\n"


def tool_environment() -> Mapping[str, str]:
    """Variables of every tool: its folders, and messages in English."""
    folders = [os.environ.get("PATH", "/usr/bin:/bin"), *_ADMIN_FOLDERS]
    return {**os.environ, "PATH": os.pathsep.join(folders), "LC_ALL": "C"}


def check_tools(argv: Sequence[str]) -> None:
    """Raise a DeviceError if a command's program, or the one it runs in a namespace, is missing."""
    for name in (argv[0], _inner(argv)[0]):
        if shutil.which(name, path=tool_environment()["PATH"]) is None:
            package = _PACKAGES.get(name)
            remedy = f": apt-get install {package}" if package else ""
            raise DeviceError(f"links: {name}: not found{remedy}")


def run_tool(argv: Sequence[str], text: str = "") -> str:
    """Run a command with `text` as its input, and give its output; failure is a DeviceError."""
    check_tools(argv)
    done = run_quietly(argv, "links", _TIMEOUT_S, text, shown=_inner(argv))
    if done.returncode != 0:
        raise DeviceError(f"links: {' '.join(_inner(argv))}: {_complaint(done, text)}")
    return done.stdout


def run_quietly(
    argv: Sequence[str], what: str, timeout_s: float, text: str = "", shown: Sequence[str] = ()
) -> "subprocess.CompletedProcess[str]":
    """Run one command to its end, whatever its status; errors open with `what`."""
    try:
        return subprocess.run(
            list(argv),
            input=text,
            capture_output=True,
            text=True,
            env=tool_environment(),
            timeout=timeout_s,
            check=False,
            start_new_session=True,  # Ctrl-C is for us, not for the tool
        )
    except subprocess.TimeoutExpired as exc:
        words = " ".join(shown or argv)
        raise DeviceError(f"{what}: {words}: not done after {timeout_s:g} s") from exc
    except OSError as exc:
        raise DeviceError(f"{what}: {argv[0]}: {exc.strerror}") from exc


def end_by_pipe(process: "subprocess.Popen[bytes]", timeout_s: float = _END_S) -> None:
    """End a process that ends with its input; kill it if it does not. Twice is fine."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _inner(argv: Sequence[str]) -> Sequence[str]:
    """The command without what enters its namespace."""
    return argv[argv.index("--") + 1 :] if argv[0] in ("nsenter", "unshare") else argv


def _complaint(done: subprocess.CompletedProcess[str], text: str) -> str:
    """The tool's own words, and the line of a batch that it refused ("Command failed -:3")."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    words = lines[0] if lines else f"exit status {done.returncode}"
    refused = bool(lines) and lines[-1].startswith("Command failed")
    number = lines[-1].rpartition(":")[2] if refused else ""
    where = f" in {text.splitlines()[int(number) - 1]!r}" if number.isdecimal() else ""
    return words + where


def entered(namespace: str, argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` in a network namespace (a path)."""
    return ["nsenter", f"--net={namespace}", "--", *argv]


@contextlib.contextmanager
def namespace_of(pid: int) -> Iterator[str]:
    """A path to the network namespace of a process that stays good while the body runs.

    Raises:
        DeviceError: The process is gone, or is in our own namespace, which must not be touched.
    """
    try:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise DeviceError(f"links: namespace of process {pid}: {exc.strerror}") from exc
    try:
        if os.fstat(fd).st_ino == Path("/proc/self/ns/net").stat().st_ino:
            raise DeviceError(f"links: process {pid} has no network namespace of its own")
        yield f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)


def namespace_inode(pid: int) -> int | None:
    """Identifies a process's network namespace; None if the process is gone."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return None


class HeldNamespace(ClosedAtExit):
    """A fresh network namespace; it ends when closed or when this process ends, by SIGKILL too.

    Its holder is `cat` on a pipe from us: an echo shows that it is there, and it ends with us.
    """

    def __init__(self) -> None:
        argv = ["unshare", "--net", "--", "cat"]
        check_tools(argv)
        try:
            self._holder = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=tool_environment(),
                start_new_session=True,
            )
        except OSError as exc:
            raise DeviceError(f"links: unshare: {exc.strerror}") from exc
        try:
            self._await_echo()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """A process in it."""
        return self._holder.pid

    def run(self, argv: Sequence[str], text: str = "") -> str:
        """Run a tool in it; see `run_tool`."""
        with namespace_of(self.pid) as path:
            return run_tool(entered(path, argv), text)

    def close(self) -> None:
        """End it, with every interface in it. Twice is fine."""
        end_by_pipe(self._holder)
        for stream in (self._holder.stdout, self._holder.stderr):
            if stream is not None:
                stream.close()

    def _await_echo(self) -> None:
        stdin, stdout, stderr = self._holder.stdin, self._holder.stdout, self._holder.stderr
        if stdin is None or stdout is None or stderr is None:
            raise DeviceError("links: the holder of a namespace has no pipes")
        with contextlib.suppress(BrokenPipeError):
            stdin.write(_READY)
            stdin.flush()
        if stdout.readline() != _READY:
            why = stderr.read().decode("utf-8", "replace").strip() or "it ended at once"
            raise DeviceError(f"links: no network namespace of our own: {why.splitlines()[0]}")
