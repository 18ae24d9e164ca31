#line 1 "/kernel.cu"
#line 1 "/mega_moe/sm90.cuh"
// The fused MoE for Hopper: one persistent launch, blocks of one loader and two consumer warpgroups.
//
//   all warps      schedule                 which rows and tiles each expert gets
//   warps 3 .. 11  dispatch                 tokens, quantised, to the rows of their experts
//   warp 0         load_weights             FP4 codes and scale factors by bulk copies
//   warp 1         load_acts                tokens (L1) and activations (L2) by TMA
//   warp 2         queue_tiles              the block's tiles, one after the other
//   warps 4 .. 11  mma, epilogue_l1/l2      decode in registers, wgmma, activation, requantise; partials
//                  combine, cleanup         weighted sum to y
#line 1 "/mega_moe/context_sm90.cuh"
// What every role of the kernel is given.
//#pragma once
#line 1 "/mega_moe/params_sm90.cuh"
// What a launch is told. Python packs the same fields in the same order (recipes/params.py) and config::kParamBytes ties the two.
//#pragma once
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
constexpr uint32_t kNumLocalExperts = 32;
constexpr uint32_t kNumTopk = 4;
constexpr uint32_t kTopkIdxBytes = 8;
constexpr uint32_t kHidden = 2880;
constexpr uint32_t kHiddenPadded = 3072;
constexpr uint32_t kIntermediatePadded = 2944;
constexpr uint32_t kL1Rows = 5888;
constexpr uint32_t kBlockM = 256;
constexpr uint32_t kBlockN = 16;
constexpr uint32_t kBlockK = 128;
constexpr uint32_t kNumStages = 8;
constexpr uint32_t kNumPasses = 1;
constexpr uint32_t kPromotedStages = 4;
constexpr uint32_t kScaleBlocks = 6;
constexpr uint32_t kPassM = 256;
constexpr uint32_t kL1MTiles = 23;
constexpr uint32_t kL2MTiles = 12;
constexpr uint32_t kL1KStages = 23;
constexpr uint32_t kL2KStages = 23;
constexpr uint32_t kL2TilesPerL1 = 1;
constexpr uint32_t kL1BlocksPerTile = 1;
constexpr uint32_t kNumThreads = 384;
constexpr uint32_t kNumConsumerWarpgroups = 2;
constexpr uint32_t kFirstConsumerThread = 128;
constexpr uint32_t kFirstDispatchThread = 96;
constexpr uint32_t kChunkTokens = 32;
constexpr uint32_t kMinWidth = 16;
constexpr uint32_t kWidthStep = 16;
constexpr uint32_t kFullArrivals = 2;
constexpr uint32_t kEmptyArrivals = 8;
constexpr uint32_t kLoaderRegisters = 40;
constexpr uint32_t kConsumerRegisters = 232;
constexpr bool kIsFp8 = true;
constexpr bool kHasTokenScales = true;
constexpr bool kIsGated = true;
constexpr uint32_t kActBytes = 1;
constexpr uint32_t kTokenKBytes = 128;
constexpr uint32_t kTokenRowBytes = 2944;
constexpr uint32_t kActRowBytes = 2944;
constexpr uint32_t kTokenStageBytes = 2048;
constexpr uint32_t kWeightBlockBytes = 18432;
constexpr uint32_t kWeightStageBytes = 18432;
constexpr uint32_t kStageCodeBytes = 16384;
constexpr uint32_t kStageScaleBytes = 2048;
constexpr uint32_t kOutBytes = 4096;
constexpr uint32_t kDecodeTableRows = 128;
constexpr uint32_t kTableCopies = 16;
constexpr uint32_t kBoxRows = 16;
constexpr uint32_t kSmemBytes = 186368;
constexpr uint32_t kParamBytes = 296;
constexpr uint32_t kActivation = 0;
constexpr float kAlpha = 1.0f;
constexpr float kUpBias = 0.0f;
constexpr bool kHasClamp = false;
constexpr float kClamp = 0.0f;
constexpr bool kFastMath = true;
constexpr float kMinAmax = 1.00000001e-10f;
constexpr float kForecastRms = 112.0f;
constexpr float kForecastFactor = 0.25f;
constexpr float kLeastForeseen = 0.25f;
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
#line 4 "/mega_moe/params_sm90.cuh"
#line 1 "/comm/wait.cuh"
// Waits that end: each has a time-out, and leaves a record of who waited for what before it stops the kernel.
//#pragma once
//#include "config.cuh"
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
#line 5 "/mega_moe/params_sm90.cuh"
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
#line 7 "/mega_moe/params_sm90.cuh"
//#include "types.cuh"

namespace mega_moe {

struct Params {
    comm::PeerTable peers;
    comm::SymOffsets sym;
    // Workspace of this rank; the counters are zero between calls.
    // Pool rows are routed rows, expert by expert; each token tile has kBlockN of its own.
    uint8_t* tokens;         // [pool rows][kHiddenK], K in token order
    float* tokens_sf;        // [K of L1 / 512][pool rows] (E4M3)
    uint8_t* acts;           // [pool rows][kIntermediatePadded], K in token order
    float* acts_sf;          // [kIntermediatePadded / 128][pool rows] (E4M3)
    uint32_t* routed;        // [pool rows]: token * top-k + slot
    float* routed_sf;        // [pool rows]: the scale that would make the token's largest value 448 (E4M3)
    float* routed_weights;   // [pool rows]: the slot's top-k weight
    uint32_t* rows_ready;    // [token tiles]: rows that dispatch has brought
    uint32_t* l1_done;       // [token tiles]: finished L1 tiles
    uint32_t* has_own_sf;    // [token tiles]: not every block of 128 has its token's foreseen scale (E4M3)
    uint32_t* l2_done;       // [1]: blocks that have finished their L2 tiles
    uint32_t* exited;        // [1]: blocks that need no counter any more
    comm::ErrorRecord* error_record;
    uint64_t timeout_ns;
    // Weights of this rank's experts, as the weight transform made them.
    const uint8_t* l1_weights;
    const uint8_t* l2_weights;
    const float* l1_alphas;  // [experts][2]: gate, up
    const float* l2_alphas;  // [experts]
    const float* l1_bias;    // [experts][kL1Halves * kIntermediatePadded] or null
    const float* l2_bias;    // [experts][kHiddenPadded] or null
    const ActsForecast* forecast;  // [experts] (E4M3)
    // The call.
    int32_t* recv_stats;     // [experts], added to, or null
    uint16_t* y;             // [num_tokens][hidden] bf16, rows y_stride apart
    uint64_t y_stride;
    const uint8_t* x;        // [num_tokens][hidden] bf16, rows x_stride_bytes apart; null when staging has put tokens into the buffer
    uint64_t x_stride_bytes;
    const uint8_t* topk_idx;    // [num_tokens][kNumTopk] int32 or int64
    const float* topk_weights;  // [num_tokens][kNumTopk]
    uint32_t topk_idx_bytes;
    uint32_t num_tokens;
    uint32_t pool_rows;
    uint32_t rank;
    float routed_scaling_factor;
};
static_assert(sizeof(Params) == config::kParamBytes, "recipes/params.py packs other fields");

// The global expert that a slot of this rank was routed to, or -1 (also for indices that are no expert).
__device__ __forceinline__ int32_t home_expert(const Params& params, uint32_t slot) {
    const int64_t expert = params.topk_idx_bytes == 8 ? reinterpret_cast<const int64_t*>(params.topk_idx)[slot] : reinterpret_cast<const int32_t*>(params.topk_idx)[slot];
    return expert >= 0 && expert < int64_t(config::kNumExperts) ? int32_t(expert) : -1;
}

}  // namespace mega_moe
#line 4 "/mega_moe/context_sm90.cuh"
#line 1 "/mega_moe/scheduler_sm90.cuh"
// The order of tiles: all L1 tiles, then all L2 tiles; expert by expert, weight rows outside, tokens inside.
//
// A block takes every gridDim.x-th tile, but for some L2 tiles that fill L1's last round. Tokens are innermost, so neighbouring blocks
// read the same weights at the same time.
// An L2 tile waits only for L1 tiles, which come earlier in every block's walk: with all blocks resident nothing can lock up.
//#pragma once
//#include "config.cuh"
#line 1 "/mega_moe/storage_sm90.cuh"
// Shared memory of the sm_90a kernel. Python plans the same struct (recipes/sm90.py) and the assert below ties the two.
//#pragma once
//#include "config.cuh"
//#include "mega_moe/forecast.cuh"
#line 1 "/mega_moe/schedule_sm90.cuh"
// Which rows each expert gets and where its token tiles begin, the same in every block; and where this block's own tokens go.
//#pragma once
//#include "config.cuh"
//#include "types.cuh"

namespace mega_moe {

struct Schedule {
    uint32_t rows[config::kNumLocalExperts];            // routed to the expert
    uint32_t tile_begin[config::kNumLocalExperts + 1];  // token tiles of kBlockN rows, expert by expert
    uint32_t period[config::kNumLocalExperts];          // of several token tiles: tiles after which a block is back at the same one
};

// While dispatch brings them there.
struct OwnTokens {
    uint32_t next[config::kNumLocalExperts];                     // the expert's row that this block's next token for it gets
    uint32_t pool_rows[config::kChunkTokens][config::kNumTopk];  // of the tokens in hand, ~0 for nowhere (here)
    uint32_t scale[config::kChunkTokens];                        // bits of the scale that would make the token's largest value 448 (E4M3)
};

}  // namespace mega_moe
#line 6 "/mega_moe/storage_sm90.cuh"
#line 1 "/mega_moe/tile_queue_sm90.cuh"
// Tiles on their way from the scheduler's warp to the loaders and consumers of its block.
//
// One warp works out which tile comes next, divisions and all, while the others are busy with those before; and what a tile is stays in shared
// memory, so that consumers need no registers for it during their MMAs.
//#pragma once
//#include "comm/wait.cuh"
//#include "config.cuh"
//#include "ptx/mbarrier.cuh"
//#include "types.cuh"

namespace mega_moe {

struct alignas(16) Tile {
    uint32_t expert;      // local
    uint32_t m_tile;      // block of kBlockM weight rows
    uint32_t token_tile;  // over all experts: the index of its counter
    uint32_t pool_row;    // first row in the pool, where each token tile has kBlockN rows of its own
    uint32_t num_rows;    // valid ones of kBlockN
    uint32_t width;       // columns that are multiplied: num_rows rounded up to an MMA width
};

constexpr uint32_t kQueueTiles = 4;  // loaders are ahead of consumers by up to two tiles, the scheduler by one more
constexpr uint32_t kQueueReaders = config::kNumConsumerWarpgroups * 4 + 2;  // consumer warps, and the two loaders

struct TileQueue {
    Tile tiles[kQueueTiles];
    uint64_t full[kQueueTiles];
    uint64_t empty[kQueueTiles];

    __device__ __forceinline__ void init() {
        for (uint32_t i = 0; i < kQueueTiles; ++i) {
            ptx::mbarrier_init(ptx::smem_address(&full[i]), 1);
            ptx::mbarrier_init(ptx::smem_address(&empty[i]), kQueueReaders);
        }
    }
};

// A role's place in the queue: the number of tiles it has seen.
struct QueuePlace {
    uint32_t count = 0;

