// Role: L1 epilogue (the consumer warpgroups, after mma)
// Waits for:  nothing beyond the tile's sums
// Produces:   activation(sums) in the pool of routed tokens, E4M3 with one scale factor per (token, 128 values) or BF16, in token
//             order of K; counts the tile in l1_done
// Registers:  config::kConsumerRegisters
//
// Sum register r of m64 tile m is column 8 (r / 4) + 2 (lane % 4) + r % 2; half = r / 2 % 2 is row g (0) or g + 8 (1). The weight
// transform puts gate in half 0 and the same value's up in half 1; without a gate the halves are two blocks of 128 values.
#pragma once
#include "layout/token_order.cuh"
#include "mega_moe/activation.cuh"
#include "mega_moe/context_sm90.cuh"
#include "mega_moe/roles/mma_sm90.cuh"

namespace roles {

// Starts the copies of what the epilogue needs of the tile's columns, before the MMAs that hide the way. The last tile's are no
// longer read: its epilogue ended with a barrier.
template <bool kIsL2>
__device__ __forceinline__ void fetch_columns(const Consumer& c, const mega_moe::Tile& tile) {
    const mega_moe::Params& params = c.ctx.params;
    mega_moe::SharedStorage& smem = c.ctx.smem;
    const uint32_t column = c.warpgroup * 128 + c.thread;
    wait_stage(c);  // whoever loaded the tile's rows has seen what dispatch wrote beside them
    if (column < tile.num_rows) {
        const uint32_t row = tile.pool_row + column;
        if constexpr (kIsL2) {
            ptx::cp_async_4(ptx::smem_address(&smem.slot[column]), params.routed + row);
            ptx::cp_async_4(ptx::smem_address(&smem.factor[column]), params.routed_weights + row);
        } else if constexpr (config::kHasTokenScales) {
            ptx::cp_async_4(ptx::smem_address(&smem.factor[column]), params.routed_sf + row);
        }
    }
    if (!kIsL2 && !config::kHasTokenScales && column < config::kBlockN) smem.factor[column] = 1.0f;
    if (column < (kIsL2 ? 1 : 2)) ptx::cp_async_4(ptx::smem_address(&smem.alpha[column]), kIsL2 ? params.l2_alphas + tile.expert : params.l1_alphas + 2 * tile.expert + column);
}

// Before the first look at them.
__device__ __forceinline__ void wait_columns() {
    ptx::cp_async_wait_all();
    mega_moe::sync_consumers();
}

// A pass's values of a block that this thread has: value[m][2 * (column group) + column % 2].
template <uint32_t kWidth>
using Values = float[kM64][kWidth / 4];

template <uint32_t kWidth, uint32_t kBlock>
__device__ __forceinline__ void activate_block(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, const Sums<kWidth>& sums, Values<kWidth>& value) {
    const mega_moe::Params& params = c.ctx.params;
    const float (&alpha)[2] = c.ctx.smem.alpha;
    const uint32_t lane = c.thread % 32, warp = c.thread / 32;
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) {
        // Intermediate index of this thread's row, inside the 128 of the block.
        const uint32_t in_block = 32 * c.m64(pass, m) + 8 * warp + lane / 4;
        float bias[2] = {0.0f, 0.0f};
        if (params.l1_bias != nullptr) {
            const float* row = params.l1_bias + uint64_t(tile.expert) * config::kL1Rows;
            const uint32_t i = (tile.m_tile * config::kL1BlocksPerTile + kBlock) * 128 + in_block;
            bias[0] = row[i];
            if constexpr (config::kIsGated) bias[1] = row[config::kIntermediatePadded + i];
        }
#pragma unroll
        for (uint32_t j = 0; j < kWidth / 4; ++j) {
            const uint32_t r = j / 2 * 4 + j % 2;  // half 0; half 1 is r + 2
            const float scale = c.ctx.smem.factor[j / 2 * 8 + lane % 4 * 2 + j % 2];
            if constexpr (config::kIsGated) {
                value[m][j] = mega_moe::activate(fmaf(sums[m][r], scale * alpha[0], bias[0]), fmaf(sums[m][r + 2], scale * alpha[1], bias[1]));
            } else {
                value[m][j] = mega_moe::activate(fmaf(sums[m][r + 2 * kBlock], scale * alpha[0], bias[0]));
            }
        }
    }
}

// The first pass's values wait for the second's in shared memory, each thread's in a column of its own.
__device__ __forceinline__ float& stashed(const Consumer& c, uint32_t m, uint32_t j) {
    return c.ctx.smem.pass_values[(m * (config::kBlockN / 4) + j) * mega_moe::kNumConsumerThreads + c.warpgroup * 128 + c.thread];
}

constexpr bool kStashes = config::kIsFp8 && config::kNumPasses > 1;
static_assert(config::kNumPasses == 1 || (config::kNumPasses == 2 && config::kL1BlocksPerTile == 1), "one stash, of one block");

