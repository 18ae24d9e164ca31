// Role: combine (the consumer warpgroups, after their last tile)
// Waits for:  all L2 tiles
// Produces:   y: the FP32 sum of a token's partials in slot order, times the routed scaling factor, rounded to BF16
// Registers:  config::kConsumerRegisters
#pragma once
#include "mega_moe/context.cuh"
#include "ptx/convert.cuh"

namespace roles {

constexpr uint32_t kRuns = 2;                    // of 256 neighbouring values, 8 a lane, that a warp sums at once
constexpr uint32_t kPieceValues = kRuns * 256;

__device__ __forceinline__ void store_run(const mega_moe::Params& params, uint32_t token, uint32_t hidden, const float (&sum)[8]) {
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

// One warp: kRuns x 256 neighbouring values of a token, from `hidden` on.
__device__ __forceinline__ void combine_piece(const mega_moe::Params& params, uint32_t token, uint32_t hidden) {
    const uint16_t* partials = comm::part<const uint16_t>(params.peers, params.rank, params.sym.partials) + hidden;
    // A lane looks at a slot; then all rows are on their way before the first is added.
    const uint32_t lane = threadIdx.x % 32;
    static_assert(config::kNumTopk <= 32, "a lane a slot");
    const uint32_t routed = __ballot_sync(~0u, lane < config::kNumTopk && mega_moe::home_expert(params, token * config::kNumTopk + lane) >= 0);
    constexpr uint32_t kAtOnce = config::kNumTopk < 6 ? config::kNumTopk : 6;
    float sum[kRuns][8] = {};
#pragma unroll 1
    for (uint32_t first = 0; first < config::kNumTopk; first += kAtOnce) {
        uint4 rows[kRuns][kAtOnce];
#pragma unroll
        for (uint32_t k = 0; k < kAtOnce; ++k) {
            const uint32_t slot = first + k;
            const bool is_routed = slot < config::kNumTopk && (routed >> slot & 1);
            const uint16_t* row = partials + uint64_t(token * config::kNumTopk + slot) * config::kHiddenPadded;
#pragma unroll
            for (uint32_t run = 0; run < kRuns; ++run) {
                const bool is_inside = kPieceValues <= 256 || config::kHiddenPadded % kPieceValues == 0 || hidden + run * 256 < config::kHiddenPadded;
                rows[run][k] = is_routed && is_inside ? ptx::ld_global_cg_v4(row + run * 256) : uint4{0, 0, 0, 0};
            }
        }
#pragma unroll
        for (uint32_t k = 0; k < kAtOnce; ++k) {
#pragma unroll
            for (uint32_t run = 0; run < kRuns; ++run) {
                const uint32_t pairs[4] = {rows[run][k].x, rows[run][k].y, rows[run][k].z, rows[run][k].w};
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) sum[run][2 * i] += ptx::bf16_low(pairs[i]), sum[run][2 * i + 1] += ptx::bf16_high(pairs[i]);
            }
        }
    }
#pragma unroll
    for (uint32_t run = 0; run < kRuns; ++run) store_run(params, token, hidden + run * 256, sum[run]);
}

__device__ __forceinline__ void combine(const mega_moe::Context& ctx, uint32_t consumer_thread) {
    constexpr uint32_t kPieces = (config::kHidden + kPieceValues - 1) / kPieceValues, kWarps = mega_moe::kNumConsumerThreads / 32;
    // One thread polls; what it acquires reaches the others through the barrier.
    if (consumer_thread == 0) {
        comm::wait_counter(ctx.watchdog, ctx.params.l2_done, mega_moe::l2_arrivals(ctx), comm::WaitFor::kL2Tiles, 0);
    }
    mega_moe::sync_consumers();
    const uint32_t lane = consumer_thread % 32;
    for (uint32_t i = blockIdx.x * kWarps + consumer_thread / 32; i < ctx.params.num_tokens * kPieces; i += gridDim.x * kWarps) {
        combine_piece(ctx.params, i / kPieces, i % kPieces * kPieceValues + lane * 8);
    }
}

}  // namespace roles
