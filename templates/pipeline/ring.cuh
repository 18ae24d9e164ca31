// A ring of shared-memory stages between loaders and consumers: one full and one empty barrier a stage.
#pragma once
#include "comm/wait.cuh"
#include "config.cuh"
#include "ptx/mbarrier.cuh"
#include "types.cuh"

namespace pipeline {

struct RingBarriers {
    uint64_t full[config::kNumStages];   // weights and tokens of the stage have landed
    uint64_t empty[config::kNumStages];  // every consumer warp has read the stage
};

// One role's place in the ring. Loaders and consumers each walk a cursor of their own.
struct RingCursor {
    uint32_t stage = 0;
    uint32_t phase = 0;

    __device__ __forceinline__ void advance() {
        // A wrapped ring reuses barrier 0, whose parity has flipped since we last waited on it.
        if (++stage == config::kNumStages) {
            stage = 0;
            phase ^= 1;
        }
    }
};

__device__ __forceinline__ void init(RingBarriers& barriers) {
    for (uint32_t i = 0; i < config::kNumStages; ++i) {
        ptx::mbarrier_init(ptx::smem_address(&barriers.full[i]), config::kFullArrivals);
        ptx::mbarrier_init(ptx::smem_address(&barriers.empty[i]), config::kEmptyArrivals);
    }
}

// Loader: waits until the stage may be overwritten. A fresh barrier lets the first round through.
__device__ __forceinline__ uint32_t wait_empty(const comm::Watchdog& watchdog, RingBarriers& barriers, const RingCursor& cursor) {
    comm::wait_barrier(watchdog, ptx::smem_address(&barriers.empty[cursor.stage]), cursor.phase ^ 1, comm::WaitFor::kStageEmpty, cursor.stage);
    return ptx::smem_address(&barriers.full[cursor.stage]);
}

// Loader, at its end: waits until every stage has been released, so that no arrival is still on its way when the block leaves.
__device__ __forceinline__ void drain(const comm::Watchdog& watchdog, RingBarriers& barriers, RingCursor cursor) {
    for (uint32_t i = 0; i < config::kNumStages; ++i, cursor.advance()) wait_empty(watchdog, barriers, cursor);
}

// Consumer: looks whether the stage's data is there; wait_full can take the answer later.
__device__ __forceinline__ bool is_full(RingBarriers& barriers, const RingCursor& cursor) {
    return ptx::mbarrier_test_wait_parity(ptx::smem_address(&barriers.full[cursor.stage]), cursor.phase);
}

// Consumer: waits until the stage's data is there.
__device__ __forceinline__ void wait_full(const comm::Watchdog& watchdog, RingBarriers& barriers, const RingCursor& cursor, bool is_known_full = false) {
    if (is_known_full) return;
    comm::wait_barrier(watchdog, ptx::smem_address(&barriers.full[cursor.stage]), cursor.phase, comm::WaitFor::kStageFull, cursor.stage);
}

}  // namespace pipeline
