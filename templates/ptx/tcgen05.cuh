// Tensor core and tensor memory of data-center Blackwell. PTX ISA, "TensorCore 5th Generation Family Instructions".
//
// All tcgen05 instructions of a kernel have one cta_group: 1, or 2 for a pair of CTAs, whose even one issues for both.
#pragma once
#include "config.cuh"
#include "types.cuh"

namespace ptx {

// --- tensor memory: 128 lanes x 512 columns of 32 bits; address = lane << 16 | column -----------------------------------

// One warp (in each CTA of a pair) takes `kColumns` (a power of two, 32..512); the address is written to shared memory.
template <uint32_t kColumns>
__device__ __forceinline__ void tcgen05_alloc(uint32_t smem) {
    asm volatile("tcgen05.alloc.cta_group::${ cta_group }.sync.aligned.shared::cta.b32 [%0], %1;" ::"r"(smem), "n"(kColumns) : "memory");
    asm volatile("tcgen05.relinquish_alloc_permit.cta_group::${ cta_group }.sync.aligned;");
}

template <uint32_t kColumns>
__device__ __forceinline__ void tcgen05_dealloc(uint32_t tmem) {
    asm volatile("tcgen05.dealloc.cta_group::${ cta_group }.sync.aligned.b32 %0, %1;" ::"r"(tmem), "n"(kColumns));
}

// A warp's 32 lanes of 32 columns: thread t gets lane t of the warp's quarter. Valid after tcgen05_wait_ld.
__device__ __forceinline__ void tcgen05_ld_32x32b_x32(uint32_t (&d)[32], uint32_t tmem) {
    asm volatile("tcgen05.ld.sync.aligned.32x32b.x32.b32 { ${ 32 | regs } }, [%32];" : ${ 32 | outs("r") } : "r"(tmem));
}

__device__ __forceinline__ void tcgen05_ld_32x32b_x16(uint32_t (&d)[16], uint32_t tmem) {
    asm volatile("tcgen05.ld.sync.aligned.32x32b.x16.b32 { ${ 16 | regs } }, [%16];" : ${ 16 | outs("r") } : "r"(tmem));
}

// 16 lanes of 16 columns, at `tmem`'s lane (0 or 16 of the warp's quarter): thread t's register r is lane t / 4 + 8 (r / 2 % 2), column
// 8 (r / 4) + 2 (t % 4) + r % 2. Rows 8 lanes apart are in one thread.
__device__ __forceinline__ void tcgen05_ld_16x256b_x2(uint32_t (&d)[8], uint32_t tmem) {
    asm volatile("tcgen05.ld.sync.aligned.16x256b.x2.b32 { ${ 8 | regs } }, [%8];" : ${ 8 | outs("r") } : "r"(tmem));
}

__device__ __forceinline__ void tcgen05_wait_ld() { asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory"); }

// --- order between threads ----------------------------------------------------------------------------------------------

// Before a barrier or arrival that hands tensor memory to another thread; tcgen05_commit has it built in.
__device__ __forceinline__ void tcgen05_fence_before_thread_sync() { asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory"); }

// After a wait that was handed tensor memory, or operands in shared memory, before tcgen05 work on it.
__device__ __forceinline__ void tcgen05_fence_after_thread_sync() { asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory"); }

// Arrives once on `barrier` (in each CTA of a pair, at the same offset) when all earlier copies and MMAs of this thread are done.
__device__ __forceinline__ void tcgen05_commit(uint32_t barrier) {
    if constexpr (config::kCtaGroup == 2) {
        asm volatile(
            "{\n.reg .b16 pair;\nmov.b16 pair, 3;\n"
            "tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%0], pair;\n}" ::"r"(barrier)
            : "memory");
    } else {
        asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(barrier) : "memory");
    }
}

// --- asynchronous work of one thread ------------------------------------------------------------------------------------

// 512 bytes of shared memory to 4 columns: 16-byte line i to lanes i, i + 32, i + 64, i + 96 (UTCCP).
__device__ __forceinline__ void tcgen05_cp_32x128b_warpx4(uint32_t tmem, uint64_t smem_desc) {
    asm volatile("tcgen05.cp.cta_group::${ cta_group }.32x128b.warpx4 [%0], %1;" ::"r"(tmem), "l"(smem_desc) : "memory");
}

// D[M, N] (+)= (A x SFA)[M, K] @ (B x SFB)[N, K]^T, A and B in shared memory, D and scale factors in tensor memory.
__device__ __forceinline__ void tcgen05_mma_block_scale(uint32_t d_tmem, uint64_t a_desc, uint64_t b_desc, uint32_t instr_desc, uint32_t sfa_tmem, uint32_t sfb_tmem,
                                                        bool accumulate) {
    asm volatile(
        "{\n.reg .pred accumulate;\nsetp.ne.u32 accumulate, %6, 0;\n"
        "tcgen05.mma.cta_group::${ cta_group }.${ mma_kind } [%0], %1, %2, %3, [%4], [%5], accumulate;\n}" ::"r"(d_tmem),
        "l"(a_desc), "l"(b_desc), "r"(instr_desc), "r"(sfa_tmem), "r"(sfb_tmem), "r"(uint32_t(accumulate))
        : "memory");
}

}  // namespace ptx
