import os
import threading

import pytest
import torch

from tests.weights.blocks import GatedReader, content, make_entry, open_files, write_entry
from tpi.errors import ConfigError, PeerLostError, WeightsError
from tpi.trace import Tracer
from tpi.weights.blockfile import BlockEntry
from tpi.weights.shard import BlockId
from tpi.weights.window import Window, WindowState

ROWS = {"attn": 20, "ffn": 50, "head": 18}


def cycle(num_layers: int, num_tiles: int = 0) -> list[BlockId]:
    layers = [BlockId(kind, i) for i in range(num_layers) for kind in ("attn", "ffn")]
    return [*layers, *(BlockId("head", i) for i in range(num_tiles))]


@pytest.fixture
def files(tmp_path):
    return [write_entry(tmp_path, b, ROWS[b.kind]) for b in cycle(3, 3)]


@pytest.fixture
def entries(tmp_path):
    """Blocks without files, for a reader that stands in for them."""
    return [make_entry(tmp_path, b, 16) for b in cycle(3)]


def take(window: Window, entry: BlockEntry) -> torch.Tensor:
    with window.hold(entry.id) as tensors:
        return tensors["weight"].clone()


def take_all(window: Window, entries: list[BlockEntry]) -> None:
    for entry in entries:
        take(window, entry)


@pytest.mark.parametrize("kept", [(), (1,), (0, 4, 8)])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, None])
def test_hold_lends_each_block_its_own_weights_cycle_after_cycle(files, size, kept):
    retained = frozenset(files[i].id for i in kept)
    with Window(files, window=size, retained=retained).start() as window:
        for _ in range(4):
            for entry in files:
                expected = content(entry.id, ROWS[entry.id.kind])
                assert torch.equal(take(window, entry), expected), entry.id


def test_streamed_bytes_are_those_of_the_blocks_taken_and_of_no_other(files):
    retained = frozenset({files[1].id, files[6].id})
    with Window(files, window=2, retained=retained).start() as window:
        assert window.retained_bytes == files[1].num_bytes + files[6].num_bytes
        for entry in files * 2:
            take(window, entry)
        take(window, files[0])
        streamed = sum(f.num_bytes for f in files if f.id not in retained)
        assert window.streamed_bytes == 2 * streamed + files[0].num_bytes


@pytest.mark.parametrize("size", [None, 9, 40])
def test_resident_window_streams_nothing_and_has_no_thread(files, size):
    before = threading.active_count()
    with Window(files, window=size).start() as window:
        for path in {f.path for f in files}:
            path.unlink()  # nothing is read any more
        for entry in files * 2:
            take(window, entry)
        assert window.streamed_bytes == 0
        assert window.arena_bytes == sum(f.num_bytes for f in files)
        assert threading.active_count() == before


def test_arena_is_the_largest_two_neighbours(files):
    with Window(files, window=2).start() as window:
        assert window.arena_bytes == files[0].num_bytes + files[1].num_bytes


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_loader_is_given_position_i_only_once_i_minus_window_is_released(depth):
    slots = WindowState(depth)
    for position in range(depth):
        assert slots.next_to_load() == position
        slots.set_loaded(position)
    got = []
    waiter = threading.Thread(target=lambda: got.append(slots.next_to_load()))
    waiter.start()
    slots.release_below(1)
    waiter.join(10)
    assert got == [depth]
    slots.set_loaded(depth)
    slots.close()  # without a second release there was nothing more to load
    assert slots.next_to_load() is None


def test_loader_starts_a_block_while_the_one_before_is_computed(entries):
    reader = GatedReader()
    with Window(entries, window=2, reader=reader).start() as window:
        reader.let_go(1)
        with window.hold(entries[0].id):
            reader.wait_started(2)
        reader.let_go(1)
        with window.hold(entries[1].id):
            reader.wait_started(3)  # the space of block 0 came free when its body ended
            assert reader.started == [e.id for e in entries[:3]]
        reader.open_gate()


