// What the consumer warpgroups do with a tile: mma and the layer's epilogue, for each pass over its weight rows.
#pragma once
#include "mega_moe/roles/epilogue_l1_sm90.cuh"
#include "mega_moe/roles/epilogue_l2_sm90.cuh"
#include "mega_moe/roles/mma_sm90.cuh"

namespace roles {

// By the narrowest MMA that holds the tile's tokens. Sums do not leave the instance of their width: where instances of several
// widths meet, their accumulators would have to meet in the same registers.
template <uint32_t kWidth>
__device__ __forceinline__ void finish_width(Consumer& c, const mega_moe::Tile& tile, bool is_l2, bool has_own_sf, uint32_t width) {
    if constexpr (kWidth > config::kMinWidth) {
        if (width < kWidth) return finish_width<kWidth - config::kWidthStep>(c, tile, is_l2, has_own_sf, width);
    }
    for (uint32_t pass = 0; pass < config::kNumPasses; ++pass) {
        Sums<kWidth> sums;
        multiply_pass<kWidth>(c, sums, is_l2, has_own_sf);
        if (is_l2) {
            epilogue_l2<kWidth>(c, tile, pass, has_own_sf, sums);
        } else {
            epilogue_l1<kWidth>(c, tile, pass, sums);
        }
    }
}

__device__ __forceinline__ void finish_tile(Consumer& c, const mega_moe::Tile& tile, bool is_l2) {
    if (is_l2) {
        fetch_columns<true>(c, tile);
    } else {
        fetch_columns<false>(c, tile);
    }
    const bool has_own_sf = config::kIsFp8 && is_l2 && c.ctx.smem.has_own_sf[c.cursor.stage] != 0;
    finish_width<config::kBlockN>(c, tile, is_l2, has_own_sf, has_own_sf ? config::kBlockN : tile.width);  // seldom: the widest has to do
}

}  // namespace roles
