// Role: build schedule (all warps, before they part)
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

// The indices of kAtOnce slots, kNumThreads apart, as they are: all loads are on their way before the first is looked at.
template <uint32_t kAtOnce>
struct Indices {
    uint64_t of_slot[kAtOnce];

    // Those from the lane's slot on, of the warp's 32 that begin with slot `begin`.
    __device__ __forceinline__ Indices(const mega_moe::Params& params, uint32_t begin) {
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; ++i) {
            const uint32_t slot = begin + threadIdx.x % 32 + i * config::kNumThreads;
            of_slot[i] = slot < params.num_tokens * config::kNumTopk ? expert_index(params, slot) : ~uint64_t(0);
        }
    }
};

// Counts the slots of each expert, and of them those before this block's share. A warp looks at 32 slots at a time; lane l counts
// experts l, l + 32, ..., whose slots the bits of all lanes' experts tell: no two lanes ever meet at a counter.
struct Counts {
    static constexpr uint32_t kSets = (config::kNumLocalExperts + 31) / 32;
    static constexpr uint32_t kBits = kSets <= 1 ? 5 : kSets <= 2 ? 6 : kSets <= 4 ? 7 : kSets <= 8 ? 8 : 9;
    uint32_t all[kSets] = {}, before[kSets] = {};

    template <uint32_t kAtOnce>
    __device__ __forceinline__ void add(const mega_moe::Params& params, const Indices<kAtOnce>& indices, uint32_t begin, uint32_t first_own) {
        const uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; ++i) {
            const uint32_t first = begin + i * config::kNumThreads;
            if (first >= params.num_tokens * config::kNumTopk) break;
            const int32_t expert = local_expert(params, indices.of_slot[i]);
            const uint32_t earlier = first >= first_own ? 0 : first_own - first >= 32 ? ~0u : (1u << (first_own - first)) - 1;
            uint32_t same = __ballot_sync(~0u, expert >= 0);
            uint32_t planes[kBits];
#pragma unroll
            for (uint32_t b = 0; b < kBits; ++b) {
                planes[b] = __ballot_sync(~0u, expert >> b & 1);
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

    __device__ __forceinline__ void store(mega_moe::Schedule& schedule, mega_moe::OwnTokens& own) const {
#pragma unroll
        for (uint32_t set = 0; set < kSets; ++set) {
            const uint32_t e = set * 32 + threadIdx.x % 32;
            if (all[set] > 0) atomicAdd(&schedule.rows[e], all[set]);
            if (before[set] > 0) atomicAdd(&own.next[e], before[set]);
        }
    }
};

// A thread's part of the counting. Loads that are in less of a hurry come after it: the compiler has one counter for what is on its way
// beyond a branch, so who waits for one load waits for all.
__device__ __forceinline__ Counts count_slots(const mega_moe::Params& params, const Share& share) {
    // Few slots should not wait for the instructions that many need.
    constexpr uint32_t kFirst = 4, kAtOnce = Counts::kSets > 8 ? 8 : 12;
    const uint32_t own = threadIdx.x / 32 * 32, first_own = share.begin * config::kNumTopk;
    Counts counts;
    counts.add(params, Indices<kFirst>(params, own), own, first_own);
#pragma unroll 1
    for (uint32_t begin = own + kFirst * config::kNumThreads; begin < params.num_tokens * config::kNumTopk; begin += kAtOnce * config::kNumThreads) {
        counts.add(params, Indices<kAtOnce>(params, begin), begin, first_own);
    }
    return counts;
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

__device__ __forceinline__ void build_schedule(const mega_moe::Params& params, mega_moe::Schedule& schedule, mega_moe::OwnTokens& own, const Counts& counts) {
    counts.store(schedule, own);
    __syncthreads();
    if (threadIdx.x < 32) {
        sum_tiles(schedule);
    } else if (threadIdx.x < 64) {
        // Meanwhile: divisions take long, and tiles shall not wait for them. (Other warps have loads on their way, for which they would wait.)
        for (uint32_t e = threadIdx.x - 32; e < config::kNumLocalExperts; e += 32) {
            const uint32_t tiles = num_tiles(schedule, e);
            if (tiles > 1) schedule.period[e] = gridDim.x / greatest_common_divisor(gridDim.x, tiles) * tiles;
        }
    }
    __syncthreads();
    if (params.recv_stats != nullptr && blockIdx.x == 0) {
        const uint32_t e = config::kNumThreads - 1 - threadIdx.x;  // the last threads, since the first ones have loads to start
        if (e < config::kNumLocalExperts) atomicAdd(&params.recv_stats[e], int32_t(schedule.rows[e]));
    }
}

}  // namespace roles
