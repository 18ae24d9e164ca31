// Role: load (one thread of warp 0, in each CTA of a pair)
// Waits for:  a stage's empty barrier; L1: dispatch of the token tile's rows; L2: all L1 tiles of the token tile
// Produces:   a stage of weights, tokens and both scale factors; bytes of both CTAs complete on the even one's full barrier
// Registers:  few
#pragma once
#include "mega_moe/context_sm100.cuh"
#include "ptx/fence.cuh"
#include "ptx/tma_sm100.cuh"

namespace roles {

template <bool kIsL2>
__device__ __forceinline__ void load_tile(const mega_moe::Context& ctx, const mega_moe::Tile& tile, pipeline::RingCursor& cursor) {
    constexpr uint32_t kKStages = kIsL2 ? config::kL2KStages : config::kL1KStages, kKWords = kIsL2 ? config::kL2KWords : config::kL1KWords;
    constexpr uint32_t kRingWords = kIsL2 ? config::kL2RingWords : config::kL1RingWords;  // whole stages: no load meets another tile's words
    constexpr uint32_t kRows = kIsL2 ? config::kL2Rows : config::kL1Rows;
    constexpr uint32_t kBytes = config::kBlockM * config::kWeightStageRowBytes + config::kLoadN * 128 + (1 + config::kTokenAtoms) * config::kSfWords * 512;
    const mega_moe::OperandMaps& maps = kIsL2 ? ctx.l2 : ctx.l1;
    if constexpr (kIsL2) {
        comm::wait_counter(ctx.watchdog, &ctx.params.l1_done[tile.token_tile], config::kL1Arrivals, comm::WaitFor::kL1Tiles, tile.token_tile);
    } else {
        comm::wait_counter(ctx.watchdog, &ctx.params.tokens_ready[tile.token_tile], tile.num_rows, comm::WaitFor::kDispatch, tile.token_tile);
    }
    // Dispatch and the L1 epilogue wrote with ordinary stores, TMA reads through the async proxy.
    ptx::fence_proxy_async_global();
    const uint32_t row_in_expert = tile.m_tile * config::kTileM + ctx.cta * config::kBlockM;
    // A pair's CTAs hold the halves of the MMA's columns, and each all of their scale factors.
    const uint32_t acts_row = tile.ring_tile * config::kBlockN + ctx.cta * (tile.columns() / config::kCtaGroup);
    for (uint32_t k = 0; k < kKStages; ++k, cursor.advance()) {
        const uint32_t full = pipeline::wait_empty(ctx.watchdog, ctx.smem.ring, cursor);
        if (ctx.cta == 0) ptx::mbarrier_arrive_expect_tx(full, config::kCtaGroup * kBytes);
        const uint32_t stage = cursor.stage, word = k * config::kSfWords;
        ptx::tma_load_2d(ptx::smem_address(ctx.smem.weights[stage]), &maps.weights, k * config::kBlockK, tile.expert * kRows + row_in_expert, full);
        ptx::tma_load_2d(ptx::smem_address(ctx.smem.tokens[stage]), &maps.acts, k * config::kBlockK, acts_row, full);
        // The last stage may take weights' words past the end of K along: they are the next expert's, and not used.
        ptx::tma_load_2d(ptx::smem_address(ctx.smem.weights_sf[stage]), &maps.weights_sf, row_in_expert, tile.expert * kKWords + word, full);
#pragma unroll
        for (uint32_t atom = 0; atom < config::kTokenAtoms; ++atom)
            ptx::tma_load_2d(ptx::smem_address(ctx.smem.tokens_sf[stage][atom]), &maps.acts_sf, 0, (tile.ring_tile * config::kTokenAtoms + atom) * kRingWords + word, full);
    }
}

__device__ __forceinline__ void load(const mega_moe::Context& ctx) {
    pipeline::RingCursor cursor;
    ctx.scheduler.for_each_tile([&](const mega_moe::Tile& tile) {
        if (tile.is_l2) {
            load_tile<true>(ctx, tile, cursor);
        } else {
            load_tile<false>(ctx, tile, cursor);
        }
    });
    pipeline::drain(ctx.watchdog, ctx.smem.ring, cursor);
}

}  // namespace roles
