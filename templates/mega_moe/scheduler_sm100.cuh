// One tile order that every role walks, in waves of kWaveTiles token tiles: a wave's L1 tiles, then its L2 tiles; in each phase
// expert by expert, weight rows outside, tokens inside.
//
// Group g (a CTA, or a pair) takes tiles g, g + number of groups, ... Waves bound memory: a token tile's place in the ring is free
// again two waves later. Whatever a tile waits for comes earlier in this order, so with all groups resident nothing can lock up.
#pragma once
#include "config.cuh"
#include "mega_moe/schedule.cuh"
#include "types.cuh"

namespace mega_moe {

struct Tile {
    uint32_t expert;      // local
    uint32_t m_tile;      // block of kTileM weight rows
    uint32_t token_tile;  // over all experts: the index of its counters
    uint32_t ring_tile;   // its place in the ring
    uint32_t row;         // first row in the list of routed tokens
    uint32_t num_rows;    // valid ones of kBlockN
    bool is_l2;

    // Columns of the tile's MMAs: what the instruction takes, so that few tokens cost few columns.
    __device__ __forceinline__ uint32_t columns() const {
        constexpr uint32_t kStep = 16;  // of a pair; the epilogue takes as many at a time
        return (num_rows + kStep - 1) / kStep * kStep;
    }
};

struct Scheduler {
    const Schedule& schedule;
    uint32_t group, num_groups;

    __device__ __forceinline__ uint32_t num_token_tiles() const { return schedule.tile_begin[config::kNumLocalExperts]; }

    template <typename Visit>
    __device__ __forceinline__ void for_each_tile(const Visit& visit) const {
        uint32_t next = group, passed = 0, wave_expert = 0;
        for (uint32_t begin = 0; begin < num_token_tiles(); begin += config::kWaveTiles) {
            const uint32_t end = min(begin + config::kWaveTiles, num_token_tiles());
            while (schedule.tile_begin[wave_expert + 1] <= begin) ++wave_expert;
            for (uint32_t phase = 0; phase < 2; ++phase) {
                const uint32_t m_tiles = phase == 0 ? config::kL1MTiles : config::kL2MTiles;
                uint32_t expert = wave_expert;
                for (uint32_t first = begin; first < end; ++expert) {
                    // The expert's token tiles in this wave.
                    const uint32_t last = min(schedule.tile_begin[expert + 1], end), count = last - first;
                    for (; next < passed + count * m_tiles; next += num_groups) {
                        const uint32_t i = next - passed;
                        visit(tile_at(expert, i / count, first + i % count, phase == 1));
                    }
                    passed += count * m_tiles, first = last;
                }
            }
        }
    }

    __device__ __forceinline__ Tile tile_at(uint32_t expert, uint32_t m_tile, uint32_t token_tile, bool is_l2) const {
        const uint32_t row = schedule.row_begin[expert] + (token_tile - schedule.tile_begin[expert]) * config::kBlockN;
        return Tile{expert, m_tile, token_tile, token_tile % config::kRingTiles, row, min(config::kBlockN, schedule.row_begin[expert + 1] - row), is_l2};
    }
};

}  // namespace mega_moe