    __device__ __forceinline__ uint32_t index() const { return count % kQueueTiles; }
    __device__ __forceinline__ uint32_t phase() const { return count / kQueueTiles % 2; }
};

// Scheduler, one thread: hands on the next tile.
__device__ __forceinline__ void push_tile(const comm::Watchdog& watchdog, TileQueue& queue, QueuePlace& place, const Tile& tile) {
    comm::wait_barrier(watchdog, ptx::smem_address(&queue.empty[place.index()]), place.phase() ^ 1, comm::WaitFor::kTilePlace, place.index());
    queue.tiles[place.index()] = tile;
    ptx::mbarrier_arrive(ptx::smem_address(&queue.full[place.index()]));
    ++place.count;
}

// Loaders and consumers: the next tile; it stays where it is until it is released.
__device__ __forceinline__ const Tile& wait_tile(const comm::Watchdog& watchdog, TileQueue& queue, const QueuePlace& place) {
    comm::wait_barrier(watchdog, ptx::smem_address(&queue.full[place.index()]), place.phase(), comm::WaitFor::kTile, place.index());
    return queue.tiles[place.index()];
}

// A loader's thread, or a consumer's warp by one lane: has no more use for the tile.
__device__ __forceinline__ void release_tile(TileQueue& queue, QueuePlace& place, bool is_elected) {
    ptx::mbarrier_arrive_if(is_elected, ptx::smem_address(&queue.empty[place.index()]));
    ++place.count;
}

}  // namespace mega_moe
#line 7 "/mega_moe/storage_sm90.cuh"
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
#line 8 "/mega_moe/storage_sm90.cuh"
//#include "types.cuh"

namespace mega_moe {

// Factors of two neighbouring columns: one load is what a thread needs of both.
struct alignas(16) ColumnPair {
    float scale[2];   // E4M3: the token's size, then, made of it, what values (L1) or sums (L2) are multiplied by
    float weight[2];  // L2: the top-k weight
};

// Of the columns of a warpgroup's tile.
struct alignas(16) Columns {
    ActsForecast forecast;           // of the tile's expert (E4M3)
    uint32_t slot[config::kBlockN];  // token * top-k + slot (L2)
    ColumnPair pairs[config::kBlockN / 2];
    float alpha[2];                  // of the tile: gate and up (L1), down (L2)

    __device__ __forceinline__ float& scale(uint32_t column) { return pairs[column / 2].scale[column % 2]; }
    __device__ __forceinline__ float& weight(uint32_t column) { return pairs[column / 2].weight[column % 2]; }
};

struct SharedStorage {
    alignas(1024) uint8_t tokens[config::kNumStages][config::kTokenStageBytes];
    alignas(128) uint8_t weights[config::kNumStages][config::kWeightStageBytes];
    alignas(128) uint8_t out[config::kOutBytes];             // results on their way out; L1: a first pass's values, until the second's
    alignas(16) float sf[config::kNumStages][config::kBlockN];  // L1: of 512 values, with the last stage of them; L2: a tile's own, of 128
    alignas(128) uint2 decode_table[config::kDecodeTableRows * config::kTableCopies];
    Columns columns[config::kNumConsumerWarpgroups];
    uint32_t may_not_fit;                                    // L1: a block's values may not lie well in E4M3; zero between blocks
    uint32_t has_own_sf[config::kNumStages];                 // L2: the stage's tile has scale factors of its own, in acts_sf
    uint32_t is_last;                                        // cleanup: this block is the last to leave
    TileQueue queue;
    Schedule schedule;
    alignas(8) pipeline::RingBarriers ring;
};
// By column: bits of the largest magnitude in L1, zero between blocks. L2 alone has slots, and comes after the last tile of L1.
__device__ __forceinline__ uint32_t (&largest_bits(SharedStorage& smem))[config::kBlockN] { return smem.columns[0].slot; }

static_assert(sizeof(SharedStorage) == config::kSmemBytes, "recipes/sm90.py plans another shared memory");

// Where results will be: no tile ends before dispatch of this block.
__device__ __forceinline__ OwnTokens& own_tokens(SharedStorage& smem) {
    static_assert(sizeof(OwnTokens) <= sizeof(smem.out));
    return *reinterpret_cast<OwnTokens*>(smem.out);
}

}  // namespace mega_moe
#line 9 "/mega_moe/scheduler_sm90.cuh"
//#include "mega_moe/tile_queue_sm90.cuh"
//#include "types.cuh"

namespace mega_moe {

// The MMA role has an instance for each width.
static_assert((config::kBlockN - config::kMinWidth) % config::kWidthStep == 0 && config::kMinWidth <= config::kBlockN);

struct Scheduler {
    const Schedule& schedule;

    __device__ __forceinline__ uint32_t num_token_tiles() const { return schedule.tile_begin[config::kNumLocalExperts]; }

    // Visits the block's tiles by layer and number.
    template <typename F>
    __device__ __forceinline__ void for_each_tile(F&& visit) const {
        const uint32_t num_l1 = num_token_tiles() * config::kL1MTiles, num_l2 = num_token_tiles() * config::kL2MTiles;
        // In L1's last round, when it is not full, `idle` blocks have no tile: they have time for `early` L2 tiles of experts that are
        // done. Nothing is done while there is only one round.
        const uint32_t last = num_l1 % gridDim.x, idle = num_l1 > gridDim.x && last > 0 ? gridDim.x - last : 0;
        const uint32_t early = idle * config::kL2TilesPerL1;
        const uint32_t late = early + (idle > 0 ? blockIdx.x : (blockIdx.x + gridDim.x - last) % gridDim.x);  // the first one after those
        const uint32_t first_l2 = idle > 0 && blockIdx.x >= last ? blockIdx.x - last : late;
        bool is_l2 = blockIdx.x >= num_l1;
        for (uint32_t i = is_l2 ? first_l2 : blockIdx.x; !is_l2 || i < num_l2;) {
            visit(is_l2, i);
            if (is_l2) {
                i = i >= early ? i + gridDim.x : i + idle < early ? i + idle : late;
            } else if (i + gridDim.x < num_l1) {
                i += gridDim.x;
            } else {
                is_l2 = true, i = first_l2;
            }
        }
    }

    // From an expert to the one that has a token tile, at it or later: several at a time, since each look at shared memory is a wait.
    __device__ __forceinline__ void advance_expert(uint32_t token_tile, uint32_t& expert) const {
        constexpr uint32_t kAtOnce = 4;
        for (uint32_t passed = kAtOnce; passed == kAtOnce; expert += passed) {
            passed = 0;
#pragma unroll
            for (uint32_t e = 1; e <= kAtOnce; ++e) passed += token_tile >= schedule.tile_begin[min(expert + e, config::kNumLocalExperts)];
        }
    }

    // Tile i of a layer; `expert` is that of an earlier tile, and becomes this one's.
    template <bool kIsL2>
    __device__ __forceinline__ Tile tile_at(uint32_t i, uint32_t& expert) const {
        constexpr uint32_t kMTiles = kIsL2 ? config::kL2MTiles : config::kL1MTiles;
        advance_expert(i / kMTiles, expert);
        const uint32_t first = schedule.tile_begin[expert], count = schedule.tile_begin[expert + 1] - first;
        uint32_t m_tile = i - first * kMTiles, n = 0;
        // Divisions take long, and with few tokens there is nothing to divide.
        if (count > 1) {
            const uint32_t in_expert = m_tile;
            m_tile = in_expert / count;
            const uint32_t place = in_expert - m_tile * count;
            // After some rounds of the grid (a period of tiles) a block would be back at the same place, and might never meet an
            // expert's last tile, which is seldom full: from there on it begins with the next.
            n = (place + (i - place) / schedule.period[expert]) % count;
        }
        Tile tile;
        tile.expert = expert;
        tile.m_tile = m_tile;
        tile.token_tile = first + n;
        tile.pool_row = tile.token_tile * config::kBlockN;
        tile.num_rows = min(config::kBlockN, schedule.rows[expert] - n * config::kBlockN);
        tile.width = max(config::kMinWidth, config::kBlockN - (config::kBlockN - tile.num_rows) / config::kWidthStep * config::kWidthStep);
        return tile;
    }
};

}  // namespace mega_moe
#line 5 "/mega_moe/context_sm90.cuh"
//#include "mega_moe/storage_sm90.cuh"
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
#line 7 "/mega_moe/context_sm90.cuh"
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
#line 8 "/mega_moe/context_sm90.cuh"

namespace mega_moe {

struct Context {
    const Params& params;
    const ptx::TensorMap* tokens_map;  // the pool's tokens and activations, boxes of kBoxRows x 128 bytes
    const ptx::TensorMap* acts_map;
    SharedStorage& smem;
    Scheduler scheduler;
    comm::Watchdog watchdog;
};

// Named barrier ids; 0 is __syncthreads. Each consumer warpgroup has one more of its own.
constexpr uint32_t kConsumerBarrier = 1, kFirstWarpgroupBarrier = 2, kDispatchBarrier = kFirstWarpgroupBarrier + config::kNumConsumerWarpgroups;
constexpr uint32_t kNumConsumerThreads = config::kNumConsumerWarpgroups * 128;

__device__ __forceinline__ void sync_consumers() { ptx::barrier_sync(kConsumerBarrier, kNumConsumerThreads); }

// What l2_done comes to: each block counts once.
__device__ __forceinline__ uint32_t l2_arrivals(const Context&) { return gridDim.x; }

// Every counter that a call used, back to zero: the last block's consumers call it.
__device__ __forceinline__ void reset_counters(const Context& ctx, uint32_t consumer_thread) {
    const Params& params = ctx.params;
    for (uint32_t i = consumer_thread; i < ctx.scheduler.num_token_tiles(); i += kNumConsumerThreads) {
        params.rows_ready[i] = 0, params.l1_done[i] = 0, params.has_own_sf[i] = 0;
    }
    if (consumer_thread == 0) *params.l2_done = 0, *params.exited = 0;
}

}  // namespace mega_moe
#line 11 "/mega_moe/sm90.cuh"
#line 1 "/mega_moe/roles/build_schedule_sm90.cuh"
// Role: build schedule (all warps, before they part)
// Waits for:  the routing of the launch before this one (the caller's griddepcontrol)
// Produces:   the schedule in shared memory, each block the same, and for its own share of the tokens the rows that they begin with;
//             statistics, where asked for
// Registers:  those of the launch
//#pragma once
//#include "mega_moe/context_sm90.cuh"

namespace roles {

// The local expert that an index means, or -1. As unsigned, what is below this rank's experts is above them.
template <typename Index>
__device__ __forceinline__ int32_t local_expert(const mega_moe::Params& params, Index index) {
    const Index expert = index - Index(params.rank * config::kNumLocalExperts);
    return expert < config::kNumLocalExperts ? int32_t(expert) : -1;
}

// A slot's index of any width: one that is no expert stays none.
__device__ __forceinline__ uint64_t expert_index(const mega_moe::Params& params, uint32_t slot) {
    return params.topk_idx_bytes == 8 ? reinterpret_cast<const uint64_t*>(params.topk_idx)[slot] : reinterpret_cast<const uint32_t*>(params.topk_idx)[slot];
}

// This block's share of the tokens: neighbours, so that its rows follow those of the blocks before it.
struct Share {
    uint32_t begin, end;

