// Waits that end: each has a time-out, and leaves a record of who waited for what before it stops the kernel.
#pragma once
#include "config.cuh"
#include "ptx/ld_st.cuh"
#include "ptx/mbarrier.cuh"
#include "types.cuh"

namespace comm {

// What a thread was waiting for. Python has the same table in words (recipes/waits.py, names checked by a test).
enum class WaitFor : uint32_t {
    kStageFull = 1,     // consumer: tokens and weights of a stage
    kStageEmpty = 2,    // loader: consumers to release a stage
    kRoutedList = 3,    // sm_100 dispatch, consumer: the list of an expert's tokens
    kL1Tiles = 4,       // token loader: L1 of a token tile, before L2 reads it
    kL2Tiles = 5,       // combine: all L2 tiles
    kAccumFull = 6,     // epilogue: the MMAs of a tile
    kAccumEmpty = 7,    // mma: the epilogue to release an accumulator
    kDispatch = 8,      // loader: the routed rows of a token tile
    kRingTile = 9,      // dispatch: L2 of the token tile that had a place in the ring before
    kTile = 10,         // loader, consumer: the next tile from the scheduler
    kTilePlace = 11,    // scheduler: readers to release a tile
};

// Host-readable record, written once by the first thread that gives up. Layout: runtime/memory.py.
struct ErrorRecord {
    uint32_t magic, wait_for, block, thread, index, expected, seen, rank;
};
constexpr uint32_t kErrorMagic = 0x4D6F4531;
constexpr uint64_t kRecordTimeoutNs = 1000000000;

// Arguments by value: a reference would put the caller's context on the stack. Without noreturn, callers would save registers.
__device__ __noinline__ __attribute__((noreturn)) void give_up(ErrorRecord* record, uint32_t rank, WaitFor wait_for, uint32_t index, uint32_t expected, uint32_t seen) {
    if (record != nullptr && atomicCAS_system(&record->magic, 0u, 1u) == 0u) {
        volatile ErrorRecord* out = record;
        out->wait_for = uint32_t(wait_for), out->block = blockIdx.x, out->thread = threadIdx.x;
        out->index = index, out->expected = expected, out->seen = seen, out->rank = rank;
        __threadfence_system();
        out->magic = kErrorMagic;
        __threadfence_system();
    } else if (record != nullptr) {
        // Another thread is writing: a trap now would stop it half way.
        const uint64_t start = ptx::globaltimer_ns();
        while (*static_cast<volatile uint32_t*>(&record->magic) != kErrorMagic && ptx::globaltimer_ns() - start < kRecordTimeoutNs) {
        }
    }
    __trap();
}

struct Watchdog {
    ErrorRecord* record;
    uint64_t timeout_ns;
    uint32_t rank;

    __device__ __forceinline__ void check(uint64_t start, WaitFor wait_for, uint32_t index, uint32_t expected, uint32_t seen) const {
        if (ptx::globaltimer_ns() - start > timeout_ns) give_up(record, rank, wait_for, index, expected, seen);
    }
};

// Waits for the phase with `parity` of an mbarrier in shared memory.
__device__ __forceinline__ void wait_barrier(const Watchdog& watchdog, uint32_t barrier, uint32_t parity, WaitFor wait_for, uint32_t index) {
    if (ptx::mbarrier_try_wait_parity(barrier, parity)) return;
    const uint64_t start = ptx::globaltimer_ns();
    while (!ptx::mbarrier_try_wait_parity(barrier, parity)) {
        watchdog.check(start, wait_for, index, parity, parity ^ 1);
    }
}

// Waits until a counter in global memory has reached `expected`; acquires what its writers released. Only the last look acquires: each such
// look empties the SM's L1, and one after the other they hold up the releases of its other warps.
__device__ __forceinline__ void wait_counter(const Watchdog& watchdog, const uint32_t* counter, uint32_t expected, WaitFor wait_for, uint32_t index) {
    uint32_t seen = ptx::ld_acquire_gpu(counter);
    if (seen >= expected) return;
    const uint64_t start = ptx::globaltimer_ns();
    while ((seen = ptx::ld_relaxed_gpu(counter)) < expected) {
        watchdog.check(start, wait_for, index, expected, seen);
    }
    ptx::ld_acquire_gpu(counter);
}

}  // namespace comm
