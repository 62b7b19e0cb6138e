"""Measures from within a device what it is given: CPU, disk and its link; one JSON object a line.

`probe.py` starts one on every device and sends it commands; each is answered by one line, and the
end of standard input ends it. It imports little and holds little memory, since it runs inside the
very limits that it measures, and it waits without spinning but for the CPU burn itself.
Read `TASKS`, then `main`.
"""

import json
import mmap
import os
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

from testbed.verify.probe_link_tasks import ping, send, serve
from testbed.verify.probe_task import Commands, Slope, Task, answer, sleep_until


def burn(command: Mapping[str, Any], commands: Commands) -> dict[str, object]:  # noqa: ARG001
    """Compute without pause in some processes at a given time; gives CPU seconds per second."""
    begin_ns = int(command["at_ns"])
    end_ns = begin_ns + int(command["seconds"] * 1e9)
    children = [_burn_in_child(begin_ns, end_ns) for _ in range(int(command["processes"]) - 1)]
    share = _burn(begin_ns, end_ns)
    for pid, pipe in children:
        with open(pipe, "rb") as file:  # noqa: PTH123 - a descriptor; pathlib is slow to import
            share += struct.unpack("d", file.read())[0]
        os.waitpid(pid, 0)
    return {"cpus": share}


def _burn_in_child(begin_ns: int, end_ns: int) -> tuple[int, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, struct.pack("d", _burn(begin_ns, end_ns)))
        os._exit(0)
    os.close(writing)
    return pid, reading


def _burn(begin_ns: int, end_ns: int) -> float:
    sleep_until(begin_ns)
    start_ns, cpu_ns = time.monotonic_ns(), time.process_time_ns()
    while time.monotonic_ns() < end_ns:
        pass
    return (time.process_time_ns() - cpu_ns) / (time.monotonic_ns() - start_ns)


def read_disk(command: Mapping[str, Any], commands: Commands) -> dict[str, object]:  # noqa: ARG001
    """Read files one after the other and again, past the page cache; gives bytes per second."""
    warm_ns, measured_ns = int(command["warm_s"] * 1e9), int(command["seconds"] * 1e9)
    start_ns = time.monotonic_ns()
    slope = Slope()
    with mmap.mmap(-1, int(command["request_bytes"])) as buffer:  # page-aligned, as O_DIRECT wants
        total = 0
        for count in _read_again(list(command["paths"]), buffer):
            total += count
            passed_ns = time.monotonic_ns() - start_ns
            if passed_ns >= warm_ns:
                slope.add(passed_ns / 1e9, total)
            if passed_ns >= warm_ns + measured_ns and slope.count > 2:
                break
    return {"read_bps": slope.per_second, "bytes": total}


def _read_again(paths: list[str], buffer: mmap.mmap) -> Iterator[int]:
    """Sizes of reads into the buffer, without end."""
    while True:
        got = 0
        for path in paths:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
            try:
                offset = 0
                while count := os.preadv(fd, [buffer], offset):
                    yield count
                    offset += count
                    got += count
                    if count % mmap.PAGESIZE:  # the end; from here O_DIRECT cannot go on
                        break
            finally:
                os.close(fd)
        if not got:
            raise ValueError(f"nothing to read in {', '.join(paths)}")


TASKS: Mapping[str, Task] = {
    "burn": burn,
    "disk": read_disk,
    "serve": serve,
    "ping": ping,
    "send": send,
}


def obey(line: bytes, commands: Commands) -> None:
    """Do what a line says, and answer."""
    task = "command"
    try:
        command = json.loads(line)
        task = str(command["do"])
        result = TASKS[task](command, commands)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        answer({"event": "error", "message": f"{task}: {type(exc).__name__}: {exc}"})
        return
    if result is not None:
        answer({"event": task, **result})


def main() -> None:
    """Obey until standard input ends."""
    commands = Commands()
    answer({"event": "up"})
    for line in commands:
        obey(line, commands)


if __name__ == "__main__":
    main()
