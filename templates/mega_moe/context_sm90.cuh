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
    const ptx::TensorMap* acts_map;
    SharedStorage& smem;
    Scheduler scheduler;
    comm::Watchdog watchdog;
};

// Named barrier ids; 0 is __syncthreads.
constexpr uint32_t kConsumerBarrier = 1;
constexpr uint32_t kNumConsumerThreads = config::kNumConsumerWarpgroups * 128;

__device__ __forceinline__ void sync_consumers() { ptx::barrier_sync(kConsumerBarrier, kNumConsumerThreads); }

}  // namespace mega_moe