// Largest magnitude of each column over the block's 128 values, in smem.amax (bits of non-negative floats order like integers).
template <uint32_t kWidth>
__device__ __forceinline__ void reduce_amax(const Consumer& c, const Values<kWidth>& value) {
    const uint32_t lane = c.thread % 32;
#pragma unroll
    for (uint32_t j = 0; j < kWidth / 4; ++j) {
        float largest = 0.0f;
#pragma unroll
        for (uint32_t m = 0; m < kM64; ++m) {
            largest = fmaxf(largest, fabsf(value[m][j]));
            if constexpr (kStashes) largest = fmaxf(largest, fabsf(stashed(c, m, j)));
        }
#pragma unroll
        for (uint32_t step = 4; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
        if (lane < 4) atomicMax(&c.ctx.smem.amax[j / 2 * 8 + lane * 2 + j % 2], __float_as_uint(largest));
    }
}

// One thread a column: its scale factor to the pool, the reciprocal to all consumers, and the maximum starts over.
__device__ __forceinline__ void scale_columns(const Consumer& c, const mega_moe::Tile& tile, uint32_t block) {
    mega_moe::SharedStorage& smem = c.ctx.smem;
    const uint32_t column = c.warpgroup * 128 + c.thread;
    if (column < config::kBlockN) {
        const float scale = fmaxf(__uint_as_float(smem.amax[column]), config::kMinAmax) / 448.0f;
        smem.inverse_scale[column] = 1.0f / scale;
        smem.amax[column] = 0;
        if (column < tile.num_rows) c.ctx.params.acts_sf[uint64_t(block) * c.ctx.params.pool_rows + tile.pool_row + column] = scale;
    }
    mega_moe::sync_consumers();
}

// Converts one value into the shared tile [column][128], K in token order.
__device__ __forceinline__ void put_value(const Consumer& c, uint32_t pass, uint32_t m, uint32_t column, float value) {
    const uint32_t lane = c.thread % 32, warp = c.thread / 32;
    const uint32_t k = layout::TokenOrder<config::kIsFp8>::position(32 * c.m64(pass, m) + 8 * warp + lane / 4);
    if constexpr (config::kIsFp8) {
        c.ctx.smem.acts[column * 128 + k] = uint8_t(ptx::cvt_e4m3x2(value, 0.0f));
    } else {
        reinterpret_cast<uint16_t*>(c.ctx.smem.acts)[column * 128 + k] = uint16_t(ptx::cvt_bf16x2(value, 0.0f));
    }
}

// Quantises a pass's values, and with the second pass the first's that waited.
template <uint32_t kWidth>
__device__ __forceinline__ void quantize_block(const Consumer& c, uint32_t pass, const Values<kWidth>& value) {
#pragma unroll
    for (uint32_t j = 0; j < kWidth / 4; ++j) {
        const uint32_t column = j / 2 * 8 + c.thread % 4 * 2 + j % 2;
        const float inverse = config::kIsFp8 ? c.ctx.smem.inverse_scale[column] : 1.0f;
#pragma unroll
        for (uint32_t m = 0; m < kM64; ++m) {
            put_value(c, pass, m, column, value[m][j] * inverse);
            if constexpr (kStashes) put_value(c, 0, m, column, stashed(c, m, j) * inverse);
        }
    }
}

// Copies the tile's valid columns to the pool, 16 bytes a thread.
__device__ __forceinline__ void store_block(const Consumer& c, const mega_moe::Tile& tile, uint32_t block) {
    constexpr uint32_t kBytes = 128 * config::kActBytes, kPieces = kBytes / 16;
    const uint32_t thread = c.warpgroup * 128 + c.thread;
    const uint4* tile_acts = reinterpret_cast<const uint4*>(c.ctx.smem.acts);
    for (uint32_t i = thread; i < tile.num_rows * kPieces; i += mega_moe::kNumConsumerThreads) {
        uint8_t* row = c.ctx.params.acts + uint64_t(tile.pool_row + i / kPieces) * config::kActRowBytes + block * kBytes;
        reinterpret_cast<uint4*>(row)[i % kPieces] = tile_acts[i];
    }
}

template <uint32_t kWidth, uint32_t kBlock>
__device__ __forceinline__ void finish_block(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, const Sums<kWidth>& sums) {
    using namespace mega_moe;
    const uint32_t block = tile.m_tile * config::kL1BlocksPerTile + kBlock;
    Values<kWidth> value;
    activate_block<kWidth, kBlock>(c, tile, pass, sums, value);
    if constexpr (kStashes) {
        if (pass == 0) {
#pragma unroll
            for (uint32_t m = 0; m < kM64; ++m)
#pragma unroll
                for (uint32_t j = 0; j < kWidth / 4; ++j) stashed(c, m, j) = value[m][j];
            return;
        }
    }
    if constexpr (config::kIsFp8) {
        reduce_amax<kWidth>(c, value);
        sync_consumers();
        scale_columns(c, tile, block);
    }
    quantize_block<kWidth>(c, pass, value);
    if (pass + 1 < config::kNumPasses) return;
    sync_consumers();
    store_block(c, tile, block);
    sync_consumers();
}

template <uint32_t kWidth>
__device__ __forceinline__ void epilogue_l1(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, const Sums<kWidth>& sums) {
    if (pass == 0) wait_columns();
    finish_block<kWidth, 0>(c, tile, pass, sums);
    if constexpr (config::kL1BlocksPerTile > 1) finish_block<kWidth, 1>(c, tile, pass, sums);
    // Publish: the stores happen before the release through the last barrier; L2's loader fences the proxy on its side.
    if (pass + 1 == config::kNumPasses && c.warpgroup == 0 && c.thread == 0) {
        ptx::red_release_gpu_add(&c.ctx.params.l1_done[tile.token_tile], 1);
    }
}

}  // namespace roles
