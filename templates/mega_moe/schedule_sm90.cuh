// Which rows each expert gets and where its token tiles begin, the same in every block; and where this block's own tokens go.
#pragma once
#include "config.cuh"
#include "types.cuh"

namespace mega_moe {

struct Schedule {
    uint32_t rows[config::kNumLocalExperts];            // routed to the expert
    uint32_t tile_begin[config::kNumLocalExperts + 1];  // token tiles of kBlockN rows, expert by expert
    uint32_t period[config::kNumLocalExperts];          // of several token tiles: tiles after which a block is back at the same one
};

// While dispatch brings them there.
struct OwnTokens {
    uint32_t next[config::kNumLocalExperts];                     // the expert's row that this block's next token for it gets
    uint32_t pool_rows[config::kChunkTokens][config::kNumTopk];  // of the tokens in hand, ~0 for nowhere (here)
    uint32_t scale[config::kChunkTokens];                        // bits of the scale that would make the token's largest value 448 (E4M3)
};

}  // namespace mega_moe
