#line 1 "/kernel.cu"
#line 1 "/mega_moe/sm100.cuh"
// The fused MoE for Blackwell: one persistent launch of CTAs, or CTA pairs, with a role for each warp.
//
//   all warps       route                    schedule, lists of routed tokens
//   warp 0          load                     weights, tokens and scale factors by TMA
//   warp 1          mma                      scale factors to tensor memory, tcgen05.mma
//   warp 2          allocates and frees tensor memory
//   warps 4 .. 11   epilogue_l1/l2           activation, requantise; partials
//                   combine, cleanup         weighted sum to y
//   warps 12 .. 15  dispatch                 routed tokens into the ring
#line 1 "/mega_moe/context_sm100.cuh"
// What every role of the kernel is given.
//#pragma once
#line 1 "/comm/wait.cuh"
// Waits that end: each has a time-out, and leaves a record of who waited for what before it stops the kernel.
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
constexpr uint32_t kNumLocalExperts = 32;
constexpr uint32_t kNumTopk = 4;
constexpr uint32_t kTopkIdxBytes = 8;
constexpr uint32_t kHidden = 2880;
constexpr uint32_t kHiddenPadded = 3072;
constexpr uint32_t kIntermediatePadded = 2944;
constexpr uint32_t kL1Rows = 5888;
constexpr uint32_t kL2Rows = 3072;
constexpr uint32_t kL1KWords = 46;
constexpr uint32_t kL2KWords = 46;
constexpr uint32_t kL1RingWords = 48;
constexpr uint32_t kL2RingWords = 48;
constexpr uint32_t kSourceRowBytes = 1440;
constexpr uint32_t kSourceGroups = 180;
constexpr uint32_t kTokenRowBytes = 1472;
constexpr uint32_t kActRowBytes = 1472;
constexpr uint32_t kGranK = 16;
constexpr bool kIsUe4m3 = true;
constexpr bool kHasTokenScales = true;
constexpr float kInverseElementMax = 0.166666672f;
constexpr float kMinAmax = 1.00000001e-10f;
constexpr float kForecastRms = 672.0f;
constexpr float kForecastFactor = 0.125f;
constexpr bool kWeighsBeforeRequant = false;
constexpr uint32_t kParamBytes = 256;
constexpr uint32_t kCtaGroup = 2;
constexpr uint32_t kBlockM = 128;
constexpr uint32_t kBlockN = 16;
constexpr uint32_t kBlockK = 256;
constexpr uint32_t kTileM = 256;
constexpr uint32_t kLoadN = 8;
constexpr uint32_t kNumStages = 8;
constexpr uint32_t kNumAccums = 2;
constexpr uint32_t kTmemColumns = 64;
constexpr uint32_t kTokenAtoms = 1;
constexpr uint32_t kSfWords = 4;
constexpr uint32_t kRingTiles = 54;
constexpr uint32_t kWaveTiles = 27;
constexpr uint32_t kL1MTiles = 23;
constexpr uint32_t kL2MTiles = 12;
constexpr uint32_t kL1Arrivals = 46;
constexpr uint32_t kL2Arrivals = 24;
constexpr uint32_t kL1KStages = 12;
constexpr uint32_t kL2KStages = 12;
constexpr uint32_t kL1Mmas = 46;
constexpr uint32_t kL2Mmas = 46;
constexpr uint32_t kMmaM = 256;
constexpr uint32_t kMmaAType = 1;
constexpr uint32_t kMmaBType = 1;
constexpr uint32_t kMmaScaleType = 0;
constexpr uint32_t kMmasPerStage = 4;
constexpr uint32_t kMmasPerWord = 1;
constexpr uint32_t kScalesPerMma = 4;
constexpr uint32_t kWeightStageRowBytes = 128;
constexpr uint32_t kActsPerByte = 2;
constexpr uint32_t kActsTileBytes = 32;
constexpr uint32_t kFullArrivals = 1;
constexpr uint32_t kEmptyArrivals = 1;
constexpr uint32_t kAccumFullArrivals = 1;
constexpr uint32_t kAccumEmptyArrivals = 8;
constexpr uint32_t kNumThreads = 512;
constexpr uint32_t kFirstEpilogueWarp = 4;
constexpr uint32_t kNumEpilogueWarpgroups = 2;
constexpr uint32_t kFirstDispatchWarp = 12;
constexpr uint32_t kNumDispatchThreads = 128;
constexpr uint32_t kSmemBytes = 183296;
constexpr uint32_t kActivation = 0;
constexpr bool kIsGated = true;
constexpr float kAlpha = 1.0f;
constexpr float kUpBias = 0.0f;
constexpr bool kHasClamp = false;
constexpr float kClamp = 0.0f;
constexpr bool kFastMath = true;
}  // namespace config
#line 4 "/comm/wait.cuh"
#line 1 "/ptx/ld_st.cuh"
// Loads, stores and atomics with their memory order spelled out.
// PTX ISA, "Data Movement and Conversion Instructions: ld, st" and "Memory Consistency Model".
//#pragma once
//#include "types.cuh"

namespace ptx {

__device__ __forceinline__ uint32_t smem_address(const void* pointer) { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }

__device__ __forceinline__ uint4 ld_shared_v4(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
    return v;
}

__device__ __forceinline__ float4 ld_shared_f32x4(uint32_t address) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address));
    return v;
}

__device__ __forceinline__ void st_shared_f32x4(uint32_t address, float4 v) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

__device__ __forceinline__ uint2 ld_shared_v2(uint32_t address) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
    return v;
}

__device__ __forceinline__ uint32_t ld_shared_u8(uint32_t address) {
    uint32_t v;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
}

__device__ __forceinline__ float2 ld_shared_f32x2(uint32_t address) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address));
    return v;
}

__device__ __forceinline__ uint32_t ld_acquire_gpu(const uint32_t* address) {
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(address) : "memory");
    return v;
}

__device__ __forceinline__ uint32_t ld_relaxed_gpu(const uint32_t* address) {
    uint32_t v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(address) : "memory");
    return v;
}

__device__ __forceinline__ void st_release_gpu(uint32_t* address, uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

__device__ __forceinline__ void st_relaxed_gpu(uint32_t* address, uint32_t value) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

__device__ __forceinline__ void red_release_gpu_add(uint32_t* address, uint32_t value) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

__device__ __forceinline__ uint32_t atom_acq_rel_gpu_add(uint32_t* address, uint32_t value) {
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(address), "r"(value) : "memory");
    return old;
}

// A load past L1, for data that other SMs wrote during this launch; zeros where `condition` is false, without a branch: where one ends,
// loads in it are waited for.
__device__ __forceinline__ uint4 ld_global_cg_v4_if(bool condition, const void* address) {
    uint4 v = {0, 0, 0, 0};
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n@p ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                 : "l"(address), "r"(uint32_t(condition))
                 : "memory");
    return v;
}

__device__ __forceinline__ uint64_t globaltimer_ns() {
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

}  // namespace ptx
#line 5 "/comm/wait.cuh"
#line 1 "/ptx/mbarrier.cuh"
// mbarrier: arrive, expect, wait. PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier".
//#pragma once
//#include "types.cuh"

namespace ptx {

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the async proxy; a CTA barrier must follow before anybody else uses them.
__device__ __forceinline__ void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Without a branch, which would end what the compiler takes for one pipeline of MMAs.
__device__ __forceinline__ void mbarrier_arrive_if(bool condition, uint32_t barrier) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %0, 0;\n@p mbarrier.arrive.shared::cta.b64 _, [%1];\n}" ::"r"(uint32_t(condition)), "r"(barrier) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Raises the expected bytes without arriving: the same thread's arrival comes later, so the phase cannot close in between.
__device__ __forceinline__ void mbarrier_expect_tx(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ bool mbarrier_try_wait_parity(uint32_t barrier, uint32_t parity) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    return done != 0;
}

// The same at once: a thread that tries may be put to sleep for a while.
__device__ __forceinline__ bool mbarrier_test_wait_parity(uint32_t barrier, uint32_t parity) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    return done != 0;
}

}  // namespace ptx
#line 6 "/comm/wait.cuh"
//#include "types.cuh"

namespace comm {

// What a thread was waiting for. Python has the same table in words (recipes/waits.py, names checked by a test).
enum class WaitFor : uint32_t {
    kStageFull = 1,     // consumer: tokens and weights of a stage
    kStageEmpty = 2,    // loader: consumers to release a stage
    kRoutedList = 3,    // sm_100 dispatch, consumer: the list of an expert's tokens
    kL1Tiles = 4,       // token loader: L1 of a token tile, before L2 reads it
    kL2Tiles = 5,       // combine: all L2 tiles
    kAccumFull = 6,     // epilogue: the MMAs of a tile
    kAccumEmpty = 7,    // mma: the epilogue to release an accumulator
    kDispatch = 8,      // loader: the routed rows of a token tile
    kRingTile = 9,      // dispatch: L2 of the token tile that had a place in the ring before
    kTile = 10,         // loader, consumer: the next tile from the scheduler
    kTilePlace = 11,    // scheduler: readers to release a tile
};

// Host-readable record, written once by the first thread that gives up. Layout: runtime/memory.py.
struct ErrorRecord {
    uint32_t magic, wait_for, block, thread, index, expected, seen, rank;
};
constexpr uint32_t kErrorMagic = 0x4D6F4531;
constexpr uint64_t kRecordTimeoutNs = 1000000000;

// Arguments by value: a reference would put the caller's context on the stack. Without noreturn, callers would save registers.
__device__ __noinline__ __attribute__((noreturn)) void give_up(ErrorRecord* record, uint32_t rank, WaitFor wait_for, uint32_t index, uint32_t expected, uint32_t seen) {
    if (record != nullptr && atomicCAS_system(&record->magic, 0u, 1u) == 0u) {
        volatile ErrorRecord* out = record;
        out->wait_for = uint32_t(wait_for), out->block = blockIdx.x, out->thread = threadIdx.x;
        out->index = index, out->expected = expected, out->seen = seen, out->rank = rank;
        __threadfence_system();
        out->magic = kErrorMagic;
        __threadfence_system();
    } else if (record != nullptr) {
        // Another thread is writing: a trap now would stop it half way.
        const uint64_t start = ptx::globaltimer_ns();
        while (*static_cast<volatile uint32_t*>(&record->magic) != kErrorMagic && ptx::globaltimer_ns() - start < kRecordTimeoutNs) {
        }
    }
    __trap();
}

struct Watchdog {
    ErrorRecord* record;
    uint64_t timeout_ns;
    uint32_t rank;

