"""A system that plays a script: given events with given stamps, never waiting, computing nothing.

`python -m tests.scripted_system JSON SPEC`, JSON an object:
    base_ns   what the offsets are counted from, on CLOCK_MONOTONIC (0 unless given)
    ranks     for each rank the list of what it says; the rest is as in `tpi/program/events.py`
One thing it says is an object: `at_ns` becomes `t_ns` less the base, other keys are written as they
are; before `{"event": "request"}` the next `go` is waited for. `{"raw": TEXT}` is written as it is,
`{"exit": STATUS}` ends the program (by a signal if negative), `{"hang": true}` waits for its end.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tpi.program.events import CommandReader, EventWriter
from tpi.program.spec import load_spec


def play(said: dict[str, Any], base_ns: int, events: EventWriter, commands: CommandReader) -> None:
    """Say one thing."""
    if "raw" in said:
        os.write(events._fd, said["raw"].encode())
    elif "exit" in said:
        if said["exit"] < 0:
            os.kill(os.getpid(), -said["exit"])
        os._exit(said["exit"])
    elif "hang" in said:
        while commands.next() is not None:
            continue
        os._exit(0)
    else:
        if said["event"] == "request" and commands.next() is None:
            os._exit(0)
        fields = {k: v for k, v in said.items() if k not in ("event", "at_ns")}
        events.emit(said["event"], t_ns=base_ns + said["at_ns"], **fields)


def main() -> int:
    """Play this rank's part."""
    script, spec = json.loads(sys.argv[1]), load_spec(Path(sys.argv[2]))
    events, commands = EventWriter.claim_stdout(), CommandReader().start()
    for said in script["ranks"][spec.rank]:
        play(said, script.get("base_ns", 0), events, commands)
    return 0


if __name__ == "__main__":
    sys.exit(main())
