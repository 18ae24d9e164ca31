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

constexpr uint32_t kSlotsAtOnce = config::kNumTopk < 6 ? config::kNumTopk : 6;
using Rows = uint4[kSlotsAtOnce][kRuns];

// Which of a token's slots went somewhere: a lane looks at each. No token: none.
__device__ __forceinline__ bool is_routed(const mega_moe::Params& params, uint32_t token, uint32_t lane) {
    static_assert(config::kNumTopk <= 32, "a lane a slot");
    return token < params.num_tokens && lane < config::kNumTopk && mega_moe::home_expert(params, token * config::kNumTopk + lane) >= 0;
}

// Starts the loads of kRuns x 256 neighbouring values of a slot's row, from `hidden` on.
__device__ __forceinline__ void load_slot(const uint16_t* partials, uint32_t token, uint32_t hidden, uint32_t routed, uint32_t slot, uint4 (&row)[kRuns]) {
    const bool is_there = slot < config::kNumTopk && (routed >> slot & 1);
    const uint16_t* values = partials + uint64_t(token * config::kNumTopk + slot) * config::kHiddenPadded + hidden;
#pragma unroll
    for (uint32_t run = 0; run < kRuns; ++run) {
        const bool is_inside = kPieceValues <= 256 || config::kHiddenPadded % kPieceValues == 0 || hidden + run * 256 < config::kHiddenPadded;
        row[run] = ptx::ld_global_cg_v4_if(is_there && is_inside, values + run * 256);
    }
}

__device__ __forceinline__ void add_slot(const uint4 (&row)[kRuns], float (&sum)[kRuns][8]) {
#pragma unroll
    for (uint32_t run = 0; run < kRuns; ++run) {
        const uint32_t pairs[4] = {row[run].x, row[run].y, row[run].z, row[run].w};
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) sum[run][2 * i] += ptx::bf16_low(pairs[i]), sum[run][2 * i + 1] += ptx::bf16_high(pairs[i]);
    }
}

// One piece: kRuns x 256 neighbouring values of a token, of which the first slots' rows are on their way.
__device__ __forceinline__ void finish_piece(const mega_moe::Params& params, const uint16_t* partials, uint32_t token, uint32_t hidden, uint32_t routed, Rows& rows) {
    float sum[kRuns][8] = {};
#pragma unroll
    for (uint32_t first = 0; first < config::kNumTopk; first += kSlotsAtOnce) {
#pragma unroll
        for (uint32_t k = 0; k < kSlotsAtOnce; ++k) {
            if (first > 0) load_slot(partials, token, hidden, routed, first + k, rows[k]);
        }
#pragma unroll
        for (uint32_t k = 0; k < kSlotsAtOnce; ++k) add_slot(rows[k], sum);
    }
#pragma unroll
    for (uint32_t run = 0; run < kRuns; ++run) store_run(params, token, hidden + run * 256, sum[run]);
}

// A warp has two pieces in hand: one on its way while the other is added, since only loads in flight make this faster.
__device__ __forceinline__ void combine(const mega_moe::Context& ctx, uint32_t consumer_thread) {
    constexpr uint32_t kPieces = (config::kHidden + kPieceValues - 1) / kPieceValues, kWarps = mega_moe::kNumConsumerThreads / 32;
    const mega_moe::Params& params = ctx.params;
    const uint32_t lane = consumer_thread % 32, step = gridDim.x * kWarps, end = params.num_tokens * kPieces;
    // Few tokens spread over all blocks, and spare the warp of the thread that polls.
    uint32_t i = (kWarps - 1 - consumer_thread / 32) * gridDim.x + blockIdx.x;
    // The routing was there before the launch: it is read while others finish.
    uint32_t routed[2] = {__ballot_sync(~0u, is_routed(params, i / kPieces, lane)), __ballot_sync(~0u, is_routed(params, (i + step) / kPieces, lane))};
    // One thread polls; what it acquires reaches the others through the barrier.
    if (consumer_thread == 0) {
        comm::wait_counter(ctx.watchdog, params.l2_done, mega_moe::l2_arrivals(ctx), comm::WaitFor::kL2Tiles, 0);
    }
    mega_moe::sync_consumers();
    const uint16_t* partials = comm::part<const uint16_t>(params.peers, params.rank, params.sym.partials);
    Rows rows[2];
    const auto load = [&](uint32_t at, uint32_t buffer) __attribute__((always_inline)) {
#pragma unroll
        for (uint32_t k = 0; k < kSlotsAtOnce; ++k) load_slot(partials, at / kPieces, at % kPieces * kPieceValues + lane * 8, routed[buffer], k, rows[buffer][k]);
    };
    load(i, 0);
#pragma unroll 1
    while (i < end) {
#pragma unroll
        for (uint32_t buffer = 0; buffer < 2; ++buffer) {
            if (i >= end) break;
            load(i + step, buffer ^ 1);
            const bool is_routed_later = is_routed(params, (i + 2 * step) / kPieces, lane);
            finish_piece(params, partials, i / kPieces, i % kPieces * kPieceValues + lane * 8, routed[buffer], rows[buffer]);
            routed[buffer] = __ballot_sync(~0u, is_routed_later);
            i += step;
        }
    }
}

}  // namespace roles
