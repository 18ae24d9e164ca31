// Tensor copies into shared memory for kernels of one CTA or of CTA pairs. PTX ISA, "cp.async.bulk.tensor", "cp.async.bulk".
#pragma once
#include "config.cuh"
#include "ptx/copy.cuh"
#include "types.cuh"

namespace ptx {

// Loads the box at (x, y) to this CTA's `smem`. In a pair the bytes complete on the even CTA's barrier: shared-memory
// addresses hold the CTA's rank from bit 24 up, so clearing that bit names the even one of the two.
__device__ __forceinline__ void tma_load_2d(uint32_t smem, const TensorMap* map, int32_t x, int32_t y, uint32_t barrier) {
    if constexpr (config::kCtaGroup == 2) {
        asm volatile(
            "cp.async.bulk.tensor.2d.cta_group::2.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(smem),
            "l"(map), "r"(x), "r"(y), "r"(barrier & 0xFEFFFFFFu)
            : "memory");
    } else {
        cp_async_bulk_tensor_2d(smem, map, x, y, barrier);
    }
}

// Stores `bytes` (a multiple of 16) from shared memory; part of the thread's open bulk group.
__device__ __forceinline__ void cp_async_bulk_store(void* global, uint32_t smem, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(smem), "r"(bytes) : "memory");
}

__device__ __forceinline__ void cp_async_bulk_commit_group() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until this thread's bulk groups have read their shared memory.
__device__ __forceinline__ void cp_async_bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// Waits until this thread's bulk groups have been written.
__device__ __forceinline__ void cp_async_bulk_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

}  // namespace ptx
