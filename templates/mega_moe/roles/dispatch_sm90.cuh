// Role: dispatch (all warps, before they part)
// Waits for:  the launch before this one (griddepcontrol)
// Produces:   the schedule in shared memory (each block the same); in global memory, for every routed row, the quantised token in the
//             pool with its scale, slot and top-k weight: a block does its share of the tokens, and counts rows in rows_ready[tile]
// Registers:  those of the launch
//
// A lane makes 16 stored bytes at a time: vector v of a block of 64 is, in token order, four runs of kRun neighbours, 16 apart
// (layout/token_order.cuh). So loads fill whole sectors, and stores whole lines.
#pragma once
#include "layout/token_order.cuh"
#include "mega_moe/context_sm90.cuh"
#include "mega_moe/scale_search.cuh"
#include "ptx/convert.cuh"
#include "ptx/fence.cuh"
#include "ptx/ld_st.cuh"

namespace roles {

constexpr uint32_t kNumWarps = config::kNumThreads / 32;
constexpr uint32_t kRun = layout::TokenOrder<config::kIsFp8>::kRun;
constexpr uint32_t kVector = 16 / config::kActBytes;  // elements of a vector: runs of four 16-groups
constexpr uint32_t kRowVectors = config::kTokenRowBytes / 16;
static_assert(kVector == 4 * kRun);

__device__ __forceinline__ int32_t local_expert(const mega_moe::Params& params, uint32_t slot) {
    const int32_t expert = mega_moe::home_expert(params, slot) - int32_t(params.rank * config::kNumLocalExperts);
    return expert >= 0 && expert < int32_t(config::kNumLocalExperts) ? expert : -1;
}

// This block's share of the tokens: neighbours, so that its rows follow those of the blocks before it.
struct Share {
    uint32_t begin, end;