    __device__ __forceinline__ explicit Share(uint32_t num_tokens) {
        const uint32_t share = (num_tokens + gridDim.x - 1) / gridDim.x;
        begin = min(blockIdx.x * share, num_tokens), end = min(begin + share, num_tokens);
    }
};

// The indices of kAtOnce slots, kNumThreads apart, as they are: all loads are on their way before the first is looked at.
template <uint32_t kAtOnce>
struct Indices {
    uint64_t of_slot[kAtOnce];

    // Those from the lane's slot on, of the warp's 32 that begin with slot `begin`.
    __device__ __forceinline__ Indices(const mega_moe::Params& params, uint32_t begin) {
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; ++i) {
            const uint32_t slot = begin + threadIdx.x % 32 + i * config::kNumThreads;
            of_slot[i] = slot < params.num_tokens * config::kNumTopk ? expert_index(params, slot) : ~uint64_t(0);
        }
    }
};

// Counts the slots of each expert, and of them those before this block's share. A warp looks at 32 slots at a time; lane l counts
// experts l, l + 32, ..., whose slots the bits of all lanes' experts tell: no two lanes ever meet at a counter.
struct Counts {
    static constexpr uint32_t kSets = (config::kNumLocalExperts + 31) / 32;
    static constexpr uint32_t kBits = kSets <= 1 ? 5 : kSets <= 2 ? 6 : kSets <= 4 ? 7 : kSets <= 8 ? 8 : 9;
    uint32_t all[kSets] = {}, before[kSets] = {};

    template <uint32_t kAtOnce>
    __device__ __forceinline__ void add(const mega_moe::Params& params, const Indices<kAtOnce>& indices, uint32_t begin, uint32_t first_own) {
        const uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; ++i) {
            const uint32_t first = begin + i * config::kNumThreads;
            if (first >= params.num_tokens * config::kNumTopk) break;
            const int32_t expert = local_expert(params, indices.of_slot[i]);
            const uint32_t earlier = first >= first_own ? 0 : first_own - first >= 32 ? ~0u : (1u << (first_own - first)) - 1;
            uint32_t same = __ballot_sync(~0u, expert >= 0);
            uint32_t planes[kBits];
#pragma unroll
            for (uint32_t b = 0; b < kBits; ++b) {
                planes[b] = __ballot_sync(~0u, expert >> b & 1);
                if (b < 5) same &= lane >> b & 1 ? planes[b] : ~planes[b];
            }
#pragma unroll
            for (uint32_t set = 0; set < kSets; ++set) {
                uint32_t mine = same;
#pragma unroll
                for (uint32_t b = 5; b < kBits; ++b) mine &= set >> (b - 5) & 1 ? planes[b] : ~planes[b];
                all[set] += __popc(mine), before[set] += __popc(mine & earlier);
            }
        }
    }

    __device__ __forceinline__ void store(mega_moe::Schedule& schedule, mega_moe::OwnTokens& own) const {
#pragma unroll
        for (uint32_t set = 0; set < kSets; ++set) {
            const uint32_t e = set * 32 + threadIdx.x % 32;
            if (all[set] > 0) atomicAdd(&schedule.rows[e], all[set]);
            if (before[set] > 0) atomicAdd(&own.next[e], before[set]);
        }
    }
};

// A thread's part of the counting. Loads that are in less of a hurry come after it: the compiler has one counter for what is on its way
// beyond a branch, so who waits for one load waits for all.
__device__ __forceinline__ Counts count_slots(const mega_moe::Params& params, const Share& share) {
    // Few slots should not wait for the instructions that many need.
    constexpr uint32_t kFirst = 4, kAtOnce = Counts::kSets > 8 ? 8 : 12;
    const uint32_t own = threadIdx.x / 32 * 32, first_own = share.begin * config::kNumTopk;
    Counts counts;
    counts.add(params, Indices<kFirst>(params, own), own, first_own);
#pragma unroll 1
    for (uint32_t begin = own + kFirst * config::kNumThreads; begin < params.num_tokens * config::kNumTopk; begin += kAtOnce * config::kNumThreads) {
        counts.add(params, Indices<kAtOnce>(params, begin), begin, first_own);
    }
    return counts;
}

__device__ __forceinline__ uint32_t num_tiles(const mega_moe::Schedule& schedule, uint32_t expert) { return (schedule.rows[expert] + config::kBlockN - 1) / config::kBlockN; }

// A warp: inclusive sums over the experts' tiles, 32 experts at a time.
__device__ __forceinline__ void sum_tiles(mega_moe::Schedule& schedule) {
    const uint32_t lane = threadIdx.x % 32;
    uint32_t before = 0;
    if (lane == 0) schedule.tile_begin[0] = 0;
    for (uint32_t first = 0; first < config::kNumLocalExperts; first += 32) {
        const uint32_t e = first + lane;
        uint32_t tiles = e < config::kNumLocalExperts ? num_tiles(schedule, e) : 0;
        for (uint32_t step = 1; step < 32; step *= 2) {
            const uint32_t t = __shfl_up_sync(~0u, tiles, step);
            if (lane >= step) tiles += t;
        }
        tiles += before;
        if (e < config::kNumLocalExperts) schedule.tile_begin[e + 1] = tiles;
        before = __shfl_sync(~0u, tiles, 31);
    }
}

__device__ __forceinline__ uint32_t greatest_common_divisor(uint32_t a, uint32_t b) {
    while (b != 0) {
        const uint32_t rest = a % b;
        a = b, b = rest;
    }
    return a;
}

// Before build_schedule, with a barrier of the block in between.
__device__ __forceinline__ void clear_schedule(mega_moe::Schedule& schedule, mega_moe::OwnTokens& own) {
    static_assert(config::kNumLocalExperts <= config::kNumThreads);
    if (threadIdx.x < config::kNumLocalExperts) schedule.rows[threadIdx.x] = 0, own.next[threadIdx.x] = 0;
}

__device__ __forceinline__ void build_schedule(const mega_moe::Params& params, mega_moe::Schedule& schedule, mega_moe::OwnTokens& own, const Counts& counts) {
    counts.store(schedule, own);
    __syncthreads();
    if (threadIdx.x < 32) {
        sum_tiles(schedule);
    } else if (threadIdx.x < 64) {
        // Meanwhile: divisions take long, and tiles shall not wait for them. (Other warps have loads on their way, for which they would wait.)
        for (uint32_t e = threadIdx.x - 32; e < config::kNumLocalExperts; e += 32) {
            const uint32_t tiles = num_tiles(schedule, e);
            if (tiles > 1) schedule.period[e] = gridDim.x / greatest_common_divisor(gridDim.x, tiles) * tiles;
        }
    }
    __syncthreads();
    if (params.recv_stats != nullptr && blockIdx.x == 0) {
        const uint32_t e = config::kNumThreads - 1 - threadIdx.x;  // the last threads, since the first ones have loads to start
        if (e < config::kNumLocalExperts) atomicAdd(&params.recv_stats[e], int32_t(schedule.rows[e]));
    }
}

}  // namespace roles
#line 12 "/mega_moe/sm90.cuh"
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
//#include "mega_moe/context_sm90.cuh"
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
#line 13 "/mega_moe/sm90.cuh"
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
#line 14 "/mega_moe/sm90.cuh"
#line 1 "/mega_moe/roles/consume_sm90.cuh"
// What the consumer warpgroups do with a tile: mma and the layer's epilogue, for each pass over its weight rows.
//#pragma once
#line 1 "/mega_moe/roles/epilogue_l1_sm90.cuh"
// Role: L1 epilogue (the consumer warpgroups, after mma)
// Waits for:  nothing beyond the tile's sums
// Produces:   activation(sums) in the pool, E4M3 with the scale foreseen for the token or one of the block of 128, or BF16, in token order of K; counts the
//             tile in l1_done
// Registers:  config::kConsumerRegisters
//
// The weight transform puts gate in half 0 and the same value's up in half 1; without a gate the halves are two blocks of 128 values. A
// thread's values of a warpgroup's two 64-row tiles are neighbours in a stored row: `pair`. In E4M3 a pair is one 16-bit element of a
// matrix that stmatrix transposes; with two passes the first pass's value waits for the second's.
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
#line 12 "/mega_moe/roles/epilogue_l1_sm90.cuh"
#line 1 "/mega_moe/roles/columns_sm90.cuh"
// What both epilogues need of a tile's columns (its tokens), and how they put results in rows of a token.
//#pragma once
//#include "mega_moe/context_sm90.cuh"
#line 1 "/mega_moe/roles/mma_sm90.cuh"
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
//#pragma once
#line 1 "/layout/gmma.cuh"
// Shared-memory operands of wgmma: the 128-byte swizzle and the matrix descriptor.
// PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout" and "Matrix Descriptor Format".
//#pragma once
//#include "types.cuh"

namespace layout {

// A K-major row is 128 bytes; 8 rows make one swizzle pattern of 1024 bytes.
constexpr uint32_t kSwizzleRowBytes = 128;
constexpr uint32_t kSwizzlePatternBytes = 8 * kSwizzleRowBytes;

// Descriptor of a K-major operand with the 128-byte swizzle at shared address `smem` (1024-byte aligned, plus a K step).
__device__ __forceinline__ uint64_t gmma_descriptor(uint32_t smem) {
    constexpr uint64_t kStrideBytes = kSwizzlePatternBytes;  // from 8 rows to the next 8
    return (uint64_t(smem & 0x3FFFF) >> 4)                   // bits 13:0   start address
           | (uint64_t(1) << 16)                             // bits 29:16  leading offset, ignored for swizzled K-major operands
           | ((kStrideBytes >> 4) << 32)                     // bits 45:32  stride offset
           | (uint64_t(1) << 62);                            // bits 63:62  128-byte swizzle
}

// One K step of an MMA reads 32 bytes a row, whatever the element; the hardware applies the swizzle to the stepped address.
constexpr uint64_t kDescriptorStep = 32 >> 4;

}  // namespace layout
#line 16 "/mega_moe/roles/mma_sm90.cuh"
//#include "mega_moe/context_sm90.cuh"
#line 1 "/mega_moe/decode_fp4.cuh"
// FP4 weights to wgmma A fragments, in registers. Formats of the packed words: layouts/weights_sm90.py.
//
// E4M3: code x scale / 8, rounded to nearest even, through a table of 8 magnitudes a scale byte; signs are ORed in.
// BF16: code x scale x 2^-9, exact: the code's bits lie where bf16 has them, and one multiplication brings in the scale.
//#pragma once
//#include "config.cuh"
//#include "ptx/convert.cuh"
//#include "ptx/ld_st.cuh"
//#include "types.cuh"

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
#line 18 "/mega_moe/roles/mma_sm90.cuh"
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
#line 19 "/mega_moe/roles/mma_sm90.cuh"
#line 1 "/ptx/wgmma.cuh"
// Warpgroup MMA with the A operand in registers. PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions".
//#pragma once
//#include "types.cuh"