    __device__ __forceinline__ void check(uint64_t start, WaitFor wait_for, uint32_t index, uint32_t expected, uint32_t seen) const {
        if (ptx::globaltimer_ns() - start > timeout_ns) give_up(record, rank, wait_for, index, expected, seen);
    }
};

// Waits for the phase with `parity` of an mbarrier in shared memory.
__device__ __forceinline__ void wait_barrier(const Watchdog& watchdog, uint32_t barrier, uint32_t parity, WaitFor wait_for, uint32_t index) {
    if (ptx::mbarrier_try_wait_parity(barrier, parity)) return;
    const uint64_t start = ptx::globaltimer_ns();
    while (!ptx::mbarrier_try_wait_parity(barrier, parity)) {
        watchdog.check(start, wait_for, index, parity, parity ^ 1);
    }
}

// Waits until a counter in global memory has reached `expected`; acquires what its writers released. Only the last look acquires: each such
// look empties the SM's L1, and one after the other they hold up the releases of its other warps.
__device__ __forceinline__ void wait_counter(const Watchdog& watchdog, const uint32_t* counter, uint32_t expected, WaitFor wait_for, uint32_t index) {
    uint32_t seen = ptx::ld_acquire_gpu(counter);
    if (seen >= expected) return;
    const uint64_t start = ptx::globaltimer_ns();
    while ((seen = ptx::ld_relaxed_gpu(counter)) < expected) {
        watchdog.check(start, wait_for, index, expected, seen);
    }
    ptx::ld_acquire_gpu(counter);
}

}  // namespace comm
#line 4 "/mega_moe/context_sm100.cuh"
#line 1 "/mega_moe/params_sm100.cuh"
// What a launch is told. Python packs the same fields in the same order (recipes/params.py) and config::kParamBytes ties the two.
//#pragma once
#line 1 "/comm/peers.cuh"
// Symmetric buffers of all ranks: every rank keeps the same parts at the same offsets, so a base pointer a rank reaches them all.
//#pragma once
//#include "config.cuh"
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
#line 4 "/mega_moe/params_sm100.cuh"
//#include "comm/wait.cuh"
//#include "config.cuh"
#line 1 "/mega_moe/forecast.cuh"
// The scale of a token's activations at an expert, foreseen from sizes before any activation is known. Formula: reference/forecast.py.
//#pragma once
//#include "config.cuh"
//#include "types.cuh"

namespace mega_moe {

// Sizes that L1's results are foreseen from, for one expert (ops/weights.py).
struct alignas(16) ActsForecast {
    float gate_norm, up_norm;  // root mean square of a weight row's length, alpha included
    float gate_bias, up_bias;  // root mean square of the biases
};

// 2^n nearest below p: scales that are powers of two make quantised values independent of p, as long as nothing over- or underflows.
__device__ __forceinline__ float power_of_two(float p) { return __uint_as_float(min(max(__float_as_uint(p) & 0x7F800000u, 0x0D800000u), 0x71800000u)); }

// 1 / p, exactly, of what power_of_two gives.
__device__ __forceinline__ float inverse_power(float p) { return __uint_as_float(0x7F000000u - __float_as_uint(p)); }

// `weight` is what the activations are multiplied by themselves.
__device__ __forceinline__ float foresee_acts_scale(const ActsForecast& f, float token_scale, float weight) {
    const float rms = token_scale * config::kForecastRms;
    const float gate = fmaf(rms, f.gate_norm, f.gate_bias), up = config::kIsGated ? fmaf(rms, f.up_norm, f.up_bias) + fabsf(config::kUpBias) : gate;
    return power_of_two(gate * up * config::kForecastFactor * weight);
}

}  // namespace mega_moe
#line 7 "/mega_moe/params_sm100.cuh"
//#include "types.cuh"

namespace mega_moe {

struct Params {
    comm::PeerTable peers;
    comm::SymOffsets sym;
    uint64_t sym_block_sf;      // [max tokens][kSourceGroups]: block scale factors of staged tokens
    // Workspace of this rank. The ring holds kRingTiles token tiles; counters are zero between calls.
    uint8_t* tokens;            // ring of staged tokens: [rows][kTokenRowBytes]
    uint32_t* tokens_sf;        // their scale factors as UTCCP atoms: [ring tile][atom][kL1RingWords][128]
    uint8_t* acts;              // ring of activations between the GEMMs: [rows][kActRowBytes]
    uint8_t* acts_sf;           // [ring tile][atom][kL2RingWords][512 bytes]
    uint32_t* routed;           // [slots]: token * top-k + slot, sorted by expert
    float* routed_sf;           // [slots]: second-level scale of each routed token (NVFP4)
    float* routed_weights;      // [slots]: its top-k weight
    uint32_t* list_ready;       // [experts]: the expert's part of `routed` is written
    uint32_t* tokens_ready;     // [token tiles]: rows that dispatch has brought
    uint32_t* l1_done;          // [token tiles]: finished L1 tiles
    uint32_t* l2_tile_done;     // [token tiles]: finished L2 tiles
    uint32_t* l2_done;          // [1]: finished L2 tiles of all experts
    uint32_t* exited;           // [1]: blocks that need no counter any more
    comm::ErrorRecord* error_record;
    uint64_t timeout_ns;
    // Weights of this rank's experts; codes and scale factors come through tensor maps.
    const float* l1_alphas;     // [experts][2]: gate, up
    const float* l2_alphas;     // [experts]
    const float* l1_bias;       // [experts][gate rows, then up rows, padded] or null
    const float* l2_bias;       // [experts][kHiddenPadded] or null
    const ActsForecast* forecast;  // [experts] (NVFP4 activations)
    // The call.
    int32_t* recv_stats;        // [experts], added to, or null
    uint16_t* y;                // [num_tokens][hidden] bf16, rows y_stride apart
    uint64_t y_stride;
    uint32_t num_tokens;
    uint32_t rank;
    float routed_scaling_factor;
};
static_assert(sizeof(Params) == config::kParamBytes, "recipes/params.py packs other fields");

// The global expert that a slot of this rank was routed to, or -1 (also for indices that are no expert).
__device__ __forceinline__ int32_t home_expert(const Params& params, uint32_t slot) { return comm::routed_expert(params.peers, params.sym, params.rank, slot); }

}  // namespace mega_moe
#line 5 "/mega_moe/context_sm100.cuh"
#line 1 "/mega_moe/scheduler_sm100.cuh"
// One tile order that every role walks, in waves of kWaveTiles token tiles: a wave's L1 tiles, then its L2 tiles; in each phase
// expert by expert, weight rows outside, tokens inside.
//
// Group g (a CTA, or a pair) takes tiles g, g + number of groups, ... Waves bound memory: a token tile's place in the ring is free
// again two waves later. Whatever a tile waits for comes earlier in this order, so with all groups resident nothing can lock up.
//#pragma once
//#include "config.cuh"
#line 1 "/mega_moe/schedule.cuh"
// Where each expert's routed rows and token tiles begin; every block computes the same.
//#pragma once
//#include "config.cuh"
//#include "types.cuh"

namespace mega_moe {

struct Schedule {
    uint32_t row_begin[config::kNumLocalExperts + 1];   // in the list of routed tokens, expert by expert
    uint32_t tile_begin[config::kNumLocalExperts + 1];  // token tiles of kBlockN rows
    uint32_t warp_counts[config::kNumThreads / 32];     // scratch of the routing scan
};

}  // namespace mega_moe
#line 9 "/mega_moe/scheduler_sm100.cuh"
//#include "types.cuh"

namespace mega_moe {

struct Tile {
    uint32_t expert;      // local
    uint32_t m_tile;      // block of kTileM weight rows
    uint32_t token_tile;  // over all experts: the index of its counters
    uint32_t ring_tile;   // its place in the ring
    uint32_t row;         // first row in the list of routed tokens
    uint32_t num_rows;    // valid ones of kBlockN
    bool is_l2;

    // Columns of the tile's MMAs: what the instruction takes, so that few tokens cost few columns.
    __device__ __forceinline__ uint32_t columns() const {
        constexpr uint32_t kStep = 16;  // of a pair; the epilogue takes as many at a time
        return (num_rows + kStep - 1) / kStep * kStep;
    }
};

struct Scheduler {
    const Schedule& schedule;
    uint32_t group, num_groups;

    __device__ __forceinline__ uint32_t num_token_tiles() const { return schedule.tile_begin[config::kNumLocalExperts]; }

    template <typename Visit>
    __device__ __forceinline__ void for_each_tile(const Visit& visit) const {
        uint32_t next = group, passed = 0, wave_expert = 0;
        for (uint32_t begin = 0; begin < num_token_tiles(); begin += config::kWaveTiles) {
            const uint32_t end = min(begin + config::kWaveTiles, num_token_tiles());
            while (schedule.tile_begin[wave_expert + 1] <= begin) ++wave_expert;
            for (uint32_t phase = 0; phase < 2; ++phase) {
                const uint32_t m_tiles = phase == 0 ? config::kL1MTiles : config::kL2MTiles;
                uint32_t expert = wave_expert;
                for (uint32_t first = begin; first < end; ++expert) {
                    // The expert's token tiles in this wave.
                    const uint32_t last = min(schedule.tile_begin[expert + 1], end), count = last - first;
                    for (; next < passed + count * m_tiles; next += num_groups) {
                        const uint32_t i = next - passed;
                        visit(tile_at(expert, i / count, first + i % count, phase == 1));
                    }
                    passed += count * m_tiles, first = last;
                }
            }
        }
    }

