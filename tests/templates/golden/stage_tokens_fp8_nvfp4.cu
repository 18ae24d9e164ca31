#line 1 "/kernel.cu"
#line 1 "/staging/staging.cuh"
// Staging: BF16 tokens into the symmetric buffer, quantised by the recipe, K in token order; a block takes one token after another.
//
// E4M3: a scale for 512 values (mega_moe/scale_search.cuh), codes = RNE(x x (1 / scale)). BF16: the values as they are. Tokens that were
// quantised by the caller (config::kSourceIsCodes), with one scale, are only put in order. Padding of K is zeros.
#line 1 "/comm/peers.cuh"
// Symmetric buffers of all ranks: every rank keeps the same parts at the same offsets, so a base pointer a rank reaches them all.
//#pragma once
#line 1 "/config.cuh"
// Every constant of this kernel's description, as Python computed it: `block_m` there is `config::kBlockM` here.
//#pragma once

#line 1 "/types.cuh"
// Fixed-width integers without system headers (NVRTC has none); the same types that CCCL declares, so that both can be included.
//#pragma once

typedef signed char int8_t;
typedef signed short int16_t;
typedef signed int int32_t;
typedef signed long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef uint64_t uintptr_t;

static_assert(sizeof(uint8_t) == 1 && sizeof(uint16_t) == 2 && sizeof(uint32_t) == 4 && sizeof(uint64_t) == 8);
static_assert(sizeof(void*) == sizeof(uintptr_t));
#line 5 "/config.cuh"

namespace config {
constexpr uint32_t kNumRanks = 1;
constexpr uint32_t kNumExperts = 32;
constexpr uint32_t kNumTopk = 4;
constexpr uint32_t kTopkIdxBytes = 8;
constexpr uint32_t kHidden = 2880;
constexpr uint32_t kHiddenK = 2944;
constexpr uint32_t kScaleBlocks = 6;
constexpr uint32_t kNumThreads = 256;
constexpr uint32_t kBlocksPerSm = 4;
constexpr bool kIsFp8 = true;
constexpr bool kSourceIsCodes = false;
constexpr uint32_t kActBytes = 1;
constexpr uint32_t kTokenRowBytes = 2944;
constexpr uint32_t kParamBytes = 96;
constexpr float kMinAmax = 1.00000001e-10f;
}  // namespace config
#line 4 "/comm/peers.cuh"
//#include "types.cuh"

namespace comm {

struct PeerTable {
    uint8_t* base[config::kNumRanks];
};

// Byte offsets of a buffer's parts (runtime/symmetric.py).
struct SymOffsets {
    uint64_t tokens;        // [max tokens][kTokenRowBytes]: staged codes, K in token order
    uint64_t token_sf;      // f32 [max tokens], sm_90a: [max tokens][scales of blocks, then the largest one's]
    uint64_t topk_idx;      // [max tokens][kNumTopk] int32 or int64
    uint64_t topk_weights;  // [max tokens][kNumTopk] f32
    uint64_t partials;      // [max tokens * kNumTopk][kHiddenPadded] bf16: weighted expert outputs, one row a slot
};

template <typename T>
__device__ __forceinline__ T* part(const PeerTable& peers, uint32_t rank, uint64_t offset) {
    return reinterpret_cast<T*>(peers.base[rank] + offset);
}

// The global expert that a slot was routed to, or -1 (also for indices that are no expert).
__device__ __forceinline__ int32_t routed_expert(const PeerTable& peers, const SymOffsets& sym, uint32_t rank, uint32_t slot) {
    int64_t expert;
    if constexpr (config::kTopkIdxBytes == 8) {
        expert = part<const int64_t>(peers, rank, sym.topk_idx)[slot];
    } else {
        expert = part<const int32_t>(peers, rank, sym.topk_idx)[slot];
    }
    return expert >= 0 && expert < int64_t(config::kNumExperts) ? int32_t(expert) : -1;
}

}  // namespace comm
#line 6 "/staging/staging.cuh"
//#include "config.cuh"
#line 1 "/layout/token_order.cuh"
// The order of K in which tokens are stored for wgmma with weights in registers (docs/layouts.md, "K order of tokens").
//
// In the A fragment a lane holds, for each of its rows, k = 16 h + 4 t + j of a k32 step: pieces of two 16-groups, so natural
// order would need a scale factor for each register. K's order is free as long as both operands agree, so inside each block of
// 64 lane t owns the whole 16-group t:
//
//     E4M3   k = 16 t + 8 s + 4 h + j   is stored at   p = 32 s + 16 h + 4 t + j     s = k32 step, h = register half
//     BF16   k = 16 t + 4 s + 2 h + j   is stored at   p = 16 s +  8 h + 2 t + j     s = k16 step
//
// Runs of kRun elements (4 bytes) stay together, so writers move 32-bit words.
//#pragma once
//#include "types.cuh"

