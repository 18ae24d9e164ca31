// Role: mma (two consumer warpgroups; each multiplies 128 of the tile's 256 weight rows by all its tokens)
// Waits for:  a stage's full barrier
// Produces:   the tile's sums in FP32 registers, for the epilogue of the same warps; releases stages on their empty barriers
// Registers:  config::kConsumerRegisters: kM64 x kBlockN / 2 sums (E4M3: twice, see below), two fragments of decoded weights
//
// Hopper's FP8 adder keeps 13 fraction bits below the largest term, so E4M3 sums are promoted: a block of K is accumulated by the
// tensor core, then added to FP32 sums. In L2 a block is one stage, whose scale factors (one a token) multiply it on the way.
#pragma once
#include "layout/gmma.cuh"
#include "mega_moe/context.cuh"
#include "mega_moe/decode_fp4.cuh"
#include "ptx/fence.cuh"
#include "ptx/wgmma.cuh"

namespace roles {

constexpr uint32_t kM64 = config::kBlockM / 64 / config::kNumConsumerWarpgroups;  // 64-row tiles a warpgroup
constexpr uint32_t kSumRegisters = config::kBlockN / 2;
using Sums = float[kM64][kSumRegisters];
using Mma = ptx::Wgmma<config::kBlockN>;

struct Consumer {
    const mega_moe::Context& ctx;
    uint32_t warpgroup;  // 0 or 1
    uint32_t thread;     // in the warpgroup
    pipeline::RingCursor cursor;

    __device__ __forceinline__ void release(uint32_t stage) const {
        __syncwarp();
        if (thread % 32 == 0) ptx::mbarrier_arrive(ptx::smem_address(&ctx.smem.ring.empty[stage]));
    }
};

__device__ __forceinline__ void zero(Sums& sums) {
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m)
#pragma unroll
        for (uint32_t r = 0; r < kSumRegisters; ++r) sums[m][r] = 0.0f;
}

// Decodes one unit and starts its MMAs; on return the unit before it has been read and summed.
template <uint32_t kUnit>
__device__ __forceinline__ void multiply_unit(const Consumer& c, Sums& sums, uint32_t (&fragments)[kM64][mega_moe::kUnitRegisters]) {
    const mega_moe::SharedStorage& smem = c.ctx.smem;
    const uint32_t weights = ptx::smem_address(smem.weights[c.cursor.stage]), table = ptx::smem_address(smem.decode_table);
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) mega_moe::decode_unit(weights, table, c.warpgroup * kM64 + m, kUnit, c.thread, fragments[m]);
    // BF16 has one 128-byte sub-block a unit, E4M3 has both units in one.
    constexpr uint32_t kUnitOffset = config::kIsFp8 ? kUnit * mega_moe::kStepsPerUnit * 32 : kUnit * config::kBlockN * 128;
    const uint64_t tokens = layout::gmma_descriptor(ptx::smem_address(smem.tokens[c.cursor.stage]) + kUnitOffset);
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t step = 0; step < mega_moe::kStepsPerUnit; ++step) {
#pragma unroll
        for (uint32_t m = 0; m < kM64; ++m) {
            if constexpr (config::kIsFp8) {
                Mma::e4m3(sums[m], fragments[m] + 4 * step, tokens + step * layout::kDescriptorStep);
            } else {
                Mma::bf16(sums[m], fragments[m] + 4 * step, tokens + step * layout::kDescriptorStep);
            }
        }
    }
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<1>();
}

__device__ __forceinline__ void tie(Sums& sums) {
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m)
#pragma unroll
        for (uint32_t r = 0; r < kSumRegisters; ++r) ptx::tie(sums[m][r]);
}

__device__ __forceinline__ void tie(uint32_t (&fragments)[kM64][mega_moe::kUnitRegisters]) {
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m)
#pragma unroll
        for (uint32_t r = 0; r < mega_moe::kUnitRegisters; ++r) ptx::tie(fragments[m][r]);
}

// Adds `num_stages` stages to `sums`; all are read and summed on return, the last is not released yet.
template <bool kIsL2>
__device__ __forceinline__ uint32_t multiply_stages(Consumer& c, Sums& sums, uint32_t num_stages) {
    uint32_t fragments[2][kM64][mega_moe::kUnitRegisters];  // one is decoded while the other is multiplied
    uint32_t previous = 0;
    for (uint32_t i = 0; i < num_stages; ++i) {
        pipeline::wait_full(c.ctx.watchdog, c.ctx.smem.ring, c.cursor);
        // L1's tokens came by cp.async, through the generic proxy; wgmma reads them through the async proxy.
        if constexpr (!kIsL2) ptx::fence_proxy_async_shared();
        multiply_unit<0>(c, sums, fragments[0]);
        tie(fragments[1]);
        if (i > 0) c.release(previous);
        multiply_unit<1>(c, sums, fragments[1]);
        tie(fragments[0]);
        previous = c.cursor.stage;
        c.cursor.advance();
    }
    ptx::wgmma_wait_group<0>();
    tie(sums);
    return previous;
}

// Sums a whole tile: L1 over hidden, L2 over intermediate.
template <bool kIsL2>
__device__ __forceinline__ void multiply_tile(Consumer& c, Sums& total) {
    constexpr uint32_t kStages = kIsL2 ? config::kL2KStages : config::kL1KStages;
    zero(total);
    if constexpr (!config::kIsFp8) {
        c.release(multiply_stages<kIsL2>(c, total, kStages));
    } else {
        constexpr uint32_t kBlock = kIsL2 ? 1 : config::kPromoteStages;
        const uint32_t column = c.thread % 4 * 2;  // the first of this thread's columns in each 8
        for (uint32_t first = 0; first < kStages; first += kBlock) {
            Sums block;
            zero(block);
            const uint32_t stage = multiply_stages<kIsL2>(c, block, min(kBlock, kStages - first));
#pragma unroll
            for (uint32_t r = 0; r < kSumRegisters; ++r) {
                // Registers r % 2 are neighbouring columns, r / 4 the group of 8.
                const float sf = kIsL2 ? c.ctx.smem.acts_sf[stage][r / 4 * 8 + column + r % 2] : 1.0f;
#pragma unroll
                for (uint32_t m = 0; m < kM64; ++m) total[m][r] = kIsL2 ? fmaf(block[m][r], sf, total[m][r]) : total[m][r] + block[m][r];
            }
            c.release(stage);
        }
    }
}

}  // namespace roles
