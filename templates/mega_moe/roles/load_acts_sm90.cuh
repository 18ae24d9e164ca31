// Role: load activations (one thread of warp 1)
// Waits for:  a stage's empty barrier; L1: the tile's rows from dispatch; L2: all L1 tiles of the token tile
// Produces:   the stage's tokens in shared memory by boxes of the pools (TMA), 128 bytes of K a row, 128-byte swizzle, and in L2 their
//             own scale factors where the tile has some, on the full barrier
// Registers:  config::kLoaderRegisters
#pragma once
#include "mega_moe/context_sm90.cuh"
#include "ptx/fence.cuh"

namespace roles {

// Rows past the tile's last hold anything: their columns are never stored, and no column of an MMA depends on another.
template <bool kIsL2>
__device__ __forceinline__ void load_rows(const mega_moe::Context& ctx, const mega_moe::Tile& tile, pipeline::RingCursor& cursor) {
    constexpr uint32_t kStages = kIsL2 ? config::kL2KStages : config::kL1KStages;
    constexpr uint32_t kParts = config::kTokenKBytes / 128;  // 128-byte sub-blocks of a stage: one in E4M3, two in BF16
    constexpr uint32_t kSfBytes = config::kBlockN * 4;
    const uint32_t first_row = tile.pool_row, num_rows = tile.num_rows, rows = (num_rows + config::kBoxRows - 1) / config::kBoxRows * config::kBoxRows;
    bool has_own_sf = false;
    if constexpr (kIsL2) {
        comm::wait_counter(ctx.watchdog, &ctx.params.l1_done[tile.token_tile], config::kL1MTiles, comm::WaitFor::kL1Tiles, tile.token_tile);
        if constexpr (config::kIsFp8) has_own_sf = ptx::ld_acquire_gpu(&ctx.params.has_own_sf[tile.token_tile]) != 0;
    } else {
        comm::wait_counter(ctx.watchdog, &ctx.params.rows_ready[tile.token_tile], num_rows, comm::WaitFor::kDispatch, tile.token_tile);
    }
    // Dispatch and the L1 epilogue write with ordinary stores, copies read through the async proxy.
    ptx::fence_proxy_async_global();
    const ptx::TensorMap* map = kIsL2 ? ctx.acts_map : ctx.tokens_map;
    for (uint32_t pass = 0; pass < config::kNumPasses; ++pass) {
        for (uint32_t k = 0; k < kStages; ++k, cursor.advance()) {
            const uint32_t full = pipeline::wait_empty(ctx.watchdog, ctx.smem.ring, cursor);
            if constexpr (kIsL2 && config::kIsFp8) ctx.smem.has_own_sf[cursor.stage] = has_own_sf;
            // L1's scale factors come with the last stage before a promotion.
            const bool has_sf = config::kIsFp8 && (kIsL2 ? has_own_sf : k % config::kPromotedStages + 1 == config::kPromotedStages || k + 1 == kStages);
            // Consumers read the stage's last scale factors by ordinary loads; the copy writes through the async proxy.
            if (has_sf) ptx::fence_proxy_async_shared();
            ptx::mbarrier_arrive_expect_tx(full, rows * config::kTokenKBytes + (has_sf ? kSfBytes : 0));
            if (has_sf) {
                const float* sf = kIsL2 ? ctx.params.acts_sf + uint64_t(k) * ctx.params.pool_rows : ctx.params.tokens_sf + uint64_t(k / config::kPromotedStages) * ctx.params.pool_rows;
                ptx::cp_async_bulk(ptx::smem_address(ctx.smem.sf[cursor.stage]), sf + first_row, kSfBytes, full);
            }
            const uint32_t stage = ptx::smem_address(ctx.smem.tokens[cursor.stage]);
            for (uint32_t row = 0; row < rows; row += config::kBoxRows) {
#pragma unroll
                for (uint32_t part = 0; part < kParts; ++part) {
                    ptx::cp_async_bulk_tensor_2d(stage + (part * config::kBlockN + row) * 128, map, (k * config::kTokenKBytes + part * 128) / config::kActBytes,
                                                 first_row + row, full);
                }
            }
        }
    }
}

__device__ __forceinline__ void load_acts(const mega_moe::Context& ctx) {
    pipeline::RingCursor cursor;
    ptx::prefetch_tensormap(ctx.tokens_map);
    ptx::prefetch_tensormap(ctx.acts_map);
    mega_moe::QueuePlace place;
    ctx.scheduler.for_each_tile([&](bool is_l2, uint32_t) {
        const mega_moe::Tile& tile = mega_moe::wait_tile(ctx.watchdog, ctx.smem.queue, place);
        if (is_l2) {
            load_rows<true>(ctx, tile, cursor);
        } else {
            load_rows<false>(ctx, tile, cursor);
        }
        mega_moe::release_tile(ctx.smem.queue, place, true);
    });
}

}  // namespace roles
