// The scale of a token's activations at an expert, foreseen from sizes before any activation is known. Formula: reference/forecast.py.
#pragma once
#include "config.cuh"
#include "types.cuh"

namespace mega_moe {

// Sizes that L1's results are foreseen from, for one expert (ops/weights.py).
struct alignas(16) ActsForecast {
    float gate_norm, up_norm;  // root mean square of a weight row's length, alpha included
    float gate_bias, up_bias;  // root mean square of the biases
};

// 2^n nearest below p: scales that are powers of two make quantised values independent of p, as long as nothing over- or underflows.
__device__ __forceinline__ float power_of_two(float p) { return __uint_as_float(min(max(__float_as_uint(p) & 0x7F800000u, 0x0D800000u), 0x71800000u)); }

// 1 / p, exactly, of what power_of_two gives.
__device__ __forceinline__ float inverse_power(float p) { return __uint_as_float(0x7F000000u - __float_as_uint(p)); }

// `weight` is what the activations are multiplied by themselves.
__device__ __forceinline__ float foresee_acts_scale(const ActsForecast& f, float token_scale, float weight) {
    const float rms = token_scale * config::kForecastRms;
    const float gate = fmaf(rms, f.gate_norm, f.gate_bias), up = config::kIsGated ? fmaf(rms, f.up_norm, f.up_bias) + fabsf(config::kUpBias) : gate;
    return power_of_two(gate * up * config::kForecastFactor * weight);
}

}  // namespace mega_moe
