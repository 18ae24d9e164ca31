// Role: mma, of wide tiles in E4M3: a stage is multiplied in two halves of its columns
// Waits for, produces, registers: as in mma_sm90.cuh
//
// Sums of one half need half the registers beside the total, which is what makes wide tiles fit. All weights of a stage are decoded while
// the MMAs of the stage before run, and loaded one stage earlier still; while one warpgroup promotes, the other's MMAs run.
#pragma once
#include "mega_moe/roles/mma_sm90.cuh"

namespace roles {

constexpr uint32_t kStageRegisters = mega_moe::kUnitsPerStage * mega_moe::kUnitRegisters;
using StageFragments = uint32_t[kStageRegisters];

template <uint32_t kWidth>
struct HalvesWork {
    mega_moe::PackedUnit packed[mega_moe::kUnitsPerStage];  // of the next stage, to be decoded
    StageFragments fragments[2];                            // of even and odd stages
    float sums[kWidth / 4];                                 // of one half
    uint32_t stage, next;
};

template <uint32_t kWidth>
__device__ __forceinline__ void load_stage_codes(const Consumer& c, uint32_t stage, HalvesWork<kWidth>& work) {
    const uint32_t weights = ptx::smem_address(c.ctx.smem.weights[stage]);
#pragma unroll
    for (uint32_t u = 0; u < mega_moe::kUnitsPerStage; ++u) work.packed[u].load_codes(weights + c.codes, weights + c.scales, u);
}

template <uint32_t kWidth>
__device__ __forceinline__ void load_stage_tables(const Consumer& c, HalvesWork<kWidth>& work) {
#pragma unroll
    for (mega_moe::PackedUnit& unit : work.packed) unit.load_tables(c.table);
}

template <uint32_t kUnit, uint32_t kWidth>
__device__ __forceinline__ void decode_stage_unit(const HalvesWork<kWidth>& work, StageFragments& fragments) {
#pragma unroll
    for (uint32_t w = 0; w < 4; ++w) mega_moe::decode_e4m3_word(work.packed[kUnit], w, fragments + kUnit * mega_moe::kUnitRegisters);
}

// Starts the MMAs of half of the columns, over all of the stage's K.
template <uint32_t kHalf, uint32_t kWidth>
__device__ __forceinline__ void multiply_half(const Consumer& c, HalvesWork<kWidth>& work, const StageFragments& fragments) {
    constexpr uint32_t kColumns = kWidth / 2;
    static_assert(kColumns % 8 == 0);
    const uint64_t tokens = layout::gmma_descriptor(ptx::smem_address(c.ctx.smem.tokens[work.stage]) + kHalf * kColumns * 128);
    ptx::wgmma_fence();
    ptx::Wgmma<kColumns>::template e4m3<false>(work.sums, fragments, tokens);
#pragma unroll
    for (uint32_t step = 1; step < kStageRegisters / 4; ++step) {
        ptx::Wgmma<kColumns>::template e4m3<true>(work.sums, fragments + 4 * step, tokens + step * layout::kDescriptorStep);
    }
    ptx::wgmma_commit_group();
}

template <bool kHasOwnSf, uint32_t kHalf, uint32_t kWidth>
__device__ __forceinline__ void promote_half(const Consumer& c, HalvesWork<kWidth>& work, float (&total)[kWidth / 2]) {
    ptx::wgmma_wait_group<0>();
    tie(work.sums);
    promote<kHasOwnSf>(c, work.stage, kHalf * (kWidth / 2), work.sums, total + kHalf * (kWidth / 4));
}

// One stage, decoded in fragments[kParity]; on return the next one is. The cursor is at the stage after that, if the pass has one.
template <bool kHasOwnSf, uint32_t kParity, uint32_t kWidth>
__device__ __forceinline__ void multiply_stage_in_halves(Consumer& c, HalvesWork<kWidth>& work, float (&total)[kWidth / 2], bool has_more) {
    static_assert(mega_moe::kUnitsPerStage == 2);
    multiply_half<0>(c, work, work.fragments[kParity]);
    const bool is_full = pipeline::is_full(c.ctx.smem.ring, c.cursor);  // of the stage after the next; the answer takes its time
    decode_stage_unit<0>(work, work.fragments[1 - kParity]);
    promote_half<kHasOwnSf, 0>(c, work, total);
    multiply_half<1>(c, work, work.fragments[kParity]);
    decode_stage_unit<1>(work, work.fragments[1 - kParity]);
    // After the last stages others are loaded again: a branch around loads would wait for them where it ends.
    if (has_more) pipeline::wait_full(c.ctx.watchdog, c.ctx.smem.ring, c.cursor, is_full);
    const uint32_t after = has_more ? c.cursor.stage : work.stage;
    load_stage_codes(c, after, work);
    if (has_more) c.cursor.advance();
    promote_half<kHasOwnSf, 1>(c, work, total);
    c.release_if(true, work.stage);
    load_stage_tables(c, work);
    work.stage = work.next;
    // One value a warp, in a uniform register: descriptors then cost no vector instructions.
    work.next = __shfl_sync(~0u, after, 0);
}

// Sums a pass: L1 over hidden, L2 over intermediate.
template <bool kIsL2, bool kHasOwnSf, uint32_t kWidth>
__device__ __forceinline__ void multiply_pass_in_halves(Consumer& c, float (&total)[kWidth / 2]) {
    constexpr uint32_t kStages = kIsL2 ? config::kL2KStages : config::kL1KStages;
    HalvesWork<kWidth> work;
#pragma unroll
    for (float& sum : total) sum = 0.0f;
    wait_stage(c);
    load_stage_codes(c, c.cursor.stage, work);
    load_stage_tables(c, work);
    decode_stage_unit<0>(work, work.fragments[0]);
    decode_stage_unit<1>(work, work.fragments[0]);
    work.stage = work.next = __shfl_sync(~0u, c.cursor.stage, 0);
    c.cursor.advance();
    if constexpr (kStages > 1) {
        wait_stage(c);
        work.next = __shfl_sync(~0u, c.cursor.stage, 0);
        c.cursor.advance();
    }
    load_stage_codes(c, work.next, work);
    load_stage_tables(c, work);
#pragma unroll 1
    for (uint32_t k = 0; k + 2 <= kStages; k += 2) {
        multiply_stage_in_halves<kHasOwnSf, 0>(c, work, total, k + 2 < kStages);
        multiply_stage_in_halves<kHasOwnSf, 1>(c, work, total, k + 3 < kStages);
    }
    if constexpr (kStages % 2 == 1) multiply_stage_in_halves<kHasOwnSf, 0>(c, work, total, false);
}

}  // namespace roles
