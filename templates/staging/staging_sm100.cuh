// Staging for Blackwell: BF16 tokens into the symmetric buffer, block-scaled by the recipe, K in natural order; a block takes one
// token after another.
//
// NVFP4: g = max(amax(token), kMinAmax) / 2688, sf = UE4M3(max(amax(16) / (6 g), 2^-9)), code = E2M1(x / (sf g)).
// MX:    sf = UE8M0 up(max(amax(32), kMinAmax) / largest element), code = E2M1 or E4M3(x / sf).
// All in FP32, each quotient and product rounded to nearest even: the same bits as megamoe_jit/formats/block_scaled.py.
#include "comm/peers.cuh"
#include "config.cuh"
#include "ptx/convert.cuh"
#include "ptx/convert_sm100.cuh"
#include "ptx/fence.cuh"
#include "types.cuh"

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
