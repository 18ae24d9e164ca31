// Shared memory of the grouped GEMM. Python plans the same struct (recipes/sm100_gemm.py) and the assert below ties the two.
#pragma once
#include "config.cuh"
#include "pipeline/ring.cuh"
#include "types.cuh"

namespace gemm {

struct SharedStorage {
    // Rows of 128 bytes along K, swizzled by TMA: 256 FP4 codes, or 128 codes in 8-bit containers.
    alignas(1024) uint8_t weights[config::kNumStages][config::kBlockM * 128];
    alignas(1024) uint8_t tokens[config::kNumStages][config::kLoadN * 128];
    alignas(1024) uint16_t y[config::kBlockN][config::kBlockM];  // a tile of results on its way out
    // Scale factors: 512-byte atoms of 128 rows x 4 groups of K.
    alignas(128) uint8_t weights_sf[config::kNumStages][config::kSfWords][512];
    alignas(128) uint8_t tokens_sf[config::kNumStages][config::kTokenAtoms][config::kSfWords][512];
    alignas(8) pipeline::RingBarriers ring;
    uint64_t accum_full[config::kNumAccums];   // the MMAs of a tile are done
    uint64_t accum_empty[config::kNumAccums];  // the epilogue has read them
    uint32_t tmem;                             // address of the CTA's tensor memory
};
static_assert(sizeof(SharedStorage) == config::kSmemBytes, "recipes/sm100_gemm.py plans another shared memory");

}  // namespace gemm
