# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false, disallow-untyped-decorators=false
"""What kernels of single grouped products leave to their host: the sort by expert, and the weighted sum of the slots.

Triton kernels, two for the sort and one for the sum, without a wait for the CPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 64  # routed slots that a block of the sort's kernels takes
_COLUMNS = 1024  # columns that a block of the sum takes


@triton.jit
def _count(ids, counts, sorted_ids, num_slots, num_sorted, EXPERTS: tl.constexpr, ROWS: tl.constexpr):
    """Write each block's slots for each expert, and `num_slots` (no slot) to all places of the sorted list."""
    block = tl.program_id(0)
    slot = block * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)
    mine = tl.load(ids + slot, mask=slot < num_slots, other=EXPERTS)
    tl.store(counts + block * EXPERTS + expert, tl.sum((mine[:, None] == expert[None, :]).to(tl.int32), 0))
    for start in range(block * ROWS, num_sorted, tl.num_programs(0) * ROWS):
        place = start + tl.arange(0, ROWS)
        tl.store(sorted_ids + place, tl.zeros((ROWS,), tl.int32) + num_slots, mask=place < num_sorted)


@triton.jit
def _place(
    ids,
    counts,
    sorted_ids,
    place_of,
    block_experts,
    num_padded,
    ends,
    num_slots,
    num_counts,
    max_blocks,
    EXPERTS: tl.constexpr,
    REAL_EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Put every slot at its place; block 0 also writes each tile's expert, and where each expert's rows end."""
    block = tl.program_id(0)
    expert = tl.arange(0, EXPERTS)
    step = tl.arange(0, ROWS)
    total = tl.zeros((EXPERTS,), tl.int32)
    before = tl.zeros((EXPERTS,), tl.int32)
    for first in range(0, num_counts, ROWS):
        other = first + step
        found = tl.load(
            counts + other[:, None] * EXPERTS + expert[None, :], mask=(other < num_counts)[:, None], other=0
        )
        total += tl.sum(found, 0)
        before += tl.sum(tl.where((other < block)[:, None], found, 0), 0)
    padded = (total + TILE - 1) // TILE * TILE
    end = tl.cumsum(padded, 0)
    slot = block * ROWS + step
    mine = tl.load(ids + slot, mask=slot < num_slots, other=EXPERTS)
    is_expert = (mine[:, None] == expert[None, :]).to(tl.int32)
    rank = tl.cumsum(is_expert, 0) - 1
    place = tl.sum(is_expert * (rank + (end - padded + before)[None, :]), 1)
    tl.store(sorted_ids + place, slot, mask=slot < num_slots)
    tl.store(place_of + slot, place, mask=slot < num_slots)
    if block == 0:
        tl.store(num_padded, tl.sum(padded, 0))
        tl.store(ends + expert + 1, end.to(tl.int64), mask=expert < REAL_EXPERTS)
        for first in range(0, max_blocks, ROWS):
            tile = first + step
            owner = tl.sum((tile[:, None] * TILE >= end[None, :]).to(tl.int32), 1)
            tl.store(block_experts + tile, owner, mask=(tile < max_blocks) & (owner < REAL_EXPERTS))


@triton.jit
def _sum(rows, place_of, weights, y, hidden, SLOTS: tl.constexpr, IS_SORTED: tl.constexpr, COLUMNS: tl.constexpr):
    """Write y = sum of weight x row over a token's slots, in FP32."""
    token = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for slot in tl.static_range(SLOTS):
        row = token * SLOTS + slot
        if IS_SORTED:
            row = tl.load(place_of + row)
        value = tl.load(rows + row.to(tl.int64) * hidden + column, mask=column < hidden, other=0.0)
        total += tl.load(weights + token * SLOTS + slot) * value.to(tl.float32)
    tl.store(y + token.to(tl.int64) * hidden + column, total.to(tl.bfloat16), mask=column < hidden)


class ExpertSort:
    """Slots sorted by expert, each expert's rows padded to whole tiles (tile 1: not padded); buffers are reused.

    Attributes, after a call: sorted_ids int32 (a slot, or num_slots where padded), block_experts int32 a tile,
    place_of int32 [T, K] (where each slot went), num_padded int32 [1], ends int64 [E + 1] (0, then where each expert's
    rows end).
    """

    def __init__(self, num_tokens: int, num_topk: int, num_experts: int, tile: int, device: Any) -> None:
        """Allocate for calls of `num_tokens` tokens."""
        self._num_slots, self._num_experts, self._tile = num_tokens * num_topk, num_experts, tile
        self._experts = triton.next_power_of_2(max(2, num_experts))
        self._num_counts = triton.cdiv(self._num_slots, _ROWS)
        most = self._num_slots + min(num_experts, self._num_slots) * (tile - 1)
        self._max_blocks = triton.cdiv(most, tile)

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._counts = zeros(self._num_counts * self._experts)
        self.sorted_ids = zeros(self._max_blocks * tile)
        self.block_experts = zeros(self._max_blocks)
        self.place_of = zeros(num_tokens, num_topk)
        self.num_padded = zeros(1)
        self.ends = zeros(num_experts + 1, dtype=torch.int64)

    def __call__(self, topk_idx: Tensor) -> None:
        """Sort int32 [T, K] without -1."""
        grid = (self._num_counts,)
        _count[grid](
            topk_idx, self._counts, self.sorted_ids, self._num_slots, self.sorted_ids.numel(), self._experts, _ROWS
        )
        _place[grid](
            topk_idx,
            self._counts,
            self.sorted_ids,
            self.place_of,
            self.block_experts,
            self.num_padded,
            self.ends,
            self._num_slots,
            self._num_counts,
            self._max_blocks if self._tile > 1 else 0,
            self._experts,
            self._num_experts,
            _ROWS,
            self._tile,
        )


def weighted_sum(rows: Tensor, place_of: Tensor | None, weights: Tensor, y: Tensor) -> None:
    """Write y [T, H] from rows [T * K, H], in slot order or where `place_of` says, and weights [T, K]."""
    num_tokens, num_topk = weights.shape
    hidden = y.shape[1]
    _sum[(num_tokens, triton.cdiv(hidden, _COLUMNS))](
        rows, weights if place_of is None else place_of, weights, y, hidden, num_topk, place_of is not None, _COLUMNS
    )
