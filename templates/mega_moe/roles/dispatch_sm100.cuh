// Role: dispatch (warps 12 .. 15; one routed row a warp at a time)
// Waits for:  the expert's list; the row's place in the ring to be free (L2 of the token tile that had it)
// Produces:   the row's codes in the ring of tokens, its scale factors in the ring's atoms; counts the row in tokens_ready
// Registers:  few
//
// Rows come from the home ranks' symmetric buffers through the table of base pointers.
#pragma once
#include "mega_moe/context_sm100.cuh"
#include "ptx/ld_st.cuh"

namespace roles {

// Copies a row of codes; hidden is padded with zeros.
__device__ __forceinline__ void copy_codes(const uint8_t* source, uint8_t* target, uint32_t lane) {
    constexpr bool kIsWide = config::kSourceRowBytes % 16 == 0;
    using Unit = uint2;
    if constexpr (kIsWide) {
        for (uint32_t i = lane * 16; i < config::kTokenRowBytes; i += 32 * 16) {
            const uint4 zeros = {0, 0, 0, 0};
            *reinterpret_cast<uint4*>(target + i) = i < config::kSourceRowBytes ? *reinterpret_cast<const uint4*>(source + i) : zeros;
        }
    } else {
        static_assert(config::kSourceRowBytes % sizeof(Unit) == 0);
        for (uint32_t i = lane * sizeof(Unit); i < config::kTokenRowBytes; i += 32 * sizeof(Unit)) {
            const Unit zeros = {0, 0};
            *reinterpret_cast<Unit*>(target + i) = i < config::kSourceRowBytes ? *reinterpret_cast<const Unit*>(source + i) : zeros;
        }
    }
}

// Copies a row's scale factors, four a word, to the row's words in the atoms of its token tile: word w to atom w.
__device__ __forceinline__ void copy_scales(const uint8_t* source, uint32_t* atoms, uint32_t row, uint32_t lane) {
    uint32_t* target = atoms + row / 128 * (config::kL1RingWords * 128) + row % 32 * 4 + row % 128 / 32;
    for (uint32_t word = lane; word < config::kL1KWords; word += 32) {
        uint32_t value = 0;
        if constexpr (config::kSourceGroups % 4 == 0) {
            if (word < config::kSourceGroups / 4) value = reinterpret_cast<const uint32_t*>(source)[word];
        } else {
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i)
                if (word * 4 + i < config::kSourceGroups) value |= uint32_t(source[word * 4 + i]) << (8 * i);
        }
        target[word * 128] = value;
    }
}

__device__ __forceinline__ void dispatch(const mega_moe::Context& ctx, uint32_t thread) {
    using namespace mega_moe;
    constexpr uint32_t kWarps = config::kNumDispatchThreads / 32;
    const Params& params = ctx.params;
    const Schedule& schedule = ctx.scheduler.schedule;
    const uint32_t lane = thread % 32, num_rows = schedule.row_begin[config::kNumLocalExperts];
    uint32_t expert = 0;
    for (uint32_t row = blockIdx.x * kWarps + thread / 32; row < num_rows; row += gridDim.x * kWarps) {
        while (row >= schedule.row_begin[expert + 1]) ++expert;
        const uint32_t in_expert = row - schedule.row_begin[expert], token_tile = schedule.tile_begin[expert] + in_expert / config::kBlockN;
        const uint32_t ring_tile = token_tile % config::kRingTiles, in_tile = in_expert % config::kBlockN;
        if (lane == 0) {
            comm::wait_counter(ctx.watchdog, &params.list_ready[expert], 1, comm::WaitFor::kRoutedList, expert);
            if (token_tile >= config::kRingTiles) {
                const uint32_t before = token_tile - config::kRingTiles;
                comm::wait_counter(ctx.watchdog, &params.l2_tile_done[before], config::kL2Arrivals, comm::WaitFor::kRingTile, before);
            }
        }
        __syncwarp();
        const uint32_t token = params.routed[row] / config::kNumTopk;
        const uint8_t* codes = comm::part<const uint8_t>(params.peers, 0, params.sym.tokens) + uint64_t(token) * config::kSourceRowBytes;
        const uint8_t* scales = comm::part<const uint8_t>(params.peers, 0, params.sym_block_sf) + uint64_t(token) * config::kSourceGroups;
        copy_codes(codes, params.tokens + (uint64_t(ring_tile) * config::kBlockN + in_tile) * config::kTokenRowBytes, lane);
        copy_scales(scales, params.tokens_sf + uint64_t(ring_tile) * (config::kTokenAtoms * config::kL1RingWords * 128), in_tile, lane);
        // The lanes' stores happen before the release through __syncwarp; the loader fences the proxy on its side.
        __syncwarp();
        if (lane == 0) ptx::red_release_gpu_add(&params.tokens_ready[token_tile], 1);
    }
}

}  // namespace roles