namespace layout {

template <bool kIsFp8>
struct TokenOrder {
    static constexpr uint32_t kBlock = 64;
    static constexpr uint32_t kRun = kIsFp8 ? 4 : 2;

    // Stored position of natural index k.
    __device__ __forceinline__ static constexpr uint32_t position(uint32_t k) {
        const uint32_t block = k / kBlock * kBlock, t = k % kBlock / 16, j = k % kRun;
        const uint32_t h = k / kRun % 2, s = k % 16 / (2 * kRun);
        return block + 8 * kRun * s + 4 * kRun * h + kRun * t + j;
    }
};

static_assert(TokenOrder<true>::position(16 * 3 + 8 * 1 + 4 * 1 + 2) == 32 * 1 + 16 * 1 + 4 * 3 + 2);
static_assert(TokenOrder<false>::position(16 * 3 + 4 * 2 + 2 * 1 + 1) == 16 * 2 + 8 * 1 + 2 * 3 + 1);

}  // namespace layout
#line 8 "/staging/staging.cuh"
#line 1 "/mega_moe/scale_search.cuh"
// Which scale makes E4M3 nearest to a block of 512 values: one of four, a quarter of a binade apart. Rule: formats/block_scaled.py.
//#pragma once
//#include "config.cuh"
#line 1 "/ptx/convert.cuh"
// Conversions and byte selection. PTX ISA, "cvt", "prmt", "lop3", "mul (bf16x2)".
//#pragma once
//#include "types.cuh"

namespace ptx {

// Two floats to E4M3, round to nearest even, saturating at 448; `first` goes to the low byte.
__device__ __forceinline__ uint16_t cvt_e4m3x2(float first, float second) {
    uint16_t packed;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(second), "f"(first));
    return packed;
}

// Two E4M3 codes, exactly; the low byte's value is x.
__device__ __forceinline__ float2 cvt_f32x2(uint16_t e4m3x2) {
    float2 v;
    asm("{\n.reg .b32 pair;\n.reg .b16 low, high;\ncvt.rn.f16x2.e4m3x2 pair, %2;\nmov.b32 {low, high}, pair;\n"
        "cvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
        : "=f"(v.x), "=f"(v.y)
        : "h"(e4m3x2));
    return v;
}

// Two floats to BF16, round to nearest even; `first` goes to the low half.
__device__ __forceinline__ uint32_t cvt_bf16x2(float first, float second) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
    return packed;
}

__device__ __forceinline__ float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

// Two pairs of bf16, times a factor, to E4M3; the first to the low byte.
__device__ __forceinline__ uint32_t cvt_e4m3x4(uint32_t first, uint32_t second, float factor) {
    return uint32_t(cvt_e4m3x2(bf16_low(first) * factor, bf16_high(first) * factor)) |
           uint32_t(cvt_e4m3x2(bf16_low(second) * factor, bf16_high(second) * factor)) << 16;
}

// Exact product of two bf16x2 where it fits; subnormal inputs and results are kept.
__device__ __forceinline__ uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

// The larger ones of two pairs of bf16; a NaN beside a number is ignored.
__device__ __forceinline__ uint32_t max_bf16x2(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

// Byte look-up: each selector nibble (0..7) picks a byte of {high, low}.
__device__ __forceinline__ uint32_t prmt(uint32_t low, uint32_t high, uint32_t selector) {
    uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(low), "r"(high), "r"(selector));
    return d;
}

// The upper half in both halves, by the multiplier (times 1.0 in f16): the ALU, where a shift would go, is what decoding waits for. For
// halves that are no f16 infinity or NaN.
__device__ __forceinline__ uint32_t high_halves(uint32_t pair) {
    uint32_t d;
    asm("{\n.reg .b16 low, high;\n.reg .b32 twice;\nmov.b32 {low, high}, %1;\nmov.b32 twice, {high, high};\n"
        "mul.rn.f16x2 %0, twice, %2;\n}"
        : "=r"(d)
        : "r"(pair), "r"(0x3C003C00));
    return d;
}

