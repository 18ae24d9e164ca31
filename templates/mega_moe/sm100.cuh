// The fused MoE for Blackwell: one persistent launch of CTAs, or CTA pairs, with a role for each warp.
//
//   all warps       route                    schedule, lists of routed tokens
//   warp 0          load                     weights, tokens and scale factors by TMA
//   warp 1          mma                      scale factors to tensor memory, tcgen05.mma
//   warp 2          allocates and frees tensor memory
//   warps 4 .. 11   epilogue_l1/l2           activation, requantise; partials
//                   combine, cleanup         weighted sum to y
//   warps 12 .. 15  dispatch                 routed tokens into the ring
#include "mega_moe/context_sm100.cuh"
#include "mega_moe/roles/cleanup.cuh"
#include "mega_moe/roles/combine.cuh"
#include "mega_moe/roles/dispatch_sm100.cuh"
#include "mega_moe/roles/epilogue_l1_sm100.cuh"
#include "mega_moe/roles/epilogue_l2_sm100.cuh"
#include "mega_moe/roles/load_sm100.cuh"
#include "mega_moe/roles/mma_sm100.cuh"
#include "mega_moe/roles/route.cuh"
#include "ptx/cluster.cuh"

namespace mega_moe {

// All threads of all CTAs of the group.
__device__ __forceinline__ void sync_group() {
    if constexpr (config::kCtaGroup == 1) {
        __syncthreads();
    } else {
        ptx::cluster_sync();
    }
}

__device__ __forceinline__ void init_barriers(SharedStorage& smem) {
    pipeline::init(smem.ring);
    for (uint32_t i = 0; i < config::kNumAccums; ++i) {
        ptx::mbarrier_init(ptx::smem_address(&smem.accum_full[i]), config::kAccumFullArrivals);
        ptx::mbarrier_init(ptx::smem_address(&smem.accum_empty[i]), config::kAccumEmptyArrivals);
    }
    ptx::fence_mbarrier_init();
}

// Epilogue warpgroups take the block's tiles in turns, each tile's accumulator with it; combine and cleanup at the end.
__device__ __forceinline__ void run_epilogue(const Context& ctx, uint32_t tmem, uint32_t thread) {
    const uint32_t warpgroup = thread / 128, lanes = thread % 128 & ~31u;
    roles::wait_lists(ctx, thread);
    roles::Epilogue epilogue{ctx, ctx.smem.epilogue[warpgroup], warpgroup, thread % 128, tmem + (lanes << 16), AccumCursor{}};
    uint32_t turn = 0;
    ctx.scheduler.for_each_tile([&](const Tile& tile) {
        if (turn == warpgroup) {
            if (tile.is_l2) {
                roles::epilogue_l2(epilogue, tile);
            } else {
                roles::epilogue_l1(epilogue, tile);
            }
        }
        epilogue.accum.advance();
        turn = turn + 1 == config::kNumEpilogueWarpgroups ? 0 : turn + 1;
    });
    roles::combine(ctx, thread);
    roles::cleanup(ctx, thread, &ctx.smem.is_last);
}

}  // namespace mega_moe

extern "C" __global__ void __launch_bounds__(config::kNumThreads, 1)
    mega_moe_sm100(const __grid_constant__ mega_moe::Params params, const __grid_constant__ ptx::TensorMap l1_weights, const __grid_constant__ ptx::TensorMap l1_weights_sf,
                   const __grid_constant__ ptx::TensorMap tokens, const __grid_constant__ ptx::TensorMap tokens_sf, const __grid_constant__ ptx::TensorMap l2_weights,
                   const __grid_constant__ ptx::TensorMap l2_weights_sf, const __grid_constant__ ptx::TensorMap acts, const __grid_constant__ ptx::TensorMap acts_sf) {
    using namespace mega_moe;
    extern __shared__ __align__(1024) uint8_t smem_bytes[];
    SharedStorage& smem = *reinterpret_cast<SharedStorage*>(smem_bytes);
    const uint32_t warp = threadIdx.x / 32, cta = config::kCtaGroup == 1 ? 0 : ptx::cluster_cta_rank();

    if (threadIdx.x == 0) init_barriers(smem);
    if (warp == 2) ptx::tcgen05_alloc<config::kTmemColumns>(ptx::smem_address(&smem.tmem));
    roles::route(params, smem.schedule);
    ptx::tcgen05_fence_before_thread_sync();
    sync_group();
    ptx::tcgen05_fence_after_thread_sync();

    const uint32_t tmem = smem.tmem;
    const Context ctx{params,
                      OperandMaps{l1_weights, l1_weights_sf, tokens, tokens_sf},
                      OperandMaps{l2_weights, l2_weights_sf, acts, acts_sf},
                      smem,
                      Scheduler{smem.schedule, blockIdx.x / config::kCtaGroup, gridDim.x / config::kCtaGroup},
                      comm::Watchdog{params.error_record, params.timeout_ns, params.rank},
                      cta};
    if (warp == 0) {
        if (ptx::elect_one()) roles::load(ctx);
    } else if (warp == 1) {
        if (cta == 0 && ptx::elect_one()) roles::mma(ctx, tmem);
    } else if (warp >= config::kFirstDispatchWarp) {
        roles::dispatch(ctx, threadIdx.x - config::kFirstDispatchWarp * 32);
    } else if (warp >= config::kFirstEpilogueWarp) {
        run_epilogue(ctx, tmem, threadIdx.x - config::kFirstEpilogueWarp * 32);
    }

    // Nobody frees tensor memory, or leaves, while the other CTA may still use it or signal barriers here.
    ptx::tcgen05_fence_before_thread_sync();
    sync_group();
    if (warp == 2) {
        ptx::tcgen05_fence_after_thread_sync();
        ptx::tcgen05_dealloc<config::kTmemColumns>(tmem);
    }
}
