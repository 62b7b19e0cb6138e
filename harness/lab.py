"""The command `lab`: everything around a measurement that `run.py` does not do.

A verb is a module with `main(argv)`, which parses its arguments and returns the exit status. It is
imported only when its verb is called, so that `lab --help` answers at once.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from harness.run.signals import ignore_signals, write_nowhere
from tpi.errors import EXIT_INTERRUPTED, EXIT_OK, ConfigError, TpiError

# What a verb calls, and what `lab --help` says of it.
VERBS: Mapping[str, tuple[str, str]] = {
    "doctor": ("testbed.doctor.doctor", "say what this machine can emulate, and what is missing"),
    "image": ("testbed.image.main", "build the image of emulated devices"),
    "calibrate": ("harness.calibrate.main", "measure this machine for the simulator"),
    "demo": ("harness.demo", "write the small checkpoint of make demo"),
    "paper": ("harness.paper.main", "run what the paper's tables and figures need"),
    "render": ("results.paper.render.main", "draw the paper's tables and figures from run records"),
    "report": ("results.paper.report.main", "write one HTML file from run records"),
    "claims": ("results.paper.claims.judge", "judge the paper's claims by run records"),
    "publish": ("results.paper.render.publish", "copy exhibits with the records behind them"),
    "allreduce-study": ("harness.paper.allreduce_study", "time allreduces on emulated links"),
    "validate": ("results.paper.cells.sim_compare", "set the simulator beside measured records"),
    "published-memory": ("results.paper.authors_model.memory", "predict the paper's memory cells"),
    "published-times": ("results.paper.authors_model.times", "predict the paper's times"),
    "trace": ("results.records.trace_file", "write a traced run's spans for ui.perfetto.dev"),
    "regression": ("harness.regression.main", "compare this tree with its base commit"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the command line names; returns its exit status."""
    name, *args = (sys.argv[1:] if argv is None else argv) or ["--help"]
    command = "lab"
    try:
        if name in ("--help", "-h"):
            sys.stdout.write(help_text())
            return EXIT_OK
        module = _module(name)
        command = f"lab {name}"
        status: int = importlib.import_module(module).main(args)
    except TpiError as exc:
        sys.stderr.write(f"{command}: {' '.join(str(exc).split())}\n")
        return exc.exit_status
    except KeyboardInterrupt:
        sys.stderr.write(f"{command}: interrupted\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        write_nowhere(sys.stdout.fileno())  # the reader went away: `lab claims FOLDER | head`
        return EXIT_OK
    return status


def run() -> int:
    """The installed command: `main`, after which signals no longer disturb the end."""
    status = main()
    ignore_signals()
    return status


def help_text() -> str:
    """The verbs, one a line."""
    width = max(map(len, VERBS)) + 2
    lines = [
        "usage: lab VERB ...",
        "",
        "Everything around a measurement; `python run.py` measures.",
        "",
        *(f"  {name:<{width}}{about}" for name, (_, about) in VERBS.items()),
        "",
        "lab VERB --help describes the arguments of a verb.",
    ]
    return "\n".join(lines) + "\n"


def _module(name: str) -> str:
    if name in VERBS:
        return VERBS[name][0]
    close = get_close_matches(name, VERBS, n=1)
    hint = f"did you mean {close[0]}?" if close else "see lab --help"
    raise ConfigError(f"unknown verb {name!r}; {hint}")


if __name__ == "__main__":
    sys.exit(run())