    __device__ __forceinline__ Tile tile_at(uint32_t expert, uint32_t m_tile, uint32_t token_tile, bool is_l2) const {
        const uint32_t row = schedule.row_begin[expert] + (token_tile - schedule.tile_begin[expert]) * config::kBlockN;
        return Tile{expert, m_tile, token_tile, token_tile % config::kRingTiles, row, min(config::kBlockN, schedule.row_begin[expert + 1] - row), is_l2};
    }
};

}  // namespace mega_moe
#line 6 "/mega_moe/context_sm100.cuh"
#line 1 "/mega_moe/storage_sm100.cuh"
// Shared memory of the Blackwell kernel. Python plans the same struct (recipes/sm100.py) and the assert below ties the two.
//#pragma once
//#include "config.cuh"
//#include "mega_moe/schedule.cuh"
#line 1 "/pipeline/ring.cuh"
// A ring of shared-memory stages between loaders and consumers: one full and one empty barrier a stage.
//#pragma once
//#include "comm/wait.cuh"
//#include "config.cuh"
//#include "ptx/mbarrier.cuh"
//#include "types.cuh"

namespace pipeline {

struct RingBarriers {
    uint64_t full[config::kNumStages];   // weights and tokens of the stage have landed
    uint64_t empty[config::kNumStages];  // every consumer warp has read the stage
};

// One role's place in the ring. Loaders and consumers each walk a cursor of their own.
struct RingCursor {
    uint32_t stage = 0;
    uint32_t phase = 0;

    __device__ __forceinline__ void advance() {
        // A wrapped ring reuses barrier 0, whose parity has flipped since we last waited on it.
        if (++stage == config::kNumStages) {
            stage = 0;
            phase ^= 1;
        }
    }
};

__device__ __forceinline__ void init(RingBarriers& barriers) {
    for (uint32_t i = 0; i < config::kNumStages; ++i) {
        ptx::mbarrier_init(ptx::smem_address(&barriers.full[i]), config::kFullArrivals);
        ptx::mbarrier_init(ptx::smem_address(&barriers.empty[i]), config::kEmptyArrivals);
    }
}

// Loader: waits until the stage may be overwritten. A fresh barrier lets the first round through.
__device__ __forceinline__ uint32_t wait_empty(const comm::Watchdog& watchdog, RingBarriers& barriers, const RingCursor& cursor) {
    comm::wait_barrier(watchdog, ptx::smem_address(&barriers.empty[cursor.stage]), cursor.phase ^ 1, comm::WaitFor::kStageEmpty, cursor.stage);
    return ptx::smem_address(&barriers.full[cursor.stage]);
}

// Loader, at its end: waits until every stage has been released, so that no arrival is still on its way when the block leaves.
__device__ __forceinline__ void drain(const comm::Watchdog& watchdog, RingBarriers& barriers, RingCursor cursor) {
    for (uint32_t i = 0; i < config::kNumStages; ++i, cursor.advance()) wait_empty(watchdog, barriers, cursor);
}

// Consumer: looks whether the stage's data is there; wait_full can take the answer later.
__device__ __forceinline__ bool is_full(RingBarriers& barriers, const RingCursor& cursor) {
    return ptx::mbarrier_test_wait_parity(ptx::smem_address(&barriers.full[cursor.stage]), cursor.phase);
}

// Consumer: waits until the stage's data is there.
__device__ __forceinline__ void wait_full(const comm::Watchdog& watchdog, RingBarriers& barriers, const RingCursor& cursor, bool is_known_full = false) {
    if (is_known_full) return;
    comm::wait_barrier(watchdog, ptx::smem_address(&barriers.full[cursor.stage]), cursor.phase, comm::WaitFor::kStageFull, cursor.stage);
}

}  // namespace pipeline
#line 6 "/mega_moe/storage_sm100.cuh"
//#include "types.cuh"

namespace mega_moe {

// One epilogue warpgroup's own part.
struct EpilogueStorage {
    // A tile on its way out: L2's results [column][128 rows] in BF16, or L1's codes [column][kActsTileBytes].
    alignas(128) uint8_t tile[config::kBlockN * config::kBlockM * 2];
    alignas(16) uint8_t tile_sf[config::kBlockN][8];  // scale factors of L1's codes: up to 8 groups of a tile
    alignas(16) float amax[2][16][4];                 // of 16 columns, by warp: groups that span two warps
    float factor[config::kBlockN];                    // by column: top-k weight, where this GEMM's results are multiplied by it
    float token_scale[config::kBlockN];               // by column: x's second-level scale
    float acts_scale[config::kBlockN];                // by column: second-level scale of the activations
    uint32_t slot[config::kBlockN];                   // by column: token * top-k + slot
};

struct SharedStorage {
    // Rows of 128 bytes along K, swizzled by TMA: 256 FP4 codes, or 128 codes in 8-bit containers.
    alignas(1024) uint8_t weights[config::kNumStages][config::kBlockM * 128];
    alignas(1024) uint8_t tokens[config::kNumStages][config::kLoadN * 128];
    // Scale factors: 512-byte atoms of 128 rows x 4 groups of K.
    alignas(128) uint8_t weights_sf[config::kNumStages][config::kSfWords][512];
    alignas(128) uint8_t tokens_sf[config::kNumStages][config::kTokenAtoms][config::kSfWords][512];
    EpilogueStorage epilogue[config::kNumEpilogueWarpgroups];
    Schedule schedule;
    alignas(8) pipeline::RingBarriers ring;
    uint64_t accum_full[config::kNumAccums];   // the MMAs of a tile are done
    uint64_t accum_empty[config::kNumAccums];  // the epilogue has read them
    uint32_t tmem;                             // address of the CTA's tensor memory
    uint32_t is_last;                          // this block is the last to leave
};
static_assert(sizeof(SharedStorage) == config::kSmemBytes, "recipes/sm100.py plans another shared memory");

}  // namespace mega_moe
#line 7 "/mega_moe/context_sm100.cuh"
#line 1 "/ptx/copy.cuh"
// Asynchronous copies into shared memory: bulk and tensor copies (TMA), and cp.async.
// PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy".
//#pragma once
//#include "types.cuh"

namespace ptx {

// Opaque 128-byte tensor map, passed to kernels by value as a __grid_constant__ parameter.
struct alignas(64) TensorMap {
    uint64_t opaque[16];
};

__device__ __forceinline__ void prefetch_tensormap(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// An L2 cache policy that drops the lines first: for data that is read once.
__device__ __forceinline__ uint64_t createpolicy_evict_first() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// Copies `bytes` (a multiple of 16) and completes them on `barrier`; both addresses are 16-byte aligned.
__device__ __forceinline__ void cp_async_bulk(uint32_t smem, const void* global, uint32_t bytes, uint32_t barrier, uint64_t policy) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(smem),
        "l"(global), "r"(bytes), "r"(barrier), "l"(policy)
        : "memory");
}

// The same without a policy.
__device__ __forceinline__ void cp_async_bulk(uint32_t smem, const void* global, uint32_t bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(smem), "l"(global), "r"(bytes), "r"(barrier)
                 : "memory");
}

// Loads the box at (x, y), innermost coordinate first; parts outside of the tensor arrive as zeros and count as bytes.
__device__ __forceinline__ void cp_async_bulk_tensor_2d(uint32_t smem, const TensorMap* map, int32_t x, int32_t y, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(smem),
        "l"(map), "r"(x), "r"(y), "r"(barrier)
        : "memory");
}

// Copies 4 bytes by the generic proxy, behind the thread's back.
__device__ __forceinline__ void cp_async_4(uint32_t smem, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(smem), "l"(global) : "memory");
}

// Waits for all of this thread's cp.async.
__device__ __forceinline__ void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace ptx
#line 8 "/mega_moe/context_sm100.cuh"
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
#line 9 "/mega_moe/context_sm100.cuh"

namespace mega_moe {

// Operands of one GEMM: weights [experts x rows][K] and tokens or activations [ring rows][K], each with its scale factors.
struct OperandMaps {
    const ptx::TensorMap &weights, &weights_sf, &acts, &acts_sf;
};

struct Context {
    const Params& params;
    OperandMaps l1, l2;
    SharedStorage& smem;
    Scheduler scheduler;
    comm::Watchdog watchdog;
    uint32_t cta;  // 0, or this CTA's place in its pair; 0 issues the MMAs
};

// Tensor memory: accumulators first, then the scale factors of one stage.
constexpr uint32_t kSfaColumn = config::kNumAccums * config::kBlockN, kSfbColumn = kSfaColumn + config::kSfWords * 4;
constexpr uint32_t kSfbWordColumns = config::kTokenAtoms * 4;  // from one word along K to the next
static_assert(kSfbColumn + config::kSfWords * kSfbWordColumns <= config::kTmemColumns);

// One role's place among the accumulators.
struct AccumCursor {
    uint32_t index = 0, phase = 0;

    __device__ __forceinline__ void advance() {
        if (++index == config::kNumAccums) {
            index = 0;
            phase ^= 1;
        }
    }
};

// Named barrier ids; 0 is __syncthreads. Each epilogue warpgroup has one more of its own.
constexpr uint32_t kConsumerBarrier = 1, kFirstEpilogueBarrier = 2;
constexpr uint32_t kNumConsumerThreads = config::kNumEpilogueWarpgroups * 128;

__device__ __forceinline__ void sync_consumers() { ptx::barrier_sync(kConsumerBarrier, kNumConsumerThreads); }

// What l2_done comes to.
__device__ __forceinline__ uint32_t l2_arrivals(const Context& ctx) { return ctx.scheduler.num_token_tiles() * config::kL2Arrivals; }

// Every counter that a call used, back to zero: the last block's consumers call it.
__device__ __forceinline__ void reset_counters(const Context& ctx, uint32_t consumer_thread) {
    const Params& params = ctx.params;
    for (uint32_t i = consumer_thread; i < config::kNumLocalExperts; i += kNumConsumerThreads) params.list_ready[i] = 0;
    for (uint32_t i = consumer_thread; i < ctx.scheduler.num_token_tiles(); i += kNumConsumerThreads) {
        params.tokens_ready[i] = 0, params.l1_done[i] = 0, params.l2_tile_done[i] = 0;
    }
    if (consumer_thread == 0) *params.l2_done = 0, *params.exited = 0;
}

}  // namespace mega_moe
#line 11 "/mega_moe/sm100.cuh"
#line 1 "/mega_moe/roles/cleanup.cuh"
// Role: cleanup (the consumer warpgroups, last)
// Waits for:  this block's last look at any counter
// Produces:   the last block to leave sets every counter back to zero for the next launch
// Registers:  config::kConsumerRegisters
//#pragma once
#line 1 "/mega_moe/context.cuh"
// For roles that all families share: the context of the kernel's own family. Each declares Params, Schedule, Context,
// kNumConsumerThreads and sync_consumers (consumers are the warps with epilogues, which combine at the end).
//#pragma once
//#include "mega_moe/context_sm100.cuh"
#line 7 "/mega_moe/roles/cleanup.cuh"

