// The fused MoE for Hopper: one persistent launch, blocks of one loader and two consumer warpgroups.
//
//   all warps      schedule                 which rows and tiles each expert gets
//   warps 3 .. 11  dispatch                 tokens, quantised, to the rows of their experts
//   warp 0         load_weights             FP4 codes and scale factors by bulk copies
//   warp 1         load_acts                tokens (L1) and activations (L2) by TMA
//   warp 2         queue_tiles              the block's tiles, one after the other
//   warps 4 .. 11  mma, epilogue_l1/l2      decode in registers, wgmma, activation, requantise; partials
//                  combine, cleanup         weighted sum to y
#include "mega_moe/context_sm90.cuh"
#include "mega_moe/roles/build_schedule_sm90.cuh"
#include "mega_moe/roles/cleanup.cuh"
#include "mega_moe/roles/combine.cuh"
#include "mega_moe/roles/consume_sm90.cuh"
#include "mega_moe/roles/dispatch_sm90.cuh"
#include "mega_moe/roles/load_acts_sm90.cuh"
#include "mega_moe/roles/load_weights_sm90.cuh"
#include "mega_moe/roles/queue_tiles_sm90.cuh"
#include "ptx/warp.cuh"

extern "C" __global__ void __launch_bounds__(config::kNumThreads, 1)
    mega_moe_sm90(const __grid_constant__ mega_moe::Params params, const __grid_constant__ ptx::TensorMap tokens_map,
                  const __grid_constant__ ptx::TensorMap acts_map) {
    using namespace mega_moe;
    extern __shared__ __align__(1024) uint8_t smem_bytes[];
    SharedStorage& smem = *reinterpret_cast<SharedStorage*>(smem_bytes);

    if (threadIdx.x == 0) {
        pipeline::init(smem.ring);
        smem.queue.init();
        ptx::fence_mbarrier_init();
        smem.may_not_fit = 0;
    }
    roles::clear_schedule(smem.schedule, own_tokens(smem));
    if constexpr (config::kIsFp8) fill_decode_table(smem.decode_table);
    if (threadIdx.x < config::kBlockN) {
        largest_bits(smem)[threadIdx.x] = 0;
        for (Columns& columns : smem.columns) columns.weight(threadIdx.x) = columns.scale(threadIdx.x) = 0.0f;  // of columns that no tile has filled yet
    }
    const roles::Share share(params.num_tokens);
    __syncthreads();
    ptx::griddepcontrol_wait();
    const bool is_dispatch = threadIdx.x >= config::kFirstDispatchThread;
    roles::Ahead ahead = {};
    if (is_dispatch) ahead.load_slot(params, share, share.begin);
    const roles::Counts counts = roles::count_slots(params, share);
    if (is_dispatch) ahead.piece = roles::load_piece(params, share.end, roles::own_piece(share.begin));
    roles::build_schedule(params, smem.schedule, own_tokens(smem), counts);
    // The first three warps go on at once: weights need the schedule only. No barrier of the block comes after this.
    if (is_dispatch) roles::dispatch(params, smem.schedule, own_tokens(smem), share, ahead);

    const Context ctx{params, &tokens_map, &acts_map, smem, Scheduler{smem.schedule}, comm::Watchdog{params.error_record, params.timeout_ns, params.rank}};

    // The branch is uniform by warpgroup, as setmaxnreg needs it: it is one instruction for all warps of the loaders' group, at their own times.
    if (threadIdx.x < config::kFirstConsumerThread) {
        ptx::setmaxnreg_dec<config::kLoaderRegisters>();
        if (threadIdx.x == 0) {
            roles::load_weights(ctx);
        } else if (threadIdx.x == 32) {
            roles::load_acts(ctx);
        } else if (threadIdx.x == 64) {
            roles::queue_tiles(ctx);
        }
    } else {
        ptx::setmaxnreg_inc<config::kConsumerRegisters>();
        const uint32_t thread = threadIdx.x - config::kFirstConsumerThread;
        roles::Consumer consumer(ctx, thread);
        QueuePlace place;
        // Without the attribute the largest kernels call it, and MMAs do not run across calls.
        ctx.scheduler.for_each_tile([&](bool is_l2, uint32_t) __attribute__((always_inline)) {
            const Tile& tile = wait_tile(ctx.watchdog, smem.queue, place);
            roles::finish_tile(consumer, tile, is_l2);
            __syncwarp();
            release_tile(smem.queue, place, thread % 32 == 0);
        });
        ptx::griddepcontrol_launch_dependents();
        roles::publish_partials(ctx, thread);
        roles::combine(ctx, thread);
        roles::cleanup(ctx, thread, &smem.is_last);
    }
}
