"""Text to token ids and back, on the master only, from a folder's `tokenizer.json`.

The `tokenizers` library does the work; nothing of Transformers is imported and no code from a
checkpoint runs. `StreamDecoder` gives out text as tokens come, never half a character.
"""

from pathlib import Path
from typing import Self

import tokenizers

from tpi.errors import ConfigError
from tpi.files import read_small_file

TOKENIZER_FILE = "tokenizer.json"
# Far above the largest known (Llama 3: 17 MB, Gemma 3: 33 MB).
_MAX_FILE_BYTES = 256 << 20
_REPLACEMENT = "\ufffd"
# A character has at most four bytes and a token at least one, so only the last three tokens can
# wait for more. Some tokenizers turn every byte around an unfinished character into replacement
# characters; text that still ends in them after this many tokens is no text.
_MAX_WAITING_TOKENS = 3
_MAX_HELD_TOKENS = 16


class Tokenizer:
    """The tokenizer of one model."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        # Files may carry the settings of somebody's training run.
        self._backend.no_truncation()
        self._backend.no_padding()

    @classmethod
    def present(cls, folder: Path) -> bool:
        """Whether the folder has a tokenizer at all."""
        return (folder / TOKENIZER_FILE).exists()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the tokenizer of a checkpoint or of rank 0's shard folder.

        Raises:
            ConfigError: `tokenizer.json` is missing, too large, or no tokenizer.
        """
        path = folder / TOKENIZER_FILE
        data = read_small_file(path, _MAX_FILE_BYTES, ConfigError, follow=True)
        try:
            return cls(tokenizers.Tokenizer.from_str(data.decode("utf-8")))
        except Exception as exc:  # the library raises bare Exception
            raise ConfigError(f"{path}: not a tokenizer: {str(exc)[:200]}") from exc

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, with the model's own start token where it has one.

        Raises:
            ConfigError: the text holds bytes that are not UTF-8.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise ConfigError(f"prompt: not UTF-8 text at character {exc.start}") from exc
        return list(self._backend.encode(text).ids)

    def decode(self, ids: list[int]) -> str:
        """The text of token ids; special tokens and ids without a token give nothing."""
        return str(self._backend.decode(ids, skip_special_tokens=True))


class StreamDecoder:
    """Turns tokens into text one by one.

    A token's text can depend on the ones before it (a leading space, the bytes of a character), so
    the tokens since the last finished piece are decoded together and what is new is given out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # the last piece, already given out
        self._held: list[int] = []  # tokens after it, not yet given out

    def push(self, token: int) -> str:
        """Take one token; returns the text that is finished by it, often one word, maybe none."""
        self._held.append(token)
        text = self._new_text(self._held)
        if not text:
            return ""
        if not text.endswith(_REPLACEMENT):
            self._context, self._held = self._held, []
            return text
        if len(self._held) < _MAX_HELD_TOKENS:
            return ""
        garbage = self._held[:-_MAX_WAITING_TOKENS]
        text = self._new_text(garbage)
        self._context, self._held = garbage, self._held[-_MAX_WAITING_TOKENS:]
        return text

    def finish(self) -> str:
        """The text of what was held back, with replacement characters where it is no text."""
        text = self._new_text(self._held)
        self._context, self._held = [], []
        return text

    def _new_text(self, tokens: list[int]) -> str:
        known = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + tokens)[len(known) :]
