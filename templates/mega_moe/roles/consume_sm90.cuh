// What the consumer warpgroups do with a tile: mma and the layer's epilogue, for each pass over its weight rows.
#pragma once
#include "mega_moe/roles/epilogue_l1_sm90.cuh"
#include "mega_moe/roles/epilogue_l2_sm90.cuh"
#include "mega_moe/roles/mma_pieces_sm90.cuh"
#include "mega_moe/roles/mma_sm90.cuh"

namespace roles {

// By the narrowest MMA that holds the tile's tokens. Sums do not leave the instance of their width: where instances of several
// widths meet, their accumulators would have to meet in the same registers.
template <bool kIsL2, uint32_t kWidth = config::kBlockN>
__device__ __forceinline__ void finish_tile(Consumer& c, const mega_moe::Tile& tile) {
    if constexpr (kWidth > config::kMinWidth) {
        if (tile.width < kWidth) return finish_tile<kIsL2, kWidth - config::kWidthStep>(c, tile);
    }
    fetch_columns<kIsL2>(c, tile);
    for (uint32_t pass = 0; pass < config::kNumPasses; ++pass) {
        Sums<kWidth> sums;
        if constexpr (config::kIsFp8 && kM64 == 1) {
            multiply_pass_in_pieces<kIsL2, kWidth>(c, sums[0]);
        } else {
            multiply_pass<kIsL2, kWidth>(c, sums);
        }
        if constexpr (kIsL2) {
            epilogue_l2<kWidth>(c, tile, pass, sums);
        } else {
            epilogue_l1<kWidth>(c, tile, pass, sums);
        }
    }
}

}  // namespace roles