// (a & mask) | (b & ~mask) in one instruction.
__device__ __forceinline__ uint32_t bit_select(uint32_t mask, uint32_t a, uint32_t b) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, 0xE2;" : "=r"(d) : "r"(a), "r"(mask), "r"(b));
    return d;
}

// Smaller and larger of two numbers; NaN if either is (fminf and fmaxf would hide it).
__device__ __forceinline__ float min_nan(float a, float b) {
    float d;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
    return d;
}

__device__ __forceinline__ float max_nan(float a, float b) {
    float d;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
    return d;
}

// 2^x, subnormal results flushed; maximum relative error 2^-22 (PTX ISA, ex2.approx).
__device__ __forceinline__ float ex2_approx(float x) {
    float d;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}

// 1/x with a maximum relative error of 2^-23 (PTX ISA, rcp.approx).
__device__ __forceinline__ float rcp_approx(float x) {
    float d;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}

}  // namespace ptx
#line 5 "/mega_moe/scale_search.cuh"
#line 1 "/ptx/warp.cuh"
// Warps and blocks: barriers, registers, election. PTX ISA, "barrier", "setmaxnreg", "elect.sync".
//#pragma once
//#include "types.cuh"

namespace ptx {

// Named barrier `id` for `threads` threads (a multiple of 32) of the block.
__device__ __forceinline__ void barrier_sync(uint32_t id, uint32_t threads) {
    asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// `value`, in a register of its own from here on. What depends on the thread's number alone is otherwise made anew where it is used, and
// reading that number (S2R) takes its place in the queue of shared memory's loads: 100 clocks and more in the middle of a loop.
__device__ __forceinline__ uint32_t keep(uint32_t value) { return __shfl_sync(~0u, value, threadIdx.x % 32); }

// The thread's number, read here and not before.
__device__ __forceinline__ uint32_t thread_in_block() {
    uint32_t thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

// Sum over a warp's lanes, modulo 2^32.
__device__ __forceinline__ uint32_t redux_add(uint32_t value) {
    uint32_t sum;
    asm volatile("redux.sync.add.u32 %0, %1, 0xFFFFFFFF;" : "=r"(sum) : "r"(value));
    return sum;
}

// The largest of a warp's values.
__device__ __forceinline__ uint32_t redux_max(uint32_t value) {
    uint32_t largest;
    asm volatile("redux.sync.max.u32 %0, %1, 0xFFFFFFFF;" : "=r"(largest) : "r"(value));
    return largest;
}

// Stores kNum 8 x 8 matrices of 16-bit elements, transposed: lane l has elements (row l / 4, columns 2 (l % 4) and + 1) of each, and
// column l % 8 of matrix l / 8 goes to the 16 bytes at lane l's address. PTX ISA, "stmatrix".
template <uint32_t kNum>
__device__ __forceinline__ void stmatrix_trans(uint32_t address, const uint32_t* matrices) {
    static_assert(kNum == 1 || kNum == 2 || kNum == 4);
    if constexpr (kNum == 4) {
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(matrices[0]), "r"(matrices[1]),
                     "r"(matrices[2]), "r"(matrices[3])
                     : "memory");
    } else if constexpr (kNum == 2) {
        asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(matrices[0]), "r"(matrices[1]) : "memory");
    } else {
        asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address), "r"(matrices[0]) : "memory");
    }
}

template <uint32_t kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <uint32_t kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace ptx
#line 6 "/mega_moe/scale_search.cuh"
//#include "types.cuh"

