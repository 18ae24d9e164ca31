// Role: L2 epilogue (each consumer warpgroup for itself, after mma)
// Waits for:  nothing beyond the tile's sums
// Produces:   bf16(top-k weight x (alpha x sums + bias)) in the home rank's partials, one row a slot, by way of shared memory: 128
//             bytes of a row at a time; the block counts in l2_done when all its tiles are stored
// Registers:  config::kConsumerRegisters
#pragma once
#include "mega_moe/roles/columns_sm90.cuh"
#include "ptx/convert.cuh"

namespace roles {

// The warpgroup's 64-row tile `m`: 64 neighbouring hidden values of each column.
template <uint32_t kWidth>
__device__ __forceinline__ void finish_rows(const Consumer& c, const mega_moe::Tile& tile, uint32_t m, const float (&sums)[kWidth / 2]) {
    using namespace mega_moe;
    const Params& params = c.ctx.params;
    const Place place;
    const Columns& columns = columns_of(c, place.warpgroup);
    const uint32_t hidden = tile.m_tile * config::kBlockM + 128 * place.warpgroup + 64 * m, out = ptx::smem_address(c.ctx.smem.out);
    constexpr uint32_t kPieces = 8 * config::kNumConsumerWarpgroups;
    float bias[2] = {0.0f, 0.0f};
    if (params.l2_bias != nullptr) {
        const float* row = params.l2_bias + uint64_t(tile.expert) * config::kHiddenPadded + hidden + 16 * place.warp + place.lane / 4;
        bias[0] = row[0], bias[1] = row[8];
    }
    const uint32_t pairs = ptx::smem_address(&columns.pairs[place.lane % 4]);
    const float alpha = columns.alpha[0];
    uint32_t matrices[2][kWidth / 8];
#pragma unroll
    for (uint32_t i = 0; i < kWidth / 8; ++i) {
        const float4 pair = ptx::ld_shared_f32x4(pairs + 4 * i * sizeof(ColumnPair));
        const float scale[2] = {config::kIsFp8 ? pair.x : alpha, config::kIsFp8 ? pair.y : alpha};
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            matrices[half][i] = ptx::cvt_bf16x2(fmaf(sums[4 * i + 2 * half], scale[0], bias[half]) * pair.z, fmaf(sums[4 * i + 2 * half + 1], scale[1], bias[half]) * pair.w);
        }
    }
    if (m > 0) sync_warpgroup(place.warpgroup);  // the last tile's have been read; before the first one columns were waited for
    const uint32_t first_piece = 8 * place.warpgroup + 2 * place.warp;
    store_columns<kWidth, kPieces>(out, first_piece, place.lane, matrices[0]);
    store_columns<kWidth, kPieces>(out, first_piece + 1, place.lane, matrices[1]);
    // 8 threads store a column's 128 bytes. All loads come before the first store: their ways overlap.
    constexpr uint32_t kLoads = (kWidth + 15) / 16;
    const uint32_t piece = place.thread % 8, column = place.thread / 8, staged = out + piece_place<kPieces>(8 * place.warpgroup + piece, column);
    uint32_t slots[kLoads];
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) slots[i] = column + 16 * i < tile.num_rows ? columns.slot[column + 16 * i] : 0;
    sync_warpgroup(place.warpgroup);
    uint4 values[kLoads];
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) {
        if (kWidth % 16 == 0 || column + 16 * i < tile.num_rows) values[i] = ptx::ld_shared_v4(staged + 256 * i);
    }
    uint8_t* partials = comm::part<uint8_t>(params.peers, 0, params.sym.partials) + hidden * 2 + piece * 16;
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) {
        if (column + 16 * i < tile.num_rows) *reinterpret_cast<uint4*>(partials + uint64_t(slots[i]) * (config::kHiddenPadded * 2)) = values[i];
    }
}

template <uint32_t kWidth>
__device__ __forceinline__ void epilogue_l2(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, bool has_own_sf, const Sums<kWidth>& sums) {
    if (pass == 0) {
        const Place place;
        wait_columns(place);
        if constexpr (config::kIsFp8) {
            // Alpha, and the foreseen scale where the sums do not have scale factors in them.
            mega_moe::Columns& columns = columns_of(c, place.warpgroup);
            const float alpha = columns.alpha[0];
            make_scales<kWidth>(columns, place, tile.num_rows, [=](float foreseen) { return alpha * (has_own_sf ? 1.0f : foreseen); });
            sync_warpgroup(place.warpgroup);
        }
    }
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) finish_rows<kWidth>(c, tile, kM64 == 2 ? m : pass, sums[m]);
}

// After the block's last tile: its partials are there.
__device__ __forceinline__ void publish_partials(const mega_moe::Context& ctx, uint32_t consumer_thread) {
    mega_moe::sync_consumers();
    if (consumer_thread == 0) ptx::red_release_gpu_add(ctx.params.l2_done, 1);
}

}  // namespace roles
