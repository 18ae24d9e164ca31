// Conversions to and from block-scaled formats. PTX ISA, "cvt". Two values at a time: `first` goes to the low part.
#pragma once
#include "types.cuh"

namespace ptx {

// Two floats to E2M1, round to nearest even, saturating at 6: one byte.
__device__ __forceinline__ uint32_t cvt_e2m1x2(float first, float second) {
    uint32_t packed;
    asm("{\n.reg .b8 codes;\ncvt.rn.satfinite.e2m1x2.f32 codes, %1, %2;\nmov.b32 %0, {codes, 0, 0, 0};\n}" : "=r"(packed) : "f"(second), "f"(first));
    return packed;
}

// A scale factor to UE8M0: the power of two at or above it.
__device__ __forceinline__ uint32_t cvt_ue8m0_up(float value) {
    uint16_t packed;
    asm("cvt.rp.satfinite.ue8m0x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(0.0f), "f"(value));
    return packed & 0xFF;
}

// The low E4M3 code of a pair, as float.
__device__ __forceinline__ float cvt_float_e4m3(uint16_t codes) {
    float value;
    asm("{\n.reg .b32 pair;\n.reg .b16 low, high;\ncvt.rn.f16x2.e4m3x2 pair, %1;\nmov.b32 {low, high}, pair;\ncvt.f32.f16 %0, low;\n}" : "=f"(value) : "h"(codes));
    return value;
}

}  // namespace ptx
