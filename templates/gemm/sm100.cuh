// Block-scaled grouped GEMM for Blackwell: y[token] = alpha x weights[expert of token] @ tokens[token], persistent.
//
//   warp 0         load        weights, tokens and scale factors by TMA
//   warp 1         mma         scale factors to tensor memory, tcgen05.mma
//   warp 2         allocates and frees tensor memory
//   warps 4 .. 7   epilogue    tensor memory to BF16, bulk stores
//
// The smallest kernel with every instruction of the fused one. Weights are the M operand and tokens the N operand, so that few
// tokens waste little. With kCtaGroup 2 a pair of CTAs has one tile of 256 weight rows, and each loads half of the tokens.
#include "gemm/gemm_context.cuh"
#include "gemm/roles/epilogue.cuh"
#include "gemm/roles/load.cuh"
#include "gemm/roles/mma.cuh"

namespace gemm {

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

}  // namespace gemm

extern "C" __global__ void __launch_bounds__(config::kNumThreads, 1)
    grouped_gemm_sm100(const __grid_constant__ gemm::Params params, const __grid_constant__ ptx::TensorMap weights, const __grid_constant__ ptx::TensorMap weights_sf,
                       const __grid_constant__ ptx::TensorMap tokens, const __grid_constant__ ptx::TensorMap tokens_sf) {
    using namespace gemm;
    extern __shared__ __align__(1024) uint8_t smem_bytes[];
    SharedStorage& smem = *reinterpret_cast<SharedStorage*>(smem_bytes);
    const uint32_t warp = threadIdx.x / 32, cta = config::kCtaGroup == 1 ? 0 : ptx::cluster_cta_rank();

    if (threadIdx.x == 0) init_barriers(smem);
    if (warp == 2) ptx::tcgen05_alloc<config::kTmemColumns>(ptx::smem_address(&smem.tmem));
    ptx::tcgen05_fence_before_thread_sync();
    sync_group();
    ptx::tcgen05_fence_after_thread_sync();

    const uint32_t tmem = smem.tmem;
    const Context ctx{params, TensorMaps{weights, weights_sf, tokens, tokens_sf}, smem,
                      Scheduler{params, blockIdx.x / config::kCtaGroup, gridDim.x / config::kCtaGroup}, comm::Watchdog{params.error_record, params.timeout_ns, 0}, cta};
    if (warp == 0) {
        if (ptx::elect_one()) roles::load(ctx);
    } else if (warp == 1) {
        if (cta == 0 && ptx::elect_one()) roles::mma(ctx, tmem);
    } else if (warp >= config::kFirstEpilogueWarp) {
        roles::epilogue(ctx, tmem, threadIdx.x - config::kFirstEpilogueWarp * 32);
    }

    // Nobody frees tensor memory, or leaves, while the other CTA may still use it or signal barriers here.
    ptx::tcgen05_fence_before_thread_sync();
    sync_group();
    if (warp == 2) {
        ptx::tcgen05_fence_after_thread_sync();
        ptx::tcgen05_dealloc<config::kTmemColumns>(tmem);
    }
}
