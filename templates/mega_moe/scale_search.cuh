// Which scale makes E4M3 nearest to a block of 512 values: one of four, a quarter of a binade apart. Rule: formats/block_scaled.py.
#pragma once
#include "config.cuh"
#include "ptx/convert.cuh"
#include "ptx/warp.cuh"
#include "types.cuh"

namespace mega_moe {

struct BlockScale {
    float scale, inverse;
    float smallest;  // the least of the four: what would make the largest value 448
};

// Sum of the squared errors of a lane's pairs of bf16, in units of 2^-10 of a squared code step at 1. Integers: the sum over all lanes does
// not depend on who has which value.
template <uint32_t kPairs>
__device__ __forceinline__ uint32_t squared_error(const uint32_t (&pairs)[kPairs], float inverse) {
    constexpr float kOnes = 8388608.0f;  // 2^23: a sum with it has its integer part in its low bits
    uint32_t sum = 0;
#pragma unroll
    for (uint32_t pair : pairs) {
        const float x = ptx::bf16_low(pair) * inverse, y = ptx::bf16_high(pair) * inverse;
        const float2 rounded = ptx::cvt_f32x2(ptx::cvt_e4m3x2(x, y));
        const float a = (rounded.x - x) * 32.0f, b = (rounded.y - y) * 32.0f;
        sum += __float_as_uint(fmaf(a, a, kOnes)) + __float_as_uint(fmaf(b, b, kOnes));
    }
    return sum;  // 512 times the bits of 2^23 are zero, modulo 2^32
}

// A warp: kPairs pairs a lane, together 512 values.
template <uint32_t kPairs>
__device__ __forceinline__ BlockScale search_scale(const uint32_t (&pairs)[kPairs]) {
    static_assert(kPairs * 2 * 32 == 512);
    float largest = 0.0f;
#pragma unroll
    for (uint32_t pair : pairs) largest = fmaxf(largest, fmaxf(fabsf(ptx::bf16_low(pair)), fabsf(ptx::bf16_high(pair))));
#pragma unroll
    for (uint32_t step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
    constexpr float kSteps[4] = {1.0f, 1.18920708f, 1.41421354f, 1.68179286f};    // 2^(i/4)
    constexpr float kWeights[4] = {1.0f, 1.41421354f, 2.0f, 2.82842708f};         // their squares
    const float smallest = fmaxf(largest, config::kMinAmax) / 448.0f;
    BlockScale best = {smallest, 1.0f / smallest, smallest};
    float least = float(ptx::redux_add(squared_error(pairs, best.inverse)));
#pragma unroll
    for (uint32_t i = 1; i < 4; ++i) {
        const float scale = smallest * kSteps[i], inverse = 1.0f / scale;
        const float error = float(ptx::redux_add(squared_error(pairs, inverse))) * kWeights[i];
        if (error < least) least = error, best.scale = scale, best.inverse = inverse;
    }
    return best;
}

}  // namespace mega_moe
