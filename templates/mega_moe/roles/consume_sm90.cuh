// What the consumer warpgroups do with a tile: mma and the layer's epilogue, for each pass over its weight rows.
#pragma once
#include "mega_moe/roles/epilogue_l1_sm90.cuh"
#include "mega_moe/roles/epilogue_l2_sm90.cuh"
#include "mega_moe/roles/mma_sm90.cuh"

namespace roles {

// By the narrowest MMA that holds the tile's tokens. Sums do not leave the instance of their width: where instances of several
// widths meet, their accumulators would have to meet in the same registers.
template <bool kIsL2, bool kHasOwnSf, uint32_t kWidth>
__device__ __forceinline__ void finish_width(Consumer& c, const mega_moe::Tile& tile) {
    if constexpr (kWidth > config::kMinWidth && !kHasOwnSf) {
        if (tile.width < kWidth) return finish_width<kIsL2, kHasOwnSf, kWidth - config::kWidthStep>(c, tile);
    }
    for (uint32_t pass = 0; pass < config::kNumPasses; ++pass) {
        Sums<kWidth> sums;
        multiply_pass<kIsL2, kHasOwnSf, kWidth>(c, sums);
        if constexpr (kIsL2) {
            epilogue_l2<kWidth, kHasOwnSf>(c, tile, pass, sums);
        } else {
            epilogue_l1<kWidth>(c, tile, pass, sums);
        }
    }
}

template <bool kIsL2>
__device__ __forceinline__ void finish_tile(Consumer& c, const mega_moe::Tile& tile) {
    fetch_columns<kIsL2>(c, tile);
    if constexpr (kIsL2 && config::kIsFp8) {
        // Seldom: one instance is enough, the widest.
        if (c.ctx.smem.has_own_sf[c.cursor.stage] != 0) return finish_width<kIsL2, true, config::kBlockN>(c, tile);
    }
    finish_width<kIsL2, false, config::kBlockN>(c, tile);
}

}  // namespace roles
