// The order of tiles: all L1 tiles, then all L2 tiles; expert by expert, weight rows outside, tokens inside.
//
// A block takes every gridDim.x-th tile, but for some L2 tiles that fill L1's last round. Tokens are innermost, so neighbouring blocks
// read the same weights at the same time.
// An L2 tile waits only for L1 tiles, which come earlier in every block's walk: with all blocks resident nothing can lock up.
#pragma once
#include "config.cuh"
#include "mega_moe/storage_sm90.cuh"
#include "mega_moe/tile_queue_sm90.cuh"
#include "types.cuh"

namespace mega_moe {

// The MMA role has an instance for each width.
static_assert((config::kBlockN - config::kMinWidth) % config::kWidthStep == 0 && config::kMinWidth <= config::kBlockN);

struct Scheduler {
    const Schedule& schedule;

    __device__ __forceinline__ uint32_t num_token_tiles() const { return schedule.tile_begin[config::kNumLocalExperts]; }

    // Visits the block's tiles by layer and number.
    template <typename F>
    __device__ __forceinline__ void for_each_tile(F&& visit) const {
        const uint32_t num_l1 = num_token_tiles() * config::kL1MTiles, num_l2 = num_token_tiles() * config::kL2MTiles;
        // In L1's last round, when it is not full, `idle` blocks have no tile: they have time for `early` L2 tiles of experts that are
        // done. Nothing is done while there is only one round.
        const uint32_t last = num_l1 % gridDim.x, idle = num_l1 > gridDim.x && last > 0 ? gridDim.x - last : 0;
        const uint32_t early = idle * config::kL2TilesPerL1;
        const uint32_t late = early + (idle > 0 ? blockIdx.x : (blockIdx.x + gridDim.x - last) % gridDim.x);  // the first one after those
        const uint32_t first_l2 = idle > 0 && blockIdx.x >= last ? blockIdx.x - last : late;
        bool is_l2 = blockIdx.x >= num_l1;
        for (uint32_t i = is_l2 ? first_l2 : blockIdx.x; !is_l2 || i < num_l2;) {
            visit(is_l2, i);
            if (is_l2) {
                i = i >= early ? i + gridDim.x : i + idle < early ? i + idle : late;
            } else if (i + gridDim.x < num_l1) {
                i += gridDim.x;
            } else {
                is_l2 = true, i = first_l2;
            }
        }
    }

    // From an expert to the one that has a token tile, at it or later: several at a time, since each look at shared memory is a wait.
    __device__ __forceinline__ void advance_expert(uint32_t token_tile, uint32_t& expert) const {
        constexpr uint32_t kAtOnce = 4;
        for (uint32_t passed = kAtOnce; passed == kAtOnce; expert += passed) {
            passed = 0;
#pragma unroll
            for (uint32_t e = 1; e <= kAtOnce; ++e) passed += token_tile >= schedule.tile_begin[min(expert + e, config::kNumLocalExperts)];
        }
    }

    // Tile i of a layer; `expert` is that of an earlier tile, and becomes this one's.
    template <bool kIsL2>
    __device__ __forceinline__ Tile tile_at(uint32_t i, uint32_t& expert) const {
        constexpr uint32_t kMTiles = kIsL2 ? config::kL2MTiles : config::kL1MTiles;
        advance_expert(i / kMTiles, expert);
        const uint32_t first = schedule.tile_begin[expert], count = schedule.tile_begin[expert + 1] - first;
        uint32_t m_tile = i - first * kMTiles, n = 0;
        // Divisions take long, and with few tokens there is nothing to divide.
        if (count > 1) {
            const uint32_t in_expert = m_tile;
            m_tile = in_expert / count;
            const uint32_t place = in_expert - m_tile * count;
            // After some rounds of the grid (a period of tiles) a block would be back at the same place, and might never meet an
            // expert's last tile, which is seldom full: from there on it begins with the next.
            n = (place + (i - place) / schedule.period[expert]) % count;
        }
        Tile tile;
        tile.expert = expert;
        tile.m_tile = m_tile;
        tile.token_tile = first + n;
        tile.pool_row = tile.token_tile * config::kBlockN;
        tile.num_rows = min(config::kBlockN, schedule.rows[expert] - n * config::kBlockN);
        tile.width = max(config::kMinWidth, config::kBlockN - (config::kBlockN - tile.num_rows) / config::kWidthStep * config::kWidthStep);
        return tile;
    }
};

}  // namespace mega_moe