namespace roles {

__device__ __forceinline__ void cleanup(const mega_moe::Context& ctx, uint32_t consumer_thread, uint32_t* is_last) {
    const mega_moe::Params& params = ctx.params;
    // Loaders have no counter left to read: their last tile's data was consumed before combine.
    mega_moe::sync_consumers();
    if (consumer_thread == 0) *is_last = ptx::atom_acq_rel_gpu_add(params.exited, 1) == gridDim.x - 1;
    mega_moe::sync_consumers();
    if (*is_last == 0) return;
    mega_moe::reset_counters(ctx, consumer_thread);
}

}  // namespace roles
#line 12 "/mega_moe/sm100.cuh"
#line 1 "/mega_moe/roles/combine.cuh"
// Role: combine (the consumer warpgroups, after their last tile)
// Waits for:  all L2 tiles
// Produces:   y: the FP32 sum of a token's partials in slot order, times the routed scaling factor, rounded to BF16
// Registers:  config::kConsumerRegisters
//#pragma once
//#include "mega_moe/context.cuh"
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
#line 8 "/mega_moe/roles/combine.cuh"

namespace roles {

constexpr uint32_t kRuns = 2;                    // of 256 neighbouring values, 8 a lane, that a warp sums at once
constexpr uint32_t kPieceValues = kRuns * 256;

__device__ __forceinline__ void store_run(const mega_moe::Params& params, uint32_t token, uint32_t hidden, const float (&sum)[8]) {
    const float factor = params.routed_scaling_factor;
    uint16_t* y = params.y + uint64_t(token) * params.y_stride + hidden;
    if constexpr (config::kHidden % 8 == 0) {
        if (hidden >= config::kHidden) return;
        if (params.y_stride % 8 == 0 && reinterpret_cast<uint64_t>(params.y) % 16 == 0) {
            *reinterpret_cast<uint4*>(y) = {ptx::cvt_bf16x2(sum[0] * factor, sum[1] * factor), ptx::cvt_bf16x2(sum[2] * factor, sum[3] * factor),
                                            ptx::cvt_bf16x2(sum[4] * factor, sum[5] * factor), ptx::cvt_bf16x2(sum[6] * factor, sum[7] * factor)};
            return;
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
        if (hidden + i < config::kHidden) y[i] = uint16_t(ptx::cvt_bf16x2(sum[i] * factor, 0.0f));
    }
}

constexpr uint32_t kSlotsAtOnce = config::kNumTopk < 6 ? config::kNumTopk : 6;
using Rows = uint4[kSlotsAtOnce][kRuns];

// Which of a token's slots went somewhere: a lane looks at each. No token: none.
__device__ __forceinline__ bool is_routed(const mega_moe::Params& params, uint32_t token, uint32_t lane) {
    static_assert(config::kNumTopk <= 32, "a lane a slot");
    return token < params.num_tokens && lane < config::kNumTopk && mega_moe::home_expert(params, token * config::kNumTopk + lane) >= 0;
}

// Starts the loads of kRuns x 256 neighbouring values of a slot's row, from `hidden` on.
__device__ __forceinline__ void load_slot(const uint16_t* partials, uint32_t token, uint32_t hidden, uint32_t routed, uint32_t slot, uint4 (&row)[kRuns]) {
    const bool is_there = slot < config::kNumTopk && (routed >> slot & 1);
    const uint16_t* values = partials + uint64_t(token * config::kNumTopk + slot) * config::kHiddenPadded + hidden;
#pragma unroll
    for (uint32_t run = 0; run < kRuns; ++run) {
        const bool is_inside = kPieceValues <= 256 || config::kHiddenPadded % kPieceValues == 0 || hidden + run * 256 < config::kHiddenPadded;
        row[run] = ptx::ld_global_cg_v4_if(is_there && is_inside, values + run * 256);
    }
}

__device__ __forceinline__ void add_slot(const uint4 (&row)[kRuns], float (&sum)[kRuns][8]) {
#pragma unroll
    for (uint32_t run = 0; run < kRuns; ++run) {
        const uint32_t pairs[4] = {row[run].x, row[run].y, row[run].z, row[run].w};
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) sum[run][2 * i] += ptx::bf16_low(pairs[i]), sum[run][2 * i + 1] += ptx::bf16_high(pairs[i]);
    }
}

// One piece: kRuns x 256 neighbouring values of a token, of which the first slots' rows are on their way.
__device__ __forceinline__ void finish_piece(const mega_moe::Params& params, const uint16_t* partials, uint32_t token, uint32_t hidden, uint32_t routed, Rows& rows) {
    float sum[kRuns][8] = {};
#pragma unroll
    for (uint32_t first = 0; first < config::kNumTopk; first += kSlotsAtOnce) {
#pragma unroll
        for (uint32_t k = 0; k < kSlotsAtOnce; ++k) {
            if (first > 0) load_slot(partials, token, hidden, routed, first + k, rows[k]);
        }
#pragma unroll
        for (uint32_t k = 0; k < kSlotsAtOnce; ++k) add_slot(rows[k], sum);
    }
#pragma unroll
    for (uint32_t run = 0; run < kRuns; ++run) store_run(params, token, hidden + run * 256, sum[run]);
}

// A warp has two pieces in hand: one on its way while the other is added, since only loads in flight make this faster.
__device__ __forceinline__ void combine(const mega_moe::Context& ctx, uint32_t consumer_thread) {
    constexpr uint32_t kPieces = (config::kHidden + kPieceValues - 1) / kPieceValues, kWarps = mega_moe::kNumConsumerThreads / 32;
    const mega_moe::Params& params = ctx.params;
    const uint32_t lane = consumer_thread % 32, step = gridDim.x * kWarps, end = params.num_tokens * kPieces;
    // Few tokens spread over all blocks, and spare the warp of the thread that polls.
    uint32_t i = (kWarps - 1 - consumer_thread / 32) * gridDim.x + blockIdx.x;
    // The routing was there before the launch: it is read while others finish.
    uint32_t routed[2] = {__ballot_sync(~0u, is_routed(params, i / kPieces, lane)), __ballot_sync(~0u, is_routed(params, (i + step) / kPieces, lane))};
    // One thread polls; what it acquires reaches the others through the barrier.
    if (consumer_thread == 0) {
        comm::wait_counter(ctx.watchdog, params.l2_done, mega_moe::l2_arrivals(ctx), comm::WaitFor::kL2Tiles, 0);
    }
    mega_moe::sync_consumers();
    const uint16_t* partials = comm::part<const uint16_t>(params.peers, params.rank, params.sym.partials);
    Rows rows[2];
    const auto load = [&](uint32_t at, uint32_t buffer) __attribute__((always_inline)) {
#pragma unroll
        for (uint32_t k = 0; k < kSlotsAtOnce; ++k) load_slot(partials, at / kPieces, at % kPieces * kPieceValues + lane * 8, routed[buffer], k, rows[buffer][k]);
    };
    load(i, 0);
#pragma unroll 1
    while (i < end) {
#pragma unroll
        for (uint32_t buffer = 0; buffer < 2; ++buffer) {
            if (i >= end) break;
            load(i + step, buffer ^ 1);
            const bool is_routed_later = is_routed(params, (i + 2 * step) / kPieces, lane);
            finish_piece(params, partials, i / kPieces, i % kPieces * kPieceValues + lane * 8, routed[buffer], rows[buffer]);
            routed[buffer] = __ballot_sync(~0u, is_routed_later);
            i += step;
        }
    }
}

}  // namespace roles
#line 13 "/mega_moe/sm100.cuh"
#line 1 "/mega_moe/roles/dispatch_sm100.cuh"
// Role: dispatch (warps 12 .. 15; one routed row a warp at a time)
// Waits for:  the expert's list; the row's place in the ring to be free (L2 of the token tile that had it)
// Produces:   the row's codes in the ring of tokens, its scale factors in the ring's atoms; counts the row in tokens_ready
// Registers:  few
//
// Rows come from the home ranks' symmetric buffers through the table of base pointers.
//#pragma once
//#include "mega_moe/context_sm100.cuh"
//#include "ptx/ld_st.cuh"

namespace roles {

// Copies a row of codes; hidden is padded with zeros.
__device__ __forceinline__ void copy_codes(const uint8_t* source, uint8_t* target, uint32_t lane) {
    constexpr bool kIsWide = config::kSourceRowBytes % 16 == 0;
    using Unit = uint2;
    if constexpr (kIsWide) {
        for (uint32_t i = lane * 16; i < config::kTokenRowBytes; i += 32 * 16) {
            const uint4 zeros = {0, 0, 0, 0};
            *reinterpret_cast<uint4*>(target + i) = i < config::kSourceRowBytes ? *reinterpret_cast<const uint4*>(source + i) : zeros;
        }
    } else {
        static_assert(config::kSourceRowBytes % sizeof(Unit) == 0);
        for (uint32_t i = lane * sizeof(Unit); i < config::kTokenRowBytes; i += 32 * sizeof(Unit)) {
            const Unit zeros = {0, 0};
            *reinterpret_cast<Unit*>(target + i) = i < config::kSourceRowBytes ? *reinterpret_cast<const Unit*>(source + i) : zeros;
        }
    }
}

// Copies a row's scale factors, four a word, to the row's words in the atoms of its token tile: word w to atom w.
__device__ __forceinline__ void copy_scales(const uint8_t* source, uint32_t* atoms, uint32_t row, uint32_t lane) {
    uint32_t* target = atoms + row / 128 * (config::kL1RingWords * 128) + row % 32 * 4 + row % 128 / 32;
    for (uint32_t word = lane; word < config::kL1KWords; word += 32) {
        uint32_t value = 0;
        if constexpr (config::kSourceGroups % 4 == 0) {
            if (word < config::kSourceGroups / 4) value = reinterpret_cast<const uint32_t*>(source)[word];
        } else {
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i)
                if (word * 4 + i < config::kSourceGroups) value |= uint32_t(source[word * 4 + i]) << (8 * i);
        }
        target[word * 128] = value;
    }
}

