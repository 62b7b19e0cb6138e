from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.galaxy.tiles import last_owner, make_tiles, splits_rows
from tests.baselines.galaxy.traffic import traffic
from tests.weights.shard_folders import small_config
from tpi.weights.shard import make_shard_plan

MODEL = small_config(num_heads=8, num_kv_heads=4, ffn_size=40)


def plan(*weights):
    return make_shard_plan(MODEL, len(weights), weights)


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0, 0.01, 0.2, 1, 5]), min_size=2, max_size=9).filter(any),
    num_rows=st.integers(1, 40),
)
def test_every_row_has_one_owner_who_can_norm_it(weights, num_rows):
    shares = plan(*weights)
    tiles = make_tiles(shares, num_rows)
    assert [row for tile in tiles for row in range(*tile)] == list(range(num_rows))
    for (start, stop), share in zip(tiles, shares.shares, strict=True):
        assert start == stop or (share.local_num_heads and share.local_ffn_size)
    sizes = [b - a for a, b in tiles if b > a]
    assert max(sizes) - min(sizes) <= 1
    owner = last_owner(tiles)
    assert num_rows - 1 in range(*tiles[owner])
    assert splits_rows(shares, num_rows) == (num_rows >= len(weights))


def test_even_shares_send_what_galaxy_promises():
    """A prefill: 2 L reduce-scatters and 2 L - 1 all-gathers of N - 1 tiles of S / N rows."""
    world_size, rows, layers, width = 4, 64, 3, 16
    sent = [traffic(plan(1, 1, 1, 1), rank, rows, layers, width) for rank in range(world_size)]
    turns = (4 * layers - 1) * (world_size - 1)
    tile = 80 + 4 * width * rows // world_size
    assert sent[1] == sent[2] == (turns, turns * tile)
    assert sent[0] == (turns + 3, turns * tile + 3 * (80 + 4 * width * rows))  # the broadcast
    assert sent[3] == (turns + 1, turns * tile + 80 + 4 * width)  # the last position


def test_a_decoded_token_goes_round_by_width():
    """2 L - 1 ring allreduces of 2 (N - 1) pieces, one reduce, one broadcast."""
    layers, width = 3, 16
    ring = (2 * layers - 1) * 6
    piece = 80 + 4 * width // 4
    assert traffic(plan(1, 1, 1, 1), 2, 1, layers, width) == (
        ring + 1, ring * piece + 80 + 4 * width
    )  # fmt: skip
    assert traffic(plan(1, 1, 1, 1), 0, 1, layers, width) == (
        ring + 3, ring * piece + 3 * (80 + 4 * width)
    )  # fmt: skip


def test_a_rank_without_rows_sends_only_what_it_hands_on():
    layers, width, rows = 2, 16, 8
    shares = plan(1, 0, 1)
    tiles = make_tiles(shares, rows)
    assert tiles == ((0, 4), (4, 4), (4, 8))
    messages, num_bytes = traffic(shares, 1, rows, layers, width)
    # Of the tiles 1, 0 it gathers 0 only; of the tiles 0, 2 it sums both.
    assert messages == (2 * layers - 1) + 2 * 2 * layers
    assert num_bytes == messages * (80 + 4 * width * 4)


def test_one_device_sends_nothing():
    assert traffic(plan(1), 0, 9, 2, 16) == (0, 0)
    assert not splits_rows(plan(1), 9)