namespace ptx {

// Before the first wgmma, and whenever ordinary instructions touched accumulators or A registers since the last one.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending committed groups are still running.
template <uint32_t kPending>
__device__ __forceinline__ void wgmma_wait_group() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Ties a register to this point of the program: the compiler may not move or reuse it across a wait for the MMA that owns it.
__device__ __forceinline__ void tie(float& value) { asm volatile("" : "+f"(value)::"memory"); }
__device__ __forceinline__ void tie(uint32_t& value) { asm volatile("" : "+r"(value)::"memory"); }

// D[64, kN] (+)= A[64, 32] @ B[kN, 32]^T in E4M3, or A[64, 16] @ B[kN, 16]^T in BF16; d holds kN / 2 registers, a four; without `accumulates` it
// begins anew.
template <uint32_t kN>
struct Wgmma;

#line 29
template <>
struct Wgmma<16> {
    __device__ __forceinline__ static void e4m3(float* d, const uint32_t* a, uint64_t b_desc, bool accumulates) {
        asm volatile(
            "{\n.reg .pred accumulate;\nsetp.ne.u32 accumulate, %13, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 { %0, %1, %2, %3, %4, %5, %6, %7 }, "
            "{%8, %9, %10, %11}, %12, accumulate, 1, 1;\n}"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_desc), "r"(uint32_t(accumulates)));
    }
    __device__ __forceinline__ static void bf16(float* d, const uint32_t* a, uint64_t b_desc, bool accumulates) {
        asm volatile(
            "{\n.reg .pred accumulate;\nsetp.ne.u32 accumulate, %13, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 { %0, %1, %2, %3, %4, %5, %6, %7 }, "
            "{%8, %9, %10, %11}, %12, accumulate, 1, 1, 0;\n}"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_desc), "r"(uint32_t(accumulates)));
    }
};
#line 50
}  // namespace ptx
#line 20 "/mega_moe/roles/mma_sm90.cuh"

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
#line 5 "/mega_moe/roles/columns_sm90.cuh"

namespace roles {

__device__ __forceinline__ mega_moe::Columns& columns_of(const Consumer& c, uint32_t warpgroup) { return c.ctx.smem.columns[warpgroup]; }

// A thread's place among the consumers, read anew: where the loop has no register to spare, one that lived through it comes back from
// local memory, which is as far away as L2.
struct Place {
    uint32_t warpgroup, thread, warp, lane;  // the thread in the warpgroup, the warp there

    __device__ __forceinline__ Place() {
        const uint32_t consumer = ptx::thread_in_block() - config::kFirstConsumerThread;
        warpgroup = consumer / 128, thread = consumer % 128, warp = thread / 32, lane = consumer % 32;
    }
};

// A barrier of one warpgroup alone.
__device__ __forceinline__ void sync_warpgroup(uint32_t warpgroup) { ptx::barrier_sync(mega_moe::kFirstWarpgroupBarrier + warpgroup, 128); }

// Starts the copies of a tile's columns, before the MMAs that hide the way: each warpgroup has its own, so that it need not wait for
// the other. The last tile's are no longer read: its epilogue read them before its last barrier.
template <bool kIsL2>
__device__ __forceinline__ void fetch_columns(const Consumer& c, const mega_moe::Tile& tile) {
    const mega_moe::Params& params = c.ctx.params;
    const Place place;
    mega_moe::Columns& columns = columns_of(c, place.warpgroup);
    wait_stage(c);  // whoever loaded the tile's rows has seen what dispatch wrote beside them
    for (uint32_t column = place.thread; column < tile.num_rows; column += 128) {
        const uint32_t row = tile.pool_row + column;
        if constexpr (config::kIsFp8) ptx::cp_async_4(ptx::smem_address(&columns.scale(column)), params.routed_sf + row);
        if constexpr (kIsL2) {
            ptx::cp_async_4(ptx::smem_address(&columns.slot[column]), params.routed + row);
            ptx::cp_async_4(ptx::smem_address(&columns.weight(column)), params.routed_weights + row);
        }
    }
    if (place.thread < (kIsL2 ? 1 : 2)) {
        const float* alphas = kIsL2 ? params.l2_alphas + tile.expert : params.l1_alphas + 2 * tile.expert;
        ptx::cp_async_4(ptx::smem_address(&columns.alpha[place.thread]), alphas + place.thread);
    }
    if constexpr (config::kIsFp8) {
        const float* sizes = reinterpret_cast<const float*>(params.forecast + tile.expert);
        if (place.thread < 4) ptx::cp_async_4(ptx::smem_address(&columns.forecast) + 4 * place.thread, sizes + place.thread);
    }
}

// Before the first look at them.
__device__ __forceinline__ void wait_columns(const Place& place) {
    ptx::cp_async_wait_all();
    sync_warpgroup(place.warpgroup);
}

// E4M3, one thread a column: `make` turns the scale foreseen for the column's activations into what values or sums are multiplied by. Others
// may read it after the next barrier of the warpgroup.
template <uint32_t kWidth, typename Make>
__device__ __forceinline__ void make_scales(mega_moe::Columns& columns, const Place& place, uint32_t num_rows, Make&& make) {
    const mega_moe::ActsForecast forecast = columns.forecast;
#pragma unroll
    for (uint32_t first = 0; first < kWidth; first += 128) {
        const uint32_t column = first + place.thread;
        if (column < num_rows) columns.scale(column) = make(mega_moe::foresee_acts_scale(forecast, columns.scale(column), 1.0f));
    }
}

// Results on their way out lie in pieces of 16 bytes, 8 rows of a column each: by piece, of which a tile has kPieces in `out`, and in
// it by column. Columns are XORed with the piece, so that neither 8 columns of a piece nor 8 pieces of a column meet in a bank.
template <uint32_t kPieces>
__device__ __forceinline__ uint32_t piece_place(uint32_t piece, uint32_t column) {
    return piece * (config::kOutBytes / kPieces) + (column ^ piece % 8) * 16;
}

// Stores this warp's 16-bit elements of all columns: matrix i is columns 8 i .. 8 i + 7 of the warp's 8 rows, which become `piece`.
template <uint32_t kWidth, uint32_t kPieces>
__device__ __forceinline__ void store_columns(uint32_t out, uint32_t piece, uint32_t lane, const uint32_t (&matrices)[kWidth / 8]) {
    constexpr uint32_t kGroups = kWidth / 8, kFours = kGroups / 4 * 4;
    const uint32_t place = out + piece_place<kPieces>(piece, lane);  // of matrices 0 .. 3
#pragma unroll
    for (uint32_t i = 0; i < kFours; i += 4) ptx::stmatrix_trans<4>(place + i * 128, matrices + i);
    if constexpr (kGroups % 4 >= 2) ptx::stmatrix_trans<2>(out + piece_place<kPieces>(piece, 8 * kFours + lane % 16), matrices + kFours);
    if constexpr (kGroups % 2 == 1) ptx::stmatrix_trans<1>(out + piece_place<kPieces>(piece, 8 * (kGroups - 1) + lane % 8), matrices + kGroups - 1);
}

}  // namespace roles
#line 13 "/mega_moe/roles/epilogue_l1_sm90.cuh"
//#include "ptx/convert.cuh"

namespace roles {

// Values of this thread: value[m][2 * (column group) + column % 2].
template <uint32_t kWidth>
using Values = float[kM64][kWidth / 4];
template <uint32_t kWidth>
using Pairs = float[2][kWidth / 4];

// Of this thread's rows: gate and up.
using Bias = float[kM64][2];

__device__ __forceinline__ void load_bias(const Consumer& c, const mega_moe::Tile& tile, const Place& place, uint32_t pass, uint32_t block, Bias& bias) {
    const float* row = c.ctx.params.l1_bias;
    if (row == nullptr) return;
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) {
        const uint32_t odd = kM64 == 2 ? m : pass, in_block = place.warpgroup * 64 + place.lane / 8 * 16 + place.warp * 4 + place.lane / 4 % 2 * 2 + odd;
        const uint64_t i = uint64_t(tile.expert) * config::kL1Rows + block * 128 + in_block;
        bias[m][0] = row[i];
        if constexpr (config::kIsGated) bias[m][1] = row[config::kIntermediatePadded + i];
    }
}

template <uint32_t kWidth, uint32_t kBlock>
__device__ __forceinline__ void activate_block(const mega_moe::Columns& columns, const Bias& bias, const Sums<kWidth>& sums, Values<kWidth>& value) {
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) {
#pragma unroll
        for (uint32_t j = 0; j < kWidth / 4; j += 2) {
#pragma unroll
            for (uint32_t i = 0; i < 2; ++i) {
                const uint32_t r = j * 2 + i;  // half 0; half 1 is r + 2
                if constexpr (config::kIsGated) {
                    value[m][j + i] = mega_moe::activate(fmaf(sums[m][r], columns.alpha[0], bias[m][0]), fmaf(sums[m][r + 2], columns.alpha[1], bias[m][1]));
                } else {
                    value[m][j + i] = mega_moe::activate(fmaf(sums[m][r + 2 * kBlock], columns.alpha[0], bias[m][0]));
                }
            }
        }
    }
}

constexpr bool kStashes = config::kIsFp8 && config::kNumPasses > 1;
static_assert(config::kNumPasses == 1 || (config::kNumPasses == 2 && config::kL1BlocksPerTile == 1), "one stash, of one block");
constexpr uint32_t kCodePieces = 4 * config::kNumConsumerWarpgroups;  // of a column of codes: each warp makes one

// The first pass's values wait for the second's in `out`, four of a thread side by side. A warp's lie where its own codes will: no
// other need have read them before it writes those.
__device__ __forceinline__ uint32_t stashed(const Consumer& c, const Place& place, uint32_t j) {
    return ptx::smem_address(c.ctx.smem.out) + (4 * place.warpgroup + place.warp) * (config::kOutBytes / kCodePieces) + j * 128 + place.lane * 16;
}

// Halves `v`: a lane keeps the larger of its own and its partner's values, of one half of the columns; `first` says which.
template <uint32_t kNum, uint32_t kStep>
__device__ __forceinline__ void reduce_lanes(float* v, uint32_t lane, uint32_t& first, uint32_t& num, bool& is_mine) {
    if constexpr (kNum % 2 == 0) {
        const bool is_upper = (lane & kStep) != 0;
#pragma unroll
        for (uint32_t i = 0; i < kNum / 2; ++i) {
            const float sent = is_upper ? v[i] : v[i + kNum / 2], kept = is_upper ? v[i + kNum / 2] : v[i];
            v[i] = fmaxf(kept, __shfl_xor_sync(~0u, sent, kStep));
        }
        first += is_upper ? kNum / 2 : 0;
        if constexpr (kStep > 4) reduce_lanes<kNum / 2, kStep / 2>(v, lane, first, num, is_mine);
        else num = kNum / 2;
    } else {
#pragma unroll
        for (uint32_t i = 0; i < kNum; ++i) v[i] = fmaxf(v[i], __shfl_xor_sync(~0u, v[i], kStep));
        is_mine = is_mine && (lane & kStep) == 0;
        if constexpr (kStep > 4) reduce_lanes<kNum, kStep / 2>(v, lane, first, num, is_mine);
        else num = kNum;
    }
}

