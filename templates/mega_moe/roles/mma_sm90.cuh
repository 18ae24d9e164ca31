// Role: mma (two consumer warpgroups; each multiplies half of a pass's weight rows by all tokens of the tile)
// Waits for:  a stage's full barrier
// Produces:   the tile's sums in FP32 registers, for the epilogue of the same warps; releases stages on their empty barriers
// Registers:  config::kConsumerRegisters: kM64 x kBlockN / 2 sums (E4M3: twice, see below), two jobs of decoded weights
//
// A stage is two jobs, so that one is always multiplied while the other is decoded: with two 64-row tiles a warpgroup (kM64) a job
// is one of them, 128 of K; with one it is a unit, 64 of K.
//
// Hopper's FP8 adder keeps 13 fraction bits below the largest term, so E4M3 sums are promoted: each stage is accumulated by the tensor
// core, then added to FP32 sums, in L2 times the stage's scale factors (one a token). With two 64-row tiles one's sums are promoted while
// the other's are made; with one, the other warpgroup fills the gap.
//
// A tile of up to 64 tokens is one pass over its 256 weight rows; wider ones take two passes of 128 rows, for want of registers. Their
// E4M3 sums are made in two halves: mma_halves_sm90.cuh.
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

    // Of this warpgroup's tile m in a pass: its number among the block's four, of which a warpgroup has two neighbours.
    __device__ __forceinline__ uint32_t m64(uint32_t pass, uint32_t m) const { return 2 * warpgroup + (kM64 == 2 ? m : pass); }

    // The thread, for an epilogue: addresses made of it are made there, and not before the MMAs, whose registers they would take.
    __device__ __forceinline__ uint32_t thread_now() const {
        uint32_t now = thread;
        ptx::tie(now);
        return now;
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

// Starts the loads of both jobs of a stage; their decode tables come in a second step, by their scales.
__device__ __forceinline__ void load_codes(const Consumer& c, uint32_t stage, Work& work) {
    const uint32_t weights = ptx::smem_address(c.ctx.smem.weights[stage]);
#pragma unroll
    for (uint32_t job = 0; job < 2; ++job)
#pragma unroll
        for (uint32_t u = 0; u < kJobUnits; ++u) {
            work.packed[job][u].load_codes(weights + c.codes, weights + c.scales, job_m(job) * mega_moe::kUnitsPerStage + job_unit(job, u));
        }
}

__device__ __forceinline__ void load_tables(const Consumer& c, Work& work) {
#pragma unroll
    for (uint32_t job = 0; job < 2; ++job)
#pragma unroll
        for (uint32_t u = 0; u < kJobUnits; ++u) work.packed[job][u].load_tables(c.table);
}

template <uint32_t kJob>
__device__ __forceinline__ void decode(Work& work) {
#pragma unroll
    for (uint32_t u = 0; u < kJobUnits; ++u) mega_moe::decode_unit(work.packed[kJob][u], work.fragments[kJob][u]);
}

template <uint32_t kWidth, bool kOverwrites>
__device__ __forceinline__ void multiply_step(float* sums, const uint32_t* fragment, uint64_t tokens) {
    if constexpr (config::kIsFp8) {
        ptx::Wgmma<kWidth>::template e4m3<!kOverwrites>(sums, fragment, tokens);
    } else {
        ptx::Wgmma<kWidth>::template bf16<!kOverwrites>(sums, fragment, tokens);
    }
}

// Starts the MMAs of a job of stage `stage`; in E4M3 a tile's first one of a stage overwrites its sums.
template <uint32_t kWidth, uint32_t kJob>
__device__ __forceinline__ void multiply(const Consumer& c, uint32_t stage, Sums<kWidth>& sums, const Fragments& fragments) {
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t u = 0; u < kJobUnits; ++u) {
        // BF16 has one 128-byte sub-block a unit, E4M3 has both units in one.
        const uint32_t unit = job_unit(kJob, u), offset = config::kIsFp8 ? unit * mega_moe::kStepsPerUnit * 32 : unit * config::kBlockN * 128;
        const uint64_t tokens = layout::gmma_descriptor(ptx::smem_address(c.ctx.smem.tokens[stage]) + offset);
        constexpr bool kIsFirstJob = kM64 == 2 || kJob == 0;
        if (u == 0) {
            multiply_step<kWidth, config::kIsFp8 && kIsFirstJob>(sums[job_m(kJob)], fragments[u], tokens);
        } else {
            multiply_step<kWidth, false>(sums[job_m(kJob)], fragments[u], tokens);
        }
#pragma unroll
        for (uint32_t step = 1; step < mega_moe::kStepsPerUnit; ++step) {
            multiply_step<kWidth, false>(sums[job_m(kJob)], fragments[u] + 4 * step, tokens + step * layout::kDescriptorStep);
        }
    }
    ptx::wgmma_commit_group();
}

