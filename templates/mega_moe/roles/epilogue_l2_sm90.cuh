// Role: L2 epilogue (the consumer warpgroups, after mma)
// Waits for:  nothing beyond the tile's sums
// Produces:   bf16(top-k weight x (alpha x sums + bias)) in the home rank's partials, one row a slot; counts the tile in l2_done
// Registers:  config::kConsumerRegisters
//
// The weight transform orders L2's rows so that a thread's sums of a column are neighbours: hidden index in the tile
// = 128 (m64 / 2) + 32 warp + 4 (lane / 4) + 2 (m64 % 2) + half, for 64-row tile m64 of the block's four.
#pragma once
#include "mega_moe/context_sm90.cuh"
#include "mega_moe/roles/epilogue_l1_sm90.cuh"
#include "mega_moe/roles/mma_sm90.cuh"

namespace roles {

template <uint32_t kWidth>
__device__ __forceinline__ void epilogue_l2(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, const Sums<kWidth>& sums) {
    using namespace mega_moe;
    constexpr uint32_t kRun = 2 * kM64;  // neighbours that this thread has
    if (pass == 0) wait_columns();
    const Params& params = c.ctx.params;
    const uint32_t lane = c.thread % 32, warp = c.thread / 32, m64 = c.m64(pass, 0);
    const uint32_t hidden = tile.m_tile * config::kBlockM + 128 * (m64 / 2) + 32 * warp + 4 * (lane / 4) + 2 * (m64 % 2);
    const float alpha = c.ctx.smem.alpha[0];
    float bias[kRun] = {};
    if (params.l2_bias != nullptr) {
#pragma unroll
        for (uint32_t i = 0; i < kRun; ++i) bias[i] = params.l2_bias[uint64_t(tile.expert) * config::kHiddenPadded + hidden + i];
    }
    uint16_t* partials = comm::part<uint16_t>(params.peers, 0, params.sym.partials) + hidden;
#pragma unroll
    for (uint32_t j = 0; j < kWidth / 4; ++j) {
        const uint32_t r = j / 2 * 4 + j % 2, column = j / 2 * 8 + lane % 4 * 2 + j % 2;
        if (column >= tile.num_rows) continue;
        const float weight = c.ctx.smem.factor[column];
        uint32_t packed[kM64];
#pragma unroll
        for (uint32_t m = 0; m < kM64; ++m) {
            packed[m] = ptx::cvt_bf16x2(fmaf(sums[m][r], alpha, bias[2 * m]) * weight, fmaf(sums[m][r + 2], alpha, bias[2 * m + 1]) * weight);
        }
        uint16_t* row = partials + uint64_t(c.ctx.smem.slot[column]) * config::kHiddenPadded;
        if constexpr (kM64 == 2) {
            *reinterpret_cast<uint2*>(row) = {packed[0], packed[1]};
        } else {
            *reinterpret_cast<uint32_t*>(row) = packed[0];
        }
    }
    if (pass + 1 < config::kNumPasses) return;
    sync_consumers();
    if (c.warpgroup == 0 && c.thread == 0) ptx::red_release_gpu_add(params.l2_done, 1);
}

}  // namespace roles