__device__ __forceinline__ void dispatch(const mega_moe::Context& ctx, uint32_t thread) {
    using namespace mega_moe;
    constexpr uint32_t kWarps = config::kNumDispatchThreads / 32;
    const Params& params = ctx.params;
    const Schedule& schedule = ctx.scheduler.schedule;
    const uint32_t lane = thread % 32, num_rows = schedule.row_begin[config::kNumLocalExperts];
    uint32_t expert = 0;
    for (uint32_t row = blockIdx.x * kWarps + thread / 32; row < num_rows; row += gridDim.x * kWarps) {
        while (row >= schedule.row_begin[expert + 1]) ++expert;
        const uint32_t in_expert = row - schedule.row_begin[expert], token_tile = schedule.tile_begin[expert] + in_expert / config::kBlockN;
        const uint32_t ring_tile = token_tile % config::kRingTiles, in_tile = in_expert % config::kBlockN;
        if (lane == 0) {
            comm::wait_counter(ctx.watchdog, &params.list_ready[expert], 1, comm::WaitFor::kRoutedList, expert);
            if (token_tile >= config::kRingTiles) {
                const uint32_t before = token_tile - config::kRingTiles;
                comm::wait_counter(ctx.watchdog, &params.l2_tile_done[before], config::kL2Arrivals, comm::WaitFor::kRingTile, before);
            }
        }
        __syncwarp();
        const uint32_t token = params.routed[row] / config::kNumTopk;
        const uint8_t* codes = comm::part<const uint8_t>(params.peers, 0, params.sym.tokens) + uint64_t(token) * config::kSourceRowBytes;
        const uint8_t* scales = comm::part<const uint8_t>(params.peers, 0, params.sym_block_sf) + uint64_t(token) * config::kSourceGroups;
        copy_codes(codes, params.tokens + (uint64_t(ring_tile) * config::kBlockN + in_tile) * config::kTokenRowBytes, lane);
        copy_scales(scales, params.tokens_sf + uint64_t(ring_tile) * (config::kTokenAtoms * config::kL1RingWords * 128), in_tile, lane);
        // The lanes' stores happen before the release through __syncwarp; the loader fences the proxy on its side.
        __syncwarp();
        if (lane == 0) ptx::red_release_gpu_add(&params.tokens_ready[token_tile], 1);
    }
}

}  // namespace roles
#line 14 "/mega_moe/sm100.cuh"
#line 1 "/mega_moe/roles/epilogue_l1_sm100.cuh"
// Role: L1 epilogue (an epilogue warpgroup)
// Waits for:  the tile's accumulator
// Produces:   activation(results) in the ring of activations: codes K-major, scale factors as UTCCP atoms; counts the tile in l1_done
// Registers:  16 columns at a time
//
// A warp has 32 weight rows. With a gate they are 8 gate rows, their 8 up rows, 8 gate rows, ... (layouts/interleave.py), so that a
// thread holds gate and up of a value, and the warp 16 neighbouring values; without a gate it has 32. Sub-blocks are of 16 values:
// value 8 p + lane / 4 of a sub-block is in this thread, p = 0, 1.
//#pragma once
#line 1 "/mega_moe/activation.cuh"
// The activation between L1 and L2, in FP32. Definitions: formats/activation.py.
//#pragma once
//#include "config.cuh"
//#include "ptx/convert.cuh"
//#include "types.cuh"

namespace mega_moe {

enum class Activation : uint32_t { kSwiglu = 0, kGelu = 1, kRelu2 = 2 };
constexpr Activation kActivation = Activation(config::kActivation);

__device__ __forceinline__ float sigmoid(float x) {
    if constexpr (config::kFastMath) {
        constexpr float kLog2E = 1.4426950408889634f;
        return ptx::rcp_approx(1.0f + ptx::ex2_approx(-kLog2E * x));
    } else {
        return 1.0f / (1.0f + expf(-x));
    }
}

// One intermediate value of a gated activation.
__device__ __forceinline__ float activate(float gate, float up) {
    if constexpr (config::kHasClamp) {
        gate = ptx::min_nan(gate, config::kClamp);
        up = ptx::min_nan(ptx::max_nan(up, -config::kClamp), config::kClamp);
    }
    if constexpr (kActivation == Activation::kSwiglu) {
        return gate * sigmoid(config::kAlpha * gate) * (up + config::kUpBias);
    } else {
        return 0.5f * gate * (1.0f + erff(gate * 0.70710678118654752f)) * (up + config::kUpBias);
    }
}

// One intermediate value without a gate.
__device__ __forceinline__ float activate(float value) {
    if constexpr (config::kHasClamp) value = ptx::min_nan(value, config::kClamp);
    const float positive = ptx::max_nan(value, 0.0f);
    return positive * positive;
}

}  // namespace mega_moe
#line 11 "/mega_moe/roles/epilogue_l1_sm100.cuh"
#line 1 "/mega_moe/roles/epilogue_sm100.cuh"
// Role: epilogue (two warpgroups, which take tiles in turns), what L1 and L2 have in common
// Waits for:  an accumulator's full barrier
// Produces:   per column of the tile: slot, scales and factors in shared memory; releases accumulators on the even CTA's barrier
// Registers:  those of the launch
//
// Thread t of a warpgroup reads lanes 32 (t / 32) .. of tensor memory: its warp's quarter of the tile's weight rows.
//#pragma once
//#include "mega_moe/context_sm100.cuh"
#line 1 "/ptx/cluster.cuh"
// CTAs of a cluster: rank, barrier, and each other's shared memory. PTX ISA, "barrier.cluster", "mapa", "elect.sync".
//#pragma once
//#include "types.cuh"

namespace ptx {

__device__ __forceinline__ uint32_t cluster_cta_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The address in CTA `rank` of what lies at `smem` here.
__device__ __forceinline__ uint32_t map_to_cta(uint32_t smem, uint32_t rank) {
    uint32_t mapped;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(smem), "r"(rank));
    return mapped;
}

// Arrives on a barrier of any CTA of the cluster (an address of map_to_cta).
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t barrier) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// True in one lane of a converged warp.
__device__ __forceinline__ bool elect_one() {
    uint32_t elected;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xFFFFFFFF;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
    return elected != 0;
}

}  // namespace ptx
#line 10 "/mega_moe/roles/epilogue_sm100.cuh"
#line 1 "/ptx/tcgen05.cuh"
// Tensor core and tensor memory of data-center Blackwell. PTX ISA, "TensorCore 5th Generation Family Instructions".
//
// All tcgen05 instructions of a kernel have one cta_group: 1, or 2 for a pair of CTAs, whose even one issues for both.
//#pragma once
//#include "config.cuh"
//#include "types.cuh"

namespace ptx {

// --- tensor memory: 128 lanes x 512 columns of 32 bits; address = lane << 16 | column -----------------------------------

// One warp (in each CTA of a pair) takes `kColumns` (a power of two, 32..512); the address is written to shared memory.
template <uint32_t kColumns>
__device__ __forceinline__ void tcgen05_alloc(uint32_t smem) {
    asm volatile("tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [%0], %1;" ::"r"(smem), "n"(kColumns) : "memory");
    asm volatile("tcgen05.relinquish_alloc_permit.cta_group::2.sync.aligned;");
}

template <uint32_t kColumns>
__device__ __forceinline__ void tcgen05_dealloc(uint32_t tmem) {
    asm volatile("tcgen05.dealloc.cta_group::2.sync.aligned.b32 %0, %1;" ::"r"(tmem), "n"(kColumns));
}

// A warp's 32 lanes of 32 columns: thread t gets lane t of the warp's quarter. Valid after tcgen05_wait_ld.
__device__ __forceinline__ void tcgen05_ld_32x32b_x32(uint32_t (&d)[32], uint32_t tmem) {
    asm volatile("tcgen05.ld.sync.aligned.32x32b.x32.b32 { %0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31 }, [%32];" : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]), "=r"(d[4]), "=r"(d[5]), "=r"(d[6]), "=r"(d[7]), "=r"(d[8]), "=r"(d[9]), "=r"(d[10]), "=r"(d[11]), "=r"(d[12]), "=r"(d[13]), "=r"(d[14]), "=r"(d[15]), "=r"(d[16]), "=r"(d[17]), "=r"(d[18]), "=r"(d[19]), "=r"(d[20]), "=r"(d[21]), "=r"(d[22]), "=r"(d[23]), "=r"(d[24]), "=r"(d[25]), "=r"(d[26]), "=r"(d[27]), "=r"(d[28]), "=r"(d[29]), "=r"(d[30]), "=r"(d[31]) : "r"(tmem));
}

__device__ __forceinline__ void tcgen05_ld_32x32b_x16(uint32_t (&d)[16], uint32_t tmem) {
    asm volatile("tcgen05.ld.sync.aligned.32x32b.x16.b32 { %0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15 }, [%16];" : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]), "=r"(d[4]), "=r"(d[5]), "=r"(d[6]), "=r"(d[7]), "=r"(d[8]), "=r"(d[9]), "=r"(d[10]), "=r"(d[11]), "=r"(d[12]), "=r"(d[13]), "=r"(d[14]), "=r"(d[15]) : "r"(tmem));
}

// 16 lanes of 16 columns, at `tmem`'s lane (0 or 16 of the warp's quarter): thread t's register r is lane t / 4 + 8 (r / 2 % 2), column
// 8 (r / 4) + 2 (t % 4) + r % 2. Rows 8 lanes apart are in one thread.
__device__ __forceinline__ void tcgen05_ld_16x256b_x2(uint32_t (&d)[8], uint32_t tmem) {
    asm volatile("tcgen05.ld.sync.aligned.16x256b.x2.b32 { %0, %1, %2, %3, %4, %5, %6, %7 }, [%8];" : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]), "=r"(d[4]), "=r"(d[5]), "=r"(d[6]), "=r"(d[7]) : "r"(tmem));
}

