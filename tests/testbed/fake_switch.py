"""A switch that forwards nothing: it records its ports and commands, and misbehaves when told to.

Its first argument is the file that it writes to; the port named `LATE`, `GARBAGE`, `DIES` or
`REFUSES` says how it misbehaves. It must run without this source tree.
"""

import json
import sys
from pathlib import Path


def say(**event: object) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def obey(command: str, ports: list[str]) -> None:
    if command == "stats":
        counted = {"up_dropped": 0, "down_dropped": 0}
        say(event="stats", ports=[counted for _ in ports], late_us={"max": 1}, packets=7)
    elif command.startswith("fault"):
        say(event="fault", port=int(command.split()[1]), kind=command.split()[2])
    else:
        say(event="error", message=f"unknown: {command}")


def main(record: Path, ports: list[str]) -> int:
    if "DIES" in ports:
        sys.stderr.write("some words\nno such device\n")
        return 4
    if "LATE" in ports:
        sys.stdin.read()
    if "GARBAGE" in ports:
        sys.stdout.write("hello\n")
        sys.stdout.flush()
    say(event="ready", backend="fake")
    with record.open("a") as log:
        log.write(" ".join(ports) + "\n")
        for line in sys.stdin:
            log.write(line)
            log.flush()
            if "MUTE" not in ports:
                obey(line.strip(), ports)
        log.write("end\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