def test_window_of_one_loads_the_next_block_after_the_last_was_released(entries):
    reader = GatedReader(open_gate=True)
    log = []
    with Window(entries, window=1, reader=reader).start() as window:
        for i, entry in enumerate(entries * 2):
            with window.hold(entry.id):
                log.append(len(reader.started) == i + 1)
    assert all(log)


def test_released_space_is_nan_in_poison_mode(entries):
    reader = GatedReader()
    with Window(entries, window=2, poison=True, reader=reader).start() as window:
        reader.let_go(1)
        with window.hold(entries[0].id) as tensors:
            weight = tensors["weight"]
            assert not weight.isnan().any()
        assert weight.isnan().all()
        reader.open_gate()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_poison_is_nan_in_sixteen_bits_too(tmp_path, dtype):
    entries = [make_entry(tmp_path, b, 16, dtype=dtype) for b in cycle(2)]
    reader = GatedReader()
    with Window(entries, window=2, poison=True, reader=reader).start() as window:
        reader.let_go(1)
        with window.hold(entries[0].id) as tensors:
            weight = tensors["weight"]
        assert weight.isnan().all()
        reader.open_gate()


def test_block_out_of_order_is_refused_by_name(entries):
    with (
        Window(entries, window=2, reader=GatedReader(open_gate=True)).start() as window,
        pytest.raises(
            WeightsError,
            match=r"ffn-000\.safetensors asked for, attn-000\.safetensors is next",
        ),
    ):
        take(window, entries[1])


def test_two_blocks_at_once_are_refused(entries):
    with (
        Window(entries, window=4, reader=GatedReader(open_gate=True)).start() as window,
        window.hold(entries[0].id),
        pytest.raises(WeightsError, match="another is held"),
    ):
        take(window, entries[0])


def test_body_that_raises_gives_its_block_back(entries):
    reader = GatedReader(open_gate=True)
    with Window(entries, window=1, reader=reader).start() as window:
        with pytest.raises(KeyError), window.hold(entries[0].id):
            raise KeyError
        take(window, entries[1])


def test_skip_to_start_passes_over_the_rest_of_the_cycle(files):
    retained = frozenset({files[1].id})
    for upto in range(len(files) + 1):
        with Window(files, window=2, retained=retained).start() as window:
            for cycles in range(3):
                for entry in files[:upto]:
                    expected = content(entry.id, ROWS[entry.id.kind])
                    assert torch.equal(take(window, entry), expected), (upto, cycles)
                window.skip_to_start()
            streamed = sum(f.num_bytes for f in files[:upto] if f.id not in retained)
            assert window.streamed_bytes == 3 * streamed


def test_skip_to_start_while_the_loader_is_in_a_skipped_block(entries):
    reader = GatedReader()
    with Window(entries, window=2, reader=reader).start() as window:
        reader.let_go(1)
        take(window, entries[0])
        reader.wait_started(2)
        window.skip_to_start()
        reader.open_gate()
        take(window, entries[0])
        assert reader.started[:3] == [entries[0].id, entries[1].id, entries[0].id]


def test_skip_to_start_with_a_block_in_use_is_refused(entries):
    with (
        Window(entries, window=2, reader=GatedReader(open_gate=True)).start() as window,
        window.hold(entries[0].id),
        pytest.raises(WeightsError, match="still held"),
    ):
        window.skip_to_start()


def test_loader_error_reaches_hold_as_it_was_after_the_good_blocks(entries):
    reader = GatedReader(open_gate=True)
    reader.errors[entries[1].id] = error = WeightsError("ffn-000: Input/output error")
    with Window(entries, window=3, reader=reader).start() as window:
        take(window, entries[0])
        for _ in range(2):
            with pytest.raises(WeightsError) as caught:
                take(window, entries[1])
            assert caught.value is error


def test_loader_that_fails_in_an_unforeseen_way_reaches_hold_too(entries):
    reader = GatedReader(open_gate=True)
    reader.errors[entries[0].id] = ZeroDivisionError("oh")
    with (
        Window(entries, window=2, reader=reader).start() as window,
        pytest.raises(WeightsError, match="loader failed: ZeroDivisionError: oh"),
    ):
        take(window, entries[0])


