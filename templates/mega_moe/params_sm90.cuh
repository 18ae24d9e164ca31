// What a launch is told. Python packs the same fields in the same order (recipes/params.py) and config::kParamBytes ties the two.
#pragma once
#include "comm/peers.cuh"
#include "comm/wait.cuh"
#include "config.cuh"
#include "mega_moe/forecast.cuh"
#include "types.cuh"

namespace mega_moe {

struct Params {
    comm::PeerTable peers;
    comm::SymOffsets sym;
    // Workspace of this rank; the counters are zero between calls.
    // Pool rows are routed rows, expert by expert; each token tile has kBlockN of its own.
    uint8_t* tokens;         // [pool rows][kHiddenK], K in token order
    float* tokens_sf;        // [K of L1 / 512][pool rows] (E4M3)
    uint8_t* acts;           // [pool rows][kIntermediatePadded], K in token order
    float* acts_sf;          // [kIntermediatePadded / 128][pool rows] (E4M3)
    uint32_t* routed;        // [pool rows]: token * top-k + slot
    float* routed_sf;        // [pool rows]: the scale that would make the token's largest value 448 (E4M3)
    float* routed_weights;   // [pool rows]: the slot's top-k weight
    uint32_t* rows_ready;    // [token tiles]: rows that dispatch has brought
    uint32_t* l1_done;       // [token tiles]: finished L1 tiles
    uint32_t* has_own_sf;    // [token tiles]: not every block of 128 has its token's foreseen scale (E4M3)
    uint32_t* l2_done;       // [1]: blocks that have finished their L2 tiles
    uint32_t* exited;        // [1]: blocks that need no counter any more
    comm::ErrorRecord* error_record;
    uint64_t timeout_ns;
    // Weights of this rank's experts, as the weight transform made them.
    const uint8_t* l1_weights;
    const uint8_t* l2_weights;
    const float* l1_alphas;  // [experts][2]: gate, up
    const float* l2_alphas;  // [experts]
    const float* l1_bias;    // [experts][kL1Halves * kIntermediatePadded] or null
    const float* l2_bias;    // [experts][kHiddenPadded] or null
    const ActsForecast* forecast;  // [experts] (E4M3)
    // The call.
    int32_t* recv_stats;     // [experts], added to, or null
    uint16_t* y;             // [num_tokens][hidden] bf16, rows y_stride apart
    uint64_t y_stride;
    const uint8_t* x;        // [num_tokens][hidden] bf16, rows x_stride_bytes apart; null when staging has put tokens into the buffer
    uint64_t x_stride_bytes;
    const uint8_t* topk_idx;    // [num_tokens][kNumTopk] int32 or int64
    const float* topk_weights;  // [num_tokens][kNumTopk]
    uint32_t topk_idx_bytes;
    uint32_t num_tokens;
    uint32_t pool_rows;
    uint32_t rank;
    float routed_scaling_factor;
};
static_assert(sizeof(Params) == config::kParamBytes, "recipes/params.py packs other fields");

// The global expert that a slot of this rank was routed to, or -1 (also for indices that are no expert).
__device__ __forceinline__ int32_t home_expert(const Params& params, uint32_t slot) {
    const int64_t expert = params.topk_idx_bytes == 8 ? reinterpret_cast<const int64_t*>(params.topk_idx)[slot] : reinterpret_cast<const int32_t*>(params.topk_idx)[slot];
    return expert >= 0 && expert < int64_t(config::kNumExperts) ? int32_t(expert) : -1;
}

}  // namespace mega_moe
