// One tile order that every role walks: expert by expert, weight rows outside, tokens inside.
#pragma once
#include "config.cuh"
#include "gemm/gemm_params.cuh"
#include "types.cuh"

namespace gemm {

struct Tile {
    uint32_t expert;
    uint32_t row;        // first weight row of the CTA group's tile
    uint32_t token;      // first token, among all experts'
    uint32_t num_tokens; // 1 .. kBlockN
    uint32_t token_in_expert;
    uint32_t sf_block;   // 128-token block of scale factors that holds the first token: each expert's begin a block of their own
};

struct Scheduler {
    const Params& params;
    uint32_t group;  // this CTA's, or CTA pair's, number
    uint32_t num_groups;

    // Calls visit(tile) for tiles group, group + num_groups, ...: the same ones in the same order in every role.
    template <typename Visit>
    __device__ __forceinline__ void for_each_tile(const Visit& visit) const {
        constexpr uint32_t kRowTiles = (config::kN + config::kTileM - 1) / config::kTileM;
        uint32_t next = group, first_tile = 0, first_token = 0, first_block = 0;
        for (uint32_t expert = 0; expert < config::kNumExperts; ++expert) {
            const uint32_t end = uint32_t(params.expert_ends[expert]), tokens = end - first_token;
            const uint32_t token_tiles = (tokens + config::kBlockN - 1) / config::kBlockN;
            for (; next < first_tile + token_tiles * kRowTiles; next += num_groups) {
                const uint32_t tile = next - first_tile, token = tile % token_tiles * config::kBlockN;
                visit(Tile{expert, tile / token_tiles * config::kTileM, first_token + token, min(config::kBlockN, tokens - token), token,
                           first_block + token / 128});
            }
            first_tile += token_tiles * kRowTiles, first_token = end, first_block += (tokens + 127) / 128;
        }
    }
};

// Columns of a tile's MMAs: tokens rounded up to what the instruction takes. Fewer tokens than kBlockN cost fewer columns.
__device__ __forceinline__ uint32_t mma_columns(const Tile& tile) {
    constexpr uint32_t kStep = 8 * config::kCtaGroup;
    return (tile.num_tokens + kStep - 1) / kStep * kStep;
}

}  // namespace gemm