// Largest magnitude of each column over the block's 128 values, in largest_bits (bits of non-negative floats order like integers).
template <uint32_t kWidth>
__device__ __forceinline__ void reduce_amax(const Consumer& c, const Place& place, const Pairs<kWidth>& pair) {
    const uint32_t lane = place.lane;
    float largest[kWidth / 4];
#pragma unroll
    for (uint32_t j = 0; j < kWidth / 4; ++j) largest[j] = fmaxf(fabsf(pair[0][j]), fabsf(pair[1][j]));
    uint32_t first = 0, num = 0;
    bool is_mine = true;
    reduce_lanes<kWidth / 4, 16>(largest, lane, first, num, is_mine);
    constexpr uint32_t kMost = (kWidth / 4) % 8 == 0 ? kWidth / 32 : (kWidth / 4) % 4 == 0 ? kWidth / 16 : (kWidth / 4) % 2 == 0 ? kWidth / 8 : kWidth / 4;
#pragma unroll
    for (uint32_t i = 0; i < kMost; ++i) {
        const uint32_t j = first + i;
        if (is_mine) atomicMax(&mega_moe::largest_bits(c.ctx.smem)[j / 2 * 8 + lane % 4 * 2 + j % 2], __float_as_uint(largest[i]));
    }
}

// One thread a column: a block whose values do not lie well in E4M3 gets a scale factor of its own; the maximum starts over.
__device__ __forceinline__ void choose_scales(const Consumer& c, const mega_moe::Tile& tile, const Place& place, uint32_t block) {
    mega_moe::SharedStorage& smem = c.ctx.smem;
    const uint32_t column = place.warpgroup * 128 + place.thread;
    if (column == 0) smem.may_not_fit = 0;
    if (column >= config::kBlockN) return;
    const float amax = __uint_as_float(mega_moe::largest_bits(smem)[column]);
    mega_moe::largest_bits(smem)[column] = 0;
    if (column >= tile.num_rows) return;
    const float foreseen = mega_moe::inverse_power(columns_of(c, 0).scale(column));
    if (amax == 0.0f || (amax >= config::kLeastForeseen * foreseen && amax <= 448.0f * foreseen)) return;
    const float scale = mega_moe::power_of_two(fmaxf(amax, config::kMinAmax) * (2.0f / 448.0f));
#pragma unroll
    for (uint32_t warpgroup = 0; warpgroup < config::kNumConsumerWarpgroups; ++warpgroup) columns_of(c, warpgroup).scale(column) = mega_moe::inverse_power(scale);
    c.ctx.params.acts_sf[uint64_t(block) * c.ctx.params.pool_rows + tile.pool_row + column] = scale;
    ptx::st_relaxed_gpu(&c.ctx.params.has_own_sf[tile.token_tile], 1);
}

// E4M3: the pairs of all columns, times one over their scale factors, to shared memory.
template <uint32_t kWidth>
__device__ __forceinline__ void put_codes(const Consumer& c, const Place& place, const Pairs<kWidth>& pair) {
    const uint32_t factors = ptx::smem_address(&columns_of(c, place.warpgroup).pairs[place.lane % 4].scale);
    uint32_t matrices[kWidth / 8];
#pragma unroll
    for (uint32_t i = 0; i < kWidth / 8; ++i) {
        const float2 inverse = ptx::ld_shared_f32x2(factors + 4 * i * sizeof(mega_moe::ColumnPair));
        matrices[i] = uint32_t(ptx::cvt_e4m3x2(pair[0][2 * i] * inverse.x, pair[1][2 * i] * inverse.x)) |
                      uint32_t(ptx::cvt_e4m3x2(pair[0][2 * i + 1] * inverse.y, pair[1][2 * i + 1] * inverse.y)) << 16;
    }
    if constexpr (kStashes) __syncwarp();  // all lanes have read what was stashed
    store_columns<kWidth, kCodePieces>(ptx::smem_address(c.ctx.smem.out), 4 * place.warpgroup + place.warp, place.lane, matrices);
}

// Sixteen codes of a block: whether one may be too large for its scale, and whether one shows that the scale is not too large for the block.
struct Look {
    bool is_over, is_seen;

    __device__ __forceinline__ explicit Look(const uint4& codes) {
        // Rounded, a quarter may have been less and 448 more: their neighbours count. No sum carries into the next byte.
        constexpr uint32_t kLeast = 0x80 - 0x29, kMost = 0x80 - 0x7E;
        static_assert(config::kLeastForeseen == 0.25f, "0x28 is the code of 0.25");
        const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
        uint32_t seen = 0, over = 0;
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t magnitudes = words[i] & 0x7F7F7F7Fu;
            seen |= magnitudes + kLeast * 0x01010101u, over |= magnitudes + kMost * 0x01010101u;
        }
        is_seen = (seen & 0x80808080u) != 0, is_over = (over & 0x80808080u) != 0;
    }
};

// E4M3: stores the block's valid columns to the pool, 16 bytes a thread, 8 threads a column. Returns whether all columns that this warp has
// stored surely fit their scale; a quick look that misses zeros and borderline cases.
template <uint32_t kWidth>
__device__ __forceinline__ bool store_codes(const Consumer& c, const mega_moe::Tile& tile, const Place& place, uint32_t block) {
    constexpr uint32_t kColumns = mega_moe::kNumConsumerThreads / kCodePieces, kLoads = (kWidth + kColumns - 1) / kColumns;
    const uint32_t thread = place.warpgroup * 128 + place.thread, piece = thread % kCodePieces, column = thread / kCodePieces;
    const uint32_t staged = ptx::smem_address(c.ctx.smem.out) + piece_place<kCodePieces>(piece, column);
    uint4 codes[kLoads] = {};
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) {
        if (kWidth % kColumns == 0 || column + kColumns * i < tile.num_rows) codes[i] = ptx::ld_shared_v4(staged + kColumns * 16 * i);
    }
    uint8_t* row = c.ctx.params.acts + uint64_t(tile.pool_row + column) * config::kActRowBytes + block * 128 + piece * 16;
    bool is_over = false;
    uint32_t fit = ~0u;  // bit 7 of each byte: so far columns of these 8 threads
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) {
        const bool is_valid = column + kColumns * i < tile.num_rows;
        if (is_valid) *reinterpret_cast<uint4*>(row + uint64_t(i) * (kColumns * config::kActRowBytes)) = codes[i];
        const Look look(codes[i]);
        is_over |= look.is_over && is_valid;
        const uint32_t seen = __ballot_sync(~0u, look.is_seen || !is_valid);
        fit &= ((seen & 0x7F7F7F7Fu) + 0x7F7F7F7Fu) | seen;
    }
    return !__any_sync(~0u, is_over) && (fit & 0x80808080u) == 0x80808080u;
}

// E4M3. The scale is what was foreseen for the token, so that L2 need not multiply by it block by block, unless the block's values do not
// lie well in E4M3: that shows in the codes, and is seldom, so they are stored before it is known.
template <uint32_t kWidth>
__device__ __forceinline__ void finish_codes(const Consumer& c, const mega_moe::Tile& tile, const Place& place, uint32_t block, const Pairs<kWidth>& pair) {
    using mega_moe::sync_consumers;
    put_codes<kWidth>(c, place, pair);
    sync_consumers();
    const uint32_t column = place.warpgroup * 128 + place.thread;
    if (column < tile.num_rows) {
        c.ctx.params.acts_sf[uint64_t(block) * c.ctx.params.pool_rows + tile.pool_row + column] = mega_moe::inverse_power(columns_of(c, place.warpgroup).scale(column));
    }
    if (!store_codes<kWidth>(c, tile, place, block) && place.lane == 0) atomicOr(&c.ctx.smem.may_not_fit, 1);
    sync_consumers();
    if (c.ctx.smem.may_not_fit == 0) return;
    reduce_amax<kWidth>(c, place, pair);
    sync_consumers();
    choose_scales(c, tile, place, block);
    sync_consumers();
    put_codes<kWidth>(c, place, pair);
    sync_consumers();
    store_codes<kWidth>(c, tile, place, block);
    sync_consumers();
}

// BF16: the pass's values to shared memory, 8 of a column's 128 in a piece: a warp has two.
template <uint32_t kWidth>
__device__ __forceinline__ void put_values(const Consumer& c, const Place& place, uint32_t pass, const Values<kWidth>& value) {
    // Place of the pair: 16 warp + 8 (row % 2) + 2 (row / 2) of the warpgroup's 64 (layout/token_order.cuh).
    constexpr uint32_t kPieces = 2 * kCodePieces;
    const uint32_t piece = 8 * place.warpgroup + 2 * place.warp + place.lane / 4 % 2, word = place.lane / 8;
#pragma unroll
    for (uint32_t j = 0; j < kWidth / 4; ++j) {
        const uint32_t column = j / 2 * 8 + place.lane % 4 * 2 + j % 2;
        uint8_t* at = c.ctx.smem.out + piece_place<kPieces>(piece, column) + word * 4;
        if constexpr (kM64 == 2) {
            *reinterpret_cast<uint32_t*>(at) = ptx::cvt_bf16x2(value[0][j], value[kM64 - 1][j]);
        } else {
            reinterpret_cast<uint16_t*>(at)[pass] = uint16_t(ptx::cvt_bf16x2(value[0][j], 0.0f));
        }
    }
}

// BF16: copies the tile's valid columns to the pool, 16 bytes a thread.
template <uint32_t kWidth>
__device__ __forceinline__ void store_values(const Consumer& c, const mega_moe::Tile& tile, const Place& place, uint32_t block) {
    constexpr uint32_t kPieces = 2 * kCodePieces, kColumns = mega_moe::kNumConsumerThreads / kPieces, kLoads = (kWidth + kColumns - 1) / kColumns;
    const uint32_t thread = place.warpgroup * 128 + place.thread, piece = thread % kPieces, column = thread / kPieces;
    const uint32_t staged = ptx::smem_address(c.ctx.smem.out) + piece_place<kPieces>(piece, column);
    uint4 values[kLoads];
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) {
        if (column + kColumns * i < tile.num_rows) values[i] = ptx::ld_shared_v4(staged + kColumns * 16 * i);
    }
    uint8_t* row = c.ctx.params.acts + uint64_t(tile.pool_row + column) * config::kActRowBytes + block * 256 + piece * 16;
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) {
        if (column + kColumns * i < tile.num_rows) *reinterpret_cast<uint4*>(row + uint64_t(i) * (kColumns * config::kActRowBytes)) = values[i];
    }
}

