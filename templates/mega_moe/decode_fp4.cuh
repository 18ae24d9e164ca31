// FP4 weights to wgmma A fragments, in registers. Formats of the packed words: layouts/weights_sm90.py.
//
// E4M3: code x scale / 8, rounded to nearest even, through a table of 8 magnitudes a scale byte; signs are ORed in.
// BF16: code x scale x 2^-9, exact: the code's bits lie where bf16 has them, and one multiplication brings in the scale.
#pragma once
#include "config.cuh"
#include "ptx/convert.cuh"
#include "ptx/ld_st.cuh"
#include "types.cuh"

namespace mega_moe {

// A unit is 64 weight rows x 64 K; a step is one wgmma's share of its K: 32 in E4M3, 16 in BF16.
constexpr uint32_t kStepsPerUnit = config::kIsFp8 ? 2 : 4;
constexpr uint32_t kUnitRegisters = kStepsPerUnit * 4;
constexpr uint32_t kUnitCodeBytes = 128 * 16, kUnitScaleBytes = 128 * 2, kUnitsPerStage = config::kBlockK / 64;
static_assert(config::kStageCodeBytes == config::kPassM / 64 * kUnitsPerStage * kUnitCodeBytes);
static_assert(config::kStageScaleBytes == config::kPassM / 64 * kUnitsPerStage * kUnitScaleBytes);

// Row b of the table: E4M3 of {0, .5, 1, 1.5, 2, 3, 4, 6} x b / 8, b read as UE4M3, made by the hardware's own conversion. A row
// has several copies, in banks of their own: a half-warp's lanes read it at once, and one copy for all would cost three accesses for one.
constexpr uint32_t kTableRowBytes = config::kTableCopies * 8;

__device__ __forceinline__ void fill_decode_table(uint2* table) {
    for (uint32_t i = threadIdx.x; i < config::kDecodeTableRows * config::kTableCopies; i += config::kNumThreads) {
        const uint32_t b = i / config::kTableCopies;
        const uint32_t exponent = b >> 3, mantissa = b & 7;
        // Bits of the scale as FP32: normals rebias 7 -> 127, subnormals are mantissa x 2^-9.
        const float scale = exponent == 0 ? float(mantissa) * 0x1p-9f : __uint_as_float(((exponent + 120) << 23) | (mantissa << 20));
        const float s = scale * 0.125f;
        table[i].x = uint32_t(ptx::cvt_e4m3x2(0.0f, 0.5f * s)) | uint32_t(ptx::cvt_e4m3x2(s, 1.5f * s)) << 16;
        table[i].y = uint32_t(ptx::cvt_e4m3x2(2.0f * s, 3.0f * s)) | uint32_t(ptx::cvt_e4m3x2(4.0f * s, 6.0f * s)) << 16;
    }
}

// 8 codes of one row to two A registers (k halves 0 and 1 of a k32 step).
__device__ __forceinline__ void decode_e4m3(uint32_t word, uint2 table, uint32_t& half0, uint32_t& half1) {
    constexpr uint32_t kSigns = 0x80808080;
    const uint32_t magnitudes = word & 0x77777777;
    half0 = ptx::bit_select(kSigns, word, ptx::prmt(table.x, table.y, magnitudes));
    half1 = ptx::bit_select(kSigns, word << 4, ptx::prmt(table.x, table.y, ptx::high_halves(magnitudes)));
}

// A UE4M3 byte as a pair of bf16, times 2^117: the byte << 4, read as bf16, is scale x 2^-120, subnormals included.
__device__ __forceinline__ uint32_t bf16_scale(uint32_t byte) {
    constexpr uint32_t k2Pow127 = 0x7F007F00, k2Pow110 = 0x76807680;
    return ptx::mul_bf16x2(ptx::mul_bf16x2(byte * 0x00100010u, k2Pow127), k2Pow110);
}

// 8 codes of one row to four A registers: (step, k half) = (0, 0), (0, 1), (1, 0), (1, 1).
__device__ __forceinline__ void decode_bf16(uint32_t word, uint32_t scale, uint32_t& p0, uint32_t& p1, uint32_t& p2, uint32_t& p3) {
    constexpr uint32_t kCode = 0x81C081C0;  // sign, two exponent bits and one mantissa bit of each half
    p0 = ptx::mul_bf16x2((word << 2) & kCode, scale);
    p1 = ptx::mul_bf16x2((word << 6) & kCode, scale);
    p2 = ptx::mul_bf16x2(__funnelshift_r(word, word, 4) & kCode, scale);
    p3 = ptx::mul_bf16x2((word & 0x81808180) | ((word >> 8) & 0x00400040), scale);
}

// This thread's 32 weights of a unit as they lie in shared memory, with what their two scale bytes mean to the decoder.
struct PackedUnit {
    uint4 codes;
    uint32_t scales[2];
    uint2 tables[2];  // E4M3: of rows g and g + 8

    // `first_codes` and `first_scales` are addresses of the thread's share of its warpgroup's unit 0.
    __device__ __forceinline__ void load_codes(uint32_t first_codes, uint32_t first_scales, uint32_t unit) {
        codes = ptx::ld_shared_v4(first_codes + unit * kUnitCodeBytes);
        scales[0] = ptx::ld_shared_u8(first_scales + unit * kUnitScaleBytes);
        scales[1] = ptx::ld_shared_u8(first_scales + unit * kUnitScaleBytes + 1);
    }

    // `table` is the lane's copy.
    __device__ __forceinline__ void load_tables(uint32_t table) {
        if constexpr (config::kIsFp8) {
            tables[0] = ptx::ld_shared_v2(table + scales[0] * kTableRowBytes);
            tables[1] = ptx::ld_shared_v2(table + scales[1] * kTableRowBytes);
        }
    }
};

// Word `w` of a unit (x, y: row g; z, w: row g + 8) to two of its A registers.
__device__ __forceinline__ void decode_e4m3_word(const PackedUnit& unit, uint32_t w, uint32_t* a) {
    const uint32_t words[4] = {unit.codes.x, unit.codes.y, unit.codes.z, unit.codes.w}, row = w / 2, step = w % 2;
    decode_e4m3(words[w], unit.tables[row], a[4 * step + row], a[4 * step + row + 2]);
}

// Decodes a unit to A fragments: a[4 * step + register]. Registers 0 and 2 of a step are row g, registers 1 and 3 row g + 8.
__device__ __forceinline__ void decode_unit(const PackedUnit& unit, uint32_t (&a)[kUnitRegisters]) {
    if constexpr (config::kIsFp8) {
#pragma unroll
        for (uint32_t w = 0; w < 4; ++w) decode_e4m3_word(unit, w, a);
    } else {
        const uint4& words = unit.codes;
        const uint32_t low = bf16_scale(unit.scales[0]), high = bf16_scale(unit.scales[1]);
        decode_bf16(words.x, low, a[0], a[2], a[4], a[6]);
        decode_bf16(words.z, high, a[1], a[3], a[5], a[7]);
        decode_bf16(words.y, low, a[8], a[10], a[12], a[14]);
        decode_bf16(words.w, high, a[9], a[11], a[13], a[15]);
    }
}

}  // namespace mega_moe
