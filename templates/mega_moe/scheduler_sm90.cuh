// One tile order that every role walks: all L1 tiles, then all L2 tiles; expert by expert, weight rows outside, tokens inside.
//
// Block b takes tiles b, b + gridDim.x, ... Tokens are innermost, so neighbouring blocks read the same weights at the same time.
// An L2 tile waits only for L1 tiles, which come earlier in every block's walk: with all blocks resident nothing can lock up.
#pragma once
#include "config.cuh"
#include "mega_moe/storage_sm90.cuh"
#include "types.cuh"

namespace mega_moe {

struct Tile {
    uint32_t expert;      // local
    uint32_t m_tile;      // block of kBlockM weight rows
    uint32_t token_tile;  // over all experts: the index of its counter
    uint32_t pool_row;    // first row in the pool, where each token tile has kBlockN rows of its own
    uint32_t num_rows;    // valid ones of kBlockN
    uint32_t width;       // columns that are multiplied: num_rows rounded up to an MMA width
    bool is_l2;
};

// The MMA role has an instance for each width.
static_assert((config::kBlockN - config::kMinWidth) % config::kWidthStep == 0 && config::kMinWidth <= config::kBlockN);

struct Scheduler {
    const Schedule& schedule;

    __device__ __forceinline__ uint32_t num_token_tiles() const { return schedule.tile_begin[config::kNumLocalExperts]; }

    template <typename F>
    __device__ __forceinline__ void for_each_tile(F&& visit) const {
        const uint32_t num_l1 = num_token_tiles() * config::kL1MTiles, num_all = num_l1 + num_token_tiles() * config::kL2MTiles;
        uint32_t expert = 0;
        bool is_l2 = false;
        for (uint32_t i = blockIdx.x; i < num_all; i += gridDim.x) {
            if (!is_l2 && i >= num_l1) {
                is_l2 = true;
                expert = 0;
            }
            const uint32_t m_tiles = is_l2 ? config::kL2MTiles : config::kL1MTiles, in_phase = is_l2 ? i - num_l1 : i;
            while (in_phase >= schedule.tile_begin[expert + 1] * m_tiles) ++expert;
            const uint32_t first = schedule.tile_begin[expert], count = schedule.tile_begin[expert + 1] - first;
            const uint32_t in_expert = in_phase - first * m_tiles, n = in_expert % count;
            Tile tile;
            tile.expert = expert;
            tile.m_tile = in_expert / count;
            tile.token_tile = first + n;
            tile.pool_row = tile.token_tile * config::kBlockN;
            tile.num_rows = min(config::kBlockN, schedule.rows[expert] - n * config::kBlockN);
            tile.width = max(config::kMinWidth, config::kBlockN - (config::kBlockN - tile.num_rows) / config::kWidthStep * config::kWidthStep);
            tile.is_l2 = is_l2;
            visit(tile);
        }
    }
};

}  // namespace mega_moe
