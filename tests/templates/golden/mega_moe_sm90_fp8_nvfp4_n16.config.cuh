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
constexpr uint32_t kBlockM = 256;
constexpr uint32_t kBlockN = 16;
constexpr uint32_t kBlockK = 128;
constexpr uint32_t kNumStages = 8;
constexpr uint32_t kNumPasses = 1;
constexpr uint32_t kPromotedStages = 4;
constexpr uint32_t kScaleBlocks = 6;
constexpr uint32_t kPassM = 256;
constexpr uint32_t kL1MTiles = 23;
constexpr uint32_t kL2MTiles = 12;
constexpr uint32_t kL1KStages = 23;
constexpr uint32_t kL2KStages = 23;
constexpr uint32_t kL2TilesPerL1 = 1;
constexpr uint32_t kL1BlocksPerTile = 1;
constexpr uint32_t kNumThreads = 384;
constexpr uint32_t kNumConsumerWarpgroups = 2;
constexpr uint32_t kFirstConsumerThread = 128;
constexpr uint32_t kFirstDispatchThread = 96;
constexpr uint32_t kChunkTokens = 32;
constexpr uint32_t kMinWidth = 16;
constexpr uint32_t kWidthStep = 16;
constexpr uint32_t kFullArrivals = 2;
constexpr uint32_t kEmptyArrivals = 8;
constexpr uint32_t kLoaderRegisters = 40;
constexpr uint32_t kConsumerRegisters = 232;
constexpr bool kIsFp8 = true;
constexpr bool kHasTokenScales = true;
constexpr bool kIsGated = true;
constexpr uint32_t kActBytes = 1;
constexpr uint32_t kTokenKBytes = 128;
constexpr uint32_t kTokenRowBytes = 2944;
constexpr uint32_t kActRowBytes = 2944;
constexpr uint32_t kTokenStageBytes = 2048;
constexpr uint32_t kWeightBlockBytes = 18432;
constexpr uint32_t kWeightStageBytes = 18432;
constexpr uint32_t kStageCodeBytes = 16384;
constexpr uint32_t kStageScaleBytes = 2048;
constexpr uint32_t kOutBytes = 4096;
constexpr uint32_t kDecodeTableRows = 128;
constexpr uint32_t kTableCopies = 16;
constexpr uint32_t kBoxRows = 16;
constexpr uint32_t kSmemBytes = 186368;
constexpr uint32_t kParamBytes = 296;
constexpr uint32_t kActivation = 0;
constexpr float kAlpha = 1.0f;
constexpr float kUpBias = 0.0f;
constexpr bool kHasClamp = false;
constexpr float kClamp = 0.0f;
constexpr bool kFastMath = true;
constexpr float kMinAmax = 1.00000001e-10f;
constexpr float kForecastRms = 112.0f;
constexpr float kForecastFactor = 0.25f;
constexpr float kLeastForeseen = 0.25f;
}  // namespace config
