// Role: mma (two consumer warpgroups; each multiplies half of a pass's weight rows by all tokens of the tile)
// Waits for:  a stage's full barrier
// Produces:   the tile's sums in FP32 registers, for the epilogue of the same warps; releases stages on their empty barriers
// Registers:  config::kConsumerRegisters: kM64 x kBlockN / 2 sums (E4M3: twice, see below), two jobs of decoded weights
//
// A stage is two jobs, so that one is always multiplied while the other is decoded: with two 64-row tiles a warpgroup (kM64) a job
// is one of them, 128 of K; with one it is a unit, 64 of K. Both layers go through the same loop: each would have registers of its own for
// what MMAs read.
//
// Hopper's FP8 adder keeps 13 fraction bits below the largest term, so E4M3 sums are promoted: the tensor core adds up kPromotedStages
// stages, then what it has is added to FP32 totals; the other warpgroup's MMAs fill the gap.
//
// A tile of up to 64 tokens is one pass over its 256 weight rows; wider ones take two passes of 128 rows, for want of registers.
#pragma once
#include "layout/gmma.cuh"
#include "mega_moe/context_sm90.cuh"
#include "mega_moe/decode_fp4.cuh"
#include "ptx/fence.cuh"
#include "ptx/wgmma.cuh"

namespace roles {

constexpr uint32_t kM64 = config::kPassM / 64 / config::kNumConsumerWarpgroups;  // 64-row tiles a warpgroup
constexpr uint32_t kJobUnits = kM64;  // two jobs a stage
static_assert(kM64 * mega_moe::kUnitsPerStage == 2 * kJobUnits);
template <uint32_t kWidth>
using Sums = float[kM64][kWidth / 2];  // register r is column 8 (r / 4) + 2 (lane % 4) + r % 2, row 8 (r / 2 % 2) + lane / 4 of the warp's 16
using Fragments = uint32_t[kJobUnits][mega_moe::kUnitRegisters];

struct Consumer {
    const mega_moe::Context& ctx;
    uint32_t warpgroup;  // 0 or 1
    uint32_t thread;     // in the warpgroup
    // This lane's first codes and scales in a stage's weights, and its copy of the decode table in shared memory.
    uint32_t codes, scales, table;
    pipeline::RingCursor cursor;

    __device__ __forceinline__ Consumer(const mega_moe::Context& context, uint32_t consumer_thread)
        : ctx(context), warpgroup(consumer_thread / 128), thread(ptx::keep(consumer_thread % 128)) {
        const uint32_t first = warpgroup * (kM64 * mega_moe::kUnitsPerStage * 128) + thread;
        codes = ptx::keep(first * 16), scales = ptx::keep(config::kStageCodeBytes + first * 2);
        table = ptx::keep(ptx::smem_address(context.smem.decode_table) + thread % config::kTableCopies * 8);
    }

    __device__ __forceinline__ void release_if(bool condition, uint32_t stage) const {
        __syncwarp();
        ptx::mbarrier_arrive_if(condition && thread % 32 == 0, ptx::smem_address(&ctx.smem.ring.empty[stage]));
    }
};

// A pass's registers beside its sums, by job of the stage.
struct Work {
    mega_moe::PackedUnit packed[2][kJobUnits];  // of the next jobs, on their way from shared memory
    Fragments fragments[2];
    uint32_t previous;  // the stage before: not released yet
};

template <uint32_t kWidth>
__device__ __forceinline__ void zero(Sums<kWidth>& sums) {
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m)
#pragma unroll
        for (uint32_t r = 0; r < kWidth / 2; ++r) sums[m][r] = 0.0f;
}

// Keeps registers where they are until the MMAs that use them are done.
template <uint32_t kNum>
__device__ __forceinline__ void tie(float (&sums)[kNum]) {
#pragma unroll
    for (uint32_t r = 0; r < kNum; ++r) ptx::tie(sums[r]);
}

__device__ __forceinline__ void tie(Fragments& fragments) {
#pragma unroll
    for (uint32_t u = 0; u < kJobUnits; ++u)
#pragma unroll
        for (uint32_t r = 0; r < mega_moe::kUnitRegisters; ++r) ptx::tie(fragments[u][r]);
}

// The 64-row tile of this warpgroup that a job belongs to, and a job's units of it.
__device__ constexpr uint32_t job_m(uint32_t job) { return kM64 == 2 ? job : 0; }
__device__ constexpr uint32_t job_unit(uint32_t job, uint32_t u) { return kM64 == 2 ? u : job; }

// Starts the loads of a job of a stage; its decode tables come in a second step, by its scales.
template <uint32_t kJob>
__device__ __forceinline__ void load_codes(const Consumer& c, uint32_t stage, Work& work) {
    const uint32_t weights = ptx::smem_address(c.ctx.smem.weights[stage]);
#pragma unroll
    for (uint32_t u = 0; u < kJobUnits; ++u) {
        work.packed[kJob][u].load_codes(weights + c.codes, weights + c.scales, job_m(kJob) * mega_moe::kUnitsPerStage + job_unit(kJob, u));
    }
}

