// The activation between L1 and L2, in FP32. Definitions: formats/activation.py.
#pragma once
#include "config.cuh"
#include "ptx/convert.cuh"
#include "types.cuh"

namespace mega_moe {

enum class Activation : uint32_t { kSwiglu = 0, kGelu = 1, kRelu2 = 2 };
constexpr Activation kActivation = Activation(config::kActivation);

__device__ __forceinline__ float sigmoid(float x) {
    if constexpr (config::kFastMath) {
        constexpr float kLog2E = 1.4426950408889634f;
        return ptx::rcp_approx(1.0f + ptx::ex2_approx(-kLog2E * x));
    } else {
        return 1.0f / (1.0f + expf(-x));
    }
}

// One intermediate value of a gated activation.
__device__ __forceinline__ float activate(float gate, float up) {
    if constexpr (config::kHasClamp) {
        gate = ptx::min_nan(gate, config::kClamp);
        up = ptx::min_nan(ptx::max_nan(up, -config::kClamp), config::kClamp);
    }
    if constexpr (kActivation == Activation::kSwiglu) {
        return gate * sigmoid(config::kAlpha * gate) * (up + config::kUpBias);
    } else {
        return 0.5f * gate * (1.0f + erff(gate * 0.70710678118654752f)) * (up + config::kUpBias);
    }
}

// One intermediate value without a gate.
__device__ __forceinline__ float activate(float value) {
    if constexpr (config::kHasClamp) value = ptx::min_nan(value, config::kClamp);
    const float positive = ptx::max_nan(value, 0.0f);
    return positive * positive;
}

}  // namespace mega_moe
