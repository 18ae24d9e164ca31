#line 1 "/kernel.cu"
#line 1 "/staging/staging_sm100.cuh"
// Staging for Blackwell: BF16 tokens into the symmetric buffer, block-scaled by the recipe, K in natural order; a block takes one
// token after another.
//
// NVFP4: g = max(amax(token), kMinAmax) / 2688, sf = UE4M3(max(amax(16) / (6 g), 2^-9)), code = E2M1(x / (sf g)).
// MX:    sf = UE8M0 up(max(amax(32), kMinAmax) / largest element), code = E2M1 or E4M3(x / sf).
// All in FP32, each quotient and product rounded to nearest even: the same bits as megamoe_jit/formats/block_scaled.py.
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
constexpr uint32_t kGranK = 16;
constexpr uint32_t kNumThreads = 256;
constexpr bool kIsUe4m3 = true;
constexpr bool kHasTokenScales = true;
constexpr uint32_t kActsPerByte = 2;
constexpr float kElementMax = 6.0f;
constexpr uint32_t kSourceRowBytes = 1440;
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
#line 8 "/staging/staging_sm100.cuh"
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
#line 10 "/staging/staging_sm100.cuh"
#line 1 "/ptx/convert_sm100.cuh"
// Conversions to and from block-scaled formats. PTX ISA, "cvt". Two values at a time: `first` goes to the low part.
//#pragma once
//#include "types.cuh"