__device__ __forceinline__ void tcgen05_wait_ld() { asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory"); }

// --- order between threads ----------------------------------------------------------------------------------------------

// Before a barrier or arrival that hands tensor memory to another thread; tcgen05_commit has it built in.
__device__ __forceinline__ void tcgen05_fence_before_thread_sync() { asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory"); }

// After a wait that was handed tensor memory, or operands in shared memory, before tcgen05 work on it.
__device__ __forceinline__ void tcgen05_fence_after_thread_sync() { asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory"); }

// Arrives once on `barrier` (in each CTA of a pair, at the same offset) when all earlier copies and MMAs of this thread are done.
__device__ __forceinline__ void tcgen05_commit(uint32_t barrier) {
    if constexpr (config::kCtaGroup == 2) {
        asm volatile(
            "{\n.reg .b16 pair;\nmov.b16 pair, 3;\n"
            "tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%0], pair;\n}" ::"r"(barrier)
            : "memory");
    } else {
        asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(barrier) : "memory");
    }
}

// --- asynchronous work of one thread ------------------------------------------------------------------------------------

// 512 bytes of shared memory to 4 columns: 16-byte line i to lanes i, i + 32, i + 64, i + 96 (UTCCP).
__device__ __forceinline__ void tcgen05_cp_32x128b_warpx4(uint32_t tmem, uint64_t smem_desc) {
    asm volatile("tcgen05.cp.cta_group::2.32x128b.warpx4 [%0], %1;" ::"r"(tmem), "l"(smem_desc) : "memory");
}

// D[M, N] (+)= (A x SFA)[M, K] @ (B x SFB)[N, K]^T, A and B in shared memory, D and scale factors in tensor memory.
__device__ __forceinline__ void tcgen05_mma_block_scale(uint32_t d_tmem, uint64_t a_desc, uint64_t b_desc, uint32_t instr_desc, uint32_t sfa_tmem, uint32_t sfb_tmem,
                                                        bool accumulate) {
    asm volatile(
        "{\n.reg .pred accumulate;\nsetp.ne.u32 accumulate, %6, 0;\n"
        "tcgen05.mma.cta_group::2.kind::mxf4nvf4.block_scale.block16 [%0], %1, %2, %3, [%4], [%5], accumulate;\n}" ::"r"(d_tmem),
        "l"(a_desc), "l"(b_desc), "r"(instr_desc), "r"(sfa_tmem), "r"(sfb_tmem), "r"(uint32_t(accumulate))
        : "memory");
}

}  // namespace ptx
#line 11 "/mega_moe/roles/epilogue_sm100.cuh"

namespace roles {

struct Epilogue {
    const mega_moe::Context& ctx;
    mega_moe::EpilogueStorage& smem;  // the warpgroup's
    uint32_t warpgroup;
    uint32_t thread;  // in the warpgroup
    uint32_t tmem;    // this warp's lanes
    mega_moe::AccumCursor accum;

    __device__ __forceinline__ void sync() const { ptx::barrier_sync(mega_moe::kFirstEpilogueBarrier + warpgroup, 128); }

    __device__ __forceinline__ uint32_t accum_address() const { return tmem + accum.index * config::kBlockN; }

    __device__ __forceinline__ void wait_accum() const {
        comm::wait_barrier(ctx.watchdog, ptx::smem_address(&ctx.smem.accum_full[accum.index]), accum.phase, comm::WaitFor::kAccumFull, accum.index);
        ptx::tcgen05_fence_after_thread_sync();
    }

    // One arrival a warp, after its last load.
    __device__ __forceinline__ void release_accum() const {
        ptx::tcgen05_fence_before_thread_sync();
        __syncwarp();
        if (thread % 32 != 0) return;
        const uint32_t barrier = ptx::smem_address(&ctx.smem.accum_empty[accum.index]);
        if constexpr (config::kCtaGroup == 1) {
            ptx::mbarrier_arrive(barrier);
        } else {
            ptx::mbarrier_arrive_cluster(ptx::map_to_cta(barrier, 0));
        }
    }
};

// What the tile's columns need, in shared memory. factor: the top-k weight, in L2 and before requantisation also in L1, else 1.
// L1: x's second-level scale, and the scale that its activations get. L2: that scale again.
__device__ __forceinline__ void fetch_columns(const Epilogue& e, const mega_moe::Tile& tile) {
    const mega_moe::Params& params = e.ctx.params;
    for (uint32_t column = e.thread; column < config::kBlockN; column += 128) {
        const bool is_valid = column < tile.num_rows;
        const uint32_t row = tile.row + column;
        const float token_scale = config::kHasTokenScales && is_valid ? params.routed_sf[row] : 1.0f;
        e.smem.slot[column] = is_valid ? params.routed[row] : 0;
        const float factor = is_valid && (tile.is_l2 || config::kWeighsBeforeRequant) ? params.routed_weights[row] : 1.0f;
        e.smem.factor[column] = factor;
        e.smem.token_scale[column] = token_scale;
        e.smem.acts_scale[column] = config::kHasTokenScales ? mega_moe::foresee_acts_scale(params.forecast[tile.expert], token_scale, config::kWeighsBeforeRequant ? factor : 1.0f) : 1.0f;
    }
    e.sync();
}

}  // namespace roles
#line 12 "/mega_moe/roles/epilogue_l1_sm100.cuh"
//#include "ptx/convert.cuh"
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
#line 14 "/mega_moe/roles/epilogue_l1_sm100.cuh"

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
#line 15 "/mega_moe/sm100.cuh"
#line 1 "/mega_moe/roles/epilogue_l2_sm100.cuh"
// Role: L2 epilogue (an epilogue warpgroup)
// Waits for:  the tile's accumulator
// Produces:   bf16(top-k weight x (alpha x acts scale x sums + bias)) in the home rank's partials, one row a slot, by bulk copies of
//             128 values; counts the tile in l2_tile_done and l2_done
// Registers:  32 columns at a time
//#pragma once
//#include "mega_moe/roles/epilogue_sm100.cuh"
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
#line 10 "/mega_moe/roles/epilogue_l2_sm100.cuh"
#line 1 "/ptx/tma_sm100.cuh"
// Tensor copies into shared memory for kernels of one CTA or of CTA pairs. PTX ISA, "cp.async.bulk.tensor", "cp.async.bulk".
//#pragma once
//#include "config.cuh"
//#include "ptx/copy.cuh"
//#include "types.cuh"

namespace ptx {

// Loads the box at (x, y) to this CTA's `smem`. In a pair the bytes complete on the even CTA's barrier: shared-memory
// addresses hold the CTA's rank from bit 24 up, so clearing that bit names the even one of the two.
__device__ __forceinline__ void tma_load_2d(uint32_t smem, const TensorMap* map, int32_t x, int32_t y, uint32_t barrier) {
    if constexpr (config::kCtaGroup == 2) {
        asm volatile(
            "cp.async.bulk.tensor.2d.cta_group::2.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(smem),
            "l"(map), "r"(x), "r"(y), "r"(barrier & 0xFEFFFFFFu)
            : "memory");
    } else {
        cp_async_bulk_tensor_2d(smem, map, x, y, barrier);
    }
}

// Stores `bytes` (a multiple of 16) from shared memory; part of the thread's open bulk group.
__device__ __forceinline__ void cp_async_bulk_store(void* global, uint32_t smem, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(smem), "r"(bytes) : "memory");
}

__device__ __forceinline__ void cp_async_bulk_commit_group() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until this thread's bulk groups have read their shared memory.
__device__ __forceinline__ void cp_async_bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// Waits until this thread's bulk groups have been written.
__device__ __forceinline__ void cp_async_bulk_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

}  // namespace ptx
#line 11 "/mega_moe/roles/epilogue_l2_sm100.cuh"

namespace roles {

__device__ __forceinline__ void epilogue_l2(const Epilogue& e, const mega_moe::Tile& tile) {
    constexpr uint32_t kColumns = 16;
    const mega_moe::Params& params = e.ctx.params;
    fetch_columns(e, tile);
    const uint32_t hidden = (tile.m_tile * config::kCtaGroup + e.ctx.cta) * config::kBlockM;
    const float alpha = params.l2_alphas[tile.expert];
    const float bias = params.l2_bias == nullptr ? 0.0f : params.l2_bias[uint64_t(tile.expert) * config::kHiddenPadded + hidden + e.thread];
    uint16_t* y = reinterpret_cast<uint16_t*>(e.smem.tile);
    e.wait_accum();
    for (uint32_t first = 0; first < tile.columns(); first += kColumns) {
        uint32_t sums[kColumns];
        ptx::tcgen05_ld_32x32b_x16(sums, e.accum_address() + first);
        ptx::tcgen05_wait_ld();
        if (first + kColumns >= tile.columns()) e.release_accum();
#pragma unroll
        for (uint32_t i = 0; i < kColumns; ++i) {
            const uint32_t column = first + i;
            const float scale = config::kHasTokenScales ? alpha * e.smem.acts_scale[column] : alpha;
            // Before requantisation the weight is in the sums already, and the bias still needs it.
            const float factor = e.smem.factor[column], value = fmaf(__uint_as_float(sums[i]), scale, config::kWeighsBeforeRequant ? bias * factor : bias);
            y[column * config::kBlockM + e.thread] = uint16_t(ptx::cvt_bf16x2(config::kWeighsBeforeRequant ? value : value * factor, 0.0f));
        }
    }
    ptx::fence_proxy_async_shared();
    e.sync();
    uint16_t* partials = comm::part<uint16_t>(params.peers, 0, params.sym.partials) + hidden;
    for (uint32_t column = e.thread; column < tile.num_rows; column += 128)
        ptx::cp_async_bulk_store(partials + uint64_t(e.smem.slot[column]) * config::kHiddenPadded, ptx::smem_address(y + column * config::kBlockM), config::kBlockM * 2);
    ptx::cp_async_bulk_commit_group();
    ptx::cp_async_bulk_wait();
    e.sync();
    if (e.thread == 0) {
        ptx::red_release_gpu_add(&params.l2_tile_done[tile.token_tile], 1);
        ptx::red_release_gpu_add(params.l2_done, 1);
    }
}

}  // namespace roles
#line 16 "/mega_moe/sm100.cuh"
#line 1 "/mega_moe/roles/load_sm100.cuh"
// Role: load (one thread of warp 0, in each CTA of a pair)
// Waits for:  a stage's empty barrier; L1: dispatch of the token tile's rows; L2: all L1 tiles of the token tile
// Produces:   a stage of weights, tokens and both scale factors; bytes of both CTAs complete on the even one's full barrier
// Registers:  few
//#pragma once
//#include "mega_moe/context_sm100.cuh"
//#include "ptx/fence.cuh"
//#include "ptx/tma_sm100.cuh"

