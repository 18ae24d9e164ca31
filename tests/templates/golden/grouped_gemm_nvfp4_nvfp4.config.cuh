#line 1 "/config.cuh"
// Every constant of this kernel's description, as Python computed it: `block_m` there is `config::kBlockM` here.
#pragma once

#include "types.cuh"

namespace config {
constexpr uint32_t kNumExperts = 32;
constexpr uint32_t kN = 5760;
constexpr uint32_t kRowBlocks = 45;
constexpr uint32_t kKWords = 46;
constexpr uint32_t kCtaGroup = 2;
constexpr uint32_t kBlockM = 128;
constexpr uint32_t kBlockN = 64;
constexpr uint32_t kBlockK = 256;
constexpr uint32_t kTileM = 256;
constexpr uint32_t kLoadN = 32;
constexpr uint32_t kNumStages = 8;
constexpr uint32_t kNumAccums = 2;
constexpr uint32_t kKStages = 12;
constexpr uint32_t kMmaM = 256;
constexpr uint32_t kMmaAType = 1;
constexpr uint32_t kMmaBType = 1;
constexpr uint32_t kMmaScaleType = 0;
constexpr uint32_t kMmasPerStage = 4;
constexpr uint32_t kMmasPerTile = 46;
constexpr uint32_t kMmasPerWord = 1;
constexpr uint32_t kScalesPerMma = 4;
constexpr uint32_t kSfWords = 4;
constexpr uint32_t kTokenAtoms = 1;
constexpr uint32_t kTmemColumns = 256;
constexpr uint32_t kWeightRowBytes = 128;
constexpr uint32_t kFullArrivals = 1;
constexpr uint32_t kEmptyArrivals = 1;
constexpr uint32_t kAccumFullArrivals = 1;
constexpr uint32_t kAccumEmptyArrivals = 8;
constexpr uint32_t kNumThreads = 256;
constexpr uint32_t kFirstEpilogueWarp = 4;
constexpr uint32_t kSmemBytes = 214016;
constexpr uint32_t kParamBytes = 48;
}  // namespace config
