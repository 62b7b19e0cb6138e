"""A system that computes nothing and obeys the contract of a system, or breaks it when told to.

`python -m tests.fake_system [JSON] SPEC`. What it does beside the contract is said by the spec's
`options`, or by the JSON object before it:
    tokens    token ids to answer with, from the start for every request (default: 0, 1, 2, ...)
    misdeed   few | many | die | die_silently | error | hang | junk | flood | flood_junk |
              long_line | exit_1 | worker_token | backwards | no_counters | wrong_id | stay |
              never_ready
    rank      who does the misdeed (default: 0)
    at        before which token of the last request (default: 1); workers do it at `go` time
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tpi.program.events import CommandReader, EventWriter
from tpi.program.spec import NodeSpec, Request, load_spec


class Fake:
    """One rank."""

    def __init__(self, spec: NodeSpec) -> None:
        self.spec = spec
        self.events = EventWriter.claim_stdout()
        self.lease_lost = False
        self.commands = CommandReader().start()
        options = spec.options if len(sys.argv) < 3 else json.loads(sys.argv[1])
        self.options = options
        mine = options.get("rank", 0) == spec.rank
        self.misdeed = str(options.get("misdeed", "")) if mine else ""
        self.at = int(str(options.get("at", 1)))

    def run(self) -> int:
        """Serve all requests."""
        if self.misdeed == "never_ready":
            self.wait_for_end()
        self.events.emit("ready", verify_s=0.0, notes=[])
        for index, request in enumerate(self.spec.requests):
            last = index == len(self.spec.requests) - 1
            if self.spec.rank == 0:
                go = self.commands.next()
                if go is None:
                    return 0
                self.events.emit("request", id=go.request_id, t_ns=go.t_ns)
            self.serve(request, self.misdeed if last else "")
        if self.misdeed == "stay":
            time.sleep(60)
        return 1 if self.misdeed == "exit_1" else 0

    def serve(self, request: Request, misdeed: str) -> None:
        """Answer one request."""
        count = request.new_tokens + {"few": -1, "many": 1}.get(misdeed, 0)
        given = self.options.get("tokens", list(range(request.new_tokens)))
        tokens = [*given, 0] if isinstance(given, list) else []
        if self.spec.rank != 0:
            self.misbehave(misdeed, request)
        for index in range(count if self.spec.rank == 0 else 0):
            if index == self.at:
                self.misbehave(misdeed, request)
            name = "other" if misdeed == "wrong_id" else request.id
            t_ns = 1 if misdeed == "backwards" and index == self.at else None
            self.events.emit("token", id=name, token=tokens[index], t_ns=t_ns)
        counters = {"disk_bytes_decode": 1000, "wire_bytes_sent_decode": 10, "rss_hwm": 1 << 20}
        if misdeed != "no_counters":
            self.events.emit("counters", id=request.id, rank=self.spec.rank, **counters)
        self.events.emit("end", id=request.id)

    def misbehave(self, misdeed: str, request: Request) -> None:
        """Break the contract."""
        deeds: dict[str, Callable[[], object]] = {
            "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "die_silently": lambda: os._exit(0),
            "error": self.report_error,
            "hang": self.wait_for_end,
            "junk": lambda: os.write(self.events._fd, b"Traceback (most recent call last):\n"),
            "long_line": lambda: os.write(self.events._fd, b"x" * (1 << 20) + b"\n"),
            "flood": lambda: self.flood(request),
            "flood_junk": self.flood_junk,
            "worker_token": lambda: self.events.emit("token", id=request.id, token=1),
        }
        if misdeed in deeds:
            deeds[misdeed]()

    def report_error(self) -> None:
        """Say what is wrong, as a good program does."""
        self.events.emit("error", code="weights", message="rank-0/attn-003: truncated")
        os._exit(14)

    def flood(self, request: Request) -> None:
        """Say the same thing until the lease ends."""
        while self.commands._thread.is_alive():
            self.events.emit("token", id=request.id, token=1)

    def flood_junk(self) -> None:
        """Write the longest lines until the lease ends."""
        while self.commands._thread.is_alive():
            os.write(self.events._fd, b"x" * 65000 + b"\n")

    def wait_for_end(self) -> None:
        """Do nothing until the lease ends."""
        while self.commands.next() is not None:
            continue
        os._exit(0)


if __name__ == "__main__":
    sys.exit(Fake(load_spec(Path(sys.argv[-1]))).run())
