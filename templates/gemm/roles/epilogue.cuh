// Role: epilogue (warps 4 .. 7; warp w reads lanes 32 (w - 4) .. of tensor memory, one weight row a thread)
// Waits for:  an accumulator's full barrier
// Produces:   y in BF16, one bulk copy of up to 128 values a token; releases accumulators on the even CTA's empty barrier
// Registers:  32 values at a time
#pragma once
#include "gemm/gemm_context.cuh"
#include "ptx/convert.cuh"
#include "ptx/fence.cuh"
#include "ptx/tcgen05.cuh"
#include "ptx/tma_sm100.cuh"
#include "ptx/warp.cuh"

namespace roles {

constexpr uint32_t kEpilogueBarrier = 1, kEpilogueThreads = 128;  // 0 is __syncthreads

__device__ __forceinline__ void epilogue(const gemm::Context& ctx, uint32_t tmem, uint32_t thread) {
    constexpr uint32_t kColumnsAtOnce = 32;
    gemm::AccumCursor accum;
    ctx.scheduler.for_each_tile([&](const gemm::Tile& tile) {
        const float alpha = ctx.params.alphas == nullptr ? 1.0f : ctx.params.alphas[tile.expert];
        comm::wait_barrier(ctx.watchdog, ptx::smem_address(&ctx.smem.accum_full[accum.index]), accum.phase, comm::WaitFor::kAccumFull, accum.index);
        ptx::tcgen05_fence_after_thread_sync();
        // The tile before this one may still be on its way out of shared memory.
        ptx::cp_async_bulk_wait_read();
        ptx::barrier_sync(kEpilogueBarrier, kEpilogueThreads);
        for (uint32_t first = 0; first < tile.num_tokens; first += kColumnsAtOnce) {
            uint32_t values[kColumnsAtOnce];
            ptx::tcgen05_ld_32x32b_x32(values, tmem + ((thread & ~31u) << 16) + accum.index * config::kBlockN + first);
            ptx::tcgen05_wait_ld();
#pragma unroll
            for (uint32_t i = 0; i < kColumnsAtOnce; ++i) ctx.smem.y[first + i][thread] = uint16_t(ptx::cvt_bf16x2(__uint_as_float(values[i]) * alpha, 0.0f));
        }
        ptx::tcgen05_fence_before_thread_sync();
        ptx::fence_proxy_async_shared();
        ptx::barrier_sync(kEpilogueBarrier, kEpilogueThreads);
        if (thread % 32 == 0) {
            const uint32_t barrier = ptx::smem_address(&ctx.smem.accum_empty[accum.index]);
            if constexpr (config::kCtaGroup == 1) {
                ptx::mbarrier_arrive(barrier);
            } else {
                ptx::mbarrier_arrive_cluster(ptx::map_to_cta(barrier, 0));
            }
        }
        const uint32_t row = tile.row + ctx.cta * config::kBlockM;
        const uint32_t rows = row < config::kN ? min(config::kBlockM, config::kN - row) : 0;
        if (rows > 0) {
            for (uint32_t token = thread; token < tile.num_tokens; token += kEpilogueThreads)
                ptx::cp_async_bulk_store(ctx.params.y + (tile.token + token) * ctx.params.y_stride + row, ptx::smem_address(ctx.smem.y[token]), rows * 2);
        }
        ptx::cp_async_bulk_commit_group();
        accum.advance();
    });
    ptx::cp_async_bulk_wait();
}

}  // namespace roles
