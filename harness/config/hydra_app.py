"""Hydra drives: `drive` gives `hydra.main` the command line, and `Job` is the function it calls.

A run is one job, whose table is printed. Of a sweep, `SweepCallback` plans every job before the
first is launched, each job leaves its part in the sweep's folder (it may run in another process or
on another machine), and the callback makes one outcome of the parts.
"""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_launcher import BasicLauncherConf
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.config.command_line import CONF_DIR, CommandLine, explain
from harness.config.compose import checked
from harness.run.failure import failure_of
from harness.run.session import Outcome, console, prepare, run, show
from harness.run.sweep import clear_parts, write_outcome, write_part
from tpi.errors import EXIT_OK, ConfigError, TpiError


class Job:
    """Measures what Hydra composed, and keeps its error, which Hydra would print."""

    def __init__(self) -> None:
        self.called = False
        self.outcome = Outcome((), EXIT_OK)

    def __call__(self, tree: DictConfig) -> float:
        """Run one configuration; returns the latency, which an optimising sweeper minimises."""
        if self.outcome.error is not None:  # it ended the whole sweep
            return math.inf
        self.called, self.outcome = True, Outcome((), EXIT_OK)
        job = HydraConfig.get()
        overrides = [str(override) for override in job.overrides.task]
        folder = Path(str(tree.results_dir))
        is_sweep = job.mode == RunMode.MULTIRUN
        try:
            prepared = prepare(checked(tree, overrides))
            if is_sweep:
                console(stderr=True).print("job:", *_short(overrides), markup=False)
            self.outcome = run(prepared, console(quiet=is_sweep))
            if not is_sweep:
                show(self.outcome.records, folder, console())
        except (TpiError, OSError, KeyboardInterrupt) as exc:
            if self.outcome.error is None:  # the first is the one to tell
                self.outcome = replace(self.outcome, status=failure_of(exc)[0], error=exc)
        if is_sweep:
            sweep_dir = Path(str(job.sweep.dir))
            write_part(sweep_dir, int(job.job.num), overrides, folder, self.outcome)
        return _token_latency_s(self.outcome)


class SweepCallback(Callback):
    """Runs before the first and after the last job of a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Compose and plan all jobs, so that a mistake in the last is reported at once."""
        with _through_hydra():
            clear_parts(Path(str(config.hydra.sweep.dir)))
            _plan_all(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Write and print the outcome, and end with its exit status."""
        with _through_hydra():
            sys.exit(write_outcome(Path(str(config.hydra.sweep.dir)), console()))


class _InCallbackError(BaseException):
    """Carries an error through Hydra, which turns an `Exception` in a callback into a warning."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def _through_hydra() -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        raise _InCallbackError(exc) from exc


def drive(line: CommandLine) -> int:
    """Let Hydra run the command line; returns the exit status or raises what ended it."""
    job = Job()
    main = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")(job)
    error: BaseException | None
    try:
        with _as_arguments(line):
            main()
        error = job.outcome.error
    except _InCallbackError as exc:
        error = exc.error
    except (HydraException, OmegaConfBaseException) as exc:
        error = exc
    except ValueError as exc:
        if job.called:
            raise
        raise ConfigError(explain(exc)) from exc  # two commands at once, say
    if isinstance(error, HydraException | OmegaConfBaseException):
        raise ConfigError(explain(error, line.overrides)) from error
    if error is not None:
        raise error
    return job.outcome.status


def _plan_all(config: DictConfig) -> None:
    sweeper, launcher = config.hydra.sweeper, config.hydra.launcher
    if sweeper._target_ != BasicSweeperConf._target_:
        return  # only it knows its jobs
    loader = GlobalHydra.instance().config_loader()
    words = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    words += [str(override) for override in config.hydra.overrides.task]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
    jobs = BasicSweeper.split_arguments(overrides, None)[0]
    composed = [checked(loader.load_sweep_config(config, list(job)), job) for job in jobs]
    if launcher._target_ == BasicLauncherConf._target_:  # else they may run on another host
        for each in composed:
            prepare(each)


@contextmanager
def _as_arguments(line: CommandLine) -> Iterator[None]:
    """The command line where `hydra.main` reads it, and Hydra's errors raised, not printed."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [argv[0], *line.flags, *line.overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


def _short(overrides: Sequence[str]) -> list[str]:
    """Without paths and other free text, which is quoted and cannot be swept."""
    return [override.lstrip("+") for override in overrides if "='" not in override]


def _token_latency_s(outcome: Outcome) -> float:
    """The first system's, infinite where there is none."""
    metrics = outcome.records[0].metrics if outcome.records else None
    latency = metrics.token_latency_s if metrics else None
    return latency.median if latency else math.inf
