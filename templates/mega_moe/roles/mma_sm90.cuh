// Role: mma (two consumer warpgroups; each multiplies half of a pass's weight rows by all tokens of the tile)
// Waits for:  a stage's full barrier
// Produces:   the tile's sums in FP32 registers, for the epilogue of the same warps; releases stages on their empty barriers
// Registers:  config::kConsumerRegisters: kM64 x kBlockN / 2 sums (E4M3: twice, see below), two units of decoded weights
//
// Hopper's FP8 adder keeps 13 fraction bits below the largest term, so E4M3 sums are promoted: each stage is accumulated by the
// tensor core, then added to FP32 sums. In L2 the stage's scale factors (one a token) multiply it on the way.
//
// A tile of up to 64 tokens is one pass over its 256 weight rows; wider ones take two passes of 128 rows, for want of registers.
#pragma once
#include "layout/gmma.cuh"
#include "mega_moe/context_sm90.cuh"
#include "mega_moe/decode_fp4.cuh"
#include "ptx/fence.cuh"
#include "ptx/wgmma.cuh"

namespace roles {

constexpr uint32_t kM64 = config::kPassM / 64 / config::kNumConsumerWarpgroups;  // 64-row tiles a warpgroup
constexpr uint32_t kSumRegisters = config::kBlockN / 2;
using Sums = float[kM64][kSumRegisters];

struct Consumer {
    const mega_moe::Context& ctx;
    uint32_t warpgroup;  // 0 or 1
    uint32_t thread;     // in the warpgroup
    pipeline::RingCursor cursor;

    // Of this warpgroup's tile m in a pass: its number among the block's four.
    __device__ __forceinline__ uint32_t m64(uint32_t pass, uint32_t m) const { return (pass * config::kNumConsumerWarpgroups + warpgroup) * kM64 + m; }

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

using Fragments = uint32_t[kM64][mega_moe::kUnitRegisters];

// Keeps registers where they are until the MMAs that use them are done.
__device__ __forceinline__ void tie(Sums& sums) {
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m)
#pragma unroll
        for (uint32_t r = 0; r < kSumRegisters; ++r) ptx::tie(sums[m][r]);
}

__device__ __forceinline__ void tie(Fragments& fragments) {
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m)
#pragma unroll
        for (uint32_t r = 0; r < mega_moe::kUnitRegisters; ++r) ptx::tie(fragments[m][r]);
}

template <uint32_t kUnit>
__device__ __forceinline__ void decode(const Consumer& c, Fragments& fragments) {
    const mega_moe::SharedStorage& smem = c.ctx.smem;
    const uint32_t weights = ptx::smem_address(smem.weights[c.cursor.stage]), table = ptx::smem_address(smem.decode_table);
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) mega_moe::decode_unit(weights, table, c.warpgroup * kM64 + m, kUnit, c.thread, fragments[m]);
}

template <uint32_t kWidth, bool kOverwrites>
__device__ __forceinline__ void multiply_step(float* sums, const uint32_t* fragment, uint64_t tokens) {
    if constexpr (config::kIsFp8) {
        ptx::Wgmma<kWidth>::template e4m3<!kOverwrites>(sums, fragment, tokens);
    } else {
        ptx::Wgmma<kWidth>::template bf16<!kOverwrites>(sums, fragment, tokens);
    }
}

// Starts the MMAs of one unit of stage `stage`. In E4M3 a stage's first MMA overwrites its sums: the last stage's were promoted.
template <uint32_t kWidth, uint32_t kUnit>
__device__ __forceinline__ void multiply(const Consumer& c, uint32_t stage, Sums& sums, const Fragments& fragments) {
    // BF16 has one 128-byte sub-block a unit, E4M3 has both units in one.
    constexpr uint32_t kUnitOffset = config::kIsFp8 ? kUnit * mega_moe::kStepsPerUnit * 32 : kUnit * config::kBlockN * 128;
    const uint64_t tokens = layout::gmma_descriptor(ptx::smem_address(c.ctx.smem.tokens[stage]) + kUnitOffset);
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) multiply_step<kWidth, kUnit == 0 && config::kIsFp8>(sums[m], fragments[m], tokens);
#pragma unroll
    for (uint32_t step = 1; step < mega_moe::kStepsPerUnit; ++step) {
#pragma unroll
        for (uint32_t m = 0; m < kM64; ++m) multiply_step<kWidth, false>(sums[m], fragments[m] + 4 * step, tokens + step * layout::kDescriptorStep);
    }
    ptx::wgmma_commit_group();
}