template <uint32_t kJob>
__device__ __forceinline__ void load_tables(const Consumer& c, Work& work) {
#pragma unroll
    for (uint32_t u = 0; u < kJobUnits; ++u) work.packed[kJob][u].load_tables(c.table);
}

template <uint32_t kJob>
__device__ __forceinline__ void decode(Work& work) {
#pragma unroll
    for (uint32_t u = 0; u < kJobUnits; ++u) mega_moe::decode_unit(work.packed[kJob][u], work.fragments[kJob][u]);
}

template <uint32_t kWidth>
__device__ __forceinline__ void multiply_step(float* sums, const uint32_t* fragment, uint64_t tokens, bool accumulates) {
    if constexpr (config::kIsFp8) {
        ptx::Wgmma<kWidth>::e4m3(sums, fragment, tokens, accumulates);
    } else {
        ptx::Wgmma<kWidth>::bf16(sums, fragment, tokens, accumulates);
    }
}

// Starts the MMAs of a job of stage `stage`; without `accumulates` its tile's sums begin anew.
template <uint32_t kWidth, uint32_t kJob>
__device__ __forceinline__ void multiply(const Consumer& c, uint32_t stage, Sums<kWidth>& sums, const Fragments& fragments, bool accumulates) {
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t u = 0; u < kJobUnits; ++u) {
        // BF16 has one 128-byte sub-block a unit, E4M3 has both units in one.
        const uint32_t unit = job_unit(kJob, u), offset = config::kIsFp8 ? unit * mega_moe::kStepsPerUnit * 32 : unit * config::kBlockN * 128;
        const uint64_t tokens = layout::gmma_descriptor(ptx::smem_address(c.ctx.smem.tokens[stage]) + offset);
#pragma unroll
        for (uint32_t step = 0; step < mega_moe::kStepsPerUnit; ++step) {
            constexpr bool kIsFirstJob = kM64 == 2 || kJob == 0;
            multiply_step<kWidth>(sums[job_m(kJob)], fragments[u] + 4 * step, tokens + step * layout::kDescriptorStep, accumulates || !kIsFirstJob || u + step > 0);
        }
    }
    ptx::wgmma_commit_group();
}

// A column's scale factor of a stage, and that of its neighbour.
__device__ __forceinline__ float2 stage_sf(const Consumer& c, uint32_t stage, uint32_t r) {
    return *reinterpret_cast<const float2*>(&c.ctx.smem.sf[stage][r * 2 + c.thread % 4 * 2]);
}

// Adds the tensor core's sums to the totals, times the last stage's scale factors where it has some (L1, and some tiles
// of L2).
template <bool kHasSf, uint32_t kWidth>
__device__ __forceinline__ void promote(const Consumer& c, uint32_t stage, const Sums<kWidth>& sums, Sums<kWidth>& total) {
    // Registers r % 2 are neighbouring columns, r / 4 the group of 8. Factors come several groups at a time: one at a time, each group
    // would wait for shared memory.
    constexpr uint32_t kGroups = kWidth / 8, kAtOnce = kGroups % 8 == 0 ? 8 : kGroups % 6 == 0 ? 6 : kGroups % 4 == 0 ? 4 : kGroups;
#pragma unroll
    for (uint32_t first = 0; first < kGroups; first += kAtOnce) {
        float2 sf[kAtOnce];
#pragma unroll
        for (uint32_t g = 0; g < kAtOnce; ++g) sf[g] = kHasSf ? stage_sf(c, stage, (first + g) * 4) : float2{1.0f, 1.0f};
#pragma unroll
        for (uint32_t m = 0; m < kM64; ++m)
#pragma unroll
            for (uint32_t g = 0; g < kAtOnce; ++g)
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) {
                    const uint32_t r = (first + g) * 4 + i;
                    if constexpr (kHasSf) {
                        total[m][r] = fmaf(sums[m][r], i % 2 == 0 ? sf[g].x : sf[g].y, total[m][r]);
                    } else {
                        total[m][r] += sums[m][r];
                    }
                }
    }
}

// a / b of powers of two.
__device__ __forceinline__ float power_ratio(float a, float b) { return __uint_as_float(__float_as_uint(a) - __float_as_uint(b) + 0x3F800000); }

