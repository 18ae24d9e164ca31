// Shared memory of the sm_90a kernel. Python plans the same struct (recipes/sm90.py) and the assert below ties the two.
#pragma once
#include "config.cuh"
#include "mega_moe/forecast.cuh"
#include "mega_moe/schedule_sm90.cuh"
#include "mega_moe/tile_queue_sm90.cuh"
#include "pipeline/ring.cuh"
#include "types.cuh"

namespace mega_moe {

// Of the columns of a warpgroup's tile.
struct alignas(16) Columns {
    ActsForecast forecast;           // of the tile's expert (E4M3)
    float factor[config::kBlockN];   // the token's size, as a scale (L1, E4M3), the top-k weight (L2)
    uint32_t slot[config::kBlockN];  // token * top-k + slot (L2)
    float scale[config::kBlockN];    // L2, E4M3: the token's size, then alpha times what the column's activations were divided by
    float alpha[2];                  // of the tile: gate and up (L1), down (L2)
};

struct SharedStorage {
    alignas(1024) uint8_t tokens[config::kNumStages][config::kTokenStageBytes];
    alignas(128) uint8_t weights[config::kNumStages][config::kWeightStageBytes];
    alignas(128) uint8_t codes[config::kCodesTileBytes];     // an L1 tile's activations on their way out, where `out` has values
    alignas(128) uint8_t out[config::kOutBytes];             // L2's results on their way out; L1: a first pass's values, until the second's
    alignas(16) float sf[config::kNumStages][config::kBlockN];  // L1: of 512 values, with the last stage of them; L2: a tile's own, of 128
    alignas(128) uint2 decode_table[config::kDecodeTableRows * config::kTableCopies];
    Columns columns[config::kNumConsumerWarpgroups];
    alignas(16) float inverse_scale[config::kBlockN];        // by column: one over the block's scale factor
    uint32_t amax[config::kBlockN];                          // by column: bits of the largest magnitude, zero between blocks
    uint32_t has_own_sf[config::kNumStages];                 // L2: the stage's tile has scale factors of its own, in acts_sf
    uint32_t is_last;                                        // cleanup: this block is the last to leave
    TileQueue queue;
    Schedule schedule;
    alignas(8) pipeline::RingBarriers ring;
};
static_assert(sizeof(SharedStorage) == config::kSmemBytes, "recipes/sm90.py plans another shared memory");

// Where results will be: no tile ends before dispatch of this block.
__device__ __forceinline__ OwnTokens& own_tokens(SharedStorage& smem) {
    static_assert(sizeof(OwnTokens) <= sizeof(smem.out));
    return *reinterpret_cast<OwnTokens*>(smem.out);
}

}  // namespace mega_moe
