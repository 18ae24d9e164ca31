// What a launch is told. Python packs the same fields in the same order (recipes/params.py) and config::kParamBytes ties the two.
#pragma once
#include "comm/wait.cuh"
#include "config.cuh"
#include "types.cuh"

namespace gemm {

struct Params {
    const int32_t* expert_ends;  // [kNumExperts]: one past each expert's last token
    const float* alphas;         // [kNumExperts]: factor of each expert's products, or null for 1
    uint16_t* y;                 // [tokens][kN] bf16, rows y_stride elements apart
    uint64_t y_stride;
    comm::ErrorRecord* error_record;
    uint64_t timeout_ns;
};
static_assert(sizeof(Params) == config::kParamBytes, "recipes/params.py packs other fields");

}  // namespace gemm
