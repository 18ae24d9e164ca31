// Warps and blocks: barriers, registers, election. PTX ISA, "barrier", "setmaxnreg", "elect.sync".
#pragma once
#include "types.cuh"

namespace ptx {

// Named barrier `id` for `threads` threads (a multiple of 32) of the block.
__device__ __forceinline__ void barrier_sync(uint32_t id, uint32_t threads) {
    asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// `value`, in a register of its own from here on. What depends on the thread's number alone is otherwise made anew where it is used, and
// reading that number (S2R) takes its place in the queue of shared memory's loads: 100 clocks and more in the middle of a loop.
__device__ __forceinline__ uint32_t keep(uint32_t value) { return __shfl_sync(~0u, value, threadIdx.x % 32); }

// The thread's number, read here and not before.
__device__ __forceinline__ uint32_t thread_in_block() {
    uint32_t thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

// Sum over a warp's lanes, modulo 2^32.
__device__ __forceinline__ uint32_t redux_add(uint32_t value) {
    uint32_t sum;
    asm volatile("redux.sync.add.u32 %0, %1, 0xFFFFFFFF;" : "=r"(sum) : "r"(value));
    return sum;
}

// The largest of a warp's values.
__device__ __forceinline__ uint32_t redux_max(uint32_t value) {
    uint32_t largest;
    asm volatile("redux.sync.max.u32 %0, %1, 0xFFFFFFFF;" : "=r"(largest) : "r"(value));
    return largest;
}

// Stores kNum 8 x 8 matrices of 16-bit elements, transposed: lane l has elements (row l / 4, columns 2 (l % 4) and + 1) of each, and
// column l % 8 of matrix l / 8 goes to the 16 bytes at lane l's address. PTX ISA, "stmatrix".
template <uint32_t kNum>
__device__ __forceinline__ void stmatrix_trans(uint32_t address, const uint32_t* matrices) {
    static_assert(kNum == 1 || kNum == 2 || kNum == 4);
    if constexpr (kNum == 4) {
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(matrices[0]), "r"(matrices[1]),
                     "r"(matrices[2]), "r"(matrices[3])
                     : "memory");
    } else if constexpr (kNum == 2) {
        asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(matrices[0]), "r"(matrices[1]) : "memory");
    } else {
        asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address), "r"(matrices[0]) : "memory");
    }
}

template <uint32_t kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <uint32_t kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace ptx