namespace roles {

template <bool kIsL2>
__device__ __forceinline__ void load_tile(const mega_moe::Context& ctx, const mega_moe::Tile& tile, pipeline::RingCursor& cursor) {
    constexpr uint32_t kKStages = kIsL2 ? config::kL2KStages : config::kL1KStages, kKWords = kIsL2 ? config::kL2KWords : config::kL1KWords;
    constexpr uint32_t kRingWords = kIsL2 ? config::kL2RingWords : config::kL1RingWords;  // whole stages: no load meets another tile's words
    constexpr uint32_t kRows = kIsL2 ? config::kL2Rows : config::kL1Rows;
    constexpr uint32_t kBytes = config::kBlockM * config::kWeightStageRowBytes + config::kLoadN * 128 + (1 + config::kTokenAtoms) * config::kSfWords * 512;
    const mega_moe::OperandMaps& maps = kIsL2 ? ctx.l2 : ctx.l1;
    if constexpr (kIsL2) {
        comm::wait_counter(ctx.watchdog, &ctx.params.l1_done[tile.token_tile], config::kL1Arrivals, comm::WaitFor::kL1Tiles, tile.token_tile);
    } else {
        comm::wait_counter(ctx.watchdog, &ctx.params.tokens_ready[tile.token_tile], tile.num_rows, comm::WaitFor::kDispatch, tile.token_tile);
    }
    // Dispatch and the L1 epilogue wrote with ordinary stores, TMA reads through the async proxy.
    ptx::fence_proxy_async_global();
    const uint32_t row_in_expert = tile.m_tile * config::kTileM + ctx.cta * config::kBlockM;
    // A pair's CTAs hold the halves of the MMA's columns, and each all of their scale factors.
    const uint32_t acts_row = tile.ring_tile * config::kBlockN + ctx.cta * (tile.columns() / config::kCtaGroup);
    for (uint32_t k = 0; k < kKStages; ++k, cursor.advance()) {
        const uint32_t full = pipeline::wait_empty(ctx.watchdog, ctx.smem.ring, cursor);
        if (ctx.cta == 0) ptx::mbarrier_arrive_expect_tx(full, config::kCtaGroup * kBytes);
        const uint32_t stage = cursor.stage, word = k * config::kSfWords;
        ptx::tma_load_2d(ptx::smem_address(ctx.smem.weights[stage]), &maps.weights, k * config::kBlockK, tile.expert * kRows + row_in_expert, full);
        ptx::tma_load_2d(ptx::smem_address(ctx.smem.tokens[stage]), &maps.acts, k * config::kBlockK, acts_row, full);
        // The last stage may take weights' words past the end of K along: they are the next expert's, and not used.
        ptx::tma_load_2d(ptx::smem_address(ctx.smem.weights_sf[stage]), &maps.weights_sf, row_in_expert, tile.expert * kKWords + word, full);
#pragma unroll
        for (uint32_t atom = 0; atom < config::kTokenAtoms; ++atom)
            ptx::tma_load_2d(ptx::smem_address(ctx.smem.tokens_sf[stage][atom]), &maps.acts_sf, 0, (tile.ring_tile * config::kTokenAtoms + atom) * kRingWords + word, full);
    }
}

__device__ __forceinline__ void load(const mega_moe::Context& ctx) {
    pipeline::RingCursor cursor;
    ctx.scheduler.for_each_tile([&](const mega_moe::Tile& tile) {
        if (tile.is_l2) {
            load_tile<true>(ctx, tile, cursor);
        } else {
            load_tile<false>(ctx, tile, cursor);
        }
    });
    pipeline::drain(ctx.watchdog, ctx.smem.ring, cursor);
}

}  // namespace roles
#line 17 "/mega_moe/sm100.cuh"
#line 1 "/mega_moe/roles/mma_sm100.cuh"
// Role: mma (one thread of warp 1, in the even CTA of a pair)
// Waits for:  a stage's full barrier; an accumulator's empty barrier
// Produces:   a tile's products in tensor memory; commits release stages and hand over accumulators
// Registers:  few
//
// Scale factors of a stage go to tensor memory right before the MMAs that read them, always to the same columns. Copies and
// MMAs of one thread run in order as cp -> mma; that a later cp does not overtake an mma is how all public kernels use it.
//#pragma once
#line 1 "/layout/umma.cuh"
// Descriptors of tcgen05.mma, field by field. PTX ISA, tcgen05: "Shared Memory Descriptor", "Instruction Descriptor".
//#pragma once
//#include "config.cuh"
//#include "types.cuh"

namespace layout {

// Operand rows of 128 bytes along K, 128-byte swizzle, tiles at multiples of 1024 bytes:
//   bits 13..0 address >> 4 | 45..32 bytes from 8 rows to the next 8, >> 4 | 48..46 version 1 | 63..61 swizzle, 2 = 128 bytes
__device__ __forceinline__ uint64_t umma_operand(uint32_t smem) {
    return (smem & 0x3FFFF) >> 4 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 46 | uint64_t(2) << 61;
}

// The next 32 bytes of K, which is what one MMA reads of each row: inside a swizzled row, too, since the swizzle is applied to
// the address that the step gives.
constexpr uint64_t kOperandStep = 32 >> 4;

// A 512-byte atom of scale factors, not swizzled: 16-byte lines, 8 of them (128 bytes) from one core matrix to the next.
__device__ __forceinline__ uint64_t umma_scale_atom(uint32_t smem) {
    return (smem & 0x3FFFF) >> 4 | uint64_t(128 >> 4) << 32 | uint64_t(1) << 46;
}

// Block-scaled kinds:
//   5..4 SFB id | 9..7 A type | 12..10 B type | 22..17 N >> 3 | 23 scale type, 1 = UE8M0 | 28..24 M >> 4 | 30..29 SFA id
// The one scale-type bit serves A and B alike. An id is the first byte of the 32-bit scale word that the MMA uses.
__device__ __forceinline__ uint32_t umma_instruction(uint32_t n, uint32_t sf_id) {
    constexpr uint32_t kFixed = config::kMmaAType << 7 | config::kMmaBType << 10 | config::kMmaScaleType << 23 | (config::kMmaM >> 4) << 24;
    return kFixed | sf_id << 4 | (n >> 3) << 17 | sf_id << 29;
}

}  // namespace layout
#line 10 "/mega_moe/roles/mma_sm100.cuh"
//#include "mega_moe/context_sm100.cuh"
//#include "ptx/tcgen05.cuh"

namespace roles {

__device__ __forceinline__ void copy_stage_scales(const mega_moe::Context& ctx, uint32_t stage, uint32_t tmem, uint32_t atoms) {
#pragma unroll
    for (uint32_t word = 0; word < config::kSfWords; ++word) {
        ptx::tcgen05_cp_32x128b_warpx4(tmem + mega_moe::kSfaColumn + word * 4, layout::umma_scale_atom(ptx::smem_address(ctx.smem.weights_sf[stage][word])));
        for (uint32_t atom = 0; atom < atoms; ++atom)
            ptx::tcgen05_cp_32x128b_warpx4(tmem + mega_moe::kSfbColumn + word * mega_moe::kSfbWordColumns + atom * 4,
                                           layout::umma_scale_atom(ptx::smem_address(ctx.smem.tokens_sf[stage][atom][word])));
    }
}

__device__ __forceinline__ void mma(const mega_moe::Context& ctx, uint32_t tmem) {
    pipeline::RingCursor cursor;
    mega_moe::AccumCursor accum;
    ctx.scheduler.for_each_tile([&](const mega_moe::Tile& tile) {
        comm::wait_barrier(ctx.watchdog, ptx::smem_address(&ctx.smem.accum_empty[accum.index]), accum.phase ^ 1, comm::WaitFor::kAccumEmpty, accum.index);
        const uint32_t columns = tile.columns(), atoms = (columns + 127) / 128, d = tmem + accum.index * config::kBlockN;
        const uint32_t k_stages = tile.is_l2 ? config::kL2KStages : config::kL1KStages, num_mmas = tile.is_l2 ? config::kL2Mmas : config::kL1Mmas;
        for (uint32_t k = 0; k < k_stages; ++k, cursor.advance()) {
            pipeline::wait_full(ctx.watchdog, ctx.smem.ring, cursor);
            ptx::tcgen05_fence_after_thread_sync();
            const uint32_t stage = cursor.stage;
            copy_stage_scales(ctx, stage, tmem, atoms);
            const uint64_t a = layout::umma_operand(ptx::smem_address(ctx.smem.weights[stage])), b = layout::umma_operand(ptx::smem_address(ctx.smem.tokens[stage]));
#pragma unroll
            for (uint32_t step = 0; step < config::kMmasPerStage; ++step) {
                // Past the end of K there are no scale factors, and nothing to multiply.
                if (k * config::kMmasPerStage + step >= num_mmas) break;
                const uint32_t word = step / config::kMmasPerWord, sf_id = step % config::kMmasPerWord * config::kScalesPerMma;
                ptx::tcgen05_mma_block_scale(d, a + step * layout::kOperandStep, b + step * layout::kOperandStep, layout::umma_instruction(columns, sf_id),
                                             tmem + mega_moe::kSfaColumn + word * 4, tmem + mega_moe::kSfbColumn + word * mega_moe::kSfbWordColumns, k + step > 0);
            }
            ptx::tcgen05_commit(ptx::smem_address(&ctx.smem.ring.empty[stage]));
        }
        ptx::tcgen05_commit(ptx::smem_address(&ctx.smem.accum_full[accum.index]));
        accum.advance();
    });
}

}  // namespace roles
#line 18 "/mega_moe/sm100.cuh"
#line 1 "/mega_moe/roles/route.cuh"
// Role: route (all warps, before they part)
// Waits for:  the staging launch (griddepcontrol)
// Produces:   the schedule in shared memory (each block the same), and in global memory the lists of routed tokens: expert e's by
//             block e % gridDim.x, in (rank, token, slot) order, announced by list_ready[e]
// Registers:  those of the launch
//#pragma once
//#include "mega_moe/context.cuh"
//#include "ptx/fence.cuh"
//#include "ptx/ld_st.cuh"

