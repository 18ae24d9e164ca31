// Role: queue tiles (one thread of warp 2)
// Waits for:  a place in the queue of tiles
// Produces:   the block's tiles in their order
// Registers:  config::kLoaderRegisters
#pragma once
#include "mega_moe/context_sm90.cuh"

namespace roles {

__device__ __forceinline__ void queue_tiles(const mega_moe::Context& ctx) {
    mega_moe::QueuePlace place;
    uint32_t l1_expert = 0, l2_expert = 0;
    ctx.scheduler.for_each_tile([&](bool is_l2, uint32_t i) {
        const mega_moe::Tile tile = is_l2 ? ctx.scheduler.tile_at<true>(i, l2_expert) : ctx.scheduler.tile_at<false>(i, l1_expert);
        mega_moe::push_tile(ctx.watchdog, ctx.smem.queue, place, tile);
    });
}

}  // namespace roles