def cut(path):
    os.truncate(path, 4096)


def delete(path):
    path.unlink()


def replace(path):
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").rename(path)


@pytest.mark.parametrize(
    ("change", "message"), [(cut, "4096 bytes, had"), (delete, "gone"), (replace, "replaced")]
)
def test_file_changed_while_streaming_is_named(files, change, message):
    with Window(files, window=2).start() as window:
        for entry in files:
            take(window, entry)
        change(files[4].path)
        with pytest.raises(WeightsError, match=message) as caught:
            take_all(window, files * 2)
        assert "attn-002.safetensors" in str(caught.value)


@pytest.mark.parametrize("size", [2, None])
def test_file_missing_at_the_start_is_named_and_leaks_nothing(files, size):
    files[3].path.unlink()
    before = open_files()
    with (
        pytest.raises(WeightsError, match=r"ffn-001\.safetensors.*No such file"),
        Window(files, window=size),
    ):
        pass
    assert open_files() == before


def test_resident_block_that_cannot_be_read_closes_the_window(files):
    before = open_files()
    window = Window(files, window=None)
    delete(files[3].path)
    with pytest.raises(WeightsError, match=r"ffn-001\.safetensors"):
        window.start()
    assert open_files() == before


def test_waiting_calls_on_wait_and_raises_what_it_raises(entries):
    reader = GatedReader()
    calls = []

    def on_wait(loaded_bytes):
        calls.append(1)
        raise PeerLostError("rank 1 has gone")

    tracer = Tracer()
    with Window(entries, window=2, reader=reader, on_wait=on_wait, tracer=tracer).start() as window:
        with pytest.raises(PeerLostError, match="rank 1 has gone"):
            take(window, entries[0])
        assert calls == [1]
        assert tracer.totals_ns["wait_weights"] > 0
        reader.open_gate()
        take(window, entries[0])  # a wait that was broken off can be taken up again


def test_close_ends_the_thread_that_waits_for_room(entries):
    reader = GatedReader(open_gate=True)
    before = threading.active_count()
    window = Window(entries, window=2, reader=reader)
    window.start()
    take(window, entries[0])
    window.close()
    window.close()
    assert threading.active_count() == before
    assert reader.closed >= 1


def test_close_ends_a_hold_that_waits_in_another_thread(entries):
    reader = GatedReader()
    waiting, caught = threading.Event(), []
    window = Window(entries, window=2, reader=reader, on_wait=lambda _bytes: waiting.set())
    window.start()

    def wait():
        with pytest.raises(WeightsError) as error:
            take(window, entries[0])
        caught.append(str(error.value))

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(10)
    closer = threading.Thread(target=window.close)  # joins the loader, which is in a read
    closer.start()
    thread.join(10)
    assert caught == ["the window was closed while a block was awaited"]
    reader.open_gate()
    closer.join(10)
    assert not closer.is_alive()


def test_window_that_is_not_open_is_refused(entries):
    window = Window(entries, window=2, reader=GatedReader(open_gate=True))
    with pytest.raises(WeightsError, match="not open"):
        take(window, entries[0])
    window.start()
    window.close()
    with pytest.raises(WeightsError, match="not open"):
        take(window, entries[0])


def test_opening_and_closing_leaks_neither_files_nor_threads(files):
    before = open_files(), threading.active_count()
    for _ in range(20):
        with Window(files, window=2).start() as window:
            take(window, files[0])
    assert (open_files(), threading.active_count()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be >= 1 or all, got 0"),
        ({"window": 2, "retained": frozenset({BlockId("ffn", 77)})}, "ffn-077"),
    ],
)
def test_impossible_options_are_config_errors(entries, options, message):
    with pytest.raises(ConfigError, match=message):
        Window(entries, reader=GatedReader(), **options)


def test_notes_of_the_reader_are_passed_on(entries):
    reader = GatedReader(open_gate=True)
    reader.notes = ("through the page cache",)
    with Window(entries, window=2, reader=reader).start() as window:
        assert window.notes == ("through the page cache",)
