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
#include "mega_moe/context.cuh"
#include "mega_moe/roles/mma_sm90.cuh"

namespace roles {

// Loads the routing of the tile's columns: slot, and the factor of its column (x's scale in L1, the top-k weight in L2).
template <bool kIsL2>
__device__ __forceinline__ void load_columns(const mega_moe::Context& ctx, const mega_moe::Tile& tile) {
    using namespace mega_moe;
    SharedStorage& smem = ctx.smem;
    const uint32_t column = threadIdx.x - config::kFirstConsumerThread;
    if (column < config::kBlockN) {
        const bool is_valid = column < tile.num_rows;
        const uint32_t slot = is_valid ? ctx.params.routed[tile.row + column] : 0;
        smem.slot[column] = slot;
        smem.amax[column] = 0;
        float factor = 0.0f;
        if (is_valid && kIsL2) factor = comm::part<const float>(ctx.params.peers, 0, ctx.params.sym.topk_weights)[slot];
        if (is_valid && !kIsL2) factor = config::kIsFp8 ? comm::part<const float>(ctx.params.peers, 0, ctx.params.sym.token_sf)[slot / config::kNumTopk] : 1.0f;
        smem.token_scale[column] = factor;
    }
    sync_consumers();
}

// The block's values of this thread: value[m][2 * (column group) + column % 2].
template <uint32_t kBlock>
__device__ __forceinline__ void activate_block(const Consumer& c, const mega_moe::Tile& tile, const Sums& sums, float (&value)[kM64][kSumRegisters / 2]) {
    const mega_moe::Params& params = c.ctx.params;
    const uint32_t lane = c.thread % 32, warp = c.thread / 32;
    const float* alphas = params.l1_alphas + 2 * tile.expert;
    const float alpha[2] = {alphas[0], alphas[1]};
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) {
        // Intermediate index of this thread's row, inside the 128 of the block.
        const uint32_t in_block = 32 * (c.warpgroup * kM64 + m) + 8 * warp + lane / 4;
        float bias[2] = {0.0f, 0.0f};
        if (params.l1_bias != nullptr) {
            const float* row = params.l1_bias + uint64_t(tile.expert) * config::kL1Rows;
            const uint32_t i = (tile.m_tile * config::kL1BlocksPerTile + kBlock) * 128 + in_block;
            bias[0] = row[i];
            if constexpr (config::kIsGated) bias[1] = row[config::kIntermediatePadded + i];
        }
#pragma unroll
        for (uint32_t j = 0; j < kSumRegisters / 2; ++j) {
            const uint32_t r = j / 2 * 4 + j % 2;  // half 0; half 1 is r + 2
            const float scale = c.ctx.smem.token_scale[j / 2 * 8 + lane % 4 * 2 + j % 2];
            if constexpr (config::kIsGated) {
                value[m][j] = mega_moe::activate(fmaf(sums[m][r], scale * alpha[0], bias[0]), fmaf(sums[m][r + 2], scale * alpha[1], bias[1]));
            } else {
                value[m][j] = mega_moe::activate(fmaf(sums[m][r + 2 * kBlock], scale * alpha[0], bias[0]));
            }
        }
    }
}

