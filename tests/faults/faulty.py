"""A system that breaks in ways only a machine of its own can show; see `tests/fake_system.py`.

Further misdeeds, done like the others by rank `rank` before token `at` of the last request:
    oom        takes memory until it is killed
    oom_child  a child of it does; it goes on as if nothing had happened, and ends with 0
    oom_shared fills memory that belongs to no process
    segfault   dies of SIGSEGV
    stubborn   neither SIGTERM nor the end of its lease ends it
`program()` is how it is started where nothing of `tests` is to be found, as in a container.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.fake_system import Fake
from tpi.program.spec import NodeSpec, Request, load_spec

GROW = "a = []\nwhile True: a.append(b'x' * (1 << 20))"
MAIN = 'if __name__ == "__main__":'


class Faulty(Fake):
    """One rank; it writes the option `say` to its log, and takes `wait_s` to start."""

    def __init__(self, spec: NodeSpec) -> None:
        super().__init__(spec)
        os.write(2, f"{self.options.get('say', '')}\n".encode())
        time.sleep(float(str(self.options.get("wait_s", 0))))

    def misbehave(self, misdeed: str, request: Request) -> None:
        """Break."""
        if misdeed == "oom":
            taken = []
            while True:
                taken.append(b"x" * (1 << 20))
        elif misdeed == "oom_child":
            subprocess.run([sys.executable, "-S", "-c", GROW], check=False)
        elif misdeed == "oom_shared":
            with Path("/dev/shm/fill").open("wb") as file:
                while True:
                    file.write(b"x" * (1 << 20))
        elif misdeed == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif misdeed == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        else:
            super().misbehave(misdeed, request)


def program(**options: object) -> tuple[str, ...]:
    """Arguments of Python that hold the whole program; a spec's path is to follow."""
    here = Path(__file__)
    base = (here.parent.parent / "fake_system.py").read_text(encoding="utf-8")
    mine = here.read_text(encoding="utf-8").replace("from tests.fake_system import Fake\n", "")
    return "-c", base.partition(MAIN)[0] + mine, json.dumps(options)


if __name__ == "__main__":
    sys.exit(Faulty(load_spec(Path(sys.argv[-1]))).run())