namespace roles {

__device__ __forceinline__ int32_t local_expert(const mega_moe::Params& params, uint32_t slot) {
    static_assert(config::kNumRanks == 1, "more ranks need a barrier between their staging and this scan");
    const int32_t expert = comm::routed_expert(params.peers, params.sym, 0, slot) - int32_t(params.rank * config::kNumLocalExperts);
    return expert >= 0 && expert < int32_t(config::kNumLocalExperts) ? expert : -1;
}

// Writes where each expert's rows and token tiles begin.
__device__ __forceinline__ void build_schedule(const mega_moe::Params& params, mega_moe::Schedule& schedule, uint32_t num_slots) {
    uint32_t* counts = schedule.row_begin + 1;
    for (uint32_t e = threadIdx.x; e <= config::kNumLocalExperts; e += config::kNumThreads) schedule.row_begin[e] = 0;
    __syncthreads();
    for (uint32_t slot = threadIdx.x; slot < num_slots; slot += config::kNumThreads) {
        const int32_t expert = local_expert(params, slot);
        if (expert >= 0) atomicAdd(&counts[expert], 1u);
    }
    __syncthreads();
    if (params.recv_stats != nullptr && blockIdx.x == 0) {
        for (uint32_t e = threadIdx.x; e < config::kNumLocalExperts; e += config::kNumThreads) params.recv_stats[e] += int32_t(counts[e]);
        __syncthreads();
    }
    if (threadIdx.x < 32) {
        // Inclusive sums over the experts, 32 at a time.
        uint32_t rows_before = 0, tiles_before = 0;
        if (threadIdx.x == 0) schedule.tile_begin[0] = 0;
        for (uint32_t first = 0; first < config::kNumLocalExperts; first += 32) {
            const uint32_t e = first + threadIdx.x;
            uint32_t rows = e < config::kNumLocalExperts ? counts[e] : 0;
            uint32_t tiles = (rows + config::kBlockN - 1) / config::kBlockN;
            for (uint32_t step = 1; step < 32; step *= 2) {
                const uint32_t r = __shfl_up_sync(~0u, rows, step), t = __shfl_up_sync(~0u, tiles, step);
                if (threadIdx.x >= step) rows += r, tiles += t;
            }
            rows += rows_before, tiles += tiles_before;
            if (e < config::kNumLocalExperts) counts[e] = rows, schedule.tile_begin[e + 1] = tiles;
            rows_before = __shfl_sync(~0u, rows, 31), tiles_before = __shfl_sync(~0u, tiles, 31);
        }
    }
    __syncthreads();
}

// Writes what the roles need of one routed row, so that none has to follow an index for it.
__device__ __forceinline__ void put_row(const mega_moe::Params& params, uint32_t row, uint32_t slot) {
    params.routed[row] = slot;
    params.routed_weights[row] = comm::part<const float>(params.peers, 0, params.sym.topk_weights)[slot];
    if constexpr (config::kHasTokenScales) params.routed_sf[row] = comm::part<const float>(params.peers, 0, params.sym.token_sf)[slot / config::kNumTopk];
}

// Writes the slots that chose `expert`, in order, to params.routed. Each warp owns a run of slots: count, sum over warps, write.
__device__ __forceinline__ void build_list(const mega_moe::Params& params, mega_moe::Schedule& schedule, uint32_t num_slots, uint32_t expert) {
    constexpr uint32_t kNumWarps = config::kNumThreads / 32;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t run = (num_slots + 32 * kNumWarps - 1) / (32 * kNumWarps) * 32, begin = warp * run, end = min(num_slots, begin + run);
    uint32_t count = 0;
    for (uint32_t first = begin; first < end; first += 32) {
        const bool is_mine = first + lane < end && local_expert(params, first + lane) == int32_t(expert);
        count += __popc(__ballot_sync(~0u, is_mine));
    }
    if (lane == 0) schedule.warp_counts[warp] = count;
    __syncthreads();
    uint32_t row = schedule.row_begin[expert];
    for (uint32_t w = 0; w < warp; ++w) row += schedule.warp_counts[w];
    for (uint32_t first = begin; first < end; first += 32) {
        const bool is_mine = first + lane < end && local_expert(params, first + lane) == int32_t(expert);
        const uint32_t mask = __ballot_sync(~0u, is_mine);
        if (is_mine) put_row(params, row + __popc(mask & ((1u << lane) - 1)), first + lane);
        row += __popc(mask);
    }
    // The release below publishes the whole block's writes: they happen before it through the block's barrier.
    __syncthreads();
    if (threadIdx.x == 0) ptx::st_release_gpu(&params.list_ready[expert], 1);
}

// Consumers: acquires all experts' lists, whoever wrote them, before the first tile. Loaders wait for theirs tile by tile.
__device__ __forceinline__ void wait_lists(const mega_moe::Context& ctx, uint32_t consumer_thread) {
    const mega_moe::Schedule& schedule = ctx.scheduler.schedule;
    for (uint32_t e = consumer_thread; e < config::kNumLocalExperts; e += mega_moe::kNumConsumerThreads) {
        if (schedule.row_begin[e + 1] > schedule.row_begin[e]) {
            comm::wait_counter(ctx.watchdog, &ctx.params.list_ready[e], 1, comm::WaitFor::kRoutedList, e);
        }
    }
    mega_moe::sync_consumers();
}

__device__ __forceinline__ void route(const mega_moe::Params& params, mega_moe::Schedule& schedule) {
    ptx::griddepcontrol_wait();
    const uint32_t num_slots = params.num_tokens * config::kNumTopk;
    build_schedule(params, schedule, num_slots);
    for (uint32_t expert = blockIdx.x; expert < config::kNumLocalExperts; expert += gridDim.x) {
        if (schedule.row_begin[expert + 1] > schedule.row_begin[expert]) build_list(params, schedule, num_slots, expert);
    }
}

}  // namespace roles
#line 19 "/mega_moe/sm100.cuh"
//#include "ptx/cluster.cuh"

namespace mega_moe {

// All threads of all CTAs of the group.
__device__ __forceinline__ void sync_group() {
    if constexpr (config::kCtaGroup == 1) {
        __syncthreads();
    } else {
        ptx::cluster_sync();
    }
}

__device__ __forceinline__ void init_barriers(SharedStorage& smem) {
    pipeline::init(smem.ring);
    for (uint32_t i = 0; i < config::kNumAccums; ++i) {
        ptx::mbarrier_init(ptx::smem_address(&smem.accum_full[i]), config::kAccumFullArrivals);
        ptx::mbarrier_init(ptx::smem_address(&smem.accum_empty[i]), config::kAccumEmptyArrivals);
    }
    ptx::fence_mbarrier_init();
}

// Epilogue warpgroups take the block's tiles in turns, each tile's accumulator with it; combine and cleanup at the end.
__device__ __forceinline__ void run_epilogue(const Context& ctx, uint32_t tmem, uint32_t thread) {
    const uint32_t warpgroup = thread / 128, lanes = thread % 128 & ~31u;
    roles::wait_lists(ctx, thread);
    roles::Epilogue epilogue{ctx, ctx.smem.epilogue[warpgroup], warpgroup, thread % 128, tmem + (lanes << 16), AccumCursor{}};
    uint32_t turn = 0;
    ctx.scheduler.for_each_tile([&](const Tile& tile) {
        if (turn == warpgroup) {
            if (tile.is_l2) {
                roles::epilogue_l2(epilogue, tile);
            } else {
                roles::epilogue_l1(epilogue, tile);
            }
        }
        epilogue.accum.advance();
        turn = turn + 1 == config::kNumEpilogueWarpgroups ? 0 : turn + 1;
    });
    roles::combine(ctx, thread);
    roles::cleanup(ctx, thread, &ctx.smem.is_last);
}

}  // namespace mega_moe

extern "C" __global__ void __launch_bounds__(config::kNumThreads, 1)
    mega_moe_sm100(const __grid_constant__ mega_moe::Params params, const __grid_constant__ ptx::TensorMap l1_weights, const __grid_constant__ ptx::TensorMap l1_weights_sf,
                   const __grid_constant__ ptx::TensorMap tokens, const __grid_constant__ ptx::TensorMap tokens_sf, const __grid_constant__ ptx::TensorMap l2_weights,
                   const __grid_constant__ ptx::TensorMap l2_weights_sf, const __grid_constant__ ptx::TensorMap acts, const __grid_constant__ ptx::TensorMap acts_sf) {
    using namespace mega_moe;
    extern __shared__ __align__(1024) uint8_t smem_bytes[];
    SharedStorage& smem = *reinterpret_cast<SharedStorage*>(smem_bytes);
    const uint32_t warp = threadIdx.x / 32, cta = config::kCtaGroup == 1 ? 0 : ptx::cluster_cta_rank();

    if (threadIdx.x == 0) init_barriers(smem);
    if (warp == 2) ptx::tcgen05_alloc<config::kTmemColumns>(ptx::smem_address(&smem.tmem));
    roles::route(params, smem.schedule);
    ptx::tcgen05_fence_before_thread_sync();
    sync_group();
    ptx::tcgen05_fence_after_thread_sync();

    const uint32_t tmem = smem.tmem;
    const Context ctx{params,
                      OperandMaps{l1_weights, l1_weights_sf, tokens, tokens_sf},
                      OperandMaps{l2_weights, l2_weights_sf, acts, acts_sf},
                      smem,
                      Scheduler{smem.schedule, blockIdx.x / config::kCtaGroup, gridDim.x / config::kCtaGroup},
                      comm::Watchdog{params.error_record, params.timeout_ns, params.rank},
                      cta};
    if (warp == 0) {
        if (ptx::elect_one()) roles::load(ctx);
    } else if (warp == 1) {
        if (cta == 0 && ptx::elect_one()) roles::mma(ctx, tmem);
    } else if (warp >= config::kFirstDispatchWarp) {
        roles::dispatch(ctx, threadIdx.x - config::kFirstDispatchWarp * 32);
    } else if (warp >= config::kFirstEpilogueWarp) {
        run_epilogue(ctx, tmem, threadIdx.x - config::kFirstEpilogueWarp * 32);
    }

    // Nobody frees tensor memory, or leaves, while the other CTA may still use it or signal barriers here.
    ptx::tcgen05_fence_before_thread_sync();
    sync_group();
    if (warp == 2) {
        ptx::tcgen05_fence_after_thread_sync();
        ptx::tcgen05_dealloc<config::kTmemColumns>(tmem);
    }
}
#line 2 "/kernel.cu"
