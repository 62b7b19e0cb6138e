"""What the tokens should be: Transformers in float32, and how far 16 bit may stray from it.

`python -m baselines.reference JOB` reads a job, writes its answer to the file the job names, and
ends; a program of its own, so that its memory is given back and counted for nobody.

    job     {"schema": 1, "model_dir": "...", "prompt_ids": [1, 2], "new_tokens": 32, "threads": 2,
             "answers": {"tpi": [5, 7, ...]}, "error_of": "bfloat16" or null, "out": "..."}
    answer  {"schema": 1, "tokens": [...], "largest_logit": 21.3, "logit_error": 0.12 or null,
             "shortfalls": {"tpi": [0.0, 0.03, ...]}}

`tokens` is greedy float32, none where `new_tokens` is 0. `shortfalls` are, for each token of an
answer that is fed to the reference, the largest reference logit less that of the token: 0 where
they agree, and 1e30 for an answer that holds an id outside the vocabulary. `logit_error`
is the largest |16-bit - float32| logit of Transformers itself over `tokens`; the check `bounded`
allows twice that.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpi.errors import EXIT_OK, ConfigError, NumericsError, ResourceError, TpiError, map_errors
from tpi.options import COMPUTE_DTYPES
from tpi.spec import Fields, is_int

if TYPE_CHECKING:
    import torch

_SCHEMA = 1
# JSON has no infinity.
_IMPOSSIBLE = 1e30


@dataclass(frozen=True, slots=True)
class ReferenceJob:
    """What to compute; see the module's docstring."""

    model_dir: Path
    prompt_ids: tuple[int, ...]
    new_tokens: int
    threads: int = 1
    answers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    error_of: str | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """What came out; see the module's docstring."""

    tokens: tuple[int, ...]
    largest_logit: float
    logit_error: float | None
    shortfalls: Mapping[str, tuple[float, ...]]


def write_job(job: ReferenceJob, path: Path, out: Path) -> None:
    """Write the file that the program reads."""
    raw = {
        "schema": _SCHEMA,
        "model_dir": str(job.model_dir),
        "prompt_ids": list(job.prompt_ids),
        "new_tokens": job.new_tokens,
        "threads": job.threads,
        "answers": {name: list(tokens) for name, tokens in job.answers.items()},
        "error_of": job.error_of,
        "out": str(out),
    }
    path.write_text(json.dumps(raw), encoding="utf-8")


def read_job(path: Path) -> tuple[ReferenceJob, Path]:
    """The job in a file, and where its answer goes.

    Raises:
        ConfigError: It cannot be read or does not fit.
    """
    fields = Fields(_load(path), f"job {path}")
    fields.take("schema", str(_SCHEMA), lambda v: v == _SCHEMA)
    answers = fields.take("answers", "an object of token lists", _are_answers, {})
    job = ReferenceJob(
        model_dir=Path(fields.take_str("model_dir")),
        prompt_ids=tuple(fields.take("prompt_ids", "a list of token ids", _are_ids)),
        new_tokens=fields.take_int("new_tokens", 0),
        threads=fields.take_int("threads", 1, 1),
        answers={name: tuple(tokens) for name, tokens in answers.items()},
        error_of=fields.take(
            "error_of", "a dtype or null", lambda v: v is None or v in COMPUTE_DTYPES, None
        ),
    )
    out = Path(fields.take_str("out"))
    fields.finish()
    return job, out


def read_reference(path: Path) -> Reference:
    """The answer in a file.

    Raises:
        ConfigError: It cannot be read or does not fit.
    """
    fields = Fields(_load(path), f"reference {path}")
    fields.take("schema", str(_SCHEMA), lambda v: v == _SCHEMA)
    shortfalls = fields.take("shortfalls", "an object", lambda v: isinstance(v, dict))
    reference = Reference(
        tokens=tuple(fields.take("tokens", "a list of token ids", _are_ids_or_none)),
        largest_logit=fields.take("largest_logit", "a number", _is_number),
        logit_error=fields.take(
            "logit_error", "a number or null", lambda v: v is None or _is_number(v)
        ),
        shortfalls={name: tuple(values) for name, values in shortfalls.items()},
    )
    fields.finish()
    return reference


