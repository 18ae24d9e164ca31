// Shared memory of the Blackwell kernel. Python plans the same struct (recipes/sm100.py) and the assert below ties the two.
#pragma once
#include "config.cuh"
#include "mega_moe/schedule.cuh"
#include "pipeline/ring.cuh"
#include "types.cuh"

namespace mega_moe {

// One epilogue warpgroup's own part.
struct EpilogueStorage {
    // A tile on its way out: L2's results [column][128 rows] in BF16, or L1's codes [column][kActsTileBytes].
    alignas(128) uint8_t tile[config::kBlockN * config::kBlockM * 2];
    alignas(16) uint8_t tile_sf[config::kBlockN][8];  // scale factors of L1's codes: up to 8 groups of a tile
    alignas(16) float amax[2][16][4];                 // of 16 columns, by warp: groups that span two warps
    float factor[config::kBlockN];                    // by column: top-k weight, where this GEMM's results are multiplied by it
    float token_scale[config::kBlockN];               // by column: x's second-level scale
    float acts_scale[config::kBlockN];                // by column: second-level scale of the activations
    uint32_t slot[config::kBlockN];                   // by column: token * top-k + slot
};

struct SharedStorage {
    // Rows of 128 bytes along K, swizzled by TMA: 256 FP4 codes, or 128 codes in 8-bit containers.
    alignas(1024) uint8_t weights[config::kNumStages][config::kBlockM * 128];
    alignas(1024) uint8_t tokens[config::kNumStages][config::kLoadN * 128];
    // Scale factors: 512-byte atoms of 128 rows x 4 groups of K.
    alignas(128) uint8_t weights_sf[config::kNumStages][config::kSfWords][512];
    alignas(128) uint8_t tokens_sf[config::kNumStages][config::kTokenAtoms][config::kSfWords][512];
    EpilogueStorage epilogue[config::kNumEpilogueWarpgroups];
    Schedule schedule;
    alignas(8) pipeline::RingBarriers ring;
    uint64_t accum_full[config::kNumAccums];   // the MMAs of a tile are done
    uint64_t accum_empty[config::kNumAccums];  // the epilogue has read them
    uint32_t tmem;                             // address of the CTA's tensor memory
    uint32_t is_last;                          // this block is the last to leave
};
static_assert(sizeof(SharedStorage) == config::kSmemBytes, "recipes/sm100.py plans another shared memory");

}  // namespace mega_moe