namespace mega_moe {

struct BlockScale {
    float scale, inverse;
    float smallest;  // the least of the four: what would make the largest value 448
};

// The error of the nearest E4M3 value, up to its sign, by FP32 arithmetic alone. x times 2^20 - 1 is x 2^20, a multiple of its last bit's
// unit, less x: rounded, it leaves x to four significant bits, and what was rounded off is the product's own error, which fma gives exactly.
// (2^20 + 1 would fail just below powers of two, where the sum gets another last bit.) Below 2^-6 E4M3 is coarser than that, but errors there
// are nothing in the unit below; ties round either way, with the same magnitude; nothing lies beyond 448.
__device__ __forceinline__ float rounding_error(float x) {
    constexpr float kCut = 1048575.0f;
    const float product = x * kCut;
    return fmaf(x, kCut, -product);
}

// Sum of the squared errors of a lane's pairs of bf16, in units of 2^-10 of a squared code step at 1. Integers: the sum over all lanes does
// not depend on who has which value.
template <uint32_t kPairs>
__device__ __forceinline__ uint32_t squared_error(const uint32_t (&pairs)[kPairs], float inverse) {
    constexpr float kUnits = 8192.0f;  // 2^13: a sum with it has multiples of 2^-10 in its low bits
    uint32_t sum = 0;
#pragma unroll
    for (uint32_t pair : pairs) {
        const float a = rounding_error(ptx::bf16_low(pair) * inverse), b = rounding_error(ptx::bf16_high(pair) * inverse);
        sum += __float_as_uint(fmaf(a, a, kUnits)) + __float_as_uint(fmaf(b, b, kUnits));
    }
    return sum;  // 512 times the bits of 2^13 are zero, modulo 2^32
}

// A warp: the largest magnitude of kPairs pairs a lane.
template <uint32_t kPairs>
__device__ __forceinline__ float largest_of(const uint32_t (&pairs)[kPairs]) {
    constexpr uint32_t kMagnitudes = 0x7FFF7FFF;
    uint32_t most = pairs[0] & kMagnitudes;
#pragma unroll
    for (uint32_t i = 1; i < kPairs; ++i) most = ptx::max_bf16x2(most, pairs[i] & kMagnitudes);
    const float own = fmaxf(fmaxf(ptx::bf16_low(most), ptx::bf16_high(most)), 0.0f);  // also where all are NaN
    return __uint_as_float(ptx::redux_max(__float_as_uint(own)));  // bits of floats that are not negative order as the floats do
}

// A warp: kPairs pairs a lane, together 512 values, whose largest magnitude is known.
template <uint32_t kPairs>
__device__ __forceinline__ BlockScale search_scale(const uint32_t (&pairs)[kPairs], float largest) {
    static_assert(kPairs * 2 * 32 == 512);
    constexpr float kSteps[4] = {1.0f, 1.18920708f, 1.41421354f, 1.68179286f};    // 2^(i/4)
    constexpr float kWeights[4] = {1.0f, 1.41421354f, 2.0f, 2.82842708f};         // their squares
    const float smallest = fmaxf(largest, config::kMinAmax) / 448.0f;
    // Each lane makes one of the four reciprocals: a division is many instructions.
    const uint32_t lane = threadIdx.x % 32;
    const float own_step = lane & 2 ? (lane & 1 ? kSteps[3] : kSteps[2]) : (lane & 1 ? kSteps[1] : kSteps[0]);
    const float own_inverse = 1.0f / (smallest * own_step);
    float inverses[4], errors[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) inverses[i] = __shfl_sync(~0u, own_inverse, i);
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) errors[i] = float(ptx::redux_add(squared_error(pairs, inverses[i]))) * kWeights[i];
    BlockScale best = {smallest, inverses[0], smallest};
    float least = errors[0];
#pragma unroll
    for (uint32_t i = 1; i < 4; ++i) {
        if (errors[i] < least) least = errors[i], best.scale = smallest * kSteps[i], best.inverse = inverses[i];
    }
    return best;
}

}  // namespace mega_moe
#line 9 "/staging/staging.cuh"
//#include "ptx/convert.cuh"
#line 1 "/ptx/fence.cuh"
// Fences between proxies and grids. PTX ISA, "Parallel Synchronization and Communication Instructions: membar/fence" and
// "griddepcontrol".
//#pragma once
//#include "types.cuh"

namespace ptx {

// Orders generic accesses to shared memory (ordinary stores, cp.async) and async-proxy ones (wgmma, TMA), both ways.
__device__ __forceinline__ void fence_proxy_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The same for global memory.
__device__ __forceinline__ void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// Waits until the grids before this one in a programmatic dependent launch have ended; no effect in an ordinary launch.
__device__ __forceinline__ void griddepcontrol_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets a dependent grid start its prologue; gives it no view of this grid's writes (griddepcontrol_wait does).
__device__ __forceinline__ void griddepcontrol_launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

}  // namespace ptx
#line 11 "/staging/staging.cuh"
//#include "types.cuh"

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
#line 2 "/kernel.cu"
