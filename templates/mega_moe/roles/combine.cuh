// Role: combine (the consumer warpgroups, after their last tile)
// Waits for:  all L2 tiles
// Produces:   y: the FP32 sum of a token's partials in slot order, times the routed scaling factor, rounded to BF16
// Registers:  config::kConsumerRegisters
#pragma once
#include "mega_moe/context.cuh"
#include "ptx/convert.cuh"

namespace roles {

// One warp sums 256 neighbouring values of one token, 8 a lane.
__device__ __forceinline__ void combine_piece(const mega_moe::Params& params, uint32_t token, uint32_t hidden) {
    const uint16_t* partials = comm::part<const uint16_t>(params.peers, params.rank, params.sym.partials) + hidden;
    float sum[8] = {};
    for (uint32_t k = 0; k < config::kNumTopk; ++k) {
        const uint32_t slot = token * config::kNumTopk + k;
        if (mega_moe::home_expert(params, slot) < 0) continue;
        const uint4 row = ptx::ld_global_cg_v4(partials + uint64_t(slot) * config::kHiddenPadded);
        const uint32_t pairs[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) sum[2 * i] += ptx::bf16_low(pairs[i]), sum[2 * i + 1] += ptx::bf16_high(pairs[i]);
    }
    const float factor = params.routed_scaling_factor;
    uint16_t* y = params.y + uint64_t(token) * params.y_stride + hidden;
    if constexpr (config::kHidden % 8 == 0) {
        if (hidden >= config::kHidden) return;
        if (params.y_stride % 8 == 0 && reinterpret_cast<uint64_t>(params.y) % 16 == 0) {
            *reinterpret_cast<uint4*>(y) = {ptx::cvt_bf16x2(sum[0] * factor, sum[1] * factor), ptx::cvt_bf16x2(sum[2] * factor, sum[3] * factor),
                                            ptx::cvt_bf16x2(sum[4] * factor, sum[5] * factor), ptx::cvt_bf16x2(sum[6] * factor, sum[7] * factor)};
            return;
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
        if (hidden + i < config::kHidden) y[i] = uint16_t(ptx::cvt_bf16x2(sum[i] * factor, 0.0f));
    }
}

__device__ __forceinline__ void combine(const mega_moe::Context& ctx, uint32_t consumer_thread) {
    constexpr uint32_t kPieces = (config::kHidden + 255) / 256, kWarps = mega_moe::kNumConsumerThreads / 32;
    // One thread polls; what it acquires reaches the others through the barrier.
    if (consumer_thread == 0) {
        comm::wait_counter(ctx.watchdog, ctx.params.l2_done, ctx.scheduler.num_token_tiles() * config::kL2Arrivals, comm::WaitFor::kL2Tiles, 0);
    }
    mega_moe::sync_consumers();
    const uint32_t lane = consumer_thread % 32;
    for (uint32_t i = blockIdx.x * kWarps + consumer_thread / 32; i < ctx.params.num_tokens * kPieces; i += gridDim.x * kWarps) {
        combine_piece(ctx.params, i / kPieces, i % kPieces * 256 + lane * 8);
    }
}

}  // namespace roles
