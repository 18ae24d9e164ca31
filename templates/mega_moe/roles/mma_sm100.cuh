// Role: mma (one thread of warp 1, in the even CTA of a pair)
// Waits for:  a stage's full barrier; an accumulator's empty barrier
// Produces:   a tile's products in tensor memory; commits release stages and hand over accumulators
// Registers:  few
//
// Scale factors of a stage go to tensor memory right before the MMAs that read them, always to the same columns. Copies and
// MMAs of one thread run in order as cp -> mma; that a later cp does not overtake an mma is how all public kernels use it.
#pragma once
#include "layout/umma.cuh"
#include "mega_moe/context_sm100.cuh"
#include "ptx/tcgen05.cuh"

namespace roles {

__device__ __forceinline__ void copy_stage_scales(const mega_moe::Context& ctx, uint32_t stage, uint32_t tmem, uint32_t atoms) {
#pragma unroll
    for (uint32_t word = 0; word < config::kSfWords; ++word) {
        ptx::tcgen05_cp_32x128b_warpx4(tmem + mega_moe::kSfaColumn + word * 4, layout::umma_scale_atom(ptx::smem_address(ctx.smem.weights_sf[stage][word])));
        for (uint32_t atom = 0; atom < atoms; ++atom)
            ptx::tcgen05_cp_32x128b_warpx4(tmem + mega_moe::kSfbColumn + word * mega_moe::kSfbWordColumns + atom * 4,
                                           layout::umma_scale_atom(ptx::smem_address(ctx.smem.tokens_sf[stage][atom][word])));
    }
}

__device__ __forceinline__ void mma(const mega_moe::Context& ctx, uint32_t tmem) {
    pipeline::RingCursor cursor;
    mega_moe::AccumCursor accum;
    ctx.scheduler.for_each_tile([&](const mega_moe::Tile& tile) {
        comm::wait_barrier(ctx.watchdog, ptx::smem_address(&ctx.smem.accum_empty[accum.index]), accum.phase ^ 1, comm::WaitFor::kAccumEmpty, accum.index);
        const uint32_t columns = tile.columns(), atoms = (columns + 127) / 128, d = tmem + accum.index * config::kBlockN;
        const uint32_t k_stages = tile.is_l2 ? config::kL2KStages : config::kL1KStages, num_mmas = tile.is_l2 ? config::kL2Mmas : config::kL1Mmas;
        for (uint32_t k = 0; k < k_stages; ++k, cursor.advance()) {
            pipeline::wait_full(ctx.watchdog, ctx.smem.ring, cursor);
            ptx::tcgen05_fence_after_thread_sync();
            const uint32_t stage = cursor.stage;
            copy_stage_scales(ctx, stage, tmem, atoms);
            const uint64_t a = layout::umma_operand(ptx::smem_address(ctx.smem.weights[stage])), b = layout::umma_operand(ptx::smem_address(ctx.smem.tokens[stage]));
#pragma unroll
            for (uint32_t step = 0; step < config::kMmasPerStage; ++step) {
                // Past the end of K there are no scale factors, and nothing to multiply.
                if (k * config::kMmasPerStage + step >= num_mmas) break;
                const uint32_t word = step / config::kMmasPerWord, sf_id = step % config::kMmasPerWord * config::kScalesPerMma;
                ptx::tcgen05_mma_block_scale(d, a + step * layout::kOperandStep, b + step * layout::kOperandStep, layout::umma_instruction(columns, sf_id),
                                             tmem + mega_moe::kSfaColumn + word * 4, tmem + mega_moe::kSfbColumn + word * mega_moe::kSfbWordColumns, k + step > 0);
            }
            ptx::tcgen05_commit(ptx::smem_address(&ctx.smem.ring.empty[stage]));
        }
        ptx::tcgen05_commit(ptx::smem_address(&ctx.smem.accum_full[accum.index]));
        accum.advance();
    });
}

}  // namespace roles
