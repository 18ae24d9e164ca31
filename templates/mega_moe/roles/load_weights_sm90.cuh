// Role: load weights (one thread of warp 0)
// Waits for:  a stage's empty barrier
// Produces:   codes and block scale factors of one (weight tile, K stage), a contiguous block, by bulk copies on the full barrier;
//             a tile in two passes brings half of each block at a time
// Registers:  config::kLoaderRegisters
#pragma once
#include "mega_moe/context_sm90.cuh"
#include "ptx/fence.cuh"

namespace roles {

template <bool kIsL2>
__device__ __forceinline__ void load_blocks(const mega_moe::Context& ctx, const mega_moe::Tile& tile, pipeline::RingCursor& cursor, uint64_t policy) {
    constexpr uint32_t kStages = kIsL2 ? config::kL2KStages : config::kL1KStages, kMTiles = kIsL2 ? config::kL2MTiles : config::kL1MTiles;
    const uint8_t* blocks = (kIsL2 ? ctx.params.l2_weights : ctx.params.l1_weights) + uint64_t(tile.expert * kMTiles + tile.m_tile) * kStages * config::kWeightBlockBytes;
    for (uint32_t pass = 0; pass < config::kNumPasses; ++pass) {
        const uint8_t* source = blocks;
        for (uint32_t k = 0; k < kStages; ++k, cursor.advance(), source += config::kWeightBlockBytes) {
            const uint32_t full = pipeline::wait_empty(ctx.watchdog, ctx.smem.ring, cursor);
            // Consumers read the stage's last weights by ordinary loads; the copy writes through the async proxy.
            ptx::fence_proxy_async_shared();
            const uint32_t stage = ptx::smem_address(ctx.smem.weights[cursor.stage]);
            ptx::mbarrier_arrive_expect_tx(full, config::kWeightStageBytes);
            if constexpr (config::kNumPasses == 1) {
                ptx::cp_async_bulk(stage, source, config::kWeightStageBytes, full, policy);
            } else {
                // A pass takes one of each warpgroup's two 64-row tiles: its codes, and the scale factors behind all codes. They stay in L2:
                // an expert that needs wide tiles has several.
                constexpr uint32_t kCodes = config::kStageCodeBytes / 2, kScales = config::kStageScaleBytes / 2;
#pragma unroll
                for (uint32_t warpgroup = 0; warpgroup < 2; ++warpgroup) {
                    const uint32_t m64 = 2 * warpgroup + pass;
                    ptx::cp_async_bulk(stage + warpgroup * kCodes, source + m64 * kCodes, kCodes, full);
                    ptx::cp_async_bulk(stage + 2 * kCodes + warpgroup * kScales, source + 4 * kCodes + m64 * kScales, kScales, full);
                }
            }
        }
    }
}

__device__ __forceinline__ void load_weights(const mega_moe::Context& ctx) {
    const uint64_t policy = ptx::createpolicy_evict_first();
    pipeline::RingCursor cursor;
    mega_moe::QueuePlace place;
    ctx.scheduler.for_each_tile([&](bool is_l2, uint32_t) {
        const mega_moe::Tile& tile = mega_moe::wait_tile(ctx.watchdog, ctx.smem.queue, place);
        if (is_l2) {
            load_blocks<true>(ctx, tile, cursor, policy);
        } else {
            load_blocks<false>(ctx, tile, cursor, policy);
        }
        mega_moe::release_tile(ctx.smem.queue, place, true);
    });
}

}  // namespace roles
