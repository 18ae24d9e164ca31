// What every role of the kernel is given.
#pragma once
#include "mega_moe/params_sm90.cuh"
#include "mega_moe/scheduler_sm90.cuh"
#include "mega_moe/storage_sm90.cuh"
#include "ptx/copy.cuh"
#include "ptx/warp.cuh"

namespace mega_moe {

struct Context {
    const Params& params;
    const ptx::TensorMap* tokens_map;  // the pool's tokens and activations, boxes of kBoxRows x 128 bytes
    const ptx::TensorMap* acts_map;
    SharedStorage& smem;
    Scheduler scheduler;
    comm::Watchdog watchdog;
};

// Named barrier ids; 0 is __syncthreads. Each consumer warpgroup has one more of its own.
constexpr uint32_t kConsumerBarrier = 1, kFirstWarpgroupBarrier = 2, kDispatchBarrier = kFirstWarpgroupBarrier + config::kNumConsumerWarpgroups;
constexpr uint32_t kNumConsumerThreads = config::kNumConsumerWarpgroups * 128;

__device__ __forceinline__ void sync_consumers() { ptx::barrier_sync(kConsumerBarrier, kNumConsumerThreads); }

// What l2_done comes to: each block counts once.
__device__ __forceinline__ uint32_t l2_arrivals(const Context&) { return gridDim.x; }

// Every counter that a call used, back to zero: the last block's consumers call it.
__device__ __forceinline__ void reset_counters(const Context& ctx, uint32_t consumer_thread) {
    const Params& params = ctx.params;
    for (uint32_t i = consumer_thread; i < ctx.scheduler.num_token_tiles(); i += kNumConsumerThreads) {
        params.rows_ready[i] = 0, params.l1_done[i] = 0, params.has_own_sf[i] = 0;
    }
    if (consumer_thread == 0) *params.l2_done = 0, *params.exited = 0;
}

}  // namespace mega_moe
