// What every role of the kernel is given.
#pragma once
#include "comm/wait.cuh"
#include "gemm/gemm_scheduler.cuh"
#include "gemm/gemm_storage.cuh"
#include "ptx/cluster.cuh"
#include "ptx/copy.cuh"

namespace gemm {

struct TensorMaps {
    const ptx::TensorMap &weights, &weights_sf, &tokens, &tokens_sf;
};

struct Context {
    const Params& params;
    TensorMaps maps;
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

}  // namespace gemm