def compute(job: ReferenceJob) -> Reference:
    """Run the reference; one model in memory at a time.

    Raises:
        WeightsError: The checkpoint cannot be read.
        ConfigError: The prompt does not fit the model.
    """
    from baselines.huggingface import greedy, load_model

    model = load_model(job.model_dir, "float32", job.threads)
    shortfalls = {name: _shortfalls(model, job, answer) for name, answer in job.answers.items()}
    if not job.new_tokens:
        return Reference((), 0.0, None, shortfalls)
    tokens: list[int] = []
    greedy(model, job.prompt_ids, job.new_tokens, tokens.append)
    logits_SV = _logits(model, job.prompt_ids, tokens)
    if not logits_SV.isfinite().all():
        raise NumericsError(f"checkpoint {job.model_dir}: the reference's logits are not finite")
    del model
    logit_error = None
    if job.error_of is not None:
        rounded = load_model(job.model_dir, job.error_of, job.threads)
        error_SV = _logits(rounded, job.prompt_ids, tokens) - logits_SV
        logit_error = float(error_SV.abs().max())
    return Reference(tuple(tokens), float(logits_SV.abs().max()), logit_error, shortfalls)


def main(argv: Sequence[str] | None = None) -> int:
    """Do the job in the file that `argv` names; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if len(arguments) != 1:
            raise ConfigError("usage: python -m baselines.reference JOB")
        job, out = read_job(Path(arguments[0]))
        _write(compute(job), out)
    except TpiError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return exc.exit_status
    except MemoryError as exc:
        sys.stderr.write(f"error: the reference is out of memory: {exc}\n")
        return ResourceError.exit_status
    return EXIT_OK


def _logits(model: Any, prompt_ids: Sequence[int], answer: Sequence[int]) -> "torch.Tensor":
    """(S, V) float32 logits from which each of the S tokens of `answer` was to be chosen."""
    import torch

    from baselines.huggingface import check_prompt

    check_prompt(model, [*prompt_ids, *answer], 0)
    ids_BS = torch.tensor([[*prompt_ids, *answer[:-1]]])
    with torch.inference_mode():
        result = model(ids_BS, logits_to_keep=len(answer), use_cache=False)
    logits_SV: torch.Tensor = result.logits[0].float()
    return logits_SV


def _shortfalls(model: Any, job: ReferenceJob, answer: Sequence[int]) -> tuple[float, ...]:
    import torch

    if max(answer) >= model.config.vocab_size:
        return (_IMPOSSIBLE,) * len(answer)
    logits_SV = _logits(model, job.prompt_ids, answer)
    chosen_S = logits_SV.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return tuple((logits_SV.max(dim=1).values - chosen_S).tolist())


def _write(reference: Reference, out: Path) -> None:
    raw = {
        "schema": _SCHEMA,
        "tokens": list(reference.tokens),
        "largest_logit": reference.largest_logit,
        "logit_error": reference.logit_error,
        "shortfalls": {name: list(values) for name, values in reference.shortfalls.items()},
    }
    with map_errors({OSError: ResourceError}, f"cannot write {out}"):
        temporary = out.with_name(f".{out.name}.tmp")
        temporary.write_text(json.dumps(raw, allow_nan=False), encoding="utf-8")
        temporary.replace(out)


def _load(path: Path) -> object:
    with map_errors({OSError: ConfigError, ValueError: ConfigError}, f"cannot read {path}"):
        return json.loads(path.read_text(encoding="utf-8"))


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(is_int(v, 0) for v in value)


def _are_ids_or_none(value: object) -> bool:
    return value == [] or _are_ids(value)


def _are_answers(value: object) -> bool:
    return isinstance(value, dict) and all(_are_ids(tokens) for tokens in value.values())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


if __name__ == "__main__":
    sys.exit(main())