template <uint32_t kWidth, uint32_t kBlock>
__device__ __forceinline__ void finish_block(const Consumer& c, const mega_moe::Tile& tile, const Place& place, uint32_t pass, const Sums<kWidth>& sums) {
    const uint32_t block = tile.m_tile * config::kL1BlocksPerTile + kBlock;
    const mega_moe::Columns& columns = columns_of(c, place.warpgroup);
    Values<kWidth> value;
    Bias bias = {};
    load_bias(c, tile, place, pass, block, bias);
    if constexpr (kStashes) {
        if (pass == 0) {
            activate_block<kWidth, kBlock>(columns, bias, sums, value);
#pragma unroll
            for (uint32_t j = 0; j < kWidth / 4; j += 4) ptx::st_shared_f32x4(stashed(c, place, j), {value[0][j], value[0][j + 1], value[0][j + 2], value[0][j + 3]});
            return;
        }
    }
    if constexpr (config::kIsFp8) {
        Pairs<kWidth> pair;
        if constexpr (kStashes) {
#pragma unroll
            for (uint32_t j = 0; j < kWidth / 4; j += 4) {
                const float4 first = ptx::ld_shared_f32x4(stashed(c, place, j));
                pair[0][j] = first.x, pair[0][j + 1] = first.y, pair[0][j + 2] = first.z, pair[0][j + 3] = first.w;
            }
        }
        activate_block<kWidth, kBlock>(columns, bias, sums, value);
#pragma unroll
        for (uint32_t j = 0; j < kWidth / 4; ++j) {
            if constexpr (!kStashes) pair[0][j] = value[0][j];
            pair[1][j] = value[kM64 - 1][j];
        }
        finish_codes<kWidth>(c, tile, place, block, pair);
    } else {
        activate_block<kWidth, kBlock>(columns, bias, sums, value);
        put_values<kWidth>(c, place, pass, value);
        if (pass + 1 < config::kNumPasses) return;
        mega_moe::sync_consumers();
        store_values<kWidth>(c, tile, place, block);
        mega_moe::sync_consumers();
    }
}

template <uint32_t kWidth>
__device__ __forceinline__ void epilogue_l1(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, const Sums<kWidth>& sums) {
    const Place place;
    if (pass == 0) {
        wait_columns(place);
        if constexpr (config::kIsFp8) make_scales<kWidth>(columns_of(c, place.warpgroup), place, tile.num_rows, [](float foreseen) { return mega_moe::inverse_power(foreseen); });
    }
    if (config::kIsFp8 && pass + 1 == config::kNumPasses) sync_warpgroup(place.warpgroup);  // the scales have been made
    finish_block<kWidth, 0>(c, tile, place, pass, sums);
    if constexpr (config::kL1BlocksPerTile > 1) finish_block<kWidth, 1>(c, tile, place, pass, sums);
    // Publish: the stores happen before the release through the last barrier; L2's loader fences the proxy on its side.
    if (pass + 1 == config::kNumPasses && place.warpgroup == 0 && place.thread == 0) {
        ptx::red_release_gpu_add(&c.ctx.params.l1_done[tile.token_tile], 1);
    }
}

}  // namespace roles
#line 4 "/mega_moe/roles/consume_sm90.cuh"
#line 1 "/mega_moe/roles/epilogue_l2_sm90.cuh"
// Role: L2 epilogue (each consumer warpgroup for itself, after mma)
// Waits for:  nothing beyond the tile's sums
// Produces:   bf16(top-k weight x (alpha x sums + bias)) in the home rank's partials, one row a slot, by way of shared memory: 128
//             bytes of a row at a time; the block counts in l2_done when all its tiles are stored
// Registers:  config::kConsumerRegisters
//#pragma once
//#include "mega_moe/roles/columns_sm90.cuh"
//#include "ptx/convert.cuh"

namespace roles {

// The warpgroup's 64-row tile `m`: 64 neighbouring hidden values of each column.
template <uint32_t kWidth>
__device__ __forceinline__ void finish_rows(const Consumer& c, const mega_moe::Tile& tile, uint32_t m, const float (&sums)[kWidth / 2]) {
    using namespace mega_moe;
    const Params& params = c.ctx.params;
    const Place place;
    const Columns& columns = columns_of(c, place.warpgroup);
    const uint32_t hidden = tile.m_tile * config::kBlockM + 128 * place.warpgroup + 64 * m, out = ptx::smem_address(c.ctx.smem.out);
    constexpr uint32_t kPieces = 8 * config::kNumConsumerWarpgroups;
    float bias[2] = {0.0f, 0.0f};
    if (params.l2_bias != nullptr) {
        const float* row = params.l2_bias + uint64_t(tile.expert) * config::kHiddenPadded + hidden + 16 * place.warp + place.lane / 4;
        bias[0] = row[0], bias[1] = row[8];
    }
    const uint32_t pairs = ptx::smem_address(&columns.pairs[place.lane % 4]);
    const float alpha = columns.alpha[0];
    uint32_t matrices[2][kWidth / 8];
#pragma unroll
    for (uint32_t i = 0; i < kWidth / 8; ++i) {
        const float4 pair = ptx::ld_shared_f32x4(pairs + 4 * i * sizeof(ColumnPair));
        const float scale[2] = {config::kIsFp8 ? pair.x : alpha, config::kIsFp8 ? pair.y : alpha};
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            matrices[half][i] = ptx::cvt_bf16x2(fmaf(sums[4 * i + 2 * half], scale[0], bias[half]) * pair.z, fmaf(sums[4 * i + 2 * half + 1], scale[1], bias[half]) * pair.w);
        }
    }
    if (m > 0) sync_warpgroup(place.warpgroup);  // the last tile's have been read; before the first one columns were waited for
    const uint32_t first_piece = 8 * place.warpgroup + 2 * place.warp;
    store_columns<kWidth, kPieces>(out, first_piece, place.lane, matrices[0]);
    store_columns<kWidth, kPieces>(out, first_piece + 1, place.lane, matrices[1]);
    // 8 threads store a column's 128 bytes. All loads come before the first store: their ways overlap.
    constexpr uint32_t kLoads = (kWidth + 15) / 16;
    const uint32_t piece = place.thread % 8, column = place.thread / 8, staged = out + piece_place<kPieces>(8 * place.warpgroup + piece, column);
    uint32_t slots[kLoads];
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) slots[i] = column + 16 * i < tile.num_rows ? columns.slot[column + 16 * i] : 0;
    sync_warpgroup(place.warpgroup);
    uint4 values[kLoads];
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) {
        if (kWidth % 16 == 0 || column + 16 * i < tile.num_rows) values[i] = ptx::ld_shared_v4(staged + 256 * i);
    }
    uint8_t* partials = comm::part<uint8_t>(params.peers, 0, params.sym.partials) + hidden * 2 + piece * 16;
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) {
        if (column + 16 * i < tile.num_rows) *reinterpret_cast<uint4*>(partials + uint64_t(slots[i]) * (config::kHiddenPadded * 2)) = values[i];
    }
}

template <uint32_t kWidth>
__device__ __forceinline__ void epilogue_l2(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, bool has_own_sf, const Sums<kWidth>& sums) {
    if (pass == 0) {
        const Place place;
        wait_columns(place);
        if constexpr (config::kIsFp8) {
            // Alpha, and the foreseen scale where the sums do not have scale factors in them.
            mega_moe::Columns& columns = columns_of(c, place.warpgroup);
            const float alpha = columns.alpha[0];
            make_scales<kWidth>(columns, place, tile.num_rows, [=](float foreseen) { return alpha * (has_own_sf ? 1.0f : foreseen); });
            sync_warpgroup(place.warpgroup);
        }
    }
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) finish_rows<kWidth>(c, tile, kM64 == 2 ? m : pass, sums[m]);
}

// After the block's last tile: its partials are there.
__device__ __forceinline__ void publish_partials(const mega_moe::Context& ctx, uint32_t consumer_thread) {
    mega_moe::sync_consumers();
    if (consumer_thread == 0) ptx::red_release_gpu_add(ctx.params.l2_done, 1);
}

}  // namespace roles
#line 5 "/mega_moe/roles/consume_sm90.cuh"
//#include "mega_moe/roles/mma_sm90.cuh"

namespace roles {

// By the narrowest MMA that holds the tile's tokens. Sums do not leave the instance of their width: where instances of several
// widths meet, their accumulators would have to meet in the same registers.
template <uint32_t kWidth>
__device__ __forceinline__ void finish_width(Consumer& c, const mega_moe::Tile& tile, bool is_l2, bool has_own_sf, uint32_t width) {
    if constexpr (kWidth > config::kMinWidth) {
        if (width < kWidth) return finish_width<kWidth - config::kWidthStep>(c, tile, is_l2, has_own_sf, width);
    }
    for (uint32_t pass = 0; pass < config::kNumPasses; ++pass) {
        Sums<kWidth> sums;
        multiply_pass<kWidth>(c, sums, is_l2, has_own_sf);
        if (is_l2) {
            epilogue_l2<kWidth>(c, tile, pass, has_own_sf, sums);
        } else {
            epilogue_l1<kWidth>(c, tile, pass, sums);
        }
    }
}

__device__ __forceinline__ void finish_tile(Consumer& c, const mega_moe::Tile& tile, bool is_l2) {
    if (is_l2) {
        fetch_columns<true>(c, tile);
    } else {
        fetch_columns<false>(c, tile);
    }
    const bool has_own_sf = config::kIsFp8 && is_l2 && c.ctx.smem.has_own_sf[c.cursor.stage] != 0;
    finish_width<config::kBlockN>(c, tile, is_l2, has_own_sf, has_own_sf ? config::kBlockN : tile.width);  // seldom: the widest has to do
}

}  // namespace roles
#line 15 "/mega_moe/sm90.cuh"
#line 1 "/mega_moe/roles/dispatch_sm90.cuh"
// Role: dispatch (all warps but the loaders', which leave as soon as there is a schedule)
// Waits for:  the schedule
// Produces:   in global memory, for every routed row, the quantised token in the pool with its scales, slot and top-k weight: a block does
//             its share of the tokens, and counts rows in rows_ready[tile]
// Registers:  those of the launch
//
// Work is dealt in pieces: kPieceBytes of a stored token, which in E4M3 are the values that share a scale. A warp takes a piece, whatever
// the number of tokens: the pieces of few tokens are made at once, those of many one after the other with the next one's loads ahead.
// A lane makes 16 stored bytes: vector v of a block of 64 is, in token order, four runs of kRun neighbours, 16 apart
// (layout/token_order.cuh). So loads fill whole sectors, and stores whole lines.
//#pragma once
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
#line 13 "/mega_moe/roles/dispatch_sm90.cuh"
//#include "mega_moe/context_sm90.cuh"
//#include "mega_moe/roles/build_schedule_sm90.cuh"
#line 1 "/mega_moe/scale_search.cuh"
// Which scale makes E4M3 nearest to a block of 512 values: one of four, a quarter of a binade apart. Rule: formats/block_scaled.py.
//#pragma once
//#include "config.cuh"
//#include "ptx/convert.cuh"
//#include "ptx/warp.cuh"
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
#line 16 "/mega_moe/roles/dispatch_sm90.cuh"
//#include "ptx/convert.cuh"
//#include "ptx/fence.cuh"
//#include "ptx/ld_st.cuh"

