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

// The error of the nearest E4M3 value, up to its sign, by FP32 arithmetic alone. x times 2^20 - 1 is x 2^20, a multiple of its last bit's
// unit, less x: rounded, it leaves x to four significant bits, and what was rounded off is the product's own error, which fma gives exactly.
// (2^20 + 1 would fail just below powers of two, where the sum gets another last bit.) Below 2^-6 E4M3 is coarser than that, but errors there
// are nothing in the unit below; ties round either way, with the same magnitude; nothing lies beyond 448.
__device__ __forceinline__ float rounding_error(float x) {
    constexpr float kCut = 1048575.0f;
    const float product = x * kCut;
    return fmaf(x, kCut, -product);
}

// Sum of the squared errors of a lane's pairs of bf16, in units of 2^-10 of a squared code step at 1. Integers: the sum over all lanes does
// not depend on who has which value.
template <uint32_t kPairs>
__device__ __forceinline__ uint32_t squared_error(const uint32_t (&pairs)[kPairs], float inverse) {
    constexpr float kUnits = 8192.0f;  // 2^13: a sum with it has multiples of 2^-10 in its low bits
    uint32_t sum = 0;
#pragma unroll
    for (uint32_t pair : pairs) {
        const float a = rounding_error(ptx::bf16_low(pair) * inverse), b = rounding_error(ptx::bf16_high(pair) * inverse);
        sum += __float_as_uint(fmaf(a, a, kUnits)) + __float_as_uint(fmaf(b, b, kUnits));
    }
    return sum;  // 512 times the bits of 2^13 are zero, modulo 2^32
}

// A warp: the largest magnitude of kPairs pairs a lane.
template <uint32_t kPairs>
__device__ __forceinline__ float largest_of(const uint32_t (&pairs)[kPairs]) {
    constexpr uint32_t kMagnitudes = 0x7FFF7FFF;
    uint32_t most = pairs[0] & kMagnitudes;
#pragma unroll
    for (uint32_t i = 1; i < kPairs; ++i) most = ptx::max_bf16x2(most, pairs[i] & kMagnitudes);
    const float own = fmaxf(fmaxf(ptx::bf16_low(most), ptx::bf16_high(most)), 0.0f);  // also where all are NaN
    return __uint_as_float(ptx::redux_max(__float_as_uint(own)));  // bits of floats that are not negative order as the floats do
}

// A warp: kPairs pairs a lane, together 512 values, whose largest magnitude is known.
template <uint32_t kPairs>
__device__ __forceinline__ BlockScale search_scale(const uint32_t (&pairs)[kPairs], float largest) {
    static_assert(kPairs * 2 * 32 == 512);
    constexpr float kSteps[4] = {1.0f, 1.18920708f, 1.41421354f, 1.68179286f};    // 2^(i/4)
    constexpr float kWeights[4] = {1.0f, 1.41421354f, 2.0f, 2.82842708f};         // their squares
    const float smallest = fmaxf(largest, config::kMinAmax) / 448.0f;
    // Each lane makes one of the four reciprocals: a division is many instructions.
    const uint32_t lane = threadIdx.x % 32;
    const float own_step = lane & 2 ? (lane & 1 ? kSteps[3] : kSteps[2]) : (lane & 1 ? kSteps[1] : kSteps[0]);
    const float own_inverse = 1.0f / (smallest * own_step);
    float inverses[4], errors[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) inverses[i] = __shfl_sync(~0u, own_inverse, i);
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) errors[i] = float(ptx::redux_add(squared_error(pairs, inverses[i]))) * kWeights[i];
    BlockScale best = {smallest, inverses[0], smallest};
    float least = errors[0];
#pragma unroll
    for (uint32_t i = 1; i < 4; ++i) {
        if (errors[i] < least) least = errors[i], best.scale = smallest * kSteps[i], best.inverse = inverses[i];
    }
    return best;
}

}  // namespace mega_moe
