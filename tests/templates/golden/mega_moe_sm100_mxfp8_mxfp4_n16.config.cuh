#line 1 "/config.cuh"
// Every constant of this kernel's description, as Python computed it: `block_m` there is `config::kBlockM` here.
#pragma once

#include "types.cuh"

namespace config {
constexpr uint32_t kNumRanks = 1;
constexpr uint32_t kNumExperts = 32;
constexpr uint32_t kNumLocalExperts = 32;
constexpr uint32_t kNumTopk = 4;
constexpr uint32_t kTopkIdxBytes = 8;
constexpr uint32_t kHidden = 2880;
constexpr uint32_t kHiddenPadded = 3072;
constexpr uint32_t kIntermediatePadded = 2944;
constexpr uint32_t kL1Rows = 5888;
constexpr uint32_t kL2Rows = 3072;
constexpr uint32_t kL1KWords = 23;
constexpr uint32_t kL2KWords = 23;
constexpr uint32_t kL1RingWords = 23;
constexpr uint32_t kL2RingWords = 23;
constexpr uint32_t kSourceRowBytes = 2880;
constexpr uint32_t kSourceGroups = 90;
constexpr uint32_t kTokenRowBytes = 2944;
constexpr uint32_t kActRowBytes = 2944;
constexpr uint32_t kGranK = 32;
constexpr bool kIsUe4m3 = false;
constexpr bool kHasTokenScales = false;
constexpr float kInverseElementMax = 0.00223214296f;
constexpr float kMinAmax = 1.00000001e-10f;
constexpr float kForecastRms = 672.0f;
constexpr float kForecastFactor = 0.125f;
constexpr bool kWeighsBeforeRequant = false;
constexpr uint32_t kParamBytes = 256;
constexpr uint32_t kCtaGroup = 2;
constexpr uint32_t kBlockM = 128;
constexpr uint32_t kBlockN = 16;
constexpr uint32_t kBlockK = 128;
constexpr uint32_t kTileM = 256;
constexpr uint32_t kLoadN = 8;
constexpr uint32_t kNumStages = 8;
constexpr uint32_t kNumAccums = 2;
constexpr uint32_t kTmemColumns = 64;
constexpr uint32_t kTokenAtoms = 1;
constexpr uint32_t kSfWords = 1;
constexpr uint32_t kRingTiles = 54;
constexpr uint32_t kWaveTiles = 27;
constexpr uint32_t kL1MTiles = 23;
constexpr uint32_t kL2MTiles = 12;
constexpr uint32_t kL1Arrivals = 46;
constexpr uint32_t kL2Arrivals = 24;
constexpr uint32_t kL1KStages = 23;
constexpr uint32_t kL2KStages = 23;
constexpr uint32_t kL1Mmas = 92;
constexpr uint32_t kL2Mmas = 92;
constexpr uint32_t kMmaM = 256;
constexpr uint32_t kMmaAType = 5;
constexpr uint32_t kMmaBType = 0;
constexpr uint32_t kMmaScaleType = 1;
constexpr uint32_t kMmasPerStage = 4;
constexpr uint32_t kMmasPerWord = 4;
constexpr uint32_t kScalesPerMma = 1;
constexpr uint32_t kWeightStageRowBytes = 64;
constexpr uint32_t kActsPerByte = 1;
constexpr uint32_t kActsTileBytes = 64;
constexpr uint32_t kFullArrivals = 1;
constexpr uint32_t kEmptyArrivals = 1;
constexpr uint32_t kAccumFullArrivals = 1;
constexpr uint32_t kAccumEmptyArrivals = 8;
constexpr uint32_t kNumThreads = 512;
constexpr uint32_t kFirstEpilogueWarp = 4;
constexpr uint32_t kNumEpilogueWarpgroups = 2;
constexpr uint32_t kFirstDispatchWarp = 12;
constexpr uint32_t kNumDispatchThreads = 128;
constexpr uint32_t kSmemBytes = 158720;
constexpr uint32_t kActivation = 0;
constexpr bool kIsGated = true;
constexpr float kAlpha = 1.0f;
constexpr float kUpBias = 0.0f;
constexpr bool kHasClamp = false;
constexpr float kClamp = 0.0f;
constexpr bool kFastMath = true;
}  // namespace config