namespace roles {

constexpr uint32_t kNumDispatchThreads = config::kNumThreads - config::kFirstDispatchThread, kNumDispatchWarps = kNumDispatchThreads / 32;
constexpr uint32_t kRun = layout::TokenOrder<config::kIsFp8>::kRun;
constexpr uint32_t kVector = 16 / config::kActBytes;  // elements of a vector: runs of four 16-groups
constexpr uint32_t kRowVectors = config::kTokenRowBytes / 16;
constexpr uint32_t kPieceBytes = 32 * 16;  // a vector a lane
constexpr uint32_t kPieces = (config::kTokenRowBytes + kPieceBytes - 1) / kPieceBytes;  // of a token
static_assert(kVector == 4 * kRun);
static_assert(!config::kIsFp8 || (kPieceBytes == config::kPromotedStages * config::kTokenKBytes && kPieces == config::kScaleBlocks));
static_assert(config::kChunkTokens * config::kNumTopk <= kNumDispatchThreads, "a thread a slot");
static_assert(config::kNumTopk <= 32, "a lane a slot of a token");

__device__ __forceinline__ void sync_dispatch() { ptx::barrier_sync(mega_moe::kDispatchBarrier, kNumDispatchThreads); }

// A lane's part of a piece.
struct Piece {
    uint32_t words[kVector / 2];  // values: kRun bf16 of each of four 16-groups; staged codes as they are stored, in the first four
    float scale;                  // of staged codes
};

__device__ __forceinline__ void load_values(const uint8_t* x_row, uint32_t vector, Piece& piece) {
    constexpr uint32_t kWords = kRun / 2, kAll = 4 * kWords;
    const uint32_t first = vector * kVector / 64 * 64 + vector % (64 / kVector) * kRun;
    constexpr bool kIsPadded = config::kTokenRowBytes != config::kHidden * config::kActBytes;  // K of a row ends after the token
    if (reinterpret_cast<uint64_t>(x_row) % (kRun * 2) == 0 && (!kIsPadded || first + 48 + kRun <= config::kHidden)) {
#pragma unroll
        for (uint32_t t = 0; t < 4; ++t) {
            const uint8_t* run = x_row + (first + 16 * t) * 2;
            if constexpr (kWords == 2) {
                const uint2 words = *reinterpret_cast<const uint2*>(run);
                piece.words[2 * t] = words.x, piece.words[2 * t + 1] = words.y;
            } else {
                piece.words[t] = *reinterpret_cast<const uint32_t*>(run);
            }
        }
        return;
    }
    // Seldom, so it is short: words are shifted in one by one.
    const uint16_t* x = reinterpret_cast<const uint16_t*>(x_row);
#pragma unroll 1
    for (uint32_t i = 0; i < kAll; ++i) {
        const uint32_t k = first + 16 * (i / kWords) + 2 * (i % kWords);
        const uint32_t low = k < config::kHidden ? x[k] : 0, high = k + 1 < config::kHidden ? x[k + 1] : 0;
#pragma unroll
        for (uint32_t w = 0; w + 1 < kAll; ++w) piece.words[w] = piece.words[w + 1];
        piece.words[kAll - 1] = low | high << 16;
    }
}

// A staged token's scales, then the one that would make its largest value 448.
__device__ __forceinline__ const float* staged_scales(const mega_moe::Params& params, uint32_t token) {
    return comm::part<const float>(params.peers, 0, params.sym.token_sf) + uint64_t(token) * (config::kScaleBlocks + 1);
}

// Piece `index` of this rank's tokens; zeros from token `end` on, and where a token is padded.
__device__ __forceinline__ Piece load_piece(const mega_moe::Params& params, uint32_t end, uint32_t index) {
    const uint32_t token = index / kPieces, block = index % kPieces, vector = block * 32 + threadIdx.x % 32;
    Piece piece = {};
    if (token >= end) return piece;
    if (params.x != nullptr) {
        if (vector < kRowVectors) load_values(params.x + uint64_t(token) * params.x_stride_bytes, vector, piece);
    } else {
        const uint4* row = reinterpret_cast<const uint4*>(comm::part<const uint8_t>(params.peers, 0, params.sym.tokens) + uint64_t(token) * config::kTokenRowBytes);
        const uint4 stored = vector < kRowVectors ? row[vector] : uint4{};
        piece.words[0] = stored.x, piece.words[1] = stored.y, piece.words[2] = stored.z, piece.words[3] = stored.w;
        if constexpr (config::kIsFp8) piece.scale = staged_scales(params, token)[block];
    }
    return piece;
}

// The first slot of a thread, and the first piece of a warp, among those of the tokens from `first_token` on.
__device__ __forceinline__ uint32_t own_slot(uint32_t first_token) { return first_token * config::kNumTopk + threadIdx.x - config::kFirstDispatchThread; }
__device__ __forceinline__ uint32_t own_piece(uint32_t first_token) { return first_token * kPieces + (threadIdx.x - config::kFirstDispatchThread) / 32; }

// What a thread begins with. Of the first tokens it is on its way while the schedule is made.
struct Ahead {
    uint64_t index;  // of the thread's slot
    float weight;
    Piece piece;

    __device__ __forceinline__ void load_slot(const mega_moe::Params& params, const Share& share, uint32_t first_token) {
        const uint32_t slot = own_slot(first_token);
        const bool has_slot = slot < share.end * config::kNumTopk;
        index = has_slot ? expert_index(params, slot) : ~uint64_t(0);
        weight = has_slot ? params.topk_weights[slot] : 0.0f;
    }
};

// Quantises a piece and puts it into each of its token's rows; `place` is the token's among those in hand, `largest` the largest magnitude (E4M3).
__device__ __forceinline__ void put_piece(const mega_moe::Params& params, mega_moe::OwnTokens& own, uint32_t place, uint32_t block, const Piece& piece, float largest) {
    const uint32_t lane = threadIdx.x % 32, vector = block * 32 + lane;
    const uint32_t (&pool_rows)[config::kNumTopk] = own.pool_rows[place];
    uint4 stored = {piece.words[0], piece.words[1], piece.words[2], piece.words[3]};
    float scale = piece.scale;
    if constexpr (config::kIsFp8) {
        if (params.x != nullptr) {
            const mega_moe::BlockScale found = mega_moe::search_scale(piece.words, largest);
            scale = found.scale;
            stored.x = ptx::cvt_e4m3x4(piece.words[0], piece.words[1], found.inverse), stored.y = ptx::cvt_e4m3x4(piece.words[2], piece.words[3], found.inverse);
            stored.z = ptx::cvt_e4m3x4(piece.words[4], piece.words[5], found.inverse), stored.w = ptx::cvt_e4m3x4(piece.words[6], piece.words[7], found.inverse);
            // Bits of floats that are not negative order as the floats do.
            if (lane == 0) atomicMax(&own.scale[place], __float_as_uint(found.smallest));
        }
    }
    uint8_t* tokens = params.tokens + vector * 16;
#pragma unroll 8
    for (uint32_t k = 0; k < config::kNumTopk; ++k) {
        const uint32_t row = pool_rows[k];
        if (row != ~0u && vector < kRowVectors) *reinterpret_cast<uint4*>(tokens + uint64_t(row) * config::kTokenRowBytes) = stored;
    }
    if constexpr (config::kIsFp8) {
        if (lane < config::kNumTopk && pool_rows[lane] != ~0u) params.tokens_sf[uint64_t(block) * params.pool_rows + pool_rows[lane]] = scale;
    }
}

__device__ __forceinline__ void dispatch(const mega_moe::Params& params, const mega_moe::Schedule& schedule, mega_moe::OwnTokens& own, const Share& share, Ahead& ahead) {
    const uint32_t thread = threadIdx.x - config::kFirstDispatchThread;
    uint32_t index = own_piece(share.begin);
    for (uint32_t begin = share.begin; begin < share.end; begin += config::kChunkTokens) {
        const uint32_t end = min(begin + config::kChunkTokens, share.end);
        // A thread a slot.
        const bool has_slot = thread < config::kChunkTokens * config::kNumTopk;
        const int32_t expert = has_slot ? local_expert(params, ahead.index) : -1;
        const float weight = ahead.weight;
        uint32_t tile = 0, pool_row = ~0u;
        if (expert >= 0) {
            const uint32_t row = atomicAdd(&own.next[expert], 1u);
            tile = schedule.tile_begin[expert] + row / config::kBlockN;
            pool_row = tile * config::kBlockN + row % config::kBlockN;
        }
        if (has_slot) own.pool_rows[thread / config::kNumTopk][thread % config::kNumTopk] = pool_row;
        if (thread < config::kChunkTokens) own.scale[thread] = 0;
        sync_dispatch();
#pragma unroll 1
        for (; index < end * kPieces; index += kNumDispatchWarps) {
            // A look at all values, before the next ones' loads start: who waits for these later would wait for those too.
            float largest = 0.0f;
            if constexpr (config::kIsFp8) largest = mega_moe::largest_of(ahead.piece.words);
            const Piece next = load_piece(params, share.end, index + kNumDispatchWarps);
            put_piece(params, own, index / kPieces - begin, index % kPieces, ahead.piece, largest);
            ahead.piece = next;
        }
        float staged_scale = 0.0f;
        if (config::kIsFp8 && params.x == nullptr && expert >= 0) staged_scale = staged_scales(params, begin + thread / config::kNumTopk)[config::kScaleBlocks];
        ahead.load_slot(params, share, end);
        sync_dispatch();
        if (expert >= 0) {
            params.routed[pool_row] = own_slot(begin);
            params.routed_weights[pool_row] = weight;
            if constexpr (config::kHasTokenScales) params.routed_sf[pool_row] = params.x != nullptr ? __uint_as_float(own.scale[thread / config::kNumTopk]) : staged_scale;
            // The release publishes all these threads' writes: they happen before it through the barrier.
            ptx::red_release_gpu_add(&params.rows_ready[tile], 1);
        }
        sync_dispatch();  // `own` has been read: the next tokens, or results of tiles, take its place
    }
}

}  // namespace roles
#line 16 "/mega_moe/sm90.cuh"
#line 1 "/mega_moe/roles/load_acts_sm90.cuh"
// Role: load activations (one thread of warp 1)
// Waits for:  a stage's empty barrier; L1: the tile's rows from dispatch; L2: all L1 tiles of the token tile
// Produces:   the stage's tokens in shared memory by boxes of the pools (TMA), 128 bytes of K a row, 128-byte swizzle, and in L2 their
//             own scale factors where the tile has some, on the full barrier
// Registers:  config::kLoaderRegisters
//#pragma once
//#include "mega_moe/context_sm90.cuh"
//#include "ptx/fence.cuh"

