// Role: schedule (all warps, before they part)
// Waits for:  the routing of the launch before this one (the caller's griddepcontrol)
// Produces:   the schedule in shared memory, each block the same, and for its own share of the tokens the rows that they begin with;
//             statistics, where asked for
// Registers:  those of the launch
#pragma once
#include "mega_moe/context_sm90.cuh"

namespace roles {

// The local expert that an index means, or -1. As unsigned, what is below this rank's experts is above them.
template <typename Index>
__device__ __forceinline__ int32_t local_expert(const mega_moe::Params& params, Index index) {
    const Index expert = index - Index(params.rank * config::kNumLocalExperts);
    return expert < config::kNumLocalExperts ? int32_t(expert) : -1;
}

// A slot's index of any width: one that is no expert stays none.
__device__ __forceinline__ uint64_t expert_index(const mega_moe::Params& params, uint32_t slot) {
    return params.topk_idx_bytes == 8 ? reinterpret_cast<const uint64_t*>(params.topk_idx)[slot] : reinterpret_cast<const uint32_t*>(params.topk_idx)[slot];
}

// This block's share of the tokens: neighbours, so that its rows follow those of the blocks before it.
struct Share {
    uint32_t begin, end;

    __device__ __forceinline__ explicit Share(uint32_t num_tokens) {
        const uint32_t share = (num_tokens + gridDim.x - 1) / gridDim.x;
        begin = min(blockIdx.x * share, num_tokens), end = min(begin + share, num_tokens);
    }
};

// The experts of slots first, first + kNumThreads, ...: all loads are on their way before the first is looked at.
template <typename Index, uint32_t kAtOnce>
__device__ __forceinline__ void load_experts(const mega_moe::Params& params, uint32_t first, uint32_t num_slots, int32_t (&experts)[kAtOnce]) {
    Index indices[kAtOnce];
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
        const uint32_t slot = first + i * config::kNumThreads;
        indices[i] = slot < num_slots ? reinterpret_cast<const Index*>(params.topk_idx)[slot] : ~Index(0);
    }
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) experts[i] = local_expert(params, indices[i]);
}

// Counts the slots of each expert, and of them those before this block's share. A warp looks at 32 slots at a time; lane l counts
// experts l, l + 32, ..., whose slots the bits of all lanes' experts tell: no two lanes ever meet at a counter.
template <uint32_t kAtOnce>
__device__ __forceinline__ void count_slots(const mega_moe::Params& params, mega_moe::Schedule& schedule, mega_moe::OwnTokens& own, uint32_t first_own) {
    constexpr uint32_t kSets = (config::kNumLocalExperts + 31) / 32;
    constexpr uint32_t kBits = kSets <= 1 ? 5 : kSets <= 2 ? 6 : kSets <= 4 ? 7 : kSets <= 8 ? 8 : 9;
    const uint32_t lane = threadIdx.x % 32, num_slots = params.num_tokens * config::kNumTopk;
    uint32_t all[kSets] = {}, before[kSets] = {};
    for (uint32_t begin = threadIdx.x / 32 * 32; begin < num_slots; begin += kAtOnce * config::kNumThreads) {
        int32_t experts[kAtOnce];
        if (params.topk_idx_bytes == 8) load_experts<uint64_t>(params, begin + lane, num_slots, experts);
        else load_experts<uint32_t>(params, begin + lane, num_slots, experts);
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; ++i) {
            const uint32_t first = begin + i * config::kNumThreads;
            if (first >= num_slots) break;
            const uint32_t earlier = first >= first_own ? 0 : first_own - first >= 32 ? ~0u : (1u << (first_own - first)) - 1;
            uint32_t same = __ballot_sync(~0u, experts[i] >= 0);
            uint32_t planes[kBits];
#pragma unroll
            for (uint32_t b = 0; b < kBits; ++b) {
                planes[b] = __ballot_sync(~0u, experts[i] >> b & 1);
                if (b < 5) same &= lane >> b & 1 ? planes[b] : ~planes[b];
            }
#pragma unroll
            for (uint32_t set = 0; set < kSets; ++set) {
                uint32_t mine = same;
#pragma unroll
                for (uint32_t b = 5; b < kBits; ++b) mine &= set >> (b - 5) & 1 ? planes[b] : ~planes[b];
                all[set] += __popc(mine), before[set] += __popc(mine & earlier);
            }
        }
    }