// Adds a stage's sums of kNum / 2 columns, from `column` on, to the total, times the tokens' scale factors of the stage where they have some (L2).
template <bool kHasOwnSf, uint32_t kNum>
__device__ __forceinline__ void promote(const Consumer& c, uint32_t stage, uint32_t column, const float (&sums)[kNum], float* total) {
#pragma unroll
    for (uint32_t r = 0; r < kNum; r += 4) {
        // Registers r % 2 are neighbouring columns, r / 4 the group of 8.
        if constexpr (kHasOwnSf) {
            const float2 sf = *reinterpret_cast<const float2*>(&c.ctx.smem.acts_sf[stage][column + r * 2 + c.thread % 4 * 2]);
            total[r] = fmaf(sums[r], sf.x, total[r]), total[r + 1] = fmaf(sums[r + 1], sf.y, total[r + 1]);
            total[r + 2] = fmaf(sums[r + 2], sf.x, total[r + 2]), total[r + 3] = fmaf(sums[r + 3], sf.y, total[r + 3]);
        } else {
#pragma unroll
            for (uint32_t i = r; i < r + 4; ++i) total[i] += sums[i];
        }
    }
}

__device__ __forceinline__ void wait_stage(const Consumer& c) { pipeline::wait_full(c.ctx.watchdog, c.ctx.smem.ring, c.cursor); }

constexpr bool kStaggers = config::kIsFp8 && kM64 == 2;

// One stage, of which the codes are there; on return its second job may still run. The last stage's sums are promoted on the way: all
// at once, or, where there are two tiles (kStaggers), each tile's while the other's MMAs run.
template <bool kHasOwnSf, uint32_t kWidth>
__device__ __forceinline__ void multiply_stage(Consumer& c, Work& work, Sums<kWidth>& block, Sums<kWidth>& total, bool is_first, bool is_last) {
    Sums<kWidth>& sums = config::kIsFp8 ? block : total;
    // One value a warp, in a uniform register: descriptors then cost no vector instructions.
    const uint32_t stage = __shfl_sync(~0u, c.cursor.stage, 0);
    decode<0>(work);
    if constexpr (config::kIsFp8 && !kStaggers) {
        ptx::wgmma_wait_group<0>();
        tie(work.fragments[1]);
        tie(block[0]);
        promote<kHasOwnSf>(c, work.previous, 0, block[0], total[0]);
    }
    multiply<kWidth, 0>(c, stage, sums, work.fragments[0]);
    c.cursor.advance();
    const bool is_full = pipeline::is_full(c.ctx.smem.ring, c.cursor);  // of the next stage; the answer takes its time
    if constexpr (!config::kIsFp8 || kStaggers) {
        ptx::wgmma_wait_group<1>();  // the last stage's second job
        tie(work.fragments[1]);
    }
    if constexpr (kStaggers) {
        tie(block[kM64 - 1]);
        promote<kHasOwnSf>(c, work.previous, 0, block[kM64 - 1], total[kM64 - 1]);
    }
    c.release_if(!is_first, work.previous);
    decode<1>(work);
    work.previous = stage;
    // After the last stage the same one's are loaded again: a branch around loads would wait for them where it ends.
    if (!is_last) pipeline::wait_full(c.ctx.watchdog, c.ctx.smem.ring, c.cursor, is_full);
    load_codes(c, is_last ? stage : c.cursor.stage, work);
    multiply<kWidth, 1>(c, stage, sums, work.fragments[1]);
    load_tables(c, work);
    ptx::wgmma_wait_group<1>();  // the first job
    tie(work.fragments[0]);
    if constexpr (kStaggers) {
        tie(block[0]);
        promote<kHasOwnSf>(c, stage, 0, block[0], total[0]);
    }
}

// Sums a pass: L1 over hidden, L2 over intermediate.
template <bool kIsL2, bool kHasOwnSf, uint32_t kWidth>
__device__ __forceinline__ void multiply_pass(Consumer& c, Sums<kWidth>& total) {
    constexpr uint32_t kStages = kIsL2 ? config::kL2KStages : config::kL1KStages;
    Work work;
    zero<kWidth>(total);
    Sums<kWidth> block;
    zero<kWidth>(block);  // what is promoted before there is a sum
    wait_stage(c);
    load_codes(c, c.cursor.stage, work);
    load_tables(c, work);
    work.previous = c.cursor.stage;
    for (uint32_t k = 0; k < kStages; ++k) multiply_stage<kHasOwnSf, kWidth>(c, work, block, total, k == 0, k + 1 == kStages);
    ptx::wgmma_wait_group<0>();
    tie(work.fragments[1]);
#pragma unroll
    for (uint32_t m = kStaggers ? 1 : 0; m < kM64; ++m) {
        if constexpr (config::kIsFp8) {
            tie(block[m]);
            promote<kHasOwnSf>(c, work.previous, 0, block[m], total[m]);
        } else {
            tie(total[m]);
        }
    }
    c.release_if(true, work.previous);
}

}  // namespace roles