namespace roles {

// Rows past the tile's last hold anything: their columns are never stored, and no column of an MMA depends on another.
template <bool kIsL2>
__device__ __forceinline__ void load_rows(const mega_moe::Context& ctx, const mega_moe::Tile& tile, pipeline::RingCursor& cursor) {
    constexpr uint32_t kStages = kIsL2 ? config::kL2KStages : config::kL1KStages;
    constexpr uint32_t kParts = config::kTokenKBytes / 128;  // 128-byte sub-blocks of a stage: one in E4M3, two in BF16
    constexpr uint32_t kSfBytes = config::kBlockN * 4;
    const uint32_t first_row = tile.pool_row, num_rows = tile.num_rows, rows = (num_rows + config::kBoxRows - 1) / config::kBoxRows * config::kBoxRows;
    bool has_own_sf = false;
    if constexpr (kIsL2) {
        comm::wait_counter(ctx.watchdog, &ctx.params.l1_done[tile.token_tile], config::kL1MTiles, comm::WaitFor::kL1Tiles, tile.token_tile);
        if constexpr (config::kIsFp8) has_own_sf = ptx::ld_acquire_gpu(&ctx.params.has_own_sf[tile.token_tile]) != 0;
    } else {
        comm::wait_counter(ctx.watchdog, &ctx.params.rows_ready[tile.token_tile], num_rows, comm::WaitFor::kDispatch, tile.token_tile);
    }
    // Dispatch and the L1 epilogue write with ordinary stores, copies read through the async proxy.
    ptx::fence_proxy_async_global();
    const ptx::TensorMap* map = kIsL2 ? ctx.acts_map : ctx.tokens_map;
    for (uint32_t pass = 0; pass < config::kNumPasses; ++pass) {
        for (uint32_t k = 0; k < kStages; ++k, cursor.advance()) {
            const uint32_t full = pipeline::wait_empty(ctx.watchdog, ctx.smem.ring, cursor);
            if constexpr (kIsL2 && config::kIsFp8) ctx.smem.has_own_sf[cursor.stage] = has_own_sf;
            // L1's scale factors come with the last stage before a promotion.
            const bool has_sf = config::kIsFp8 && (kIsL2 ? has_own_sf : k % config::kPromotedStages + 1 == config::kPromotedStages || k + 1 == kStages);
            // Consumers read the stage's last scale factors by ordinary loads; the copy writes through the async proxy.
            if (has_sf) ptx::fence_proxy_async_shared();
            ptx::mbarrier_arrive_expect_tx(full, rows * config::kTokenKBytes + (has_sf ? kSfBytes : 0));
            if (has_sf) {
                const float* sf = kIsL2 ? ctx.params.acts_sf + uint64_t(k) * ctx.params.pool_rows : ctx.params.tokens_sf + uint64_t(k / config::kPromotedStages) * ctx.params.pool_rows;
                ptx::cp_async_bulk(ptx::smem_address(ctx.smem.sf[cursor.stage]), sf + first_row, kSfBytes, full);
            }
            const uint32_t stage = ptx::smem_address(ctx.smem.tokens[cursor.stage]);
            for (uint32_t row = 0; row < rows; row += config::kBoxRows) {
#pragma unroll
                for (uint32_t part = 0; part < kParts; ++part) {
                    ptx::cp_async_bulk_tensor_2d(stage + (part * config::kBlockN + row) * 128, map, (k * config::kTokenKBytes + part * 128) / config::kActBytes,
                                                 first_row + row, full);
                }
            }
        }
    }
}

__device__ __forceinline__ void load_acts(const mega_moe::Context& ctx) {
    pipeline::RingCursor cursor;
    ptx::prefetch_tensormap(ctx.tokens_map);
    ptx::prefetch_tensormap(ctx.acts_map);
    mega_moe::QueuePlace place;
    ctx.scheduler.for_each_tile([&](bool is_l2, uint32_t) {
        const mega_moe::Tile& tile = mega_moe::wait_tile(ctx.watchdog, ctx.smem.queue, place);
        if (is_l2) {
            load_rows<true>(ctx, tile, cursor);
        } else {
            load_rows<false>(ctx, tile, cursor);
        }
        mega_moe::release_tile(ctx.smem.queue, place, true);
    });
}

}  // namespace roles
#line 17 "/mega_moe/sm90.cuh"
#line 1 "/mega_moe/roles/load_weights_sm90.cuh"
// Role: load weights (one thread of warp 0)
// Waits for:  a stage's empty barrier
// Produces:   codes and block scale factors of one (weight tile, K stage), a contiguous block, by bulk copies on the full barrier;
//             a tile in two passes brings half of each block at a time
// Registers:  config::kLoaderRegisters
//#pragma once
//#include "mega_moe/context_sm90.cuh"
//#include "ptx/fence.cuh"

namespace roles {

template <bool kIsL2>
__device__ __forceinline__ void load_blocks(const mega_moe::Context& ctx, const mega_moe::Tile& tile, pipeline::RingCursor& cursor, uint64_t policy) {
    constexpr uint32_t kStages = kIsL2 ? config::kL2KStages : config::kL1KStages, kMTiles = kIsL2 ? config::kL2MTiles : config::kL1MTiles;
    const uint8_t* blocks = (kIsL2 ? ctx.params.l2_weights : ctx.params.l1_weights) + uint64_t(tile.expert * kMTiles + tile.m_tile) * kStages * config::kWeightBlockBytes;
    for (uint32_t pass = 0; pass < config::kNumPasses; ++pass) {
        const uint8_t* source = blocks;
        for (uint32_t k = 0; k < kStages; ++k, cursor.advance(), source += config::kWeightBlockBytes) {
            const uint32_t full = pipeline::wait_empty(ctx.watchdog, ctx.smem.ring, cursor);
            // Consumers read the stage's last weights by ordinary loads; the copy writes through the async proxy.
            ptx::fence_proxy_async_shared();
            const uint32_t stage = ptx::smem_address(ctx.smem.weights[cursor.stage]);
            ptx::mbarrier_arrive_expect_tx(full, config::kWeightStageBytes);
            if constexpr (config::kNumPasses == 1) {
                ptx::cp_async_bulk(stage, source, config::kWeightStageBytes, full, policy);
            } else {
                // A pass takes one of each warpgroup's two 64-row tiles: its codes, and the scale factors behind all codes. They stay in L2:
                // an expert that needs wide tiles has several.
                constexpr uint32_t kCodes = config::kStageCodeBytes / 2, kScales = config::kStageScaleBytes / 2;
#pragma unroll
                for (uint32_t warpgroup = 0; warpgroup < 2; ++warpgroup) {
                    const uint32_t m64 = 2 * warpgroup + pass;
                    ptx::cp_async_bulk(stage + warpgroup * kCodes, source + m64 * kCodes, kCodes, full);
                    ptx::cp_async_bulk(stage + 2 * kCodes + warpgroup * kScales, source + 4 * kCodes + m64 * kScales, kScales, full);
                }
            }
        }
    }
}

__device__ __forceinline__ void load_weights(const mega_moe::Context& ctx) {
    const uint64_t policy = ptx::createpolicy_evict_first();
    pipeline::RingCursor cursor;
    mega_moe::QueuePlace place;
    ctx.scheduler.for_each_tile([&](bool is_l2, uint32_t) {
        const mega_moe::Tile& tile = mega_moe::wait_tile(ctx.watchdog, ctx.smem.queue, place);
        if (is_l2) {
            load_blocks<true>(ctx, tile, cursor, policy);
        } else {
            load_blocks<false>(ctx, tile, cursor, policy);
        }
        mega_moe::release_tile(ctx.smem.queue, place, true);
    });
}

}  // namespace roles
#line 18 "/mega_moe/sm90.cuh"
#line 1 "/mega_moe/roles/queue_tiles_sm90.cuh"
// Role: queue tiles (one thread of warp 2)
// Waits for:  a place in the queue of tiles
// Produces:   the block's tiles in their order
// Registers:  config::kLoaderRegisters
//#pragma once
//#include "mega_moe/context_sm90.cuh"

namespace roles {

__device__ __forceinline__ void queue_tiles(const mega_moe::Context& ctx) {
    mega_moe::QueuePlace place;
    uint32_t l1_expert = 0, l2_expert = 0;
    ctx.scheduler.for_each_tile([&](bool is_l2, uint32_t i) {
        const mega_moe::Tile tile = is_l2 ? ctx.scheduler.tile_at<true>(i, l2_expert) : ctx.scheduler.tile_at<false>(i, l1_expert);
        mega_moe::push_tile(ctx.watchdog, ctx.smem.queue, place, tile);
    });
}

}  // namespace roles
#line 19 "/mega_moe/sm90.cuh"
//#include "ptx/warp.cuh"

extern "C" __global__ void __launch_bounds__(config::kNumThreads, 1)
    mega_moe_sm90(const __grid_constant__ mega_moe::Params params, const __grid_constant__ ptx::TensorMap tokens_map,
                  const __grid_constant__ ptx::TensorMap acts_map) {
    using namespace mega_moe;
    extern __shared__ __align__(1024) uint8_t smem_bytes[];
    SharedStorage& smem = *reinterpret_cast<SharedStorage*>(smem_bytes);

    if (threadIdx.x == 0) {
        pipeline::init(smem.ring);
        smem.queue.init();
        ptx::fence_mbarrier_init();
        smem.may_not_fit = 0;
    }
    roles::clear_schedule(smem.schedule, own_tokens(smem));
    if constexpr (config::kIsFp8) fill_decode_table(smem.decode_table);
    if (threadIdx.x < config::kBlockN) {
        largest_bits(smem)[threadIdx.x] = 0;
        for (Columns& columns : smem.columns) columns.weight(threadIdx.x) = columns.scale(threadIdx.x) = 0.0f;  // of columns that no tile has filled yet
    }
    const roles::Share share(params.num_tokens);
    __syncthreads();
    ptx::griddepcontrol_wait();
    const bool is_dispatch = threadIdx.x >= config::kFirstDispatchThread;
    roles::Ahead ahead = {};
    if (is_dispatch) ahead.load_slot(params, share, share.begin);
    const roles::Counts counts = roles::count_slots(params, share);
    if (is_dispatch) ahead.piece = roles::load_piece(params, share.end, roles::own_piece(share.begin));
    roles::build_schedule(params, smem.schedule, own_tokens(smem), counts);
    // The first three warps go on at once: weights need the schedule only. No barrier of the block comes after this.
    if (is_dispatch) roles::dispatch(params, smem.schedule, own_tokens(smem), share, ahead);

    const Context ctx{params, &tokens_map, &acts_map, smem, Scheduler{smem.schedule}, comm::Watchdog{params.error_record, params.timeout_ns, params.rank}};

    // The branch is uniform by warpgroup, as setmaxnreg needs it: it is one instruction for all warps of the loaders' group, at their own times.
    if (threadIdx.x < config::kFirstConsumerThread) {
        ptx::setmaxnreg_dec<config::kLoaderRegisters>();
        if (threadIdx.x == 0) {
            roles::load_weights(ctx);
        } else if (threadIdx.x == 32) {
            roles::load_acts(ctx);
        } else if (threadIdx.x == 64) {
            roles::queue_tiles(ctx);
        }
    } else {
        ptx::setmaxnreg_inc<config::kConsumerRegisters>();
        const uint32_t thread = threadIdx.x - config::kFirstConsumerThread;
        roles::Consumer consumer(ctx, thread);
        QueuePlace place;
        // Without the attribute the largest kernels call it, and MMAs do not run across calls.
        ctx.scheduler.for_each_tile([&](bool is_l2, uint32_t) __attribute__((always_inline)) {
            const Tile& tile = wait_tile(ctx.watchdog, smem.queue, place);
            roles::finish_tile(consumer, tile, is_l2);
            __syncwarp();
            release_tile(smem.queue, place, thread % 32 == 0);
        });
        ptx::griddepcontrol_launch_dependents();
        roles::publish_partials(ctx, thread);
        roles::combine(ctx, thread);
        roles::cleanup(ctx, thread, &smem.is_last);
    }
}
#line 2 "/kernel.cu"
