#line 1 "/config.cuh"
// Every constant of this kernel's description, as Python computed it: `block_m` there is `config::kBlockM` here.
#pragma once

#include "types.cuh"

namespace config {
constexpr uint32_t kNumRanks = 1;
constexpr uint32_t kNumExperts = 32;
constexpr uint32_t kNumTopk = 4;
constexpr uint32_t kTopkIdxBytes = 8;
constexpr uint32_t kHidden = 2880;
constexpr uint32_t kHiddenK = 2944;
constexpr uint32_t kScaleBlocks = 6;
constexpr uint32_t kNumThreads = 256;
constexpr uint32_t kBlocksPerSm = 4;
constexpr bool kIsFp8 = false;
constexpr bool kSourceIsCodes = false;
constexpr uint32_t kActBytes = 2;
constexpr uint32_t kTokenRowBytes = 5888;
constexpr uint32_t kParamBytes = 96;
constexpr float kMinAmax = 1.00000001e-10f;
}  // namespace config