namespace ptx {

// Two floats to E2M1, round to nearest even, saturating at 6: one byte.
__device__ __forceinline__ uint32_t cvt_e2m1x2(float first, float second) {
    uint32_t packed;
    asm("{\n.reg .b8 codes;\ncvt.rn.satfinite.e2m1x2.f32 codes, %1, %2;\nmov.b32 %0, {codes, 0, 0, 0};\n}" : "=r"(packed) : "f"(second), "f"(first));
    return packed;
}

// A scale factor to UE8M0: the power of two at or above it.
__device__ __forceinline__ uint32_t cvt_ue8m0_up(float value) {
    uint16_t packed;
    asm("cvt.rp.satfinite.ue8m0x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(0.0f), "f"(value));
    return packed & 0xFF;
}

// The low E4M3 code of a pair, as float.
__device__ __forceinline__ float cvt_float_e4m3(uint16_t codes) {
    float value;
    asm("{\n.reg .b32 pair;\n.reg .b16 low, high;\ncvt.rn.f16x2.e4m3x2 pair, %1;\nmov.b32 {low, high}, pair;\ncvt.f32.f16 %0, low;\n}" : "=f"(value) : "h"(codes));
    return value;
}

}  // namespace ptx
#line 11 "/staging/staging_sm100.cuh"
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
#line 12 "/staging/staging_sm100.cuh"
//#include "types.cuh"

namespace staging {

// recipes/params.py packs the same fields.
struct Params {
    comm::SymOffsets sym;
    uint64_t sym_block_sf;
    uint8_t* base;               // this rank's symmetric buffer
    const uint16_t* x;           // [num_tokens][kHidden] bf16
    const uint8_t* topk_idx;     // [num_tokens][kNumTopk] int32 or int64
    const float* topk_weights;   // [num_tokens][kNumTopk]
    uint64_t x_stride;           // in elements
    uint32_t topk_idx_bytes;
    uint32_t num_tokens;
};
static_assert(sizeof(Params) == config::kParamBytes, "recipes/params.py packs other fields");

constexpr uint32_t kNumGroups = config::kHidden / config::kGranK;

struct Group {
    float value[config::kGranK];
};

__device__ __forceinline__ Group load_group(const uint16_t* row, uint32_t group) {
    Group loaded;
    const uint16_t* source = row + group * config::kGranK;
    if (reinterpret_cast<uint64_t>(source) % 16 == 0) {
#pragma unroll
        for (uint32_t i = 0; i < config::kGranK; i += 8) {
            const uint4 v = *reinterpret_cast<const uint4*>(source + i);
            const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (uint32_t w = 0; w < 4; ++w) loaded.value[i + 2 * w] = ptx::bf16_low(words[w]), loaded.value[i + 2 * w + 1] = ptx::bf16_high(words[w]);
        }
    } else {
#pragma unroll
        for (uint32_t i = 0; i < config::kGranK; ++i) loaded.value[i] = ptx::bf16_low(source[i]);
    }
    return loaded;
}

__device__ __forceinline__ float amax(const Group& group) {
    float largest = 0.0f;
#pragma unroll
    for (float v : group.value) largest = ptx::max_nan(largest, fabsf(v));
    return largest;
}

__device__ __forceinline__ float block_max(float value) {
    __shared__ float warp_max[config::kNumThreads / 32];
#pragma unroll
    for (uint32_t step = 16; step > 0; step /= 2) value = ptx::max_nan(value, __shfl_xor_sync(~0u, value, step));
    __syncthreads();  // the last token's maxima have been read
    if (threadIdx.x % 32 == 0) warp_max[threadIdx.x / 32] = value;
    __syncthreads();
#pragma unroll
    for (uint32_t w = 0; w < config::kNumThreads / 32; ++w) value = ptx::max_nan(value, warp_max[w]);
    return value;
}

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

// Writes a group's codes, each value over `scale`.
__device__ __forceinline__ void store_codes(uint8_t* target, const Group& group, float scale) {
#pragma unroll
    for (uint32_t i = 0; i < config::kGranK; i += 8) {
        float q[8];
#pragma unroll
        for (uint32_t j = 0; j < 8; ++j) q[j] = __fdiv_rn(group.value[i + j], scale);
        if constexpr (config::kActsPerByte == 2) {
            *reinterpret_cast<uint32_t*>(target + i / 2) =
                ptx::cvt_e2m1x2(q[0], q[1]) | ptx::cvt_e2m1x2(q[2], q[3]) << 8 | ptx::cvt_e2m1x2(q[4], q[5]) << 16 | ptx::cvt_e2m1x2(q[6], q[7]) << 24;
        } else {
            *reinterpret_cast<uint2*>(target + i) = {uint32_t(ptx::cvt_e4m3x2(q[0], q[1])) | uint32_t(ptx::cvt_e4m3x2(q[2], q[3])) << 16,
                                                     uint32_t(ptx::cvt_e4m3x2(q[4], q[5])) | uint32_t(ptx::cvt_e4m3x2(q[6], q[7])) << 16};
        }
    }
}

__device__ __forceinline__ void quantize_token(const Params& params, uint32_t token) {
    const uint16_t* row = params.x + uint64_t(token) * params.x_stride;
    uint8_t* codes = params.base + params.sym.tokens + uint64_t(token) * config::kSourceRowBytes;
    uint8_t* scales = params.base + params.sym_block_sf + uint64_t(token) * kNumGroups;
    float token_scale = 1.0f;
    if constexpr (config::kHasTokenScales) {
        float largest = 0.0f;
        for (uint32_t g = threadIdx.x; g < kNumGroups; g += config::kNumThreads) largest = ptx::max_nan(largest, amax(load_group(row, g)));
        token_scale = __fdiv_rn(ptx::max_nan(block_max(largest), config::kMinAmax), 2688.0f);
        if (threadIdx.x == 0) reinterpret_cast<float*>(params.base + params.sym.token_sf)[token] = token_scale;
    }
    for (uint32_t g = threadIdx.x; g < kNumGroups; g += config::kNumThreads) {
        const Group group = load_group(row, g);
        float scale;
        if constexpr (config::kIsUe4m3) {
            const uint16_t code = ptx::cvt_e4m3x2(ptx::max_nan(__fdiv_rn(amax(group), __fmul_rn(6.0f, token_scale)), 0x1p-9f), 0.0f);
            scales[g] = uint8_t(code);
            scale = __fmul_rn(ptx::cvt_float_e4m3(code), token_scale);
        } else {
            const uint32_t code = ptx::cvt_ue8m0_up(__fdiv_rn(ptx::max_nan(amax(group), config::kMinAmax), config::kElementMax));
            scales[g] = uint8_t(code);
            scale = code == 0 ? 0x1p-127f : code == 0xFF ? __uint_as_float(0x7FFFFFFFu) : __uint_as_float(code << 23);
        }
        store_codes(codes + g * config::kGranK / config::kActsPerByte, group, scale);
    }
}

}  // namespace staging

extern "C" __global__ void __launch_bounds__(config::kNumThreads) stage_tokens_sm100(const __grid_constant__ staging::Params params) {
    ptx::griddepcontrol_launch_dependents();
    for (uint32_t token = blockIdx.x; token < params.num_tokens; token += gridDim.x) {
        staging::copy_routing(params, token);
        staging::quantize_token(params, token);
    }
}
#line 2 "/kernel.cu"
