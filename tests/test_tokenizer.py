import os

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from tpi.errors import ConfigError
from tpi.tokenizer import StreamDecoder, Tokenizer

TEXT = "Grüße, 世界! 🙂🙃 naïve — ½ \n\tend  of   it"


def byte_level() -> tokenizers.Tokenizer:
    """A byte-level BPE as Llama 3 and Qwen have: a character can be four tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, show_progress=False, special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(["the end of the naïve world " * 3], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return backend


def byte_fallback() -> tokenizers.Tokenizer:
    """Spaces as a letter, unknown characters as <0xNN> tokens, as Llama 2 has."""
    letters = [f"<0x{i:02X}>" for i in range(256)] + ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    vocab = {"<unk>": 0, "<s>": 1} | {letter: i + 2 for i, letter in enumerate(letters)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )  # fmt: skip
    backend.add_special_tokens(["<s>"])
    return backend


KINDS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [decoder.push(token) for token in ids] + [decoder.finish()]


@pytest.fixture(params=KINDS)
def tokenizer(request, tmp_path):
    KINDS[request.param].save(str(tmp_path / "tokenizer.json"))
    return Tokenizer.load(tmp_path)


def test_text_comes_back(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT


def test_start_token_is_added_and_not_shown(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    ids = Tokenizer.load(tmp_path).encode("the end")
    assert ids[0] == 0
    assert Tokenizer.load(tmp_path).decode(ids) == "the end"


def test_streamed_pieces_make_the_text_and_hold_no_half_character(tokenizer):
    pieces = stream(tokenizer, tokenizer.encode(TEXT))
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 20


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=30))
def test_any_text_streams_as_it_decodes(kind, text):
    tokenizer = Tokenizer(KINDS[kind])
    ids = tokenizer.encode(text)
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.integers(0, 400), max_size=40))
def test_any_tokens_stream_without_error_and_lose_no_letter(kind, ids):
    # Where bytes are no UTF-8, replacement characters may be more or fewer, and what was a
    # character when it came stays one.
    tokenizer = Tokenizer(KINDS[kind])
    streamed = iter("".join(stream(tokenizer, ids)))
    assert all(letter in streamed for letter in tokenizer.decode(ids).replace("\ufffd", ""))


def test_bytes_that_never_become_a_character_are_not_held_for_ever():
    tokenizer = Tokenizer(KINDS["byte_fallback"])
    smile = tokenizer.encode("🙂")[-4:]
    pieces = stream(tokenizer, [2 + 0xFF] * 40)
    assert "".join(pieces[:16]) == "\ufffd" * 13
    assert "".join(pieces) == "\ufffd" * 40
    letter = tokenizer.encode("a")[-1]
    assert "".join(stream(tokenizer, [2 + 0xFF] * 40 + [letter, *smile]))[-2:] == "a🙂"


def test_unfinished_character_comes_at_the_end_as_a_replacement():
    tokenizer = Tokenizer(KINDS["byte_level"])
    ids = tokenizer.encode("🙂")[:-1]
    assert "".join(stream(tokenizer, ids)) == "\ufffd"


def test_settings_of_somebodys_training_run_are_ignored(tmp_path):
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=200)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert len(tokenizer.encode("x")) == 2


def test_presence_is_known_without_loading(tmp_path):
    assert not Tokenizer.present(tmp_path)
    (tmp_path / "tokenizer.json").write_text("junk")
    assert Tokenizer.present(tmp_path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer\.json: cannot be opened"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"junk", b"\xff\xfe", b'{"model": 3}'], ids=repr)
def test_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_fifo_is_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(ConfigError, match="FIFO"):
        Tokenizer.load(tmp_path)


def test_prompt_that_is_not_utf_8_is_refused():
    with pytest.raises(ConfigError, match="not UTF-8 text at character 2"):
        Tokenizer(KINDS["byte_level"]).encode("ab\udcff")
