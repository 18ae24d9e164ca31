// Role: L2 epilogue (each consumer warpgroup for itself, after mma)
// Waits for:  nothing beyond the tile's sums
// Produces:   bf16(top-k weight x (alpha x sums + bias)) in the home rank's partials, one row a slot, by way of shared memory: 128
//             bytes of a row at a time; counts in l2_done
// Registers:  config::kConsumerRegisters
#pragma once
#include "mega_moe/roles/columns_sm90.cuh"
#include "ptx/convert.cuh"

namespace roles {

// One 64-row tile: 64 neighbouring hidden values of each column.
template <uint32_t kWidth>
__device__ __forceinline__ void finish_rows(const Consumer& c, const mega_moe::Tile& tile, uint32_t m64, const float (&sums)[kWidth / 2]) {
    using namespace mega_moe;
    const Params& params = c.ctx.params;
    const Columns& columns = columns_of(c);
    const uint32_t thread = c.thread_now(), lane = thread % 32, warp = thread / 32, hidden = tile.m_tile * config::kBlockM + 64 * m64;
    const uint32_t staged = ptx::smem_address(c.ctx.smem.out) + c.warpgroup * (config::kBlockN * 128);
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        float bias = 0.0f;
        if (params.l2_bias != nullptr) bias = params.l2_bias[uint64_t(tile.expert) * config::kHiddenPadded + hidden + 16 * warp + 8 * half + lane / 4];
        uint32_t matrices[kWidth / 8];
#pragma unroll
        for (uint32_t i = 0; i < kWidth / 8; ++i) {
            const float2 weight = *reinterpret_cast<const float2*>(&columns.factor[8 * i + lane % 4 * 2]);
            float2 scale = {columns.alpha[0], columns.alpha[0]};
            if constexpr (config::kIsFp8) scale = *reinterpret_cast<const float2*>(&columns.scale[8 * i + lane % 4 * 2]);
            matrices[i] = ptx::cvt_bf16x2(fmaf(sums[4 * i + 2 * half], scale.x, bias) * weight.x, fmaf(sums[4 * i + 2 * half + 1], scale.y, bias) * weight.y);
        }
        store_columns<kWidth>(staged, 2 * warp + half, matrices);
    }
    sync_warpgroup(c);
    uint8_t* partials = comm::part<uint8_t>(params.peers, 0, params.sym.partials) + hidden * 2 + c.thread % 8 * 16;
#pragma unroll 4
    for (uint32_t column = c.thread / 8; column < tile.num_rows; column += 16) {
        const uint4 piece = ptx::ld_shared_v4(staged + column_piece(column, c.thread % 8));
        *reinterpret_cast<uint4*>(partials + uint64_t(columns.slot[column]) * (config::kHiddenPadded * 2)) = piece;
    }
    sync_warpgroup(c);
}

// What each column's sums are multiplied by: alpha, and the foreseen scale where the sums do not have scale factors in them.
__device__ __forceinline__ void scale_sums(const Consumer& c, const mega_moe::Tile& tile, bool has_own_sf) {
    mega_moe::Columns& columns = columns_of(c);
    const mega_moe::ActsForecast forecast = columns.forecast;
#pragma unroll 1
    for (uint32_t column = c.thread; column < tile.num_rows; column += 128) {
        const float foreseen = has_own_sf ? 1.0f : mega_moe::foresee_acts_scale(forecast, columns.scale[column], 1.0f);
        columns.scale[column] = columns.alpha[0] * foreseen;
    }
    sync_warpgroup(c);
}

template <uint32_t kWidth>
__device__ __forceinline__ void epilogue_l2(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, bool has_own_sf, const Sums<kWidth>& sums) {
    if (pass == 0) {
        wait_columns(c);
        if constexpr (config::kIsFp8) scale_sums(c, tile, has_own_sf);
    }
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) finish_rows<kWidth>(c, tile, c.m64(pass, m), sums[m]);
    if (pass + 1 == config::kNumPasses && c.thread == 0) ptx::red_release_gpu_add(c.ctx.params.l2_done, 1);
}

}  // namespace roles