#pragma unroll
    for (uint32_t set = 0; set < kSets; ++set) {
        const uint32_t e = set * 32 + lane;
        if (all[set] > 0) atomicAdd(&schedule.rows[e], all[set]);
        if (before[set] > 0) atomicAdd(&own.next[e], before[set]);
    }
}

__device__ __forceinline__ uint32_t num_tiles(const mega_moe::Schedule& schedule, uint32_t expert) { return (schedule.rows[expert] + config::kBlockN - 1) / config::kBlockN; }

// A warp: inclusive sums over the experts' tiles, 32 experts at a time.
__device__ __forceinline__ void sum_tiles(mega_moe::Schedule& schedule) {
    const uint32_t lane = threadIdx.x % 32;
    uint32_t before = 0;
    if (lane == 0) schedule.tile_begin[0] = 0;
    for (uint32_t first = 0; first < config::kNumLocalExperts; first += 32) {
        const uint32_t e = first + lane;
        uint32_t tiles = e < config::kNumLocalExperts ? num_tiles(schedule, e) : 0;
        for (uint32_t step = 1; step < 32; step *= 2) {
            const uint32_t t = __shfl_up_sync(~0u, tiles, step);
            if (lane >= step) tiles += t;
        }
        tiles += before;
        if (e < config::kNumLocalExperts) schedule.tile_begin[e + 1] = tiles;
        before = __shfl_sync(~0u, tiles, 31);
    }
}

__device__ __forceinline__ uint32_t greatest_common_divisor(uint32_t a, uint32_t b) {
    while (b != 0) {
        const uint32_t rest = a % b;
        a = b, b = rest;
    }
    return a;
}

// Before build_schedule, with a barrier of the block in between.
__device__ __forceinline__ void clear_schedule(mega_moe::Schedule& schedule, mega_moe::OwnTokens& own) {
    static_assert(config::kNumLocalExperts <= config::kNumThreads);
    if (threadIdx.x < config::kNumLocalExperts) schedule.rows[threadIdx.x] = 0, own.next[threadIdx.x] = 0;
}

__device__ __forceinline__ void build_schedule(const mega_moe::Params& params, mega_moe::Schedule& schedule, mega_moe::OwnTokens& own, const Share& share) {
    // Two sizes, as few slots should not wait for instructions that many need.
    constexpr uint32_t kFew = 4, kMany = config::kNumLocalExperts > 256 ? 8 : 12;
    const uint32_t first_own = share.begin * config::kNumTopk;
    if (params.num_tokens * config::kNumTopk <= kFew * config::kNumThreads) count_slots<kFew>(params, schedule, own, first_own);
    else count_slots<kMany>(params, schedule, own, first_own);
    __syncthreads();
    if (threadIdx.x < 32) {
        sum_tiles(schedule);
    } else {
        // Meanwhile: divisions take long, and tiles shall not wait for them.
        for (uint32_t e = threadIdx.x - 32; e < config::kNumLocalExperts; e += config::kNumThreads - 32) {
            const uint32_t tiles = num_tiles(schedule, e);
            if (tiles > 1) schedule.period[e] = gridDim.x / greatest_common_divisor(gridDim.x, tiles) * tiles;
            if (params.recv_stats != nullptr && blockIdx.x == 0) atomicAdd(&params.recv_stats[e], int32_t(schedule.rows[e]));
        }
    }
    __syncthreads();
}

}  // namespace roles
