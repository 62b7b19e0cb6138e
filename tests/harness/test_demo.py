import pytest
from transformers import AutoTokenizer

from harness.demo import make_demo
from tests.checkpoints import reference_tokens
from tpi.tokenizer import Tokenizer


@pytest.mark.timeout(60)
@pytest.mark.slow
def test_demo_checkpoint_says_different_words_and_is_made_once(tmp_path):
    num_bytes = make_demo(tmp_path)
    assert 90e6 < num_bytes < 110e6
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix == ".json"}
    assert make_demo(tmp_path) == 0
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix == ".json"}
    tokenizer = Tokenizer.load(tmp_path)
    text = "Small devices, together: 1 café"
    ids = tokenizer.encode(text)
    assert ids == AutoTokenizer.from_pretrained(tmp_path)(text).input_ids
    assert tokenizer.decode(ids).strip() == text
    tokens = reference_tokens(tmp_path, tuple(ids))
    words = tokenizer.decode(list(tokens)).split()
    assert len(words) == 32
    assert len(set(words)) >= 16
    assert all(word.isalpha() for word in words)
