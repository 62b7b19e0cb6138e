"""The comparison of tokens with a reference: `Reference.check` judges one repeat.

The reference is Transformers in float32 on the same weights and prompt: its tokens come from a
repeat of `transformers` itself where that runs in float32, and else from
`baselines/transformers/reference.py`, run beside the testbed and not on a device. Answers are kept
below `<results_dir>/references` under a hash of their inputs, so that nothing is computed twice.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
from msgspec.structs import replace

from baselines.registry import REFERENCE
from baselines.transformers.reference import Reference as Answer
from baselines.transformers.reference import ReferenceJob, read_reference, write_reference
from baselines.weight_formats import reference_format
from harness.plan.types import Plan, SystemPlan
from harness.progress.live import Live
from harness.run.judge import check_bounded, check_exact
from harness.run.run_key import reference_digest
from harness.run.weights import WeightSet
from results.records.hashing import digest_of
from results.records.schema import Check
from testbed.host.environment import dependency_versions
from testbed.local.local import device_environment
from tpi.errors import TpiError, map_errors

# The program needs no device: it runs on all cores, since only its tokens matter.
_MODULE = "baselines.transformers.reference"
_PATIENCE_S = 1200.0


class Reference:
    """Checks tokens that systems made in one plan."""

    def __init__(self, plan: Plan, weights: WeightSet, live: Live) -> None:
        self._plan = plan
        self._live = live
        self._weights = weights
        self._job = ReferenceJob(
            model_dir=str(weights.hf.absolute()),
            prompt_ids=plan.prompt_ids,
            new_tokens=plan.new_tokens,
            threads=plan.host.cores,
        )
        self._key = {
            "weights": weights.identity,
            "prompt_ids": plan.prompt_ids,
            "new_tokens": plan.new_tokens,
            "versions": dependency_versions(("torch", "transformers")),
            "source": reference_digest(),
        }
        self.folder = Path(plan.config.results_dir) / "references"

    def check(self, system: SystemPlan, tokens: tuple[int, ...]) -> Check:
        """Compare a system's tokens as the plan says.

        `passed` is None where the plan says not to (kind `none`) and where comparing failed.
        """
        reason = self._plan.check_reason
        if self._plan.check == "two_layer":  # the others prove themselves before they are measured
            reason = f"not checked: {system.name} is the reference implementation itself; {reason}"
        if self._plan.check != "reference":
            return Check(detail=reason)
        try:
            if system.check == "bounded":
                return self._bounded(system, tokens)
            return check_exact(tokens, self._tokens(system.name, tokens))
        except TpiError as exc:
            return Check(system.check, detail=f"no reference: {exc}")

    def _tokens(self, system: str, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """The reference's tokens; those of Transformers in float32 are the reference."""
        path = self._path({})
        if not path.exists():
            if system != REFERENCE:
                return self._answer(self._job, path).tokens
            path.parent.mkdir(parents=True, exist_ok=True)
            write_reference(Answer(tokens, 0.0, None, {}), path)
        return read_reference(path).tokens

    def _bounded(self, system: SystemPlan, tokens: tuple[int, ...]) -> Check:
        """Two jobs: the reference's own tokens, once, and its logits of the system's tokens."""
        job = replace(self._job, model_dir=str(self._weights.reference_dir(system).absolute()))
        form = {"form": reference_format(system.form).folder_name}
        own = self._once(replace(job, error_of="bfloat16"), {**form, "error_of": "bfloat16"})
        job = replace(job, new_tokens=0, answers={"answer": tokens})
        seen = self._once(job, {**form, "answer": tokens})
        return check_bounded(tokens, own.tokens, seen.shortfalls["answer"], own.logit_error or 0.0)

    def _once(self, job: ReferenceJob, key: dict[str, object]) -> Answer:
        path = self._path(key)
        return read_reference(path) if path.exists() else self._answer(job, path)

    def _path(self, more: dict[str, object]) -> Path:
        return self.folder / f"{digest_of({**self._key, **more})[:16]}.json"

    def _answer(self, job: ReferenceJob, out: Path) -> Answer:
        """Run the program and read what it wrote."""
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="tpi-reference-") as folder:
            job_file = Path(folder) / "job.json"
            job_file.write_bytes(msgspec.json.encode(job))
            with (
                self._live.waiting("reference: Transformers in float32"),
                map_errors(
                    {OSError: TpiError, subprocess.SubprocessError: TpiError}, "the reference"
                ),
            ):
                done = subprocess.run(
                    [sys.executable, "-m", _MODULE, str(job_file), str(out.absolute())],
                    env={**os.environ, **device_environment(job.threads)},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    # Ctrl-C is this process's to handle: it ends the child itself.
                    start_new_session=True,
                    timeout=_PATIENCE_S * self._plan.config.testbed.time_scale,
                    check=False,
                )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise TpiError(lines[-1].removeprefix("error: "))
        return read_reference(out)
