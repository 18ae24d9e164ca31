// Role: dispatch (all warps but the loaders', which leave as soon as there is a schedule)
// Waits for:  the schedule
// Produces:   in global memory, for every routed row, the quantised token in the pool with its scales, slot and top-k weight: a block does
//             its share of the tokens, and counts rows in rows_ready[tile]
// Registers:  those of the launch
//
// Work is dealt in pieces: kPieceBytes of a stored token, which in E4M3 are the values that share a scale. A warp takes a piece, whatever
// the number of tokens: the pieces of few tokens are made at once, those of many one after the other with the next one's loads ahead.
// A lane makes 16 stored bytes: vector v of a block of 64 is, in token order, four runs of kRun neighbours, 16 apart
// (layout/token_order.cuh). So loads fill whole sectors, and stores whole lines.
#pragma once
#include "layout/token_order.cuh"
#include "mega_moe/context_sm90.cuh"
#include "mega_moe/roles/build_schedule_sm90.cuh"
#include "mega_moe/scale_search.cuh"
#include "ptx/convert.cuh"
#include "ptx/fence.cuh"
#include "ptx/ld_st.cuh"

namespace roles {

constexpr uint32_t kNumDispatchThreads = config::kNumThreads - config::kFirstDispatchThread, kNumDispatchWarps = kNumDispatchThreads / 32;
constexpr uint32_t kRun = layout::TokenOrder<config::kIsFp8>::kRun;
constexpr uint32_t kVector = 16 / config::kActBytes;  // elements of a vector: runs of four 16-groups
constexpr uint32_t kRowVectors = config::kTokenRowBytes / 16;
constexpr uint32_t kPieceBytes = 32 * 16;  // a vector a lane
constexpr uint32_t kPieces = (config::kTokenRowBytes + kPieceBytes - 1) / kPieceBytes;  // of a token
static_assert(kVector == 4 * kRun);
static_assert(!config::kIsFp8 || (kPieceBytes == config::kPromotedStages * config::kTokenKBytes && kPieces == config::kScaleBlocks));
static_assert(config::kChunkTokens * config::kNumTopk <= kNumDispatchThreads, "a thread a slot");
static_assert(config::kNumTopk <= 32, "a lane a slot of a token");

__device__ __forceinline__ void sync_dispatch() { ptx::barrier_sync(mega_moe::kDispatchBarrier, kNumDispatchThreads); }

// A lane's part of a piece.
struct Piece {
    uint32_t words[kVector / 2];  // values: kRun bf16 of each of four 16-groups; staged codes as they are stored, in the first four
    float scale;                  // of staged codes
};

__device__ __forceinline__ void load_values(const uint8_t* x_row, uint32_t vector, Piece& piece) {
    constexpr uint32_t kWords = kRun / 2, kAll = 4 * kWords;
    const uint32_t first = vector * kVector / 64 * 64 + vector % (64 / kVector) * kRun;
    constexpr bool kIsPadded = config::kTokenRowBytes != config::kHidden * config::kActBytes;  // K of a row ends after the token
    if (reinterpret_cast<uint64_t>(x_row) % (kRun * 2) == 0 && (!kIsPadded || first + 48 + kRun <= config::kHidden)) {
#pragma unroll
        for (uint32_t t = 0; t < 4; ++t) {
            const uint8_t* run = x_row + (first + 16 * t) * 2;
            if constexpr (kWords == 2) {
                const uint2 words = *reinterpret_cast<const uint2*>(run);
                piece.words[2 * t] = words.x, piece.words[2 * t + 1] = words.y;
            } else {
                piece.words[t] = *reinterpret_cast<const uint32_t*>(run);
            }
        }
        return;
    }
    // Seldom, so it is short: words are shifted in one by one.
    const uint16_t* x = reinterpret_cast<const uint16_t*>(x_row);
#pragma unroll 1
    for (uint32_t i = 0; i < kAll; ++i) {
        const uint32_t k = first + 16 * (i / kWords) + 2 * (i % kWords);
        const uint32_t low = k < config::kHidden ? x[k] : 0, high = k + 1 < config::kHidden ? x[k + 1] : 0;
#pragma unroll
        for (uint32_t w = 0; w + 1 < kAll; ++w) piece.words[w] = piece.words[w + 1];
        piece.words[kAll - 1] = low | high << 16;
    }
}

// A staged token's scales, then the one that would make its largest value 448.
__device__ __forceinline__ const float* staged_scales(const mega_moe::Params& params, uint32_t token) {
    return comm::part<const float>(params.peers, 0, params.sym.token_sf) + uint64_t(token) * (config::kScaleBlocks + 1);
}

// Piece `index` of this rank's tokens; zeros from token `end` on, and where a token is padded.
__device__ __forceinline__ Piece load_piece(const mega_moe::Params& params, uint32_t end, uint32_t index) {
    const uint32_t token = index / kPieces, block = index % kPieces, vector = block * 32 + threadIdx.x % 32;
    Piece piece = {};
    if (token >= end) return piece;
    if (params.x != nullptr) {
        if (vector < kRowVectors) load_values(params.x + uint64_t(token) * params.x_stride_bytes, vector, piece);
    } else {
        const uint4* row = reinterpret_cast<const uint4*>(comm::part<const uint8_t>(params.peers, 0, params.sym.tokens) + uint64_t(token) * config::kTokenRowBytes);
        const uint4 stored = vector < kRowVectors ? row[vector] : uint4{};
        piece.words[0] = stored.x, piece.words[1] = stored.y, piece.words[2] = stored.z, piece.words[3] = stored.w;
        if constexpr (config::kIsFp8) piece.scale = staged_scales(params, token)[block];
    }
    return piece;
}

// The first slot of a thread, and the first piece of a warp, among those of the tokens from `first_token` on.
__device__ __forceinline__ uint32_t own_slot(uint32_t first_token) { return first_token * config::kNumTopk + threadIdx.x - config::kFirstDispatchThread; }
__device__ __forceinline__ uint32_t own_piece(uint32_t first_token) { return first_token * kPieces + (threadIdx.x - config::kFirstDispatchThread) / 32; }

// What a thread begins with. Of the first tokens it is on its way while the schedule is made.
struct Ahead {
    uint64_t index;  // of the thread's slot
    float weight;
    Piece piece;