// From units of one stage's scale factors to the next's. All are powers of two: nothing is rounded. (The compiler wants to see a wait
// before ordinary instructions change sums.)
template <uint32_t kWidth>
__device__ __forceinline__ void rescale(const Consumer& c, uint32_t from, uint32_t to, Sums<kWidth>& sums) {
    ptx::wgmma_wait_group<0>();
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) {
        tie(sums[m]);
#pragma unroll
        for (uint32_t r = 0; r < kWidth / 2; r += 4) {
            const float2 before = stage_sf(c, from, r), after = stage_sf(c, to, r);
            const float x = power_ratio(before.x, after.x), y = power_ratio(before.y, after.y);
            sums[m][r] *= x, sums[m][r + 1] *= y, sums[m][r + 2] *= x, sums[m][r + 3] *= y;
        }
    }
}

__device__ __forceinline__ void wait_stage(const Consumer& c) { pipeline::wait_full(c.ctx.watchdog, c.ctx.smem.ring, c.cursor); }

// One stage, of which the first job is decoded and the second's codes are there; on return its second job may still run, and the next
// stage's first job is decoded. Shared memory answers after 200 clocks while MMAs read it: each load has half a stage's time, codes before
// tables, and none is young where the loop ends, since its branch waits for all.
template <uint32_t kWidth>
__device__ __forceinline__ void multiply_stage(Consumer& c, Work& work, Sums<kWidth>& sums, bool accumulates, bool is_first, bool is_last) {
    // One value a warp, in a uniform register: descriptors then cost no vector instructions.
    const uint32_t stage = __shfl_sync(~0u, c.cursor.stage, 0);
    c.cursor.advance();
    const bool is_full = pipeline::is_full(c.ctx.smem.ring, c.cursor);  // of the next stage; the answer takes its time
    load_tables<1>(c, work);
    multiply<kWidth, 0>(c, stage, sums, work.fragments[0], accumulates);
    if (!is_last) pipeline::wait_full(c.ctx.watchdog, c.ctx.smem.ring, c.cursor, is_full);
    // After the last stage the same one's codes are loaded again: a branch around loads would wait for them where it ends.
    const uint32_t next = is_last ? stage : c.cursor.stage;
    load_codes<0>(c, next, work);
    ptx::wgmma_wait_group<1>();  // the last stage's second job
    tie(work.fragments[1]);
    c.release_if(!is_first, work.previous);
    work.previous = stage;
    decode<1>(work);
    load_tables<0>(c, work);
    multiply<kWidth, 1>(c, stage, sums, work.fragments[1], accumulates);
    load_codes<1>(c, next, work);
    ptx::wgmma_wait_group<1>();  // the first job
    tie(work.fragments[0]);
    decode<0>(work);
}

// Sums a pass: L1 over hidden, L2 over intermediate. A tile with scale factors of its own is rescaled from stage to stage, between MMAs.
template <uint32_t kWidth>
__device__ __forceinline__ void multiply_pass(Consumer& c, Sums<kWidth>& total, bool is_l2, bool has_own_sf) {
    constexpr uint32_t kPromoted = config::kPromotedStages;
    uint32_t stages = is_l2 ? config::kL2KStages : config::kL1KStages;
    uint32_t at_once = !config::kIsFp8 ? stages : has_own_sf ? 1 : kPromoted;  // stages whose MMAs follow each other
    ptx::tie(stages), ptx::tie(at_once);  // numbers that the compiler knows it would unroll by, pragma or not
    Work work;
    Sums<kWidth> block;
    Sums<kWidth>& sums = config::kIsFp8 ? block : total;
    if constexpr (config::kIsFp8) zero<kWidth>(total);
    zero<kWidth>(sums);
    wait_stage(c);
    load_codes<0>(c, c.cursor.stage, work);
    load_codes<1>(c, c.cursor.stage, work);
    load_tables<0>(c, work);
    decode<0>(work);
    work.previous = c.cursor.stage;
#pragma unroll 1
    for (uint32_t begin = 0; begin < stages; begin += at_once) {
        const uint32_t end = min(begin + at_once, stages);
        if constexpr (config::kIsFp8 && kWidth == config::kBlockN) {
            if (begin % kPromoted != 0) rescale<kWidth>(c, work.previous, c.cursor.stage, sums);
        }
#pragma unroll 1
        for (uint32_t k = begin; k < end; ++k) {
            multiply_stage<kWidth>(c, work, sums, config::kIsFp8 ? k % kPromoted != 0 : k > 0, k == 0, k + 1 == stages);
        }
        ptx::wgmma_wait_group<0>();
        tie(work.fragments[1]);
#pragma unroll
        for (uint32_t m = 0; m < kM64; ++m) tie(sums[m]);
        if constexpr (config::kIsFp8) {
            if (end % kPromoted != 0 && end < stages) continue;
            if (!is_l2 || has_own_sf) {
                promote<true, kWidth>(c, work.previous, sums, total);
            } else {
                promote<false, kWidth>(c, work.previous, sums, total);
            }
        }
    }
    c.release_if(true, work.previous);
}

}  // namespace roles
