"""The token ids of a workload's prompt: of a text, by the model's tokenizer, or seeded."""

import random
from pathlib import Path

from harness.config.config import Config
from tpi.errors import ConfigError
from tpi.model_config import ModelConfig
from tpi.tokenizer import Tokenizer

_MAX_PROMPT_BYTES = 16 << 20


def prompt_ids(config: Config, model: ModelConfig) -> tuple[int, ...]:
    """Make the prompt.

    Raises:
        ConfigError: A text without a tokenizer, or one that cannot be read or becomes no tokens.
    """
    workload = config.workload
    if not workload.has_text:
        # A string seeds the same on every platform; ids are spread over the whole vocabulary.
        numbers = random.Random(f"prompt {workload.seed}")  # not for secrets
        return tuple(numbers.randrange(model.vocab_size) for _ in range(workload.prompt_tokens))
    option = "workload.prompt" if workload.prompt is not None else "workload.prompt_file"
    if config.model.path is None:
        raise ConfigError(
            f"{option}: model={config.model.name} has no tokenizer; use workload.prompt_tokens=N,"
            " or model=folder model.path=DIR"
        )
    folder = Path(config.model.path)
    if not Tokenizer.present(folder):
        raise ConfigError(f"{option}: {folder} has no tokenizer.json; use workload.prompt_tokens=N")
    ids = tuple(Tokenizer.load(folder).encode(_text(config)))
    if not ids:
        raise ConfigError(f"{option}: becomes no tokens")
    return ids


def _text(config: Config) -> str:
    if config.workload.prompt is not None:
        return config.workload.prompt
    path = Path(config.workload.prompt_file or "")
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_PROMPT_BYTES + 1)
        if len(data) > _MAX_PROMPT_BYTES:
            raise ConfigError(f"workload.prompt_file: {path} is larger than 16 MiB")
        return data.decode("utf-8")
    except OSError as exc:
        raise ConfigError(f"workload.prompt_file: {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"workload.prompt_file: {path} is not UTF-8 text") from exc
