// Role: L2 epilogue (an epilogue warpgroup)
// Waits for:  the tile's accumulator
// Produces:   bf16(top-k weight x (alpha x acts scale x sums + bias)) in the home rank's partials, one row a slot, by bulk copies of
//             128 values; counts the tile in l2_tile_done and l2_done
// Registers:  32 columns at a time
#pragma once
#include "mega_moe/roles/epilogue_sm100.cuh"
#include "ptx/convert.cuh"
#include "ptx/fence.cuh"
#include "ptx/tma_sm100.cuh"

namespace roles {

__device__ __forceinline__ void epilogue_l2(const Epilogue& e, const mega_moe::Tile& tile) {
    constexpr uint32_t kColumns = 16;
    const mega_moe::Params& params = e.ctx.params;
    fetch_columns(e, tile);
    const uint32_t hidden = (tile.m_tile * config::kCtaGroup + e.ctx.cta) * config::kBlockM;
    const float alpha = params.l2_alphas[tile.expert];
    const float bias = params.l2_bias == nullptr ? 0.0f : params.l2_bias[uint64_t(tile.expert) * config::kHiddenPadded + hidden + e.thread];
    uint16_t* y = reinterpret_cast<uint16_t*>(e.smem.tile);
    e.wait_accum();
    for (uint32_t first = 0; first < tile.columns(); first += kColumns) {
        uint32_t sums[kColumns];
        ptx::tcgen05_ld_32x32b_x16(sums, e.accum_address() + first);
        ptx::tcgen05_wait_ld();
        if (first + kColumns >= tile.columns()) e.release_accum();
#pragma unroll
        for (uint32_t i = 0; i < kColumns; ++i) {
            const uint32_t column = first + i;
            const float scale = config::kHasTokenScales ? alpha * e.smem.acts_scale[column] : alpha;
            // Before requantisation the weight is in the sums already, and the bias still needs it.
            const float factor = e.smem.factor[column], value = fmaf(__uint_as_float(sums[i]), scale, config::kWeighsBeforeRequant ? bias * factor : bias);
            y[column * config::kBlockM + e.thread] = uint16_t(ptx::cvt_bf16x2(config::kWeighsBeforeRequant ? value : value * factor, 0.0f));
        }
    }
    ptx::fence_proxy_async_shared();
    e.sync();
    uint16_t* partials = comm::part<uint16_t>(params.peers, 0, params.sym.partials) + hidden;
    for (uint32_t column = e.thread; column < tile.num_rows; column += 128)
        ptx::cp_async_bulk_store(partials + uint64_t(e.smem.slot[column]) * config::kHiddenPadded, ptx::smem_address(y + column * config::kBlockM), config::kBlockM * 2);
    ptx::cp_async_bulk_commit_group();
    ptx::cp_async_bulk_wait();
    e.sync();
    if (e.thread == 0) {
        ptx::red_release_gpu_add(&params.l2_tile_done[tile.token_tile], 1);
        ptx::red_release_gpu_add(params.l2_done, 1);
    }
}

}  // namespace roles
