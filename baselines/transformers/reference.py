"""The expected tokens: Transformers in float32, and how far 16 bit may stray from it.

`python -m baselines.transformers.reference JOB OUT` reads a job, writes its answer and ends. It is
a program of its own, so that its memory is given back and not counted.

    job     {"model_dir": "...", "prompt_ids": [1, 2], "new_tokens": 32, "threads": 2,
             "answers": {"tpi": [5, 7, ...]}, "error_of": "bfloat16" or null}
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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct, to_builtins

from tpi.decode import Count, CountOrZero, Text, decode_file
from tpi.errors import EXIT_OK, ConfigError, NumericsError, ResourceError, TpiError, map_errors
from tpi.files import write_atomic

if TYPE_CHECKING:
    import torch

# JSON has no infinity.
_IMPOSSIBLE = 1e30
_MAX_BYTES = 64 << 20
_Ids = Annotated[tuple[CountOrZero, ...], Meta(min_length=1)]


class ReferenceJob(Struct, frozen=True, forbid_unknown_fields=True):
    """What to compute; see the module's docstring."""

    model_dir: Text
    prompt_ids: _Ids
    new_tokens: CountOrZero
    threads: Count = 1
    answers: dict[str, _Ids] = {}
    error_of: Literal["float32", "bfloat16"] | None = None


class Reference(Struct, frozen=True, forbid_unknown_fields=True):
    """What came out; see the module's docstring."""

    tokens: tuple[CountOrZero, ...]
    largest_logit: float
    logit_error: float | None
    shortfalls: dict[str, tuple[float, ...]]
    schema: Literal[1] = 1


def read_job(path: Path) -> ReferenceJob:
    """The job in a file; raises ConfigError if it cannot be read or does not fit."""
    return decode_file(path, ReferenceJob, _MAX_BYTES, ConfigError)


def read_reference(path: Path) -> Reference:
    """The answer in a file; raises as `read_job`."""
    return decode_file(path, Reference, _MAX_BYTES, ConfigError)


def write_reference(reference: Reference, path: Path) -> None:
    """Write the file that `read_reference` reads, whole or not at all.

    Raises:
        ResourceError: The disk is full or cannot be written.
    """
    data = json.dumps(to_builtins(reference), allow_nan=False).encode()
    with map_errors({OSError: ResourceError}, f"cannot write {path}"):
        write_atomic(path, data)


def compute(job: ReferenceJob) -> Reference:
    """Run the reference; one model in memory at a time.

    Raises:
        WeightsError: The checkpoint cannot be read.
        ConfigError: The prompt does not fit the model.
    """
    from baselines.transformers.loading import greedy, load_model

    model = load_model(Path(job.model_dir), "float32", job.threads)
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
        rounded = load_model(Path(job.model_dir), job.error_of, job.threads)
        error_SV = _logits(rounded, job.prompt_ids, tokens) - logits_SV
        logit_error = float(error_SV.abs().max())
    return Reference(tuple(tokens), float(logits_SV.abs().max()), logit_error, shortfalls)


def main(argv: Sequence[str] | None = None) -> int:
    """Do the job in the first file that `argv` names; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if len(arguments) != 2:
            raise ConfigError("usage: python -m baselines.transformers.reference JOB OUT")
        job, out = map(Path, arguments)
        write_reference(compute(read_job(job)), out)
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

    from baselines.transformers.loading import check_prompt

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


if __name__ == "__main__":
    sys.exit(main())
