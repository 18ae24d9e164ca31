// A tiny kernel: multiplies a vector by a constant.
#pragma once

#include "config.cuh"
#include "lane.cuh"

extern "C" __global__ void scale(float* values, uint32_t num_values) {
    const uint32_t i = blockIdx.x * config::kBlockThreads + threadIdx.x;
    if (i < num_values) values[i] = values[i] * config::kFactor + float(lane_id());
}
