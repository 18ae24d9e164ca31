// Role: route (all warps, before they part)
// Waits for:  the staging launch (griddepcontrol)
// Produces:   the schedule in shared memory (each block the same), and in global memory the lists of routed tokens: expert e's by
//             block e % gridDim.x, in (rank, token, slot) order, announced by list_ready[e]
// Registers:  those of the launch
#pragma once
#include "mega_moe/context.cuh"
#include "ptx/fence.cuh"
#include "ptx/ld_st.cuh"

namespace roles {

__device__ __forceinline__ int32_t local_expert(const mega_moe::Params& params, uint32_t slot) {
    static_assert(config::kNumRanks == 1, "more ranks need a barrier between their staging and this scan");
    const int32_t expert = comm::routed_expert(params.peers, params.sym, 0, slot) - int32_t(params.rank * config::kNumLocalExperts);
    return expert >= 0 && expert < int32_t(config::kNumLocalExperts) ? expert : -1;
}

// Writes where each expert's rows and token tiles begin.
__device__ __forceinline__ void build_schedule(const mega_moe::Params& params, mega_moe::Schedule& schedule, uint32_t num_slots) {
    uint32_t* counts = schedule.row_begin + 1;
    for (uint32_t e = threadIdx.x; e <= config::kNumLocalExperts; e += config::kNumThreads) schedule.row_begin[e] = 0;
    __syncthreads();
    for (uint32_t slot = threadIdx.x; slot < num_slots; slot += config::kNumThreads) {
        const int32_t expert = local_expert(params, slot);
        if (expert >= 0) atomicAdd(&counts[expert], 1u);
    }
    __syncthreads();
    if (params.recv_stats != nullptr && blockIdx.x == 0) {
        for (uint32_t e = threadIdx.x; e < config::kNumLocalExperts; e += config::kNumThreads) params.recv_stats[e] += int32_t(counts[e]);
        __syncthreads();
    }
    if (threadIdx.x < 32) {
        // Inclusive sums over the experts, 32 at a time.
        uint32_t rows_before = 0, tiles_before = 0;
        if (threadIdx.x == 0) schedule.tile_begin[0] = 0;
        for (uint32_t first = 0; first < config::kNumLocalExperts; first += 32) {
            const uint32_t e = first + threadIdx.x;
            uint32_t rows = e < config::kNumLocalExperts ? counts[e] : 0;
            uint32_t tiles = (rows + config::kBlockN - 1) / config::kBlockN;
            for (uint32_t step = 1; step < 32; step *= 2) {
                const uint32_t r = __shfl_up_sync(~0u, rows, step), t = __shfl_up_sync(~0u, tiles, step);
                if (threadIdx.x >= step) rows += r, tiles += t;
            }
            rows += rows_before, tiles += tiles_before;
            if (e < config::kNumLocalExperts) counts[e] = rows, schedule.tile_begin[e + 1] = tiles;
            rows_before = __shfl_sync(~0u, rows, 31), tiles_before = __shfl_sync(~0u, tiles, 31);
        }
    }
    __syncthreads();
}

// Writes what the roles need of one routed row, so that none has to follow an index for it.
__device__ __forceinline__ void put_row(const mega_moe::Params& params, uint32_t row, uint32_t slot) {
    params.routed[row] = slot;
    params.routed_weights[row] = comm::part<const float>(params.peers, 0, params.sym.topk_weights)[slot];
    if constexpr (config::kHasTokenScales) params.routed_sf[row] = comm::part<const float>(params.peers, 0, params.sym.token_sf)[slot / config::kNumTopk];
}

// Writes the slots that chose `expert`, in order, to params.routed. Each warp owns a run of slots: count, sum over warps, write.
__device__ __forceinline__ void build_list(const mega_moe::Params& params, mega_moe::Schedule& schedule, uint32_t num_slots, uint32_t expert) {
    constexpr uint32_t kNumWarps = config::kNumThreads / 32;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t run = (num_slots + 32 * kNumWarps - 1) / (32 * kNumWarps) * 32, begin = warp * run, end = min(num_slots, begin + run);
    uint32_t count = 0;
    for (uint32_t first = begin; first < end; first += 32) {
        const bool is_mine = first + lane < end && local_expert(params, first + lane) == int32_t(expert);
        count += __popc(__ballot_sync(~0u, is_mine));
    }
    if (lane == 0) schedule.warp_counts[warp] = count;
    __syncthreads();
    uint32_t row = schedule.row_begin[expert];
    for (uint32_t w = 0; w < warp; ++w) row += schedule.warp_counts[w];
    for (uint32_t first = begin; first < end; first += 32) {
        const bool is_mine = first + lane < end && local_expert(params, first + lane) == int32_t(expert);
        const uint32_t mask = __ballot_sync(~0u, is_mine);
        if (is_mine) put_row(params, row + __popc(mask & ((1u << lane) - 1)), first + lane);
        row += __popc(mask);
    }
    // The release below publishes the whole block's writes: they happen before it through the block's barrier.
    __syncthreads();
    if (threadIdx.x == 0) ptx::st_release_gpu(&params.list_ready[expert], 1);
}

// Consumers: acquires all experts' lists, whoever wrote them, before the first tile. Loaders wait for theirs tile by tile.
__device__ __forceinline__ void wait_lists(const mega_moe::Context& ctx, uint32_t consumer_thread) {
    const mega_moe::Schedule& schedule = ctx.scheduler.schedule;
    for (uint32_t e = consumer_thread; e < config::kNumLocalExperts; e += mega_moe::kNumConsumerThreads) {
        if (schedule.row_begin[e + 1] > schedule.row_begin[e]) {
            comm::wait_counter(ctx.watchdog, &ctx.params.list_ready[e], 1, comm::WaitFor::kRoutedList, e);
        }
    }
    mega_moe::sync_consumers();
}

__device__ __forceinline__ void route(const mega_moe::Params& params, mega_moe::Schedule& schedule) {
    ptx::griddepcontrol_wait();
    const uint32_t num_slots = params.num_tokens * config::kNumTopk;
    build_schedule(params, schedule, num_slots);
    for (uint32_t expert = blockIdx.x; expert < config::kNumLocalExperts; expert += gridDim.x) {
        if (schedule.row_begin[expert + 1] > schedule.row_begin[expert]) build_list(params, schedule, num_slots, expert);
    }
}

}  // namespace roles
