// The fused MoE for Hopper: one persistent launch, blocks of one loader and two consumer warpgroups.
//
//   all warps      route                    schedule, lists of routed tokens
//   warp 0         load_weights             FP4 codes and scale factors by bulk copies
//   warps 1 .. 3   load_acts                tokens by index (L1), activations by TMA (L2)
//   warps 4 .. 11  mma, epilogue_l1/l2      decode in registers, wgmma, activation, requantise; partials
//                  combine, cleanup         weighted sum to y
#include "mega_moe/context_sm90.cuh"
#include "mega_moe/roles/cleanup.cuh"
#include "mega_moe/roles/combine.cuh"
#include "mega_moe/roles/epilogue_l1_sm90.cuh"
#include "mega_moe/roles/epilogue_l2_sm90.cuh"
#include "mega_moe/roles/load_acts_sm90.cuh"
#include "mega_moe/roles/load_weights_sm90.cuh"
#include "mega_moe/roles/mma_sm90.cuh"
#include "mega_moe/roles/route.cuh"
#include "ptx/warp.cuh"

extern "C" __global__ void __launch_bounds__(config::kNumThreads, 1)
    mega_moe_sm90(const __grid_constant__ mega_moe::Params params, const __grid_constant__ ptx::TensorMap acts_map) {
    using namespace mega_moe;
    extern __shared__ __align__(1024) uint8_t smem_bytes[];
    SharedStorage& smem = *reinterpret_cast<SharedStorage*>(smem_bytes);

    if (threadIdx.x == 0) {
        pipeline::init(smem.ring);
        ptx::fence_mbarrier_init();
    }
    if constexpr (config::kIsFp8) fill_decode_table(smem.decode_table);
    if (threadIdx.x < config::kBlockN) smem.amax[threadIdx.x] = 0;
    roles::route(params, smem.schedule);
    __syncthreads();

    const Context ctx{params, &acts_map, smem, Scheduler{smem.schedule}, comm::Watchdog{params.error_record, params.timeout_ns, params.rank}};
    // Here rather than in the consumers' branch: there it moved their loop off the uniform registers, 8 % of a call's time.
    if (threadIdx.x >= config::kFirstConsumerThread) roles::wait_lists(ctx, threadIdx.x - config::kFirstConsumerThread);

    // The branch is uniform by warpgroup, as setmaxnreg needs it.
    if (threadIdx.x < config::kFirstConsumerThread) {
        ptx::setmaxnreg_dec<config::kLoaderRegisters>();
        if (threadIdx.x == 0) {
            roles::load_weights(ctx);
        } else if (threadIdx.x >= 32 && threadIdx.x < 32 + config::kNumActsLoaderThreads) {
            roles::load_acts(ctx, threadIdx.x - 32);
        }
    } else {
        ptx::setmaxnreg_inc<config::kConsumerRegisters>();
        const uint32_t thread = threadIdx.x - config::kFirstConsumerThread;
        roles::Consumer consumer{ctx, thread / 128, thread % 128, pipeline::RingCursor{}};
        ctx.scheduler.for_each_tile([&](const Tile& tile) {
            const roles::TileInputs inputs = roles::fetch_inputs(consumer, tile);
            for (uint32_t pass = 0; pass < config::kNumPasses; ++pass) {
                roles::Sums sums;
                if (tile.is_l2) {
                    roles::multiply_pass<true>(consumer, tile, sums);
                    roles::epilogue_l2(consumer, tile, pass, inputs, sums);
                } else {
                    roles::multiply_pass<false>(consumer, tile, sums);
                    roles::epilogue_l1(consumer, tile, pass, inputs, sums);
                }
            }
        });
        roles::combine(ctx, thread);
        roles::cleanup(ctx, thread, smem.slot);
    }
}
