"""The tile order of the Hopper kernel: every tile once, and nothing that a block waits for comes after its wait."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megamoe_jit import Problem, get_arch, get_recipe
from megamoe_jit.recipes.sm90 import config_for_tile
from tests.recipes.schedule_sm90 import Order, Tile

orders = st.builds(
    Order,
    rows=st.lists(st.sampled_from([0, 0, 1, 7, 8, 9, 40]), min_size=1, max_size=6),
    block_n=st.sampled_from([8, 16]),
    l1_m_tiles=st.integers(1, 5),
    l2_m_tiles=st.integers(1, 5),
    num_blocks=st.integers(1, 40),
    l2_tiles_per_l1=st.integers(1, 4),
)


def blocks(order: Order) -> list[list[Tile]]:
    """Return each block's tiles."""
    return [list(order.of_block(block)) for block in range(order.num_blocks)]


def check(order: Order) -> None:
    """Assert that each tile is one block's, that L1 comes first in each, and that rows and tiles are all there."""
    walks = blocks(order)
    l1, l2 = order.layer(is_l2=False), order.layer(is_l2=True)
    assert Counter(itertools.chain(*walks)) == Counter([*l1, *l2])
    for walk in walks:
        kinds = [tile.is_l2 for tile in walk]
        assert kinds == sorted(kinds)
        for is_l2 in (False, True):  # the kernel looks for a tile's expert from the last one's on
            experts = [tile.expert for tile in walk if tile.is_l2 == is_l2]
            assert experts == sorted(experts)
    assert sum(tile.num_rows for tile in l1) == sum(order.rows) * order.l1_m_tiles
    assert len({(tile.m_tile, tile.token_tile) for tile in l2}) == len(l2)
    counts = [len(walk) for walk in walks]
    l1_counts = [sum(not tile.is_l2 for tile in walk) for walk in walks]
    assert max(l1_counts) - min(l1_counts) <= 1
    # A block that takes L2 tiles early does so for one L1 tile that others have and it has not.
    assert max(counts) - min(counts) <= 1 + order.l2_tiles_per_l1


@given(orders)
def test_every_tile_is_visited_once_and_l1_comes_first(order: Order) -> None:
    check(order)


@pytest.mark.parametrize("l2_tiles_per_l1", [1, 2, 5])
def test_whatever_the_number_of_tiles_and_blocks(l2_tiles_per_l1: int) -> None:
    """All small numbers: no round, full rounds, one tile too few, one too many."""
    for num_tiles, l1, l2, num_blocks in itertools.product(range(8), (1, 2, 3), (1, 2, 4), range(1, 10)):
        order = Order(
            rows=[8 * num_tiles],
            block_n=8,
            l1_m_tiles=l1,
            l2_m_tiles=l2,
            num_blocks=num_blocks,
            l2_tiles_per_l1=l2_tiles_per_l1,
        )
        check(order)


def test_idle_blocks_start_on_l2() -> None:
    """Seven L1 tiles on four blocks: block 3 has one less, and takes two L2 tiles before the others come to L2."""
    order = Order(rows=[8] * 7, block_n=8, l1_m_tiles=1, l2_m_tiles=1, num_blocks=4, l2_tiles_per_l1=2)
    walks = [[tile.expert for tile in walk if tile.is_l2] for walk in blocks(order)]
    assert walks == [[2, 6], [3], [4], [0, 1, 5]]
    # In the only round nothing of L1 is done: L2 goes around from the block without an L1 tile on.
    one_round = replace(order, rows=[8] * 3)
    assert [[tile.expert for tile in walk if tile.is_l2] for walk in blocks(one_round)] == [[1], [2], [], [0]]


@given(orders)
def test_what_idle_blocks_begin_with_is_what_was_finished_first(order: Order) -> None:
    """Early L2 tiles are the first of all, so that the L1 tiles they wait for are those that were started first."""
    l1, l2 = order.layer(is_l2=False), order.layer(is_l2=True)
    busy = len(l1) % order.num_blocks
    if len(l1) <= order.num_blocks or not busy:
        return
    num_early = min((order.num_blocks - busy) * order.l2_tiles_per_l1, len(l2))
    early = set(l2[:num_early])
    for block, walk in enumerate(blocks(order)):
        mine = [tile for tile in walk if tile.is_l2]
        assert not (block < busy and early & set(mine))
        first_late = next((at for at, tile in enumerate(mine) if tile not in early), len(mine))
        assert not early & set(mine[first_late:])


@pytest.mark.parametrize("num_blocks", [2, 4, 16, 78, 114, 132])
def test_no_block_gets_only_the_full_tiles_of_experts_with_two(num_blocks: int) -> None:
    """An even number of blocks would keep every block at one of an expert's two tiles, the full or the other."""
    order = Order(rows=[9] * 32, block_n=8, l1_m_tiles=16, l2_m_tiles=16, num_blocks=num_blocks, l2_tiles_per_l1=2)
    walks = blocks(order)
    for is_l2 in (False, True):
        full = [sum(tile.num_rows == 8 for tile in walk if tile.is_l2 == is_l2) for walk in walks]
        others = [sum(tile.num_rows == 1 for tile in walk if tile.is_l2 == is_l2) for walk in walks]
        assert all(full)
        assert all(others)
        assert sum(full) == sum(others) == 32 * 16
        # As even as whole rounds allow, and idle blocks take up to two tiles of L2 more for one of L1.
        assert max(full) - min(full) <= (3 if is_l2 else 1)


@pytest.mark.parametrize(
    ("hidden", "intermediate", "wanted"),
    [(4096, 2048, 2), (2048, 4096, 1), (7168, 2048, 4), (2880, 2880, 1), (1024, 2048, 1), (6144, 2560, 2)],
)
def test_an_l1_tile_takes_the_time_of_its_k(hidden: int, intermediate: int, wanted: int) -> None:
    problem = Problem(hidden=hidden, intermediate=intermediate, num_experts=8, num_topk=2, max_tokens_per_rank=64)
    constants = config_for_tile(problem, get_recipe("fp8_nvfp4"), get_arch("sm_90a"), 8).constants()
    assert constants["l2_tiles_per_l1"] == wanted
