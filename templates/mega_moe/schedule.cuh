// Where each expert's routed rows and token tiles begin; every block computes the same.
#pragma once
#include "config.cuh"
#include "types.cuh"

namespace mega_moe {

struct Schedule {
    uint32_t row_begin[config::kNumLocalExperts + 1];   // in the list of routed tokens, expert by expert
    uint32_t tile_begin[config::kNumLocalExperts + 1];  // token tiles of kBlockN rows
    uint32_t warp_counts[config::kNumThreads / 32];     // scratch of the routing scan
};

}  // namespace mega_moe
