"""The Hopper kernel's schedule and tile order, run in the emulator from its templates and held to plain Python."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from megamoe_jit import Problem
from megamoe_jit.emulator import Emulator, Module
from megamoe_jit.jit.compile import CompileOptions, compile_source
from megamoe_jit.jit.render import render
from megamoe_jit.recipes.sm90 import Sm90Config
from tests.emulator.cuda_source import object_cache
from tests.recipes.schedule_sm90 import Order, Tile
from tests.templates.sm90_kernels import config

MOST_TILES = 1024
KERNEL = """
#include "mega_moe/roles/build_schedule_sm90.cuh"
#include "mega_moe/scheduler_sm90.cuh"

// What a block makes of the routing: its schedule, and the tiles that it visits.
extern "C" __global__ void __launch_bounds__(config::kNumThreads, 1)
    mega_moe_sm90(const void* topk_idx, uint32_t topk_idx_bytes, uint32_t num_tokens, int32_t* stats, uint32_t* rows,
                  uint32_t* next, uint32_t* tile_begin, uint32_t* num_visits, uint32_t* visits) {
    __shared__ mega_moe::Schedule schedule;
    __shared__ mega_moe::OwnTokens own;
    mega_moe::Params params = {};
    params.topk_idx = static_cast<const uint8_t*>(topk_idx), params.topk_idx_bytes = topk_idx_bytes;
    params.num_tokens = num_tokens, params.recv_stats = stats;
    const roles::Share share(num_tokens);
    roles::clear_schedule(schedule, own);
    __syncthreads();
    roles::build_schedule(params, schedule, own, roles::count_slots(params, share));
    constexpr uint32_t kExperts = config::kNumLocalExperts;
    for (uint32_t e = threadIdx.x; e <= kExperts; e += config::kNumThreads) {
        tile_begin[blockIdx.x * (kExperts + 1) + e] = schedule.tile_begin[e];
        if (e == kExperts) break;
        rows[blockIdx.x * kExperts + e] = schedule.rows[e], next[blockIdx.x * kExperts + e] = own.next[e];
    }
    if (threadIdx.x != 0) return;
    uint32_t n = 0;
    uint32_t l1_expert = 0, l2_expert = 0;
    const mega_moe::Scheduler scheduler{schedule};
    scheduler.for_each_tile([&](bool is_l2, uint32_t i) {
        const mega_moe::Tile tile =
            is_l2 ? scheduler.tile_at<true>(i, l2_expert) : scheduler.tile_at<false>(i, l1_expert);
        uint32_t* out = visits + (blockIdx.x * MOST_TILES + n++) * 7;
        out[0] = is_l2, out[1] = tile.expert, out[2] = tile.m_tile, out[3] = tile.token_tile;
        out[4] = tile.num_rows, out[5] = tile.pool_row, out[6] = tile.width;
    });
    num_visits[blockIdx.x] = n;
}
""".replace("MOST_TILES", str(MOST_TILES))


@functools.cache
def kernel(num_experts: int, num_topk: int, block_n: int) -> tuple[Sm90Config, Module]:
    """Return the kernel for a number of experts: L1 has three tiles of weight rows an expert, L2 one."""
    problem = Problem(hidden=256, intermediate=384, num_experts=num_experts, num_topk=num_topk, max_tokens_per_rank=64)
    built = config(problem, "fp8_nvfp4", block_n)
    source = replace(render(built), main=KERNEL)
    artifact = compile_source(source, built.arch, CompileOptions(), kernel_name=built.kernel_name)
    return built, Emulator(cache_dir=object_cache()).load(artifact.ptx)


def build_schedule(
    topk_idx: torch.Tensor, num_experts: int, num_blocks: int, block_n: int = 8
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[list[tuple[int, ...]]]]:
    """Return rows and next [blocks, experts], statistics [experts] and each block's visits, checking tile_begin."""
    num_tokens, num_topk = topk_idx.shape
    built, module = kernel(num_experts, num_topk, block_n)
    rows, following = (torch.full((num_blocks, num_experts), -1, dtype=torch.int32) for _ in range(2))
    tile_begin = torch.full((num_blocks, num_experts + 1), -1, dtype=torch.int32)
    stats = torch.ones(num_experts, dtype=torch.int32)
    num_visits = torch.full((num_blocks,), -1, dtype=torch.int32)
    visits = torch.full((num_blocks, MOST_TILES, 7), -1, dtype=torch.int32)
    outputs = (stats, rows, following, tile_begin, num_visits, visits)
    args = (topk_idx, topk_idx.element_size(), num_tokens, *outputs)
    module.launch(built.kernel_name, num_blocks, built.num_threads, args=args)
    for counts, begin in zip(rows, tile_begin, strict=True):
        tiles = torch.cat((torch.zeros(1, dtype=torch.int64), ((counts + block_n - 1) // block_n).cumsum(0)))
        assert torch.equal(begin.long(), tiles)
    walks = [
        [tuple(visit) for visit in walk[:count].tolist()]
        for walk, count in zip(visits, num_visits.tolist(), strict=True)
    ]
    return rows, following, stats, walks


def counted(topk_idx: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Return how many slots chose each expert; what is no expert is nobody's."""
    return torch.tensor([int((topk_idx == expert).sum()) for expert in range(num_experts)], dtype=torch.int32)


@pytest.mark.parametrize("num_experts", [1, 31, 32, 33, 65, 384])
def test_every_block_counts_every_expert(num_experts: int) -> None:
    """Rows are those of all slots; `next` counts the slots before a block's own tokens, of several warps and rounds.

    Block 1's first slot is inside a warp's 32; among the indices are some that are no expert.
    """
    num_topk, num_blocks, num_tokens = min(num_experts, 3), 3, 50
    generator = torch.Generator().manual_seed(num_experts)
    topk_idx = torch.randint(-1, num_experts + 1, (num_tokens, num_topk), generator=generator)
    topk_idx[0, 0], topk_idx[-1, -1] = 0, num_experts - 1
    rows, following, stats, _ = build_schedule(topk_idx, num_experts, num_blocks, block_n=64)
    assert torch.equal(rows, counted(topk_idx, num_experts).expand_as(rows))
    assert torch.equal(stats, 1 + rows[0])  # added once, not by every block
    share = -(-num_tokens // num_blocks)
    assert share * num_topk % 32
    for block in range(num_blocks):
        assert torch.equal(following[block], counted(topk_idx[: block * share], num_experts)), block


def test_indices_of_both_widths_that_are_no_expert_count_nowhere() -> None:
    """2^32 + 1 is not expert 1, and what 32 bits can hold is seen as it is."""
    nowhere = torch.tensor([-1, 33, 2**31 - 1, -(2**31)])
    far = torch.tensor([2**32, 2**32 + 1, -(2**32) + 1, 2**62])
    narrow = torch.cat((torch.arange(33), nowhere)).to(torch.int32)[:, None]
    wide = torch.cat((torch.arange(33), nowhere, far))[:, None]
    for topk_idx in (narrow, wide):
        rows, _, stats, _ = build_schedule(topk_idx, 33, 1)
        assert rows[0].tolist() == [1] * 33
        assert stats.tolist() == [2] * 33


def test_more_slots_than_a_round_of_loads() -> None:
    """A block's threads look at 12 slots each at once: 4608; here there are more."""
    topk_idx = (torch.arange(2400 * 2) * 7 % 33).view(2400, 2)
    rows, following, _, _ = build_schedule(topk_idx, 33, 2, block_n=128)
    assert torch.equal(rows[0], counted(topk_idx, 33))
    assert torch.equal(following[1], counted(topk_idx[:1200], 33))


@pytest.mark.parametrize("num_blocks", [1, 2, 4, 5, 7, 11, 13, 40])
@pytest.mark.parametrize("counts", [(0, 0, 0), (3, 0, 9), (17, 1, 0), (0, 0, 8)])
def test_tiles_come_in_the_order_of_the_twin(counts: tuple[int, ...], num_blocks: int) -> None:
    """From no round to several, with and without idle blocks."""
    of_slots = [expert for expert, count in enumerate(counts) for _ in range(count)] or [-1]
    built, _ = kernel(3, 1, 8)
    constants = built.constants()
    order = Order(
        rows=counts,
        block_n=8,
        l1_m_tiles=int(constants["l1_m_tiles"]),
        l2_m_tiles=int(constants["l2_m_tiles"]),
        num_blocks=num_blocks,
        l2_tiles_per_l1=int(constants["l2_tiles_per_l1"]),
    )
    assert (order.l1_m_tiles, order.l2_m_tiles) == (3, 1)
    _, _, _, walks = build_schedule(torch.tensor(of_slots)[:, None], 3, num_blocks)
    for block, walk in enumerate(walks):
        tiles = [
            Tile(is_l2=bool(is_l2), expert=expert, m_tile=m_tile, token_tile=token_tile, num_rows=num_rows)
            for is_l2, expert, m_tile, token_tile, num_rows, _, _ in walk
        ]
        assert tiles == list(order.of_block(block)), block
        assert all((pool_row, width) == (8 * token_tile, 8) for _, _, _, token_tile, _, pool_row, width in walk)


def test_a_wide_tile_that_is_not_full_is_multiplied_by_narrow_mmas() -> None:
    # Token tile -> rows -> width of the expert's last tile.
    widths = {128: {64: 64, 65: 128, 128: 128, 129: 64, 1: 64}, 192: {64: 128, 128: 128, 129: 192, 192: 192, 193: 128}}
    for block_n, counts in widths.items():
        for rows, width in counts.items():
            _, _, _, walks = build_schedule(torch.zeros(rows, 1, dtype=torch.int64), 1, 1, block_n=block_n)
            assert {visit[6] for visit in walks[0] if visit[3] == (rows - 1) // block_n} == {width}