    __device__ __forceinline__ explicit Share(uint32_t num_tokens) {
        const uint32_t share = (num_tokens + gridDim.x - 1) / gridDim.x;
        begin = min(blockIdx.x * share, num_tokens), end = min(begin + share, num_tokens);
    }
};

// Counts the slots of each expert, and of them those before this block's share. A warp looks at 32 slots at a time; lane l counts
// experts l, l + 32, ..., whose slots the bits of all lanes' experts tell: no two lanes ever meet at a counter.
__device__ __forceinline__ void count_slots(const mega_moe::Params& params, mega_moe::Schedule& schedule, uint32_t first_own) {
    constexpr uint32_t kSets = (config::kNumLocalExperts + 31) / 32, kAtOnce = kSets > 8 ? 8 : 12;  // loads in flight
    constexpr uint32_t kBits = kSets <= 1 ? 5 : kSets <= 2 ? 6 : kSets <= 4 ? 7 : kSets <= 8 ? 8 : 9;
    const uint32_t lane = threadIdx.x % 32, num_slots = params.num_tokens * config::kNumTopk;
    uint32_t all[kSets] = {}, before[kSets] = {};
    for (uint32_t begin = threadIdx.x / 32 * 32; begin < num_slots; begin += kAtOnce * config::kNumThreads) {
        int32_t expert[kAtOnce];
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; ++i) {
            const uint32_t slot = begin + i * config::kNumThreads + lane;
            expert[i] = slot < num_slots ? local_expert(params, slot) : -1;
        }
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; ++i) {
            const uint32_t first = begin + i * config::kNumThreads;
            const uint32_t earlier = first >= first_own ? 0 : first_own - first >= 32 ? ~0u : (1u << (first_own - first)) - 1;
            const uint32_t valid = __ballot_sync(~0u, expert[i] >= 0);
            uint32_t same = valid;
            uint32_t planes[kBits];
#pragma unroll
            for (uint32_t b = 0; b < kBits; ++b) {
                planes[b] = __ballot_sync(~0u, expert[i] >> b & 1);
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
        if (before[set] > 0) atomicAdd(&schedule.next[e], before[set]);
    }
}

__device__ __forceinline__ void build_schedule(const mega_moe::Params& params, mega_moe::Schedule& schedule, const Share& share) {
    for (uint32_t e = threadIdx.x; e < config::kNumLocalExperts; e += config::kNumThreads) schedule.rows[e] = 0, schedule.next[e] = 0;
    __syncthreads();
    count_slots(params, schedule, share.begin * config::kNumTopk);
    __syncthreads();
    if (params.recv_stats != nullptr && blockIdx.x == 0) {
        for (uint32_t e = threadIdx.x; e < config::kNumLocalExperts; e += config::kNumThreads) params.recv_stats[e] += int32_t(schedule.rows[e]);
    }
    if (threadIdx.x < 32) {
        // Inclusive sums over the experts, 32 at a time.
        uint32_t before = 0;
        if (threadIdx.x == 0) schedule.tile_begin[0] = 0;
        for (uint32_t first = 0; first < config::kNumLocalExperts; first += 32) {
            const uint32_t e = first + threadIdx.x;
            uint32_t tiles = e < config::kNumLocalExperts ? (schedule.rows[e] + config::kBlockN - 1) / config::kBlockN : 0;
            for (uint32_t step = 1; step < 32; step *= 2) {
                const uint32_t t = __shfl_up_sync(~0u, tiles, step);
                if (threadIdx.x >= step) tiles += t;
            }
            tiles += before;
            if (e < config::kNumLocalExperts) schedule.tile_begin[e + 1] = tiles;
            before = __shfl_sync(~0u, tiles, 31);
        }
    }
    __syncthreads();
}

// A vector's values as they come: kRun bf16 of each of four 16-groups.
struct Values16 {
    uint32_t words[kVector / 2];
};

__device__ __forceinline__ Values16 load_values(const uint8_t* x_row, uint32_t vector) {
    constexpr uint32_t kWords = kRun / 2;
    Values16 values = {};
    if (vector >= kRowVectors) return values;
    const uint32_t first = vector * kVector / 64 * 64 + vector % (64 / kVector) * kRun;
    const bool is_aligned = reinterpret_cast<uint64_t>(x_row) % (kRun * 2) == 0;
#pragma unroll
    for (uint32_t t = 0; t < 4; ++t) {
        const uint32_t k = first + 16 * t;
        if (is_aligned && k + kRun <= config::kHidden) {
            if constexpr (kWords == 2) {
                const uint2 run = *reinterpret_cast<const uint2*>(x_row + k * 2);
                values.words[2 * t] = run.x, values.words[2 * t + 1] = run.y;
            } else {
                values.words[t] = *reinterpret_cast<const uint32_t*>(x_row + k * 2);
            }
        } else {
#pragma unroll
            for (uint32_t i = 0; i < kRun; ++i) {
                if (k + i < config::kHidden) values.words[kWords * t + i / 2] |= uint32_t(reinterpret_cast<const uint16_t*>(x_row)[k + i]) << (16 * (i % 2));
            }
        }
    }
    return values;
}

__device__ __forceinline__ uint4 encode(const Values16& values, float inverse = 1.0f) {
    uint32_t stored[4];
#pragma unroll
    for (uint32_t t = 0; t < 4; ++t) {
        if constexpr (config::kIsFp8) {
            stored[t] = ptx::cvt_e4m3x4(values.words[2 * t], values.words[2 * t + 1], inverse);
        } else {
            stored[t] = values.words[t];
        }
    }
    return {stored[0], stored[1], stored[2], stored[3]};
}

// Puts a vector into each of the token's rows.
__device__ __forceinline__ void store_vector(const mega_moe::Params& params, const uint32_t (&pool_rows)[config::kNumTopk], uint32_t vector, const uint4& stored) {
    if (vector >= kRowVectors) return;
#pragma unroll 8
    for (uint32_t k = 0; k < config::kNumTopk; ++k) {
        const uint32_t row = pool_rows[k];
        if (row != ~0u) reinterpret_cast<uint4*>(params.tokens + uint64_t(row) * config::kTokenRowBytes)[vector] = stored;
    }
}

// The largest of the values of kThreads threads: a warp's, or the block's.
template <uint32_t kThreads>
__device__ __forceinline__ float largest_of(mega_moe::Schedule& schedule, float value) {
#pragma unroll
    for (uint32_t step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
    if constexpr (kThreads > 32) {
        if (threadIdx.x % 32 == 0) schedule.warp_max[threadIdx.x / 32] = value;
        __syncthreads();
#pragma unroll
        for (uint32_t warp = 0; warp < kNumWarps; ++warp) value = fmaxf(value, schedule.warp_max[warp]);
    }
    return value;
}

constexpr uint32_t kScaleVectors = config::kPromotedStages * config::kTokenKBytes / 16;  // of a block with one scale: a warp's, a vector a lane
static_assert(!config::kIsFp8 || kScaleVectors == 32);
constexpr uint32_t kScaleBlocks = config::kScaleBlocks;
static_assert(kScaleBlocks == (kRowVectors + kScaleVectors - 1) / kScaleVectors || !config::kIsFp8);

// Gives the rows of a token the scale of a block.
__device__ __forceinline__ void store_scale(const mega_moe::Params& params, const uint32_t (&pool_rows)[config::kNumTopk], uint32_t block, float scale) {
    const uint32_t lane = threadIdx.x % 32;
    if (lane < config::kNumTopk && pool_rows[lane] != ~0u) params.tokens_sf[uint64_t(block) * params.pool_rows + pool_rows[lane]] = scale;
}

template <uint32_t kThreads>
__device__ __forceinline__ Values16 load_first(const mega_moe::Params& params, uint32_t token) {
    return load_values(params.x + uint64_t(token) * params.x_stride_bytes, threadIdx.x % kThreads);
}

// kThreads threads: a token from the caller's x, quantised, to its rows; `first` is each thread's first vector of it. Returns the scale that
// would make its largest value 448.
template <uint32_t kThreads>
__device__ __forceinline__ float quantize_token(const mega_moe::Params& params, mega_moe::Schedule& schedule, const uint32_t (&pool_rows)[config::kNumTopk], uint32_t token,
                                                const Values16& first) {
    const uint32_t thread = threadIdx.x % kThreads;
    const uint8_t* x_row = params.x + uint64_t(token) * params.x_stride_bytes;
    if constexpr (config::kIsFp8) {
        float largest = 0.0f;
        Values16 values = first;
#pragma unroll 1
        for (uint32_t vector = thread; vector / kScaleVectors < kScaleBlocks; vector += kThreads) {
            const Values16 next = load_values(x_row, vector + kThreads);
            const mega_moe::BlockScale found = mega_moe::search_scale(values.words);
            store_vector(params, pool_rows, vector, encode(values, found.inverse));
            store_scale(params, pool_rows, vector / kScaleVectors, found.scale);
            largest = fmaxf(largest, found.smallest);
            values = next;
        }
        return largest_of<kThreads>(schedule, largest);
    } else {
        store_vector(params, pool_rows, thread, encode(first));
#pragma unroll 1
        for (uint32_t vector = thread + kThreads; vector < kRowVectors; vector += kThreads) store_vector(params, pool_rows, vector, encode(load_values(x_row, vector)));
        return 1.0f;
    }
}

// kThreads threads: a token that staging has quantised.
template <uint32_t kThreads>
__device__ __forceinline__ float copy_token(const mega_moe::Params& params, const uint32_t (&pool_rows)[config::kNumTopk], uint32_t token) {
    const uint4* row = reinterpret_cast<const uint4*>(comm::part<const uint8_t>(params.peers, 0, params.sym.tokens) + uint64_t(token) * config::kTokenRowBytes);
#pragma unroll 4
    for (uint32_t vector = threadIdx.x % kThreads; vector < kRowVectors; vector += kThreads) store_vector(params, pool_rows, vector, row[vector]);
    if constexpr (!config::kIsFp8) return 1.0f;
    const float* scales = comm::part<const float>(params.peers, 0, params.sym.token_sf) + uint64_t(token) * (kScaleBlocks + 1);
    for (uint32_t block = threadIdx.x % kThreads / 32; block < kScaleBlocks; block += kThreads / 32) store_scale(params, pool_rows, block, scales[block]);
    return scales[kScaleBlocks];
}

// One token, by kThreads threads: a warp, or the whole block.
template <uint32_t kThreads>
__device__ __forceinline__ void dispatch_token(const mega_moe::Params& params, mega_moe::Schedule& schedule, uint32_t token, const Values16& first) {
    static_assert(config::kNumTopk <= 32, "a lane a slot");
    const uint32_t warp = threadIdx.x % kThreads < 32 ? threadIdx.x / 32 : ~0u, lane = threadIdx.x % 32, slot = token * config::kNumTopk + lane;
    uint32_t (&pool_rows)[config::kNumTopk] = schedule.pool_rows[kThreads == 32 ? threadIdx.x / 32 : 0];
    uint32_t tile = 0, pool_row = ~0u;
    const int32_t expert = warp != ~0u && lane < config::kNumTopk ? local_expert(params, slot) : -1;
    if (expert >= 0) {
        const uint32_t row = atomicAdd(&schedule.next[expert], 1u);
        tile = schedule.tile_begin[expert] + row / config::kBlockN;
        pool_row = tile * config::kBlockN + row % config::kBlockN;
    }
    if (warp != ~0u && lane < config::kNumTopk) pool_rows[lane] = pool_row;
    if constexpr (kThreads == 32) __syncwarp();
    else __syncthreads();
    const float scale = params.x != nullptr ? quantize_token<kThreads>(params, schedule, pool_rows, token, first) : copy_token<kThreads>(params, pool_rows, token);
    if (expert >= 0) {
        params.routed[pool_row] = slot;
        params.routed_weights[pool_row] = params.topk_weights[slot];
        if constexpr (config::kHasTokenScales) params.routed_sf[pool_row] = scale;
    }
    // The release below publishes all these threads' writes: they happen before it through the barrier.
    if constexpr (kThreads == 32) __syncwarp();
    else __syncthreads();
    if (expert >= 0) ptx::red_release_gpu_add(&params.rows_ready[tile], 1);
}

__device__ __forceinline__ void dispatch(const mega_moe::Params& params, mega_moe::Schedule& schedule) {
    ptx::griddepcontrol_wait();
    const Share share(params.num_tokens);
    // A single token's values are on their way while the schedule is made.
    const bool is_single = share.end - share.begin == 1;
    Values16 first = {};
    if (is_single && params.x != nullptr) first = load_first<config::kNumThreads>(params, share.begin);
    build_schedule(params, schedule, share);
    if (is_single) {
        dispatch_token<config::kNumThreads>(params, schedule, share.begin, first);
        return;
    }
    for (uint32_t token = share.begin + threadIdx.x / 32; token < share.end; token += kNumWarps) {
        if (params.x != nullptr) first = load_first<32>(params, token);
        dispatch_token<32>(params, schedule, token, first);
    }
}

}  // namespace roles
