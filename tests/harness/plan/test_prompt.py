import pytest

from harness.plan.prompt import prompt_ids
from tests.harness.micro import MODEL, make_config, write_model
from tpi.errors import ConfigError


def test_seeded_ids_are_the_same_again_and_within_the_vocabulary(tmp_path):
    def ids(**workload):
        return prompt_ids(make_config(tmp_path, workload=workload), MODEL)

    assert ids(prompt_tokens=20) == ids(prompt_tokens=20)
    assert ids(prompt_tokens=20)[:10] == ids(prompt_tokens=10)
    assert ids(prompt_tokens=20) != ids(prompt_tokens=20, seed=1)
    assert len(ids(prompt_tokens=200)) == 200
    assert {*ids(prompt_tokens=200)} <= {*range(MODEL.vocab_size)}
    assert len({*ids(prompt_tokens=200)}) > 50


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model", tokenizer=True)


def of_folder(tmp_path, folder, **workload):
    model = {"name": "folder", "path": str(folder)}
    return prompt_ids(make_config(tmp_path, model=model, workload=workload), MODEL)


def test_text_and_file_go_through_the_tokenizer(tmp_path, folder):
    (tmp_path / "prompt.txt").write_text("world hello")
    assert of_folder(tmp_path, folder, prompt="hello world") == (1, 2)
    assert of_folder(tmp_path, folder, prompt_file=str(tmp_path / "prompt.txt")) == (2, 1)


def test_text_without_a_tokenizer_says_what_works(tmp_path, folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer\.json; use workload\.prompt_tokens"):
        of_folder(tmp_path, folder, prompt="hello")


@pytest.mark.parametrize(("data", "words"), [(b"\xff\xfe", "not UTF-8"), (b"  ", "no tokens")])
def test_file_that_is_no_prompt(tmp_path, folder, data, words):
    (tmp_path / "prompt.txt").write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        of_folder(tmp_path, folder, prompt_file=str(tmp_path / "prompt.txt"))
