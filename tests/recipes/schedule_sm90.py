"""The Hopper kernel's tile order in plain Python, a twin of templates/mega_moe/scheduler_sm90.cuh."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """What a block does at a time: weight rows times tokens of one expert."""

    is_l2: bool
    expert: int
    m_tile: int
    token_tile: int
    num_rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """The order of a call: rows of each expert, tiles of weight rows in each layer, and the grid.

    `l2_tiles_per_l1` is how many L2 tiles take the time of one L1 tile.
    """

    rows: Sequence[int]
    block_n: int
    l1_m_tiles: int
    l2_m_tiles: int
    num_blocks: int
    l2_tiles_per_l1: int = 1

    def layer(self, *, is_l2: bool) -> list[Tile]:
        """Return a layer's tiles: expert by expert, weight rows outside, tokens inside.

        Which token tile comes first changes whenever the grid's rounds have brought blocks back to where they began: a
        block could always meet the same otherwise.
        """
        tiles: list[Tile] = []
        first = 0
        for expert, count in enumerate(self.rows):
            num = -(-count // self.block_n)
            cycle = num // math.gcd(num, self.num_blocks) or 1
            for m_tile in range(self.l2_m_tiles if is_l2 else self.l1_m_tiles):
                around = len(tiles) // self.num_blocks // cycle  # of the first of these
                for place in range(num):
                    n = (place + around) % num
                    num_rows = min(self.block_n, count - n * self.block_n)
                    tiles.append(
                        Tile(is_l2=is_l2, expert=expert, m_tile=m_tile, token_tile=first + n, num_rows=num_rows)
                    )
            first += num
        return tiles

    def of_block(self, block: int) -> Iterator[Tile]:
        """Yield the tiles of a block.

        Of L1 it takes every num_blocks-th. In L1's last of several rounds, blocks without a tile take the first L2
        tiles, as many as they have time for. The other L2 tiles go around again, beginning with the block that comes
        next where no block was idle for L2.
        """
        l1, l2 = self.layer(is_l2=False), self.layer(is_l2=True)
        yield from l1[block :: self.num_blocks]
        busy = len(l1) % self.num_blocks
        idle = self.num_blocks - busy if busy and len(l1) > self.num_blocks else 0
        early = idle * self.l2_tiles_per_l1
        if idle and block >= busy:
            yield from l2[:early][block - busy :: idle]
        place = block if idle else (block - busy) % self.num_blocks
        yield from l2[early:][place :: self.num_blocks]
