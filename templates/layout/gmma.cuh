// Shared-memory operands of wgmma: the 128-byte swizzle and the matrix descriptor.
// PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout" and "Matrix Descriptor Format".
#pragma once
#include "types.cuh"

namespace layout {

// A K-major row is 128 bytes; 8 rows make one swizzle pattern of 1024 bytes.
constexpr uint32_t kSwizzleRowBytes = 128;
constexpr uint32_t kSwizzlePatternBytes = 8 * kSwizzleRowBytes;

// Descriptor of a K-major operand with the 128-byte swizzle at shared address `smem` (1024-byte aligned, plus a K step).
__device__ __forceinline__ uint64_t gmma_descriptor(uint32_t smem) {
    constexpr uint64_t kStrideBytes = kSwizzlePatternBytes;  // from 8 rows to the next 8
    return (uint64_t(smem & 0x3FFFF) >> 4)                   // bits 13:0   start address
           | (uint64_t(1) << 16)                             // bits 29:16  leading offset, ignored for swizzled K-major operands
           | ((kStrideBytes >> 4) << 32)                     // bits 45:32  stride offset
           | (uint64_t(1) << 62);                            // bits 63:62  128-byte swizzle
}

// One K step of an MMA reads 32 bytes a row, whatever the element; the hardware applies the swizzle to the stepped address.
constexpr uint64_t kDescriptorStep = 32 >> 4;

}  // namespace layout
