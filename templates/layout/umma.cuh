// Descriptors of tcgen05.mma, field by field. PTX ISA, tcgen05: "Shared Memory Descriptor", "Instruction Descriptor".
#pragma once
#include "config.cuh"
#include "types.cuh"

namespace layout {

// Operand rows of 128 bytes along K, 128-byte swizzle, tiles at multiples of 1024 bytes:
//   bits 13..0 address >> 4 | 45..32 bytes from 8 rows to the next 8, >> 4 | 48..46 version 1 | 63..61 swizzle, 2 = 128 bytes
__device__ __forceinline__ uint64_t umma_operand(uint32_t smem) {
    return (smem & 0x3FFFF) >> 4 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 46 | uint64_t(2) << 61;
}

// The next 32 bytes of K, which is what one MMA reads of each row: inside a swizzled row, too, since the swizzle is applied to
// the address that the step gives.
constexpr uint64_t kOperandStep = 32 >> 4;

// A 512-byte atom of scale factors, not swizzled: 16-byte lines, 8 of them (128 bytes) from one core matrix to the next.
__device__ __forceinline__ uint64_t umma_scale_atom(uint32_t smem) {
    return (smem & 0x3FFFF) >> 4 | uint64_t(128 >> 4) << 32 | uint64_t(1) << 46;
}

// Block-scaled kinds:
//   5..4 SFB id | 9..7 A type | 12..10 B type | 22..17 N >> 3 | 23 scale type, 1 = UE8M0 | 28..24 M >> 4 | 30..29 SFA id
// The one scale-type bit serves A and B alike. An id is the first byte of the 32-bit scale word that the MMA uses.
__device__ __forceinline__ uint32_t umma_instruction(uint32_t n, uint32_t sf_id) {
    constexpr uint32_t kFixed = config::kMmaAType << 7 | config::kMmaBType << 10 | config::kMmaScaleType << 23 | (config::kMmaM >> 4) << 24;
    return kFixed | sf_id << 4 | (n >> 3) << 17 | sf_id << 29;
}

}  // namespace layout
