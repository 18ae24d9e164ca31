// Role: load (one thread of warp 0, in each CTA of a pair)
// Waits for:  a stage's empty barrier
// Produces:   a stage of weights, tokens and both scale factors; bytes of both CTAs complete on the even one's full barrier
// Registers:  few
#pragma once
#include "gemm/gemm_context.cuh"
#include "ptx/tma_sm100.cuh"

namespace roles {

__device__ __forceinline__ void load(const gemm::Context& ctx) {
    constexpr uint32_t kBytes = config::kBlockM * config::kWeightRowBytes + config::kLoadN * 128 + (1 + config::kTokenAtoms) * config::kSfWords * 512;
    pipeline::RingCursor cursor;
    ctx.scheduler.for_each_tile([&](const gemm::Tile& tile) {
        // Rows past an expert's last are another's, or zeros: their results are not stored.
        const uint32_t row_in_expert = tile.row + ctx.cta * config::kBlockM, row = tile.expert * config::kN + row_in_expert;
        const uint32_t row_block = tile.expert * config::kRowBlocks + row_in_expert / 128;
        // A pair's CTAs hold the halves of the MMA's columns, and each all of their scale factors.
        const uint32_t token = tile.token + ctx.cta * (gemm::mma_columns(tile) / config::kCtaGroup);
        for (uint32_t k = 0; k < config::kKStages; ++k, cursor.advance()) {
            const uint32_t full = pipeline::wait_empty(ctx.watchdog, ctx.smem.ring, cursor);
            if (ctx.cta == 0) ptx::mbarrier_arrive_expect_tx(full, config::kCtaGroup * kBytes);
            const uint32_t stage = cursor.stage;
            const int32_t word = k * config::kSfWords;
            ptx::tma_load_2d(ptx::smem_address(ctx.smem.weights[stage]), &ctx.maps.weights, k * config::kBlockK, row, full);
            ptx::tma_load_2d(ptx::smem_address(ctx.smem.tokens[stage]), &ctx.maps.tokens, k * config::kBlockK, token, full);
            // The last stage of a row block may take atoms of the next one along: they are not used.
            ptx::tma_load_2d(ptx::smem_address(ctx.smem.weights_sf[stage]), &ctx.maps.weights_sf, 0, row_block * config::kKWords + word, full);
#pragma unroll
            for (uint32_t atom = 0; atom < config::kTokenAtoms; ++atom)
                ptx::tma_load_2d(ptx::smem_address(ctx.smem.tokens_sf[stage][atom]), &ctx.maps.tokens_sf, 0, (tile.sf_block + atom) * config::kKWords + word, full);
        }
    });
    pipeline::drain(ctx.watchdog, ctx.smem.ring, cursor);
}

}  // namespace roles
