// Shared memory of the sm_90a kernel. Python plans the same struct (recipes/sm90.py) and the assert below ties the two.
#pragma once
#include "config.cuh"
#include "mega_moe/forecast.cuh"
#include "mega_moe/schedule_sm90.cuh"
#include "mega_moe/tile_queue_sm90.cuh"
#include "pipeline/ring.cuh"
#include "types.cuh"

namespace mega_moe {

// Factors of two neighbouring columns: one load is what a thread needs of both.
struct alignas(16) ColumnPair {
    float scale[2];   // E4M3: the token's size, then, made of it, what values (L1) or sums (L2) are multiplied by
    float weight[2];  // L2: the top-k weight
};

// Of the columns of a warpgroup's tile.
struct alignas(16) Columns {
    ActsForecast forecast;           // of the tile's expert (E4M3)
    uint32_t slot[config::kBlockN];  // token * top-k + slot (L2)
    ColumnPair pairs[config::kBlockN / 2];
    float alpha[2];                  // of the tile: gate and up (L1), down (L2)

    __device__ __forceinline__ float& scale(uint32_t column) { return pairs[column / 2].scale[column % 2]; }
    __device__ __forceinline__ float& weight(uint32_t column) { return pairs[column / 2].weight[column % 2]; }
};

struct SharedStorage {
    alignas(1024) uint8_t tokens[config::kNumStages][config::kTokenStageBytes];
    alignas(128) uint8_t weights[config::kNumStages][config::kWeightStageBytes];
    alignas(128) uint8_t out[config::kOutBytes];             // results on their way out; L1: a first pass's values, until the second's
    alignas(16) float sf[config::kNumStages][config::kBlockN];  // L1: of 512 values, with the last stage of them; L2: a tile's own, of 128
    alignas(128) uint2 decode_table[config::kDecodeTableRows * config::kTableCopies];
    Columns columns[config::kNumConsumerWarpgroups];
    uint32_t may_not_fit;                                    // L1: a block's values may not lie well in E4M3; zero between blocks
    uint32_t has_own_sf[config::kNumStages];                 // L2: the stage's tile has scale factors of its own, in acts_sf
    uint32_t is_last;                                        // cleanup: this block is the last to leave
    TileQueue queue;
    Schedule schedule;
    alignas(8) pipeline::RingBarriers ring;
};
// By column: bits of the largest magnitude in L1, zero between blocks. L2 alone has slots, and comes after the last tile of L1.
__device__ __forceinline__ uint32_t (&largest_bits(SharedStorage& smem))[config::kBlockN] { return smem.columns[0].slot; }

static_assert(sizeof(SharedStorage) == config::kSmemBytes, "recipes/sm90.py plans another shared memory");

// Where results will be: no tile ends before dispatch of this block.
__device__ __forceinline__ OwnTokens& own_tokens(SharedStorage& smem) {
    static_assert(sizeof(OwnTokens) <= sizeof(smem.out));
    return *reinterpret_cast<OwnTokens*>(smem.out);
}

}  // namespace mega_moe
