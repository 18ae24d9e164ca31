// Warpgroup MMA with the A operand in registers. PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions".
#pragma once
#include "types.cuh"

namespace ptx {

// Before the first wgmma, and whenever ordinary instructions touched accumulators or A registers since the last one.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending committed groups are still running.
template <uint32_t kPending>
__device__ __forceinline__ void wgmma_wait_group() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Ties a register to this point of the program: the compiler may not move or reuse it across a wait for the MMA that owns it.
__device__ __forceinline__ void tie(float& value) { asm volatile("" : "+f"(value)::"memory"); }
__device__ __forceinline__ void tie(uint32_t& value) { asm volatile("" : "+r"(value)::"memory"); }

// D[64, kN] (+)= A[64, 32] @ B[kN, 32]^T in E4M3, or A[64, 16] @ B[kN, 16]^T in BF16; d holds kN / 2 registers, a four; without `accumulates` it
// begins anew.
template <uint32_t kN>
struct Wgmma;

//% for n in wgmma_n
//% set regs = n // 2
template <>
struct Wgmma<${ n }> {
    __device__ __forceinline__ static void e4m3(float* d, const uint32_t* a, uint64_t b_desc, bool accumulates) {
        asm volatile(
            "{\n.reg .pred accumulate;\nsetp.ne.u32 accumulate, %${ regs + 5 }, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n${ n }k32.f32.e4m3.e4m3 { ${ regs | regs } }, "
            "{%${ regs }, %${ regs + 1 }, %${ regs + 2 }, %${ regs + 3 }}, %${ regs + 4 }, accumulate, 1, 1;\n}"
            : ${ regs | inouts }
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_desc), "r"(uint32_t(accumulates)));
    }
    __device__ __forceinline__ static void bf16(float* d, const uint32_t* a, uint64_t b_desc, bool accumulates) {
        asm volatile(
            "{\n.reg .pred accumulate;\nsetp.ne.u32 accumulate, %${ regs + 5 }, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n${ n }k16.f32.bf16.bf16 { ${ regs | regs } }, "
            "{%${ regs }, %${ regs + 1 }, %${ regs + 2 }, %${ regs + 3 }}, %${ regs + 4 }, accumulate, 1, 1, 0;\n}"
            : ${ regs | inouts }
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_desc), "r"(uint32_t(accumulates)));
    }
};
//% endfor

}  // namespace ptx
