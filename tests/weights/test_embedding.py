import os

import pytest
import torch

from tests.weights.blocks import content, open_files, write_entry
from tpi.errors import ConfigError, WeightsError
from tpi.weights.embedding import EmbeddingRows
from tpi.weights.shard import BlockId

EMBED = BlockId("embed", 0)


@pytest.mark.parametrize(("dtype", "width"), [("float32", 72), ("bfloat16", 50), ("float16", 3000)])
def test_rows_are_those_of_the_matrix_in_the_order_asked(tmp_path, dtype, width):
    entry = write_entry(tmp_path, EMBED, 61, dtype=dtype, width=width)
    matrix = content(EMBED, 61, dtype=dtype, width=width)
    with EmbeddingRows(entry) as embedding:
        ids = [60, 0, 7, 60, 13, 0]
        rows_SD = embedding.rows(ids)
        assert rows_SD.dtype == matrix.dtype
        assert torch.equal(rows_SD, matrix[ids])
        kept = rows_SD.clone()
        embedding.rows([5])  # the scratch memory is used again; what was given stays
        assert torch.equal(rows_SD, kept)
        assert embedding.rows([]).shape == (0, width)


def test_a_row_costs_the_pages_that_cover_it_and_a_repeated_one_nothing(tmp_path):
    entry = write_entry(tmp_path, EMBED, 64, width=1024)  # rows of one page
    with EmbeddingRows(entry) as embedding:
        embedding.rows([3])
        first = embedding.bytes_read
        assert first == 4096
        embedding.rows([3, 3, 9, 3])
        assert embedding.bytes_read == first + 2 * 4096


@pytest.mark.parametrize("token", [-1, 61, 2**40])
def test_token_outside_the_vocabulary_is_refused(tmp_path, token):
    with (
        EmbeddingRows(write_entry(tmp_path, EMBED, 61)) as embedding,
        pytest.raises(ConfigError, match=f"token id must be in 0..60, got {token}"),
    ):
        embedding.rows([0, token])


def test_file_truncated_before_or_after_it_was_opened_is_named(tmp_path):
    entry = write_entry(tmp_path, EMBED, 61)
    with EmbeddingRows(entry) as embedding:
        os.truncate(entry.path, 4096)
        with pytest.raises(WeightsError, match=r"embed\.safetensors: 4096 bytes, had"):
            embedding.rows([0])
    with pytest.raises(WeightsError, match=r"embed\.safetensors: 4096 bytes, the manifest says"):
        EmbeddingRows(entry)


def test_closing_twice_leaks_no_file(tmp_path):
    entry = write_entry(tmp_path, EMBED, 61)
    before = open_files()
    embedding = EmbeddingRows(entry)
    embedding.rows([1, 2])
    embedding.close()
    embedding.close()
    assert open_files() == before
