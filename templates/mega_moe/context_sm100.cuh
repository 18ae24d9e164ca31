// What every role of the kernel is given.
#pragma once
#include "comm/wait.cuh"
#include "mega_moe/params_sm100.cuh"
#include "mega_moe/scheduler_sm100.cuh"
#include "mega_moe/storage_sm100.cuh"
#include "ptx/copy.cuh"
#include "ptx/warp.cuh"

namespace mega_moe {

// Operands of one GEMM: weights [experts x rows][K] and tokens or activations [ring rows][K], each with its scale factors.
struct OperandMaps {
    const ptx::TensorMap &weights, &weights_sf, &acts, &acts_sf;
};

struct Context {
    const Params& params;
    OperandMaps l1, l2;
    SharedStorage& smem;
    Scheduler scheduler;
    comm::Watchdog watchdog;
    uint32_t cta;  // 0, or this CTA's place in its pair; 0 issues the MMAs
};

// Tensor memory: accumulators first, then the scale factors of one stage.
constexpr uint32_t kSfaColumn = config::kNumAccums * config::kBlockN, kSfbColumn = kSfaColumn + config::kSfWords * 4;
constexpr uint32_t kSfbWordColumns = config::kTokenAtoms * 4;  // from one word along K to the next
static_assert(kSfbColumn + config::kSfWords * kSfbWordColumns <= config::kTmemColumns);

// One role's place among the accumulators.
struct AccumCursor {
    uint32_t index = 0, phase = 0;

    __device__ __forceinline__ void advance() {
        if (++index == config::kNumAccums) {
            index = 0;
            phase ^= 1;
        }
    }
};

// Named barrier ids; 0 is __syncthreads. Each epilogue warpgroup has one more of its own.
constexpr uint32_t kConsumerBarrier = 1, kFirstEpilogueBarrier = 2;
constexpr uint32_t kNumConsumerThreads = config::kNumEpilogueWarpgroups * 128;

__device__ __forceinline__ void sync_consumers() { ptx::barrier_sync(kConsumerBarrier, kNumConsumerThreads); }

// What l2_done comes to.
__device__ __forceinline__ uint32_t l2_arrivals(const Context& ctx) { return ctx.scheduler.num_token_tiles() * config::kL2Arrivals; }

// Every counter that a call used, back to zero: the last block's consumers call it.
__device__ __forceinline__ void reset_counters(const Context& ctx, uint32_t consumer_thread) {
    const Params& params = ctx.params;
    for (uint32_t i = consumer_thread; i < config::kNumLocalExperts; i += kNumConsumerThreads) params.list_ready[i] = 0;
    for (uint32_t i = consumer_thread; i < ctx.scheduler.num_token_tiles(); i += kNumConsumerThreads) {
        params.tokens_ready[i] = 0, params.l1_done[i] = 0, params.l2_tile_done[i] = 0;
    }
    if (consumer_thread == 0) *params.l2_done = 0, *params.exited = 0;
}

}  // namespace mega_moe