// Adds a stage's sums to the total, times the tokens' scale factors in L2.
template <bool kIsL2, uint32_t kWidth>
__device__ __forceinline__ void promote(const Consumer& c, uint32_t stage, const Sums& block, Sums& total) {
    const uint32_t column = c.thread % 4 * 2;  // the first of this thread's columns in each 8
#pragma unroll
    for (uint32_t r = 0; r < kWidth / 2; ++r) {
        // Registers r % 2 are neighbouring columns, r / 4 the group of 8.
        const float sf = kIsL2 ? c.ctx.smem.acts_sf[stage][r / 4 * 8 + column + r % 2] : 1.0f;
#pragma unroll
        for (uint32_t m = 0; m < kM64; ++m) total[m][r] = kIsL2 ? fmaf(block[m][r], sf, total[m][r]) : total[m][r] + block[m][r];
    }
}

template <bool kIsL2>
__device__ __forceinline__ void wait_stage(const Consumer& c) {
    pipeline::wait_full(c.ctx.watchdog, c.ctx.smem.ring, c.cursor);
    // L1's tokens came by cp.async, through the generic proxy; wgmma reads them through the async proxy.
    if constexpr (!kIsL2) ptx::fence_proxy_async_shared();
}

// Sums a pass: L1 over hidden, L2 over intermediate. Each unit is decoded while the one before it is multiplied, also across
// stages. Registers past kWidth / 2 stay zero.
template <bool kIsL2, uint32_t kWidth>
__device__ __forceinline__ void multiply_width(Consumer& c, Sums& total) {
    constexpr uint32_t kStages = kIsL2 ? config::kL2KStages : config::kL1KStages;
    Fragments even, odd;
    Sums block;
    zero(block);
    Sums& sums = config::kIsFp8 ? block : total;
    uint32_t previous = 0;
    wait_stage<kIsL2>(c);
    decode<0>(c, even);
    for (uint32_t k = 0; k < kStages; ++k) {
        // One value a warp, in a uniform register: descriptors then cost no vector instructions.
        const uint32_t stage = __shfl_sync(~0u, c.cursor.stage, 0);
        multiply<kWidth, 0>(c, stage, sums, even);
        if constexpr (!config::kIsFp8) {
            // The odd unit of the last stage still runs: its fragment and its stage are free once it is done.
            ptx::wgmma_wait_group<1>();
            tie(odd);
            if (k > 0) c.release(previous);
            previous = stage;
        }
        decode<1>(c, odd);
        multiply<kWidth, 1>(c, stage, sums, odd);
        ptx::wgmma_wait_group<1>();  // the even unit
        tie(even);
        c.cursor.advance();
        if (k + 1 < kStages) {
            wait_stage<kIsL2>(c);
            decode<0>(c, even);
        }
        if constexpr (config::kIsFp8) {
            ptx::wgmma_wait_group<0>();
            tie(odd);
            tie(block);
            promote<kIsL2, kWidth>(c, stage, block, total);
            c.release(stage);
        }
    }
    if constexpr (!config::kIsFp8) {
        ptx::wgmma_wait_group<0>();
        tie(odd);
        tie(total);
        c.release(previous);
    }
}

// The narrowest MMA that holds the tile's tokens.
template <bool kIsL2>
__device__ __forceinline__ void multiply_pass(Consumer& c, const mega_moe::Tile& tile, Sums& total) {
    zero(total);
    if constexpr (config::kBlockN > 64) {
        if (tile.width <= 64) return multiply_width<kIsL2, 64>(c, total);
    }
    if constexpr (config::kBlockN > 128) {
        if (tile.width <= 128) return multiply_width<kIsL2, 128>(c, total);
    }
    multiply_width<kIsL2, config::kBlockN>(c, total);
}

}  // namespace roles
