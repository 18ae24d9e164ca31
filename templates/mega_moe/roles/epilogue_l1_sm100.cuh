// Role: L1 epilogue (an epilogue warpgroup)
// Waits for:  the tile's accumulator
// Produces:   activation(results) in the ring of activations: codes K-major, scale factors as UTCCP atoms; counts the tile in l1_done
// Registers:  16 columns at a time
//
// A warp has 32 weight rows. With a gate they are 8 gate rows, their 8 up rows, 8 gate rows, ... (layouts/interleave.py), so that a
// thread holds gate and up of a value, and the warp 16 neighbouring values; without a gate it has 32. Sub-blocks are of 16 values:
// value 8 p + lane / 4 of a sub-block is in this thread, p = 0, 1.
#pragma once
#include "mega_moe/activation.cuh"
#include "mega_moe/roles/epilogue_sm100.cuh"
#include "ptx/convert.cuh"
#include "ptx/convert_sm100.cuh"

namespace roles {

constexpr uint32_t kChunk = 16;                                       // columns at a time
constexpr uint32_t kSubBlocks = config::kIsGated ? 1 : 2;             // of 16 values in a warp
constexpr uint32_t kTileValues = 64 * kSubBlocks;                     // of a CTA's tile
constexpr uint32_t kTileGroups = kTileValues / config::kGranK;        // scale factors of a column of it
static_assert(config::kActsTileBytes * config::kActsPerByte == kTileValues);

// [sub-block][p][8-column block][column of the thread's two in it]
using ActsChunk = float[kSubBlocks][2][2][2];

struct L1Inputs {
    float alpha[2];                  // gate, up
    float bias[kSubBlocks][2][2];    // [sub-block][p][gate, up]
};

__device__ __forceinline__ uint32_t value_in_tile(const Epilogue& e, uint32_t sub, uint32_t p) {
    return (e.thread / 32 * kSubBlocks + sub) * 16 + p * 8 + e.thread % 32 / 4;
}

__device__ __forceinline__ L1Inputs fetch_l1_inputs(const Epilogue& e, const mega_moe::Tile& tile) {
    const mega_moe::Params& params = e.ctx.params;
    L1Inputs inputs = {{params.l1_alphas[2 * tile.expert], params.l1_alphas[2 * tile.expert + 1]}, {}};
    if (params.l1_bias == nullptr) return inputs;
    const float* bias = params.l1_bias + uint64_t(tile.expert) * config::kL1Rows + (tile.m_tile * config::kCtaGroup + e.ctx.cta) * kTileValues;
#pragma unroll
    for (uint32_t sub = 0; sub < kSubBlocks; ++sub)
#pragma unroll
        for (uint32_t p = 0; p < 2; ++p) {
            inputs.bias[sub][p][0] = bias[value_in_tile(e, sub, p)];
            if constexpr (config::kIsGated) inputs.bias[sub][p][1] = bias[config::kIntermediatePadded + value_in_tile(e, sub, p)];
        }
    return inputs;
}

__device__ __forceinline__ uint32_t column_in_chunk(uint32_t lane, uint32_t block, uint32_t c) { return block * 8 + lane % 4 * 2 + c; }

// Loads a chunk of sums and applies scales, bias and activation.
__device__ __forceinline__ void activate_chunk(const Epilogue& e, const L1Inputs& inputs, uint32_t first, ActsChunk& value) {
    const uint32_t lane = e.thread % 32;
    uint32_t sums[2][8];
    ptx::tcgen05_ld_16x256b_x2(sums[0], e.accum_address() + first);
    ptx::tcgen05_ld_16x256b_x2(sums[1], e.accum_address() + (16u << 16) + first);
    ptx::tcgen05_wait_ld();
#pragma unroll
    for (uint32_t block = 0; block < 2; ++block)
#pragma unroll
        for (uint32_t c = 0; c < 2; ++c) {
            const uint32_t column = first + column_in_chunk(lane, block, c);
            const float scale = config::kHasTokenScales ? e.smem.token_scale[column] : 1.0f, factor = config::kWeighsBeforeRequant ? e.smem.factor[column] : 1.0f;
#pragma unroll
            for (uint32_t sub = 0; sub < kSubBlocks; ++sub)
#pragma unroll
                for (uint32_t p = 0; p < 2; ++p) {
                    float& v = value[sub][p][block][c];
                    if constexpr (config::kIsGated) {
                        const float gate = __uint_as_float(sums[p][4 * block + c]), up = __uint_as_float(sums[p][4 * block + 2 + c]);
                        v = mega_moe::activate(fmaf(gate, scale * inputs.alpha[0], inputs.bias[sub][p][0]), fmaf(up, scale * inputs.alpha[1], inputs.bias[sub][p][1]));
                    } else {
                        v = mega_moe::activate(fmaf(__uint_as_float(sums[sub][4 * block + 2 * p + c]), scale * inputs.alpha[0], inputs.bias[sub][p][0]));
                    }
                    if constexpr (config::kWeighsBeforeRequant) v *= factor;
                }
        }
}

// NaN counts as larger than all: it must reach the scale factor and not vanish in a maximum.
__device__ __forceinline__ float larger(float a, float b) { return ptx::max_nan(a, b); }

// Largest magnitude of each group of kGranK values: amax[sub-block][block][c] of the thread's columns, the same in all its lanes.
__device__ __forceinline__ void reduce_groups(const Epilogue& e, uint32_t chunk, const ActsChunk& value, float (&amax)[kSubBlocks][2][2]) {
    const uint32_t lane = e.thread % 32, warp = e.thread / 32;
#pragma unroll
    for (uint32_t sub = 0; sub < kSubBlocks; ++sub)
#pragma unroll
        for (uint32_t block = 0; block < 2; ++block)
#pragma unroll
            for (uint32_t c = 0; c < 2; ++c) {
                float largest = larger(fabsf(value[sub][0][block][c]), fabsf(value[sub][1][block][c]));
#pragma unroll
                for (uint32_t step = 4; step < 32; step *= 2) largest = larger(largest, __shfl_xor_sync(~0u, largest, step));
                amax[sub][block][c] = largest;
            }
    if constexpr (config::kGranK == 32 && kSubBlocks == 2) {
#pragma unroll
        for (uint32_t block = 0; block < 2; ++block)
#pragma unroll
            for (uint32_t c = 0; c < 2; ++c) amax[0][block][c] = amax[1][block][c] = larger(amax[0][block][c], amax[1][block][c]);
    } else if constexpr (config::kGranK == 32) {
        // Two warps have a group's halves. Two buffers: a warp that is a chunk ahead does not overwrite what another still reads.
        float(&shared)[16][4] = e.smem.amax[chunk % 2];
        if (lane < 4) {
#pragma unroll
            for (uint32_t block = 0; block < 2; ++block)
#pragma unroll
                for (uint32_t c = 0; c < 2; ++c) shared[column_in_chunk(lane, block, c)][warp] = amax[0][block][c];
        }
        e.sync();
#pragma unroll
        for (uint32_t block = 0; block < 2; ++block)
#pragma unroll
            for (uint32_t c = 0; c < 2; ++c) amax[0][block][c] = larger(amax[0][block][c], shared[column_in_chunk(lane, block, c)][warp ^ 1]);
    }
}

// A group's scale factor, and what its values are multiplied by before they become codes.
struct GroupScale {
    uint32_t code;
    float inverse;
};

__device__ __forceinline__ GroupScale group_scale(float amax, float acts_scale) {
    if constexpr (config::kIsUe4m3) {
        // acts_scale is a power of two, so its reciprocal is exact.
        const float inverse_acts_scale = __uint_as_float(0x7F000000u - __float_as_uint(acts_scale));
        const uint16_t code = ptx::cvt_e4m3x2(larger(amax * (1.0f / 6.0f) * inverse_acts_scale, 0x1p-9f), 0.0f);
        return {code & 0xFFu, ptx::rcp_approx(ptx::cvt_float_e4m3(code)) * inverse_acts_scale};
    } else {
        const uint32_t code = ptx::cvt_ue8m0_up(larger(amax, config::kMinAmax) * config::kInverseElementMax);
        return {code, code == 0xFF ? __uint_as_float(0x7FFFFFFFu) : __uint_as_float((254 - code) << 23)};
    }
}

// Quantises a chunk into the shared tile. Neighbouring values are in threads 4 lanes apart: each of the two takes both values of
// one of their two columns.
__device__ __forceinline__ void quantize_chunk(const Epilogue& e, uint32_t first, const ActsChunk& value, const float (&amax)[kSubBlocks][2][2]) {
    const uint32_t lane = e.thread % 32, warp = e.thread / 32, is_odd = lane / 4 % 2;
#pragma unroll
    for (uint32_t block = 0; block < 2; ++block) {
        const uint32_t column = first + column_in_chunk(lane, block, 0);
#pragma unroll
        for (uint32_t sub = 0; sub < kSubBlocks; ++sub) {
            GroupScale scale[2];
#pragma unroll
            for (uint32_t c = 0; c < 2; ++c) {
                scale[c] = group_scale(amax[sub][block][c], e.smem.acts_scale[column + c]);
                // One writer a group: of two warps, or of two sub-blocks, the first.
                const bool is_first = config::kGranK == 16 || (kSubBlocks == 1 ? warp % 2 == 0 : sub == 0);
                if (lane < 4 && is_first) e.smem.tile_sf[column + c][(warp * kSubBlocks + sub) * 16 / config::kGranK] = uint8_t(scale[c].code);
            }
#pragma unroll
            for (uint32_t p = 0; p < 2; ++p) {
                const float v[2] = {value[sub][p][block][0] * scale[0].inverse, value[sub][p][block][1] * scale[1].inverse};
                const float received = __shfl_xor_sync(~0u, is_odd ? v[0] : v[1], 4);
                const float low = is_odd ? received : v[0], high = is_odd ? v[1] : received;
                uint8_t* row = e.smem.tile + (column + is_odd) * config::kActsTileBytes;
                const uint32_t k = value_in_tile(e, sub, p) & ~1u;
                if constexpr (config::kActsPerByte == 2) {
                    row[k / 2] = uint8_t(ptx::cvt_e2m1x2(low, high));
                } else {
                    *reinterpret_cast<uint16_t*>(row + k) = ptx::cvt_e4m3x2(low, high);
                }
            }
        }
    }
}

// Copies the tile's valid columns to the ring: 16 bytes of codes a thread, then the scale factors of a column a thread.
__device__ __forceinline__ void store_tile(const Epilogue& e, const mega_moe::Tile& tile) {
    constexpr uint32_t kPieces = config::kActsTileBytes / 16;
    const mega_moe::Params& params = e.ctx.params;
    const uint32_t cta_tile = tile.m_tile * config::kCtaGroup + e.ctx.cta;
    uint8_t* rows = params.acts + uint64_t(tile.ring_tile) * config::kBlockN * config::kActRowBytes + cta_tile * config::kActsTileBytes;
    for (uint32_t i = e.thread; i < tile.num_rows * kPieces; i += 128) {
        const uint32_t column = i / kPieces, piece = i % kPieces * 16;
        *reinterpret_cast<uint4*>(rows + uint64_t(column) * config::kActRowBytes + piece) =
            *reinterpret_cast<const uint4*>(e.smem.tile + column * config::kActsTileBytes + piece);
    }
    const uint32_t group = cta_tile * kTileGroups;
    uint8_t* atoms = params.acts_sf + uint64_t(tile.ring_tile) * (config::kTokenAtoms * config::kL2RingWords * 512) + group / 4 * 512 + group % 4;
    for (uint32_t column = e.thread; column < tile.num_rows; column += 128) {
        uint8_t* target = atoms + column / 128 * (config::kL2RingWords * 512) + column % 32 * 16 + column % 128 / 32 * 4;
        const uint8_t* source = e.smem.tile_sf[column];
        if constexpr (kTileGroups == 2) {
            *reinterpret_cast<uint16_t*>(target) = *reinterpret_cast<const uint16_t*>(source);
        } else {
#pragma unroll
            for (uint32_t word = 0; word < kTileGroups / 4; ++word) *reinterpret_cast<uint32_t*>(target + word * 512) = reinterpret_cast<const uint32_t*>(source)[word];
        }
    }
}

__device__ __forceinline__ void epilogue_l1(const Epilogue& e, const mega_moe::Tile& tile) {
    fetch_columns(e, tile);
    const L1Inputs inputs = fetch_l1_inputs(e, tile);
    e.wait_accum();
    for (uint32_t first = 0; first < tile.columns(); first += kChunk) {
        ActsChunk value;
        activate_chunk(e, inputs, first, value);
        if (first + kChunk >= tile.columns()) e.release_accum();
        float amax[kSubBlocks][2][2];
        reduce_groups(e, first / kChunk, value, amax);
        quantize_chunk(e, first, value, amax);
    }
    e.sync();
    store_tile(e, tile);
    // Publish: the stores happen before the release through the barrier; L2's loader fences the proxy on its side.
    e.sync();
    if (e.thread == 0) ptx::red_release_gpu_add(&e.ctx.params.l1_done[tile.token_tile], 1);
}

}  // namespace roles