    __device__ __forceinline__ void load_slot(const mega_moe::Params& params, const Share& share, uint32_t first_token) {
        const uint32_t slot = own_slot(first_token);
        const bool has_slot = slot < share.end * config::kNumTopk;
        index = has_slot ? expert_index(params, slot) : ~uint64_t(0);
        weight = has_slot ? params.topk_weights[slot] : 0.0f;
    }
};

// Quantises a piece and puts it into each of its token's rows; `place` is the token's among those in hand, `largest` the largest magnitude (E4M3).
__device__ __forceinline__ void put_piece(const mega_moe::Params& params, mega_moe::OwnTokens& own, uint32_t place, uint32_t block, const Piece& piece, float largest) {
    const uint32_t lane = threadIdx.x % 32, vector = block * 32 + lane;
    const uint32_t (&pool_rows)[config::kNumTopk] = own.pool_rows[place];
    uint4 stored = {piece.words[0], piece.words[1], piece.words[2], piece.words[3]};
    float scale = piece.scale;
    if constexpr (config::kIsFp8) {
        if (params.x != nullptr) {
            const mega_moe::BlockScale found = mega_moe::search_scale(piece.words, largest);
            scale = found.scale;
            stored.x = ptx::cvt_e4m3x4(piece.words[0], piece.words[1], found.inverse), stored.y = ptx::cvt_e4m3x4(piece.words[2], piece.words[3], found.inverse);
            stored.z = ptx::cvt_e4m3x4(piece.words[4], piece.words[5], found.inverse), stored.w = ptx::cvt_e4m3x4(piece.words[6], piece.words[7], found.inverse);
            // Bits of floats that are not negative order as the floats do.
            if (lane == 0) atomicMax(&own.scale[place], __float_as_uint(found.smallest));
        }
    }
    uint8_t* tokens = params.tokens + vector * 16;
#pragma unroll 8
    for (uint32_t k = 0; k < config::kNumTopk; ++k) {
        const uint32_t row = pool_rows[k];
        if (row != ~0u && vector < kRowVectors) *reinterpret_cast<uint4*>(tokens + uint64_t(row) * config::kTokenRowBytes) = stored;
    }
    if constexpr (config::kIsFp8) {
        if (lane < config::kNumTopk && pool_rows[lane] != ~0u) params.tokens_sf[uint64_t(block) * params.pool_rows + pool_rows[lane]] = scale;
    }
}

__device__ __forceinline__ void dispatch(const mega_moe::Params& params, const mega_moe::Schedule& schedule, mega_moe::OwnTokens& own, const Share& share, Ahead& ahead) {
    const uint32_t thread = threadIdx.x - config::kFirstDispatchThread;
    uint32_t index = own_piece(share.begin);
    for (uint32_t begin = share.begin; begin < share.end; begin += config::kChunkTokens) {
        const uint32_t end = min(begin + config::kChunkTokens, share.end);
        // A thread a slot.
        const bool has_slot = thread < config::kChunkTokens * config::kNumTopk;
        const int32_t expert = has_slot ? local_expert(params, ahead.index) : -1;
        const float weight = ahead.weight;
        uint32_t tile = 0, pool_row = ~0u;
        if (expert >= 0) {
            const uint32_t row = atomicAdd(&own.next[expert], 1u);
            tile = schedule.tile_begin[expert] + row / config::kBlockN;
            pool_row = tile * config::kBlockN + row % config::kBlockN;
        }
        if (has_slot) own.pool_rows[thread / config::kNumTopk][thread % config::kNumTopk] = pool_row;
        if (thread < config::kChunkTokens) own.scale[thread] = 0;
        sync_dispatch();
#pragma unroll 1
        for (; index < end * kPieces; index += kNumDispatchWarps) {
            // A look at all values, before the next ones' loads start: who waits for these later would wait for those too.
            float largest = 0.0f;
            if constexpr (config::kIsFp8) largest = mega_moe::largest_of(ahead.piece.words);
            const Piece next = load_piece(params, share.end, index + kNumDispatchWarps);
            put_piece(params, own, index / kPieces - begin, index % kPieces, ahead.piece, largest);
            ahead.piece = next;
        }
        float staged_scale = 0.0f;
        if (config::kIsFp8 && params.x == nullptr && expert >= 0) staged_scale = staged_scales(params, begin + thread / config::kNumTopk)[config::kScaleBlocks];
        ahead.load_slot(params, share, end);
        sync_dispatch();
        if (expert >= 0) {
            params.routed[pool_row] = own_slot(begin);
            params.routed_weights[pool_row] = weight;
            if constexpr (config::kHasTokenScales) params.routed_sf[pool_row] = params.x != nullptr ? __uint_as_float(own.scale[thread / config::kNumTopk]) : staged_scale;
            // The release publishes all these threads' writes: they happen before it through the barrier.
            ptx::red_release_gpu_add(&params.rows_ready[tile], 1);
        }
        sync_dispatch();  // `own` has been read: the next tokens, or results of tiles, take its place
    }
}

}  // namespace roles
