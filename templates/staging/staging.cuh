// Staging: BF16 tokens into the symmetric buffer, quantised by the recipe, K in token order; a block takes one token after another.
//
// E4M3: a scale for 512 values (mega_moe/scale_search.cuh), codes = RNE(x x (1 / scale)). BF16: the values as they are. Tokens that were
// quantised by the caller (config::kSourceIsCodes), with one scale, are only put in order. Padding of K is zeros.
#include "comm/peers.cuh"
#include "config.cuh"
#include "layout/token_order.cuh"
#include "mega_moe/scale_search.cuh"
#include "ptx/convert.cuh"
#include "ptx/fence.cuh"
#include "types.cuh"

namespace staging {

// recipes/params.py packs the same fields.
struct Params {
    comm::SymOffsets sym;
    uint8_t* base;               // this rank's symmetric buffer
    const uint8_t* x;            // [num_tokens][kHidden] bf16, or E4M3 codes
    const float* x_sf;           // [num_tokens], with codes only
    const uint8_t* topk_idx;     // [num_tokens][kNumTopk] int32 or int64
    const float* topk_weights;   // [num_tokens][kNumTopk]
    uint64_t x_stride_bytes;
    uint32_t topk_idx_bytes;
    uint32_t num_tokens;
};
static_assert(sizeof(Params) == config::kParamBytes, "recipes/params.py packs other fields");

constexpr uint32_t kSourceBytes = config::kSourceIsCodes ? 1 : 2;
constexpr uint32_t kPiece = 8;                                          // neighbouring elements a thread handles at once
constexpr uint32_t kNumPieces = config::kHiddenK / kPiece;

struct Piece {
    uint32_t words[kPiece * kSourceBytes / 4];
};

// Elements first .. first + 7 of a row, zeros past its end.
__device__ __forceinline__ Piece load_piece(const uint8_t* row, uint32_t first) {
    Piece piece = {};
    const uint8_t* source = row + first * kSourceBytes;
    if (first + kPiece <= config::kHidden && reinterpret_cast<uint64_t>(source) % sizeof(Piece) == 0) {
        if constexpr (config::kSourceIsCodes) {
            const uint2 v = *reinterpret_cast<const uint2*>(source);
            piece.words[0] = v.x, piece.words[1] = v.y;
        } else {
            const uint4 v = *reinterpret_cast<const uint4*>(source);
            piece.words[0] = v.x, piece.words[1] = v.y, piece.words[2] = v.z, piece.words[3] = v.w;
        }
        return piece;
    }
#pragma unroll
    for (uint32_t i = 0; i < kPiece; ++i) {
        if (first + i >= config::kHidden) break;
        const uint32_t value = kSourceBytes == 1 ? source[i] : reinterpret_cast<const uint16_t*>(source)[i];
        piece.words[i * kSourceBytes / 4] |= value << (8 * (i * kSourceBytes % 4));
    }
    return piece;
}

__device__ __forceinline__ float block_max(float value) {
    __shared__ float warp_max[config::kNumThreads / 32];
#pragma unroll
    for (uint32_t step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
    __syncthreads();  // the last token's maxima have been read
    if (threadIdx.x % 32 == 0) warp_max[threadIdx.x / 32] = value;
    __syncthreads();
#pragma unroll
    for (uint32_t w = 0; w < config::kNumThreads / 32; ++w) value = fmaxf(value, warp_max[w]);
    return value;
}

// Stores a piece's runs of 4 bytes at their places in token order.
template <uint32_t kWords>
__device__ __forceinline__ void store_runs(uint8_t* row, uint32_t first, const uint32_t (&words)[kWords]) {
    using Order = layout::TokenOrder<config::kIsFp8>;
#pragma unroll
    for (uint32_t i = 0; i < kWords; ++i) *reinterpret_cast<uint32_t*>(row + Order::position(first + i * Order::kRun) * config::kActBytes) = words[i];
}

}  // namespace staging

namespace staging {

__device__ __forceinline__ void copy_routing(const Params& params, uint32_t token) {
    for (uint32_t k = threadIdx.x; k < config::kNumTopk; k += config::kNumThreads) {
        const uint64_t slot = uint64_t(token) * config::kNumTopk + k;
        const int64_t expert = params.topk_idx_bytes == 8 ? reinterpret_cast<const int64_t*>(params.topk_idx)[slot]
                                                          : reinterpret_cast<const int32_t*>(params.topk_idx)[slot];
        if constexpr (config::kTopkIdxBytes == 8) {
            reinterpret_cast<int64_t*>(params.base + params.sym.topk_idx)[slot] = expert;
        } else {
            // What is no expert stays none: 2^32 must not become expert 0.
            reinterpret_cast<int32_t*>(params.base + params.sym.topk_idx)[slot] = expert >= 0 && expert < int64_t(config::kNumExperts) ? int32_t(expert) : -1;
        }
        reinterpret_cast<float*>(params.base + params.sym.topk_weights)[slot] = params.topk_weights[slot];
    }
}

// A token's scales, then the one that would make its largest value 448.
__device__ __forceinline__ float* token_sf(const Params& params, uint32_t token) {
    return reinterpret_cast<float*>(params.base + params.sym.token_sf) + uint64_t(token) * (config::kScaleBlocks + 1);
}

// A warp takes one block of 512 values after another, two pieces a lane.
__device__ __forceinline__ void quantize_token(const Params& params, const uint8_t* source, uint8_t* row, uint32_t token) {
    constexpr uint32_t kNumWarps = config::kNumThreads / 32;
    const uint32_t lane = threadIdx.x % 32;
    float largest = 0.0f;
    for (uint32_t block = threadIdx.x / 32; block < config::kScaleBlocks; block += kNumWarps) {
        uint32_t pairs[8];
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
            const Piece piece = load_piece(source, block * 512 + (32 * i + lane) * kPiece);
#pragma unroll
            for (uint32_t w = 0; w < 4; ++w) pairs[4 * i + w] = piece.words[w];
        }
        const mega_moe::BlockScale found = mega_moe::search_scale(pairs, mega_moe::largest_of(pairs));
        largest = fmaxf(largest, found.smallest);
        if (lane == 0) token_sf(params, token)[block] = found.scale;
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
            const uint32_t first = block * 512 + (32 * i + lane) * kPiece;
            const uint32_t* piece = pairs + 4 * i;
            const uint32_t codes[2] = {ptx::cvt_e4m3x4(piece[0], piece[1], found.inverse), ptx::cvt_e4m3x4(piece[2], piece[3], found.inverse)};
            if (first < config::kHiddenK) store_runs(row, first, codes);
        }
    }
    largest = block_max(largest);
    if (threadIdx.x == 0) token_sf(params, token)[config::kScaleBlocks] = largest;
}

__device__ __forceinline__ void copy_token(const Params& params, uint32_t token) {
    const uint8_t* source = params.x + uint64_t(token) * params.x_stride_bytes;
    uint8_t* row = params.base + params.sym.tokens + uint64_t(token) * config::kTokenRowBytes;
    if constexpr (config::kIsFp8 && !config::kSourceIsCodes) {
        quantize_token(params, source, row, token);
    } else {
#pragma unroll 4
        for (uint32_t piece = threadIdx.x; piece < kNumPieces; piece += config::kNumThreads) store_runs(row, piece * kPiece, load_piece(source, piece * kPiece).words);
        if constexpr (config::kIsFp8) {
            for (uint32_t i = threadIdx.x; i <= config::kScaleBlocks; i += config::kNumThreads) token_sf(params, token)[i] = params.x_sf[token];
        }
    }
}

}  // namespace staging

extern "C" __global__ void __launch_bounds__(config::kNumThreads, config::kBlocksPerSm) stage_tokens(const __grid_constant__ staging::Params params) {
    ptx::griddepcontrol_launch_dependents();
    for (uint32_t token = blockIdx.x; token < params.num_tokens; token += gridDim.x) {
        staging::copy_routing(params, token);
        staging::copy_token(params, token);
    }
}
