// Which rows each expert gets and where its token tiles begin; every block computes the same, but for `next`.
#pragma once
#include "config.cuh"
#include "types.cuh"

namespace mega_moe {

struct Schedule {
    uint32_t rows[config::kNumLocalExperts];            // routed to the expert
    uint32_t tile_begin[config::kNumLocalExperts + 1];  // token tiles of kBlockN rows, expert by expert
    uint32_t next[config::kNumLocalExperts];            // the expert's row that this block's next token for it gets
    float warp_max[config::kNumThreads / 32];           // scratch of dispatch: each warp's largest magnitude
    uint32_t pool_rows[config::kNumThreads / 32][config::kNumTopk];  // where each warp's token goes, ~0 for nowhere (here)
};

}  // namespace mega_moe
