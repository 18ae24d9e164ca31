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
    uint64_t sym_block_sf;      // [max tokens][kSourceGroups]: block scale factors of staged tokens
    // Workspace of this rank. The ring holds kRingTiles token tiles; counters are zero between calls.
    uint8_t* tokens;            // ring of staged tokens: [rows][kTokenRowBytes]
    uint32_t* tokens_sf;        // their scale factors as UTCCP atoms: [ring tile][atom][kL1RingWords][128]
    uint8_t* acts;              // ring of activations between the GEMMs: [rows][kActRowBytes]
    uint8_t* acts_sf;           // [ring tile][atom][kL2RingWords][512 bytes]
    uint32_t* routed;           // [slots]: token * top-k + slot, sorted by expert
    float* routed_sf;           // [slots]: second-level scale of each routed token (NVFP4)
    float* routed_weights;      // [slots]: its top-k weight
    uint32_t* list_ready;       // [experts]: the expert's part of `routed` is written
    uint32_t* tokens_ready;     // [token tiles]: rows that dispatch has brought
    uint32_t* l1_done;          // [token tiles]: finished L1 tiles
    uint32_t* l2_tile_done;     // [token tiles]: finished L2 tiles
    uint32_t* l2_done;          // [1]: finished L2 tiles of all experts
    uint32_t* exited;           // [1]: blocks that need no counter any more
    comm::ErrorRecord* error_record;
    uint64_t timeout_ns;
    // Weights of this rank's experts; codes and scale factors come through tensor maps.
    const float* l1_alphas;     // [experts][2]: gate, up
    const float* l2_alphas;     // [experts]
    const float* l1_bias;       // [experts][gate rows, then up rows, padded] or null
    const float* l2_bias;       // [experts][kHiddenPadded] or null
    const ActsForecast* forecast;  // [experts] (NVFP4 activations)
    // The call.
    int32_t* recv_stats;        // [experts], added to, or null
    uint16_t* y;                // [num_tokens][hidden] bf16, rows y_stride apart
    uint64_t y_stride;
    uint32_t num_tokens;
    uint32_t rank;
    float routed_scaling_factor;
};
static_assert(sizeof(Params) == config::kParamBytes, "recipes/params.py packs other fields");

// The global expert that a slot of this rank was routed to, or -1 (also for indices that are no expert).
__device__ __forceinline__ int32_t home_expert(const Params& params, uint32_t slot) { return comm::routed_expert(params.peers, params.sym, params.rank, slot); }

}  // namespace mega_moe
