// Role: L2 epilogue (the consumer warpgroups, after mma)
// Waits for:  nothing beyond the tile's sums
// Produces:   bf16(top-k weight x (alpha x sums + bias)) in the home rank's partials, one row a slot; counts the tile in l2_done
// Registers:  config::kConsumerRegisters
//
// The weight transform orders L2's rows so that a thread's four sums of a column are neighbours: hidden index in the tile
// = 128 warpgroup + 32 warp + 4 (lane / 4) + 2 m + half.
#pragma once
#include "mega_moe/context.cuh"
#include "mega_moe/roles/epilogue_l1_sm90.cuh"
#include "mega_moe/roles/mma_sm90.cuh"

namespace roles {

__device__ __forceinline__ void epilogue_l2(const Consumer& c, const mega_moe::Tile& tile, const Sums& sums) {
    using namespace mega_moe;
    static_assert(kM64 == 2, "the row order above");
    load_columns<true>(c.ctx, tile);
    const Params& params = c.ctx.params;
    const uint32_t lane = c.thread % 32, warp = c.thread / 32;
    const uint32_t hidden = tile.m_tile * config::kBlockM + 128 * c.warpgroup + 32 * warp + 4 * (lane / 4);
    const float alpha = params.l2_alphas[tile.expert];
    float4 bias = {0.0f, 0.0f, 0.0f, 0.0f};
    if (params.l2_bias != nullptr) bias = *reinterpret_cast<const float4*>(params.l2_bias + uint64_t(tile.expert) * config::kHiddenPadded + hidden);
    uint16_t* partials = comm::part<uint16_t>(params.peers, 0, params.sym.partials) + hidden;
#pragma unroll
    for (uint32_t j = 0; j < kSumRegisters / 2; ++j) {
        const uint32_t r = j / 2 * 4 + j % 2, column = j / 2 * 8 + lane % 4 * 2 + j % 2;
        if (column >= tile.num_rows) continue;
        const float weight = c.ctx.smem.token_scale[column];
        const float v[4] = {fmaf(sums[0][r], alpha, bias.x) * weight, fmaf(sums[0][r + 2], alpha, bias.y) * weight,
                            fmaf(sums[1][r], alpha, bias.z) * weight, fmaf(sums[1][r + 2], alpha, bias.w) * weight};
        const uint2 packed = {ptx::cvt_bf16x2(v[0], v[1]), ptx::cvt_bf16x2(v[2], v[3])};
        *reinterpret_cast<uint2*>(partials + uint64_t(c.ctx.smem.slot[column]) * config::kHiddenPadded) = packed;
    }
    sync_consumers();
    if (c.warpgroup == 0 && c.thread == 0) ptx::red_release_gpu_add(params.l2_done, 1);
}

}  // namespace roles