// Largest magnitude of each column over the block's 128 values, in smem.amax (bits of a non-negative float order like integers).
__device__ __forceinline__ void reduce_amax(const Consumer& c, const float (&value)[kM64][kSumRegisters / 2]) {
    const uint32_t lane = c.thread % 32;
#pragma unroll
    for (uint32_t j = 0; j < kSumRegisters / 2; ++j) {
        float largest = 0.0f;
#pragma unroll
        for (uint32_t m = 0; m < kM64; ++m) largest = fmaxf(largest, fabsf(value[m][j]));
#pragma unroll
        for (uint32_t step = 4; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
        if (lane < 4) atomicMax(&c.ctx.smem.amax[j / 2 * 8 + lane * 2 + j % 2], __float_as_uint(largest));
    }
}

// Converts the block's values into the shared tile [column][128], K in token order; E4M3 also writes the columns' scale factors.
__device__ __forceinline__ void quantize_block(const Consumer& c, const mega_moe::Tile& tile, uint32_t block, const float (&value)[kM64][kSumRegisters / 2]) {
    const mega_moe::Context& ctx = c.ctx;
    const uint32_t lane = c.thread % 32, warp = c.thread / 32, thread = c.warpgroup * 128 + c.thread;
    const auto scale_of = [&](uint32_t column) { return fmaxf(__uint_as_float(ctx.smem.amax[column]), config::kMinAmax) / 448.0f; };
    if constexpr (config::kIsFp8) {
        if (thread < tile.num_rows) ctx.params.acts_sf[uint64_t(block) * ctx.params.pool_rows + tile.row + thread] = scale_of(thread);
    }
#pragma unroll
    for (uint32_t j = 0; j < kSumRegisters / 2; ++j) {
        const uint32_t column = j / 2 * 8 + lane % 4 * 2 + j % 2;
        const float inverse = config::kIsFp8 ? 1.0f / scale_of(column) : 1.0f;
#pragma unroll
        for (uint32_t m = 0; m < kM64; ++m) {
            const uint32_t k = layout::TokenOrder<config::kIsFp8>::position(32 * (c.warpgroup * kM64 + m) + 8 * warp + lane / 4);
            if constexpr (config::kIsFp8) {
                ctx.smem.acts[column * 128 + k] = uint8_t(ptx::cvt_e4m3x2(value[m][j] * inverse, 0.0f));
            } else {
                reinterpret_cast<uint16_t*>(ctx.smem.acts)[column * 128 + k] = uint16_t(ptx::cvt_bf16x2(value[m][j], 0.0f));
            }
        }
    }
}

// Copies the tile's valid columns to the pool, 16 bytes a thread.
__device__ __forceinline__ void store_block(const Consumer& c, const mega_moe::Tile& tile, uint32_t block) {
    constexpr uint32_t kBytes = 128 * config::kActBytes, kPieces = kBytes / 16;
    const uint4* tile_acts = reinterpret_cast<const uint4*>(c.ctx.smem.acts);
    for (uint32_t i = c.warpgroup * 128 + c.thread; i < tile.num_rows * kPieces; i += mega_moe::kNumConsumerThreads) {
        uint8_t* row = c.ctx.params.acts + uint64_t(tile.row + i / kPieces) * config::kActRowBytes + block * kBytes;
        reinterpret_cast<uint4*>(row)[i % kPieces] = tile_acts[i];
    }
}

template <uint32_t kBlock>
__device__ __forceinline__ void finish_block(const Consumer& c, const mega_moe::Tile& tile, const Sums& sums) {
    using namespace mega_moe;
    const uint32_t block = tile.m_tile * config::kL1BlocksPerTile + kBlock;
    float value[kM64][kSumRegisters / 2];
    activate_block<kBlock>(c, tile, sums, value);
    if constexpr (config::kIsFp8) {
        if constexpr (kBlock > 0) {
            // Everybody has read the last block's maxima (store_block's barrier): start over.
            const uint32_t column = c.warpgroup * 128 + c.thread;
            if (column < config::kBlockN) c.ctx.smem.amax[column] = 0;
            sync_consumers();
        }
        reduce_amax(c, value);
        sync_consumers();
    }
    quantize_block(c, tile, block, value);
    sync_consumers();
    store_block(c, tile, block);
    sync_consumers();
}

__device__ __forceinline__ void epilogue_l1(const Consumer& c, const mega_moe::Tile& tile, const Sums& sums) {
    load_columns<false>(c.ctx, tile);
    finish_block<0>(c, tile, sums);
    if constexpr (config::kL1BlocksPerTile > 1) finish_block<1>(c, tile, sums);
    // Publish: the stores above happen before the release through the last barrier; L2's loader fences the proxy on its side.
    if (c.warpgroup == 0 && c.thread == 0) ptx::red_release_gpu_add(&c.ctx.params.l1_done[tile.token_tile], 1);
}

}  // namespace roles
