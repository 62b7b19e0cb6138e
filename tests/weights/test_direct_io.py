import errno
import os
import resource
import time
from pathlib import Path

import pytest

from tests.weights.blocks import open_files, write_entry
from tpi.errors import ResourceError, WeightsError
from tpi.weights.arena import Arena
from tpi.weights.direct_io import DirectFile, FileReader, read_rate_bps
from tpi.weights.shard import BlockId

PAGE = 4096


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(os.urandom(5 * PAGE))
    return path


@pytest.fixture
def arena():
    with_pages = Arena(8 * PAGE)
    yield with_pages
    with_pages.close()


def test_direct_file_reads_what_the_file_holds_in_several_requests(data_file, arena):
    with DirectFile(data_file, request_bytes=2 * PAGE) as file:
        into = arena.view(0, 5 * PAGE)
        file.read_into(into)
        assert bytes(into) == data_file.read_bytes()
        file.read_into(arena.view(PAGE, PAGE), offset=3 * PAGE)
        assert bytes(arena.view(PAGE, PAGE)) == data_file.read_bytes()[3 * PAGE : 4 * PAGE]
        assert file.bytes_read == 6 * PAGE


def test_direct_file_past_the_end_names_file_and_byte(data_file, arena):
    with (
        DirectFile(data_file) as file,
        pytest.raises(WeightsError, match=r"data\.bin: truncated: ends at byte 20480, expected 2"),
    ):
        file.read_into(arena.view(0, 6 * PAGE))


def test_direct_file_cut_at_an_odd_byte_is_truncated(data_file, arena):
    os.truncate(data_file, 2 * PAGE + 100)
    with (
        DirectFile(data_file) as file,
        pytest.raises(WeightsError, match="truncated: ends at byte 8292, expected 20480"),
    ):
        file.read_into(arena.view(0, 5 * PAGE))


@pytest.mark.parametrize("when", ["open", "read"])
def test_file_system_without_o_direct_is_read_through_the_cache_with_a_note(
    data_file, arena, monkeypatch, when
):
    real_open, real_preadv = os.open, os.preadv
    refused: list[int] = []

    def open_(path, flags, *rest):
        if when == "open" and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, *rest)

    def preadv(fd, buffers, offset):
        if when == "read" and not refused:
            refused.append(fd)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "preadv", preadv)
    with DirectFile(data_file) as file:
        into = arena.view(0, 5 * PAGE)
        file.read_into(into)
        assert bytes(into) == data_file.read_bytes()
        assert not file.direct_io
        assert file.note == (
            f"O_DIRECT refused by the file system of {data_file.parent}: "
            "reads go through the page cache"
        )


def test_disk_error_is_a_weights_error_with_the_file(data_file, arena, monkeypatch):
    def preadv(fd, buffers, offset):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", preadv)
    with (
        DirectFile(data_file) as file,
        pytest.raises(WeightsError, match=r"cannot read .*data\.bin: .*Input/output error"),
    ):
        file.read_into(arena.view(0, PAGE))


def test_missing_file_symlink_fifo_and_folder_are_refused_without_blocking(tmp_path, data_file):
    (tmp_path / "link").symlink_to(data_file)
    os.mkfifo(tmp_path / "fifo")
    for name in ("nothing", "link", "fifo", "."):
        with pytest.raises(WeightsError, match=name if name != "." else "regular|directory"):
            DirectFile(tmp_path / name)


def change_nothing(path: Path) -> None:
    os.link(path, path.with_suffix(".more"))


def delete(path):
    path.unlink()


def replace(path):
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").rename(path)


def truncate(path):
    os.truncate(path, PAGE)


def write(path):
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (delete, r"gone while in use: .*data\.bin"),
        (replace, r"data\.bin: replaced by another file"),
        (truncate, r"data\.bin: 4096 bytes, had 20480"),
        (write, r"data\.bin: written to"),
    ],
)
def test_file_changed_while_open_is_noticed(data_file, change, message):
    with DirectFile(data_file) as file:
        change_nothing(data_file)
        file.check_unchanged()
        change(data_file)
        with pytest.raises(WeightsError, match=message):
            file.check_unchanged()


def test_file_reader_fills_the_buffer_and_closes_its_files(tmp_path):
    entries = [write_entry(tmp_path, BlockId("ffn", i), 40) for i in range(3)]
    before = open_files()
    reader = FileReader(entries)
    arena = Arena(entries[0].num_bytes)
    reader.read(entries[1], arena.view(0, entries[1].num_bytes))
    assert bytes(arena.view(0, entries[1].num_bytes)) == entries[1].path.read_bytes()
    assert len(reader.notes) <= 1
    reader.close()
    reader.close()
    arena.close()
    assert open_files() == before


def test_file_reader_refuses_another_length_than_the_manifest_and_leaks_nothing(tmp_path):
    entries = [write_entry(tmp_path, BlockId("ffn", i), 40) for i in range(3)]
    os.truncate(entries[2].path, PAGE)
    before = open_files()
    with pytest.raises(WeightsError, match=r"ffn-002\.safetensors: 4096 bytes, the manifest says"):
        FileReader(entries)
    assert open_files() == before


def test_file_reader_with_more_files_than_the_process_may_open_says_so(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 128))
    with pytest.raises(ResourceError, match="256 files would be open at once, the limit is 128"):
        FileReader([])


def test_read_rate_is_that_of_all_files(tmp_path, data_file, monkeypatch):
    other = tmp_path / "other.bin"
    other.write_bytes(bytes(3 * PAGE + 17))  # what follows the last page is left out
    for span in (0, 4 * PAGE, 7 * PAGE):
        clock = iter([1_000_000_000, 3_000_000_000])
        monkeypatch.setattr(time, "monotonic_ns", lambda clock=clock: next(clock))
        rate = read_rate_bps([data_file, other], request_bytes=2 * PAGE, span_bytes=span)
        assert rate == 8 * PAGE / 2
