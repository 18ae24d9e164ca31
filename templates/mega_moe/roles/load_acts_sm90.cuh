// Role: load activations (warps 1 to 3)
// Waits for:  a stage's empty barrier; L1: the expert's list of routed tokens; L2: all L1 tiles of the token tile
// Produces:   the stage's tokens in shared memory, 128 bytes of K a row, 128-byte swizzle, on the full barrier.
//             L1: rows gathered by index from the ranks' symmetric buffers (cp.async); L2: a box of the pool (TMA) and its scale factors
// Registers:  config::kLoaderRegisters
#pragma once
#include "layout/gmma.cuh"
#include "mega_moe/context_sm90.cuh"
#include "ptx/fence.cuh"

namespace roles {

// Gathers the tile's tokens: thread i copies 16-byte piece i % 8 of rows i / 8, i / 8 + kRowsAtOnce, ...
__device__ __forceinline__ void gather_tokens(const mega_moe::Context& ctx, const mega_moe::Tile& tile, uint32_t thread, pipeline::RingCursor& cursor) {
    constexpr uint32_t kRowsAtOnce = config::kNumActsLoaderThreads / 8, kParts = config::kTokenKBytes / 128;
    comm::wait_counter(ctx.watchdog, &ctx.params.list_ready[tile.expert], 1, comm::WaitFor::kRoutedList, tile.expert);
    constexpr uint32_t kRowsPerThread = (config::kBlockN + kRowsAtOnce - 1) / kRowsAtOnce;
    const uint32_t piece = thread % 8, first_row = thread / 8;
    // In registers before the copies: each copy orders memory, so that an index loaded between two would wait on its own.
    // 32-bit offsets in units of 16 bytes: the 64-bit addresses would not fit the loader's registers.
    static_assert(config::kTokenRowBytes % 16 == 0);
    uint32_t offset[kRowsPerThread];
#pragma unroll
    for (uint32_t i = 0; i < kRowsPerThread; ++i) {
        const uint32_t row = first_row + i * kRowsAtOnce;
        offset[i] = row < tile.num_rows ? ctx.params.routed[tile.row + row] / config::kNumTopk * (config::kTokenRowBytes / 16) : ~0u;
    }
    const uint8_t* tokens = comm::part<const uint8_t>(ctx.params.peers, 0, ctx.params.sym.tokens) + piece * 16;
    for (uint32_t pass = 0; pass < config::kNumPasses; ++pass) {
        for (uint32_t k = 0; k < config::kL1KStages; ++k, cursor.advance()) {
            const uint32_t full = pipeline::wait_empty(ctx.watchdog, ctx.smem.ring, cursor);
            const uint32_t stage = ptx::smem_address(ctx.smem.tokens[cursor.stage]);
            const uint8_t* k_tokens = tokens + k * config::kTokenKBytes;
#pragma unroll
            for (uint32_t i = 0; i < kRowsPerThread; ++i) {
                const uint32_t row = first_row + i * kRowsAtOnce;
                if (row >= tile.width) break;
                const bool is_valid = offset[i] != ~0u;
                const uint8_t* source = k_tokens + uint64_t(is_valid ? offset[i] : 0) * 16;
#pragma unroll
                for (uint32_t part = 0; part < kParts; ++part) {
                    ptx::cp_async_16(stage + part * config::kBlockN * 128 + layout::swizzle_128b(row, piece), source + part * 128, is_valid);
                }
            }
            ptx::cp_async_mbarrier_arrive(full);
        }
    }
}

// Loads the token tile's rows of the pool. Rows past the expert's last hold anything: their columns are never stored.
__device__ __forceinline__ void load_pool(const mega_moe::Context& ctx, const mega_moe::Tile& tile, uint32_t thread, pipeline::RingCursor& cursor) {
    constexpr uint32_t kParts = config::kTokenKBytes / 128;
    comm::wait_counter(ctx.watchdog, &ctx.params.l1_done[tile.token_tile], config::kL1MTiles, comm::WaitFor::kL1Tiles, tile.token_tile);
    // The L1 epilogue wrote with ordinary stores, TMA reads through the async proxy.
    ptx::fence_proxy_async_global();
    for (uint32_t pass = 0; pass < config::kNumPasses; ++pass) {
        for (uint32_t k = 0; k < config::kL2KStages; ++k, cursor.advance()) {
            const uint32_t full = pipeline::wait_empty(ctx.watchdog, ctx.smem.ring, cursor);
            if (thread == 0) {
                ptx::mbarrier_expect_tx(full, tile.width * config::kTokenKBytes);
                for (uint32_t row = 0; row < tile.width; row += mega_moe::kWidthStep) {
#pragma unroll
                    for (uint32_t part = 0; part < kParts; ++part) {
                        ptx::cp_async_bulk_tensor_2d(ptx::smem_address(ctx.smem.tokens[cursor.stage]) + (part * config::kBlockN + row) * 128,
                                                     ctx.acts_map, (k * config::kTokenKBytes + part * 128) / config::kActBytes, tile.pool_row + row, full);
                    }
                }
            }
            if constexpr (config::kIsFp8) {
                for (uint32_t row = thread; row < tile.width; row += config::kNumActsLoaderThreads) {
                    const bool is_valid = row < tile.num_rows;
                    ptx::cp_async_4(ptx::smem_address(&ctx.smem.acts_sf[cursor.stage][row]),
                                    ctx.params.acts_sf + uint64_t(k) * ctx.params.pool_rows + tile.pool_row + (is_valid ? row : 0), is_valid);
                }
                ptx::cp_async_mbarrier_arrive(full);
            } else {
                ptx::mbarrier_arrive(full);
            }
        }
    }
}

__device__ __forceinline__ void load_acts(const mega_moe::Context& ctx, uint32_t thread) {
    pipeline::RingCursor cursor;
    if (thread == 0) ptx::prefetch_tensormap(ctx.acts_map);
    ctx.scheduler.for_each_tile([&](const mega_moe::Tile& tile) {
        if (tile.is_l2) {
            load_pool(ctx, tile, thread, cursor);
        } else {
            gather_tokens(ctx, tile, thread, cursor);
        }
    });
}

}  // namespace roles
