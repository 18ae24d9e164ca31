#line 1 "/kernel.cu"
#line 1 "/mega_moe/sm90.cuh"
// The fused MoE for Hopper: one persistent launch, blocks of one loader and two consumer warpgroups.
//
//   all warps      route                    schedule, lists of routed tokens
//   warp 0         load_weights             FP4 codes and scale factors by bulk copies
//   warps 1 .. 3   load_acts                tokens by index (L1), activations by TMA (L2)
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
constexpr uint32_t kPassM = 256;
constexpr uint32_t kL1MTiles = 23;
constexpr uint32_t kL2MTiles = 12;
constexpr uint32_t kL2Arrivals = 12;
constexpr uint32_t kL1KStages = 23;
constexpr uint32_t kL2KStages = 23;
constexpr uint32_t kL1BlocksPerTile = 1;
constexpr uint32_t kNumThreads = 384;
constexpr uint32_t kNumConsumerWarpgroups = 2;
constexpr uint32_t kFirstConsumerThread = 128;
constexpr uint32_t kNumActsLoaderThreads = 96;
constexpr uint32_t kFullArrivals = 97;
constexpr uint32_t kEmptyArrivals = 8;
constexpr uint32_t kLoaderRegisters = 72;
constexpr uint32_t kConsumerRegisters = 208;
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
constexpr uint32_t kPassValues = 1;
constexpr uint32_t kActsTileBytes = 2048;
constexpr uint32_t kDecodeTableRows = 128;
constexpr uint32_t kTableCopies = 16;
constexpr uint32_t kBoxRows = 16;
constexpr uint32_t kSmemBytes = 184320;
constexpr uint32_t kParamBytes = 224;
constexpr uint32_t kActivation = 0;
constexpr float kAlpha = 1.0f;
constexpr float kUpBias = 0.0f;
constexpr bool kHasClamp = false;
constexpr float kClamp = 0.0f;
constexpr bool kFastMath = true;
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
    uint64_t token_sf;      // [max tokens] f32
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

__device__ __forceinline__ uint2 ld_shared_v2(uint32_t address) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
    return v;
}

__device__ __forceinline__ uint32_t ld_shared_u16(uint32_t address) {
    uint16_t v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address));
    return v;
}

__device__ __forceinline__ uint32_t ld_acquire_gpu(const uint32_t* address) {
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(address) : "memory");
    return v;
}

__device__ __forceinline__ void st_release_gpu(uint32_t* address, uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

__device__ __forceinline__ void red_release_gpu_add(uint32_t* address, uint32_t value) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

__device__ __forceinline__ uint32_t atom_acq_rel_gpu_add(uint32_t* address, uint32_t value) {
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(address), "r"(value) : "memory");
    return old;
}

// A load past L1: for data that other SMs wrote during this launch.
__device__ __forceinline__ uint4 ld_global_cg_v4(const void* address) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address) : "memory");
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

}  // namespace ptx
#line 6 "/comm/wait.cuh"
//#include "types.cuh"

namespace comm {

// What a thread was waiting for. Python has the same table in words (recipes/waits.py, names checked by a test).
enum class WaitFor : uint32_t {
    kStageFull = 1,     // consumer: tokens and weights of a stage
    kStageEmpty = 2,    // loader: consumers to release a stage
    kRoutedList = 3,    // token loader: the list of an expert's tokens
    kL1Tiles = 4,       // token loader: L1 of a token tile, before L2 reads it
    kL2Tiles = 5,       // combine: all L2 tiles
    kAccumFull = 6,     // epilogue: the MMAs of a tile
    kAccumEmpty = 7,    // mma: the epilogue to release an accumulator
    kDispatch = 8,      // load: the routed rows of a token tile
    kRingTile = 9,      // dispatch: L2 of the token tile that had a place in the ring before
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

// Waits until a counter in global memory has reached `expected`; acquires what its writers released.
__device__ __forceinline__ void wait_counter(const Watchdog& watchdog, const uint32_t* counter, uint32_t expected, WaitFor wait_for, uint32_t index) {
    uint32_t seen = ptx::ld_acquire_gpu(counter);
    if (seen >= expected) return;
    const uint64_t start = ptx::globaltimer_ns();
    while ((seen = ptx::ld_acquire_gpu(counter)) < expected) {
        watchdog.check(start, wait_for, index, expected, seen);
    }
}

}  // namespace comm
#line 5 "/mega_moe/params_sm90.cuh"
//#include "config.cuh"
//#include "types.cuh"

namespace mega_moe {

struct Params {
    comm::PeerTable peers;
    comm::SymOffsets sym;
    // Workspace of this rank; the counters are zero between calls.
    uint8_t* acts;           // [pool rows][kIntermediatePadded], K in token order
    float* acts_sf;          // [kIntermediatePadded / 128][pool rows]
    uint32_t* routed;        // [pool rows]: token * top-k + slot, sorted by expert
    float* routed_sf;        // [pool rows]: x's scale of each routed token (E4M3)
    float* routed_weights;   // [pool rows]: its top-k weight
    uint32_t* list_ready;    // [experts]: the expert's part of `routed` is written
    uint32_t* l1_done;       // [token tiles]: finished L1 tiles
    uint32_t* l2_done;       // [1]: finished L2 tiles of all experts
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
    // The call.
    int32_t* recv_stats;     // [experts], added to, or null
    uint16_t* y;             // [num_tokens][hidden] bf16, rows y_stride apart
    uint64_t y_stride;
    uint32_t num_tokens;
    uint32_t pool_rows;
    uint32_t rank;
    float routed_scaling_factor;
};
static_assert(sizeof(Params) == config::kParamBytes, "recipes/params.py packs other fields");

}  // namespace mega_moe
#line 4 "/mega_moe/context_sm90.cuh"
#line 1 "/mega_moe/scheduler_sm90.cuh"
// One tile order that every role walks: all L1 tiles, then all L2 tiles; expert by expert, weight rows outside, tokens inside.
//
// Block b takes tiles b, b + gridDim.x, ... Tokens are innermost, so neighbouring blocks read the same weights at the same time.
// An L2 tile waits only for L1 tiles, which come earlier in every block's walk: with all blocks resident nothing can lock up.
//#pragma once
//#include "config.cuh"
#line 1 "/mega_moe/storage_sm90.cuh"
// Shared memory of the sm_90a kernel. Python plans the same struct (recipes/sm90.py) and the assert below ties the two.
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
#line 5 "/mega_moe/storage_sm90.cuh"
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

// Consumer: waits until the stage's data is there.
__device__ __forceinline__ void wait_full(const comm::Watchdog& watchdog, RingBarriers& barriers, const RingCursor& cursor) {
    comm::wait_barrier(watchdog, ptx::smem_address(&barriers.full[cursor.stage]), cursor.phase, comm::WaitFor::kStageFull, cursor.stage);
}

}  // namespace pipeline
#line 6 "/mega_moe/storage_sm90.cuh"
//#include "types.cuh"

namespace mega_moe {

struct SharedStorage {
    alignas(1024) uint8_t tokens[config::kNumStages][config::kTokenStageBytes];
    alignas(128) uint8_t weights[config::kNumStages][config::kWeightStageBytes];
    alignas(128) uint8_t acts[config::kActsTileBytes];       // one L1 tile's activations on their way out
    alignas(16) float pass_values[config::kPassValues];      // an L1 tile's first pass, until the second is done
    alignas(16) float acts_sf[config::kNumStages][config::kBlockN];
    alignas(128) uint2 decode_table[config::kDecodeTableRows * config::kTableCopies];
    alignas(16) float factor[config::kBlockN];               // by column of the tile: x's scale (L1), top-k weight (L2)
    float inverse_scale[config::kBlockN];                    // by column: one over the block's scale factor
    uint32_t slot[config::kBlockN];                          // by column: token * top-k + slot
    uint32_t amax[config::kBlockN];                          // by column: bits of the largest magnitude, zero between blocks
    Schedule schedule;
    alignas(8) pipeline::RingBarriers ring;
};
static_assert(sizeof(SharedStorage) == config::kSmemBytes, "recipes/sm90.py plans another shared memory");

}  // namespace mega_moe
#line 8 "/mega_moe/scheduler_sm90.cuh"
//#include "types.cuh"

namespace mega_moe {

struct Tile {
    uint32_t expert;      // local
    uint32_t m_tile;      // block of kBlockM weight rows
    uint32_t token_tile;  // over all experts: the index of its counter
    uint32_t row;         // first row in the list of routed tokens
    uint32_t pool_row;    // first row in the pool of activations, where each token tile has kBlockN rows of its own
    uint32_t num_rows;    // valid ones of kBlockN
    uint32_t width;       // columns that are multiplied: num_rows rounded up to an MMA width
    bool is_l2;
};

// Widths are multiples of 64 where the tile is wider; the MMA role has an instance for each.
constexpr uint32_t kWidthStep = config::kBlockN < 64 ? config::kBlockN : 64;
static_assert(config::kBlockN % kWidthStep == 0);
static_assert(kWidthStep == config::kBoxRows, "recipes/sm90.py plans other TMA boxes");

struct Scheduler {
    const Schedule& schedule;

    __device__ __forceinline__ uint32_t num_token_tiles() const { return schedule.tile_begin[config::kNumLocalExperts]; }

    template <typename F>
    __device__ __forceinline__ void for_each_tile(F&& visit) const {
        const uint32_t num_l1 = num_token_tiles() * config::kL1MTiles, num_all = num_l1 + num_token_tiles() * config::kL2MTiles;
        uint32_t expert = 0;
        bool is_l2 = false;
        for (uint32_t i = blockIdx.x; i < num_all; i += gridDim.x) {
            if (!is_l2 && i >= num_l1) {
                is_l2 = true;
                expert = 0;
            }
            const uint32_t m_tiles = is_l2 ? config::kL2MTiles : config::kL1MTiles, in_phase = is_l2 ? i - num_l1 : i;
            while (in_phase >= schedule.tile_begin[expert + 1] * m_tiles) ++expert;
            const uint32_t first = schedule.tile_begin[expert], count = schedule.tile_begin[expert + 1] - first;
            const uint32_t in_expert = in_phase - first * m_tiles, n = in_expert % count;
            Tile tile;
            tile.expert = expert;
            tile.m_tile = in_expert / count;
            tile.token_tile = first + n;
            tile.row = schedule.row_begin[expert] + n * config::kBlockN;
            tile.pool_row = tile.token_tile * config::kBlockN;
            tile.num_rows = min(config::kBlockN, schedule.row_begin[expert + 1] - tile.row);
            tile.width = (tile.num_rows + kWidthStep - 1) / kWidthStep * kWidthStep;
            tile.is_l2 = is_l2;
            visit(tile);
        }
    }
};

}  // namespace mega_moe
#line 5 "/mega_moe/context_sm90.cuh"
//#include "mega_moe/storage_sm90.cuh"
#line 1 "/ptx/copy.cuh"
// Asynchronous copies into shared memory: bulk and tensor copies (TMA), and cp.async with an mbarrier arrival.
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

// Loads the box at (x, y), innermost coordinate first; parts outside of the tensor arrive as zeros and count as bytes.
__device__ __forceinline__ void cp_async_bulk_tensor_2d(uint32_t smem, const TensorMap* map, int32_t x, int32_t y, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(smem),
        "l"(map), "r"(x), "r"(y), "r"(barrier)
        : "memory");
}

// Copies 16 bytes past L1, or writes 16 zeros when `is_valid` is false (`global` is then not read).
__device__ __forceinline__ void cp_async_16(uint32_t smem, const void* global, bool is_valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem), "l"(global), "r"(is_valid ? 16u : 0u) : "memory");
}

__device__ __forceinline__ void cp_async_4(uint32_t smem, const void* global, bool is_valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(smem), "l"(global), "r"(is_valid ? 4u : 0u) : "memory");
}

// Arrives on `barrier` (one of its counted arrivals) once all earlier cp.async of this thread have landed.
__device__ __forceinline__ void cp_async_mbarrier_arrive(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

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
    const ptx::TensorMap* acts_map;
    SharedStorage& smem;
    Scheduler scheduler;
    comm::Watchdog watchdog;
};

// Named barrier ids; 0 is __syncthreads.
constexpr uint32_t kConsumerBarrier = 1;
constexpr uint32_t kNumConsumerThreads = config::kNumConsumerWarpgroups * 128;

__device__ __forceinline__ void sync_consumers() { ptx::barrier_sync(kConsumerBarrier, kNumConsumerThreads); }

// Every counter that a call used, back to zero: the last block's consumers call it.
__device__ __forceinline__ void reset_counters(const Context& ctx, uint32_t consumer_thread) {
    const Params& params = ctx.params;
    for (uint32_t i = consumer_thread; i < config::kNumLocalExperts; i += kNumConsumerThreads) params.list_ready[i] = 0;
    for (uint32_t i = consumer_thread; i < ctx.scheduler.num_token_tiles(); i += kNumConsumerThreads) params.l1_done[i] = 0;
    if (consumer_thread == 0) *params.l2_done = 0, *params.exited = 0;
}

}  // namespace mega_moe
#line 9 "/mega_moe/sm90.cuh"
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
#line 10 "/mega_moe/sm90.cuh"
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

// Two floats to BF16, round to nearest even; `first` goes to the low half.
__device__ __forceinline__ uint32_t cvt_bf16x2(float first, float second) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
    return packed;
}

__device__ __forceinline__ float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

// Exact product of two bf16x2 where it fits; subnormal inputs and results are kept.
__device__ __forceinline__ uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

// Byte look-up: each selector nibble (0..7) picks a byte of {high, low}.
__device__ __forceinline__ uint32_t prmt(uint32_t low, uint32_t high, uint32_t selector) {
    uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(low), "r"(high), "r"(selector));
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

// One warp sums 256 neighbouring values of one token, 8 a lane.
__device__ __forceinline__ void combine_piece(const mega_moe::Params& params, uint32_t token, uint32_t hidden) {
    const uint16_t* partials = comm::part<const uint16_t>(params.peers, params.rank, params.sym.partials) + hidden;
    float sum[8] = {};
    for (uint32_t k = 0; k < config::kNumTopk; ++k) {
        const uint32_t slot = token * config::kNumTopk + k;
        if (comm::routed_expert(params.peers, params.sym, params.rank, slot) < 0) continue;
        const uint4 row = ptx::ld_global_cg_v4(partials + uint64_t(slot) * config::kHiddenPadded);
        const uint32_t pairs[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) sum[2 * i] += ptx::bf16_low(pairs[i]), sum[2 * i + 1] += ptx::bf16_high(pairs[i]);
    }
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

__device__ __forceinline__ void combine(const mega_moe::Context& ctx, uint32_t consumer_thread) {
    constexpr uint32_t kPieces = (config::kHidden + 255) / 256, kWarps = mega_moe::kNumConsumerThreads / 32;
    // One thread polls; what it acquires reaches the others through the barrier.
    if (consumer_thread == 0) {
        comm::wait_counter(ctx.watchdog, ctx.params.l2_done, ctx.scheduler.num_token_tiles() * config::kL2Arrivals, comm::WaitFor::kL2Tiles, 0);
    }
    mega_moe::sync_consumers();
    const uint32_t lane = consumer_thread % 32;
    for (uint32_t i = blockIdx.x * kWarps + consumer_thread / 32; i < ctx.params.num_tokens * kPieces; i += gridDim.x * kWarps) {
        combine_piece(ctx.params, i / kPieces, i % kPieces * 256 + lane * 8);
    }
}

}  // namespace roles
#line 11 "/mega_moe/sm90.cuh"
#line 1 "/mega_moe/roles/epilogue_l1_sm90.cuh"
// Role: L1 epilogue (the consumer warpgroups, after mma)
// Waits for:  nothing beyond the tile's sums
// Produces:   activation(sums) in the pool of routed tokens, E4M3 with one scale factor per (token, 128 values) or BF16, in token
//             order of K; counts the tile in l1_done
// Registers:  config::kConsumerRegisters
//
// Sum register r of m64 tile m is column 8 (r / 4) + 2 (lane % 4) + r % 2; half = r / 2 % 2 is row g (0) or g + 8 (1). The weight
// transform puts gate in half 0 and the same value's up in half 1; without a gate the halves are two blocks of 128 values.
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
#line 11 "/mega_moe/roles/epilogue_l1_sm90.cuh"
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
//#include "mega_moe/context_sm90.cuh"
#line 1 "/mega_moe/roles/mma_sm90.cuh"
// Role: mma (two consumer warpgroups; each multiplies half of a pass's weight rows by all tokens of the tile)
// Waits for:  a stage's full barrier
// Produces:   the tile's sums in FP32 registers, for the epilogue of the same warps; releases stages on their empty barriers
// Registers:  config::kConsumerRegisters: kM64 x kBlockN / 2 sums (E4M3: twice, see below), two units of decoded weights
//
// Hopper's FP8 adder keeps 13 fraction bits below the largest term, so E4M3 sums are promoted: each stage is accumulated by the
// tensor core, then added to FP32 sums. In L2 the stage's scale factors (one a token) multiply it on the way.
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

// Byte offset of 16-byte piece `chunk` (0..7) of `row`: the piece index is XORed with the row's place in its pattern.
__device__ __forceinline__ constexpr uint32_t swizzle_128b(uint32_t row, uint32_t chunk) {
    return row * kSwizzleRowBytes + ((chunk ^ (row % 8)) * 16);
}

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
#line 12 "/mega_moe/roles/mma_sm90.cuh"
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
// has a copy for each lane of a half-warp, in banks of its own: one copy for all would cost three accesses for one.
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
    half1 = ptx::bit_select(kSigns, word << 4, ptx::prmt(table.x, table.y, magnitudes >> 16));
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

// Decodes this thread's 32 weights of unit `unit` of 64-row tile `m64` of the pass, in the stage at `weights`;
// a[4 * step + register].
__device__ __forceinline__ void decode_unit(uint32_t weights, uint32_t table, uint32_t m64, uint32_t unit, uint32_t thread, uint32_t (&a)[kUnitRegisters]) {
    const uint32_t index = (m64 * kUnitsPerStage + unit) * 128 + thread;
    const uint4 words = ptx::ld_shared_v4(weights + index * 16);
    const uint32_t scales = ptx::ld_shared_u16(weights + config::kStageCodeBytes + index * 2);
    // Registers 0 and 2 of a step are row g, registers 1 and 3 row g + 8.
    if constexpr (config::kIsFp8) {
        const uint32_t copy = table + thread % config::kTableCopies * 8;
        // Seven bits: UE4M3 has no sign, and a byte that has one must not lead out of the table.
        const uint2 low = ptx::ld_shared_v2(copy + (scales & 0x7F) * kTableRowBytes), high = ptx::ld_shared_v2(copy + (scales >> 8 & 0x7F) * kTableRowBytes);
        decode_e4m3(words.x, low, a[0], a[2]);
        decode_e4m3(words.z, high, a[1], a[3]);
        decode_e4m3(words.y, low, a[4], a[6]);
        decode_e4m3(words.w, high, a[5], a[7]);
    } else {
        const uint32_t low = bf16_scale(scales & 0xFF), high = bf16_scale(scales >> 8);
        decode_bf16(words.x, low, a[0], a[2], a[4], a[6]);
        decode_bf16(words.z, high, a[1], a[3], a[5], a[7]);
        decode_bf16(words.y, low, a[8], a[10], a[12], a[14]);
        decode_bf16(words.w, high, a[9], a[11], a[13], a[15]);
    }
}

}  // namespace mega_moe
#line 14 "/mega_moe/roles/mma_sm90.cuh"
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
#line 15 "/mega_moe/roles/mma_sm90.cuh"
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

// D[64, kN] (+)= A[64, 32] @ B[kN, 32]^T in E4M3, or A[64, 16] @ B[kN, 16]^T in BF16; d holds kN / 2 registers, a four.
template <uint32_t kN>
struct Wgmma;

#line 28
template <>
struct Wgmma<16> {
    template <bool kAccumulate>
    __device__ __forceinline__ static void e4m3(float* d, const uint32_t* a, uint64_t b_desc) {
        asm volatile(
            "{\n.reg .pred accumulate;\nsetp.ne.u32 accumulate, %13, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 { %0, %1, %2, %3, %4, %5, %6, %7 }, "
            "{%8, %9, %10, %11}, %12, accumulate, 1, 1;\n}"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_desc), "n"(int(kAccumulate)));
    }
    template <bool kAccumulate>
    __device__ __forceinline__ static void bf16(float* d, const uint32_t* a, uint64_t b_desc) {
        asm volatile(
            "{\n.reg .pred accumulate;\nsetp.ne.u32 accumulate, %13, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 { %0, %1, %2, %3, %4, %5, %6, %7 }, "
            "{%8, %9, %10, %11}, %12, accumulate, 1, 1, 0;\n}"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_desc), "n"(int(kAccumulate)));
    }
};
#line 51
}  // namespace ptx
#line 16 "/mega_moe/roles/mma_sm90.cuh"

namespace roles {

constexpr uint32_t kM64 = config::kPassM / 64 / config::kNumConsumerWarpgroups;  // 64-row tiles a warpgroup
constexpr uint32_t kSumRegisters = config::kBlockN / 2;
using Sums = float[kM64][kSumRegisters];

struct Consumer {
    const mega_moe::Context& ctx;
    uint32_t warpgroup;  // 0 or 1
    uint32_t thread;     // in the warpgroup
    pipeline::RingCursor cursor;

    // Of this warpgroup's tile m in a pass: its number among the block's four.
    __device__ __forceinline__ uint32_t m64(uint32_t pass, uint32_t m) const { return (pass * config::kNumConsumerWarpgroups + warpgroup) * kM64 + m; }

    __device__ __forceinline__ void release(uint32_t stage) const {
        __syncwarp();
        if (thread % 32 == 0) ptx::mbarrier_arrive(ptx::smem_address(&ctx.smem.ring.empty[stage]));
    }
};

__device__ __forceinline__ void zero(Sums& sums) {
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m)
#pragma unroll
        for (uint32_t r = 0; r < kSumRegisters; ++r) sums[m][r] = 0.0f;
}

using Fragments = uint32_t[kM64][mega_moe::kUnitRegisters];

// Keeps registers where they are until the MMAs that use them are done.
__device__ __forceinline__ void tie(Sums& sums) {
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m)
#pragma unroll
        for (uint32_t r = 0; r < kSumRegisters; ++r) ptx::tie(sums[m][r]);
}

__device__ __forceinline__ void tie(Fragments& fragments) {
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m)
#pragma unroll
        for (uint32_t r = 0; r < mega_moe::kUnitRegisters; ++r) ptx::tie(fragments[m][r]);
}

template <uint32_t kUnit>
__device__ __forceinline__ void decode(const Consumer& c, Fragments& fragments) {
    const mega_moe::SharedStorage& smem = c.ctx.smem;
    const uint32_t weights = ptx::smem_address(smem.weights[c.cursor.stage]), table = ptx::smem_address(smem.decode_table);
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) mega_moe::decode_unit(weights, table, c.warpgroup * kM64 + m, kUnit, c.thread, fragments[m]);
}

template <uint32_t kWidth, bool kOverwrites>
__device__ __forceinline__ void multiply_step(float* sums, const uint32_t* fragment, uint64_t tokens) {
    if constexpr (config::kIsFp8) {
        ptx::Wgmma<kWidth>::template e4m3<!kOverwrites>(sums, fragment, tokens);
    } else {
        ptx::Wgmma<kWidth>::template bf16<!kOverwrites>(sums, fragment, tokens);
    }
}

// Starts the MMAs of one unit of stage `stage`. In E4M3 a stage's first MMA overwrites its sums: the last stage's were promoted.
template <uint32_t kWidth, uint32_t kUnit>
__device__ __forceinline__ void multiply(const Consumer& c, uint32_t stage, Sums& sums, const Fragments& fragments) {
    // BF16 has one 128-byte sub-block a unit, E4M3 has both units in one.
    constexpr uint32_t kUnitOffset = config::kIsFp8 ? kUnit * mega_moe::kStepsPerUnit * 32 : kUnit * config::kBlockN * 128;
    const uint64_t tokens = layout::gmma_descriptor(ptx::smem_address(c.ctx.smem.tokens[stage]) + kUnitOffset);
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) multiply_step<kWidth, kUnit == 0 && config::kIsFp8>(sums[m], fragments[m], tokens);
#pragma unroll
    for (uint32_t step = 1; step < mega_moe::kStepsPerUnit; ++step) {
#pragma unroll
        for (uint32_t m = 0; m < kM64; ++m) multiply_step<kWidth, false>(sums[m], fragments[m] + 4 * step, tokens + step * layout::kDescriptorStep);
    }
    ptx::wgmma_commit_group();
}

// Adds a stage's sums to the total, times the tokens' scale factors in L2.
template <bool kIsL2, uint32_t kWidth>
__device__ __forceinline__ void promote(const Consumer& c, uint32_t stage, const Sums& block, Sums& total) {
    const uint32_t column = c.thread % 4 * 2;  // the first of this thread's columns in each 8
#pragma unroll
    for (uint32_t r = 0; r < kWidth / 2; ++r) {
        // Registers r % 2 are neighbouring columns, r / 4 the group of 8.
        const float sf = kIsL2 ? c.ctx.smem.acts_sf[stage][r / 4 * 8 + column + r % 2] : 1.0f;
#pragma unroll
        for (uint32_t m = 0; m < kM64; ++m) total[m][r] = kIsL2 ? fmaf(block[m][r], sf, total[m][r]) : total[m][r] + block[m][r];
    }
}

template <bool kIsL2>
__device__ __forceinline__ void wait_stage(const Consumer& c) {
    pipeline::wait_full(c.ctx.watchdog, c.ctx.smem.ring, c.cursor);
    // L1's tokens came by cp.async, through the generic proxy; wgmma reads them through the async proxy.
    if constexpr (!kIsL2) ptx::fence_proxy_async_shared();
}

// Sums a pass: L1 over hidden, L2 over intermediate. Each unit is decoded while the one before it is multiplied, also across
// stages. Registers past kWidth / 2 stay zero.
template <bool kIsL2, uint32_t kWidth>
__device__ __forceinline__ void multiply_width(Consumer& c, Sums& total) {
    constexpr uint32_t kStages = kIsL2 ? config::kL2KStages : config::kL1KStages;
    Fragments even, odd;
    Sums block;
    zero(block);
    Sums& sums = config::kIsFp8 ? block : total;
    uint32_t previous = 0;
    wait_stage<kIsL2>(c);
    decode<0>(c, even);
    for (uint32_t k = 0; k < kStages; ++k) {
        // One value a warp, in a uniform register: descriptors then cost no vector instructions.
        const uint32_t stage = __shfl_sync(~0u, c.cursor.stage, 0);
        multiply<kWidth, 0>(c, stage, sums, even);
        if constexpr (!config::kIsFp8) {
            // The odd unit of the last stage still runs: its fragment and its stage are free once it is done.
            ptx::wgmma_wait_group<1>();
            tie(odd);
            if (k > 0) c.release(previous);
            previous = stage;
        }
        decode<1>(c, odd);
        multiply<kWidth, 1>(c, stage, sums, odd);
        ptx::wgmma_wait_group<1>();  // the even unit
        tie(even);
        c.cursor.advance();
        if (k + 1 < kStages) {
            wait_stage<kIsL2>(c);
            decode<0>(c, even);
        }
        if constexpr (config::kIsFp8) {
            ptx::wgmma_wait_group<0>();
            tie(odd);
            tie(block);
            promote<kIsL2, kWidth>(c, stage, block, total);
            c.release(stage);
        }
    }
    if constexpr (!config::kIsFp8) {
        ptx::wgmma_wait_group<0>();
        tie(odd);
        tie(total);
        c.release(previous);
    }
}

// The narrowest MMA that holds the tile's tokens.
template <bool kIsL2>
__device__ __forceinline__ void multiply_pass(Consumer& c, const mega_moe::Tile& tile, Sums& total) {
    zero(total);
    if constexpr (config::kBlockN > 64) {
        if (tile.width <= 64) return multiply_width<kIsL2, 64>(c, total);
    }
    if constexpr (config::kBlockN > 128) {
        if (tile.width <= 128) return multiply_width<kIsL2, 128>(c, total);
    }
    multiply_width<kIsL2, config::kBlockN>(c, total);
}

}  // namespace roles
#line 14 "/mega_moe/roles/epilogue_l1_sm90.cuh"

namespace roles {

// What an epilogue needs from global memory, fetched before the MMAs that hide the way.
struct TileInputs {
    uint32_t slot;   // of the column that this thread looks after
    float factor;    // of that column: x's scale (L1), the top-k weight (L2)
    float alpha[2];  // L1: gate and up; L2: down
};

__device__ __forceinline__ TileInputs fetch_inputs(const Consumer& c, const mega_moe::Tile& tile) {
    const mega_moe::Params& params = c.ctx.params;
    const uint32_t column = c.warpgroup * 128 + c.thread;
    TileInputs inputs = {0, 0.0f, {0.0f, 0.0f}};
    if (column < tile.num_rows) {
        const uint32_t row = tile.row + column;
        inputs.slot = params.routed[row];
        inputs.factor = tile.is_l2 ? params.routed_weights[row] : config::kIsFp8 ? params.routed_sf[row] : 1.0f;
    }
    const float* alphas = tile.is_l2 ? params.l2_alphas + tile.expert : params.l1_alphas + 2 * tile.expert;
    inputs.alpha[0] = alphas[0];
    inputs.alpha[1] = tile.is_l2 ? 0.0f : alphas[1];
    return inputs;
}

// Spreads slots and factors to all consumers. The last tile's are no longer read: its epilogue ended with a barrier.
__device__ __forceinline__ void share_columns(const Consumer& c, const TileInputs& inputs) {
    const uint32_t column = c.warpgroup * 128 + c.thread;
    if (column < config::kBlockN) {
        c.ctx.smem.slot[column] = inputs.slot;
        c.ctx.smem.factor[column] = inputs.factor;
    }
    mega_moe::sync_consumers();
}

// A pass's values of a block that this thread has: value[m][2 * (column group) + column % 2].
using Values = float[kM64][kSumRegisters / 2];

template <uint32_t kBlock>
__device__ __forceinline__ void activate_block(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, const float (&alpha)[2], const Sums& sums, Values& value) {
    const mega_moe::Params& params = c.ctx.params;
    const uint32_t lane = c.thread % 32, warp = c.thread / 32;
#pragma unroll
    for (uint32_t m = 0; m < kM64; ++m) {
        // Intermediate index of this thread's row, inside the 128 of the block.
        const uint32_t in_block = 32 * c.m64(pass, m) + 8 * warp + lane / 4;
        float bias[2] = {0.0f, 0.0f};
        if (params.l1_bias != nullptr) {
            const float* row = params.l1_bias + uint64_t(tile.expert) * config::kL1Rows;
            const uint32_t i = (tile.m_tile * config::kL1BlocksPerTile + kBlock) * 128 + in_block;
            bias[0] = row[i];
            if constexpr (config::kIsGated) bias[1] = row[config::kIntermediatePadded + i];
        }
#pragma unroll
        for (uint32_t j = 0; j < kSumRegisters / 2; ++j) {
            const uint32_t r = j / 2 * 4 + j % 2;  // half 0; half 1 is r + 2
            const float scale = c.ctx.smem.factor[j / 2 * 8 + lane % 4 * 2 + j % 2];
            if constexpr (config::kIsGated) {
                value[m][j] = mega_moe::activate(fmaf(sums[m][r], scale * alpha[0], bias[0]), fmaf(sums[m][r + 2], scale * alpha[1], bias[1]));
            } else {
                value[m][j] = mega_moe::activate(fmaf(sums[m][r + 2 * kBlock], scale * alpha[0], bias[0]));
            }
        }
    }
}

// The first pass's values wait for the second's in shared memory, each thread's in a column of its own.
__device__ __forceinline__ float& stashed(const Consumer& c, uint32_t m, uint32_t j) {
    return c.ctx.smem.pass_values[(m * (kSumRegisters / 2) + j) * mega_moe::kNumConsumerThreads + c.warpgroup * 128 + c.thread];
}

constexpr bool kStashes = config::kIsFp8 && config::kNumPasses > 1;
static_assert(config::kNumPasses == 1 || (config::kNumPasses == 2 && config::kL1BlocksPerTile == 1), "one stash, of one block");

// Largest magnitude of each column over the block's 128 values, in smem.amax (bits of non-negative floats order like integers).
__device__ __forceinline__ void reduce_amax(const Consumer& c, const Values& value) {
    const uint32_t lane = c.thread % 32;
#pragma unroll
    for (uint32_t j = 0; j < kSumRegisters / 2; ++j) {
        float largest = 0.0f;
#pragma unroll
        for (uint32_t m = 0; m < kM64; ++m) {
            largest = fmaxf(largest, fabsf(value[m][j]));
            if constexpr (kStashes) largest = fmaxf(largest, fabsf(stashed(c, m, j)));
        }
#pragma unroll
        for (uint32_t step = 4; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
        if (lane < 4) atomicMax(&c.ctx.smem.amax[j / 2 * 8 + lane * 2 + j % 2], __float_as_uint(largest));
    }
}

// One thread a column: its scale factor to the pool, the reciprocal to all consumers, and the maximum starts over.
__device__ __forceinline__ void scale_columns(const Consumer& c, const mega_moe::Tile& tile, uint32_t block) {
    mega_moe::SharedStorage& smem = c.ctx.smem;
    const uint32_t column = c.warpgroup * 128 + c.thread;
    if (column < config::kBlockN) {
        const float scale = fmaxf(__uint_as_float(smem.amax[column]), config::kMinAmax) / 448.0f;
        smem.inverse_scale[column] = 1.0f / scale;
        smem.amax[column] = 0;
        if (column < tile.num_rows) c.ctx.params.acts_sf[uint64_t(block) * c.ctx.params.pool_rows + tile.pool_row + column] = scale;
    }
    mega_moe::sync_consumers();
}

// Converts one value into the shared tile [column][128], K in token order.
__device__ __forceinline__ void put_value(const Consumer& c, uint32_t pass, uint32_t m, uint32_t column, float value) {
    const uint32_t lane = c.thread % 32, warp = c.thread / 32;
    const uint32_t k = layout::TokenOrder<config::kIsFp8>::position(32 * c.m64(pass, m) + 8 * warp + lane / 4);
    if constexpr (config::kIsFp8) {
        c.ctx.smem.acts[column * 128 + k] = uint8_t(ptx::cvt_e4m3x2(value, 0.0f));
    } else {
        reinterpret_cast<uint16_t*>(c.ctx.smem.acts)[column * 128 + k] = uint16_t(ptx::cvt_bf16x2(value, 0.0f));
    }
}

// Quantises a pass's values, and with the second pass the first's that waited.
__device__ __forceinline__ void quantize_block(const Consumer& c, uint32_t pass, const Values& value) {
#pragma unroll
    for (uint32_t j = 0; j < kSumRegisters / 2; ++j) {
        const uint32_t column = j / 2 * 8 + c.thread % 4 * 2 + j % 2;
        const float inverse = config::kIsFp8 ? c.ctx.smem.inverse_scale[column] : 1.0f;
#pragma unroll
        for (uint32_t m = 0; m < kM64; ++m) {
            put_value(c, pass, m, column, value[m][j] * inverse);
            if constexpr (kStashes) put_value(c, 0, m, column, stashed(c, m, j) * inverse);
        }
    }
}

// Copies the tile's valid columns to the pool, 16 bytes a thread.
__device__ __forceinline__ void store_block(const Consumer& c, const mega_moe::Tile& tile, uint32_t block) {
    constexpr uint32_t kBytes = 128 * config::kActBytes, kPieces = kBytes / 16;
    const uint32_t thread = c.warpgroup * 128 + c.thread;
    const uint4* tile_acts = reinterpret_cast<const uint4*>(c.ctx.smem.acts);
    for (uint32_t i = thread; i < tile.num_rows * kPieces; i += mega_moe::kNumConsumerThreads) {
        uint8_t* row = c.ctx.params.acts + uint64_t(tile.pool_row + i / kPieces) * config::kActRowBytes + block * kBytes;
        reinterpret_cast<uint4*>(row)[i % kPieces] = tile_acts[i];
    }
}

template <uint32_t kBlock>
__device__ __forceinline__ void finish_block(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, const float (&alpha)[2], const Sums& sums) {
    using namespace mega_moe;
    const uint32_t block = tile.m_tile * config::kL1BlocksPerTile + kBlock;
    Values value;
    activate_block<kBlock>(c, tile, pass, alpha, sums, value);
    if constexpr (kStashes) {
        if (pass == 0) {
#pragma unroll
            for (uint32_t m = 0; m < kM64; ++m)
#pragma unroll
                for (uint32_t j = 0; j < kSumRegisters / 2; ++j) stashed(c, m, j) = value[m][j];
            return;
        }
    }
    if constexpr (config::kIsFp8) {
        reduce_amax(c, value);
        sync_consumers();
        scale_columns(c, tile, block);
    }
    quantize_block(c, pass, value);
    if (pass + 1 < config::kNumPasses) return;
    sync_consumers();
    store_block(c, tile, block);
    sync_consumers();
}

__device__ __forceinline__ void epilogue_l1(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, const TileInputs& inputs, const Sums& sums) {
    if (pass == 0) share_columns(c, inputs);
    finish_block<0>(c, tile, pass, inputs.alpha, sums);
    if constexpr (config::kL1BlocksPerTile > 1) finish_block<1>(c, tile, pass, inputs.alpha, sums);
    // Publish: the stores happen before the release through the last barrier; L2's loader fences the proxy on its side.
    if (pass + 1 == config::kNumPasses && c.warpgroup == 0 && c.thread == 0) {
        ptx::red_release_gpu_add(&c.ctx.params.l1_done[tile.token_tile], 1);
    }
}

}  // namespace roles
#line 12 "/mega_moe/sm90.cuh"
#line 1 "/mega_moe/roles/epilogue_l2_sm90.cuh"
// Role: L2 epilogue (the consumer warpgroups, after mma)
// Waits for:  nothing beyond the tile's sums
// Produces:   bf16(top-k weight x (alpha x sums + bias)) in the home rank's partials, one row a slot; counts the tile in l2_done
// Registers:  config::kConsumerRegisters
//
// The weight transform orders L2's rows so that a thread's sums of a column are neighbours: hidden index in the tile
// = 128 (m64 / 2) + 32 warp + 4 (lane / 4) + 2 (m64 % 2) + half, for 64-row tile m64 of the block's four.
//#pragma once
//#include "mega_moe/context_sm90.cuh"
//#include "mega_moe/roles/epilogue_l1_sm90.cuh"
//#include "mega_moe/roles/mma_sm90.cuh"

namespace roles {

__device__ __forceinline__ void epilogue_l2(const Consumer& c, const mega_moe::Tile& tile, uint32_t pass, const TileInputs& inputs, const Sums& sums) {
    using namespace mega_moe;
    constexpr uint32_t kRun = 2 * kM64;  // neighbours that this thread has
    if (pass == 0) share_columns(c, inputs);
    const Params& params = c.ctx.params;
    const uint32_t lane = c.thread % 32, warp = c.thread / 32, m64 = c.m64(pass, 0);
    const uint32_t hidden = tile.m_tile * config::kBlockM + 128 * (m64 / 2) + 32 * warp + 4 * (lane / 4) + 2 * (m64 % 2);
    const float alpha = inputs.alpha[0];
    float bias[kRun] = {};
    if (params.l2_bias != nullptr) {
#pragma unroll
        for (uint32_t i = 0; i < kRun; ++i) bias[i] = params.l2_bias[uint64_t(tile.expert) * config::kHiddenPadded + hidden + i];
    }
    uint16_t* partials = comm::part<uint16_t>(params.peers, 0, params.sym.partials) + hidden;
#pragma unroll
    for (uint32_t j = 0; j < kSumRegisters / 2; ++j) {
        const uint32_t r = j / 2 * 4 + j % 2, column = j / 2 * 8 + lane % 4 * 2 + j % 2;
        if (column >= tile.num_rows) continue;
        const float weight = c.ctx.smem.factor[column];
        uint32_t packed[kM64];
#pragma unroll
        for (uint32_t m = 0; m < kM64; ++m) {
            packed[m] = ptx::cvt_bf16x2(fmaf(sums[m][r], alpha, bias[2 * m]) * weight, fmaf(sums[m][r + 2], alpha, bias[2 * m + 1]) * weight);
        }
        uint16_t* row = partials + uint64_t(c.ctx.smem.slot[column]) * config::kHiddenPadded;
        if constexpr (kM64 == 2) {
            *reinterpret_cast<uint2*>(row) = {packed[0], packed[1]};
        } else {
            *reinterpret_cast<uint32_t*>(row) = packed[0];
        }
    }
    if (pass + 1 < config::kNumPasses) return;
    sync_consumers();
    if (c.warpgroup == 0 && c.thread == 0) ptx::red_release_gpu_add(params.l2_done, 1);
}

}  // namespace roles
#line 13 "/mega_moe/sm90.cuh"
#line 1 "/mega_moe/roles/load_acts_sm90.cuh"
// Role: load activations (warps 1 to 3)
// Waits for:  a stage's empty barrier; L1: the expert's list of routed tokens; L2: all L1 tiles of the token tile
// Produces:   the stage's tokens in shared memory, 128 bytes of K a row, 128-byte swizzle, on the full barrier.
//             L1: rows gathered by index from the ranks' symmetric buffers (cp.async); L2: a box of the pool (TMA) and its scale factors
// Registers:  config::kLoaderRegisters
//#pragma once
//#include "layout/gmma.cuh"
//#include "mega_moe/context_sm90.cuh"
//#include "ptx/fence.cuh"

namespace roles {

// Gathers the tile's tokens: thread i copies 16-byte piece i % 8 of rows i / 8, i / 8 + kRowsAtOnce, ...
__device__ __forceinline__ void gather_tokens(const mega_moe::Context& ctx, const mega_moe::Tile& tile, uint32_t thread, pipeline::RingCursor& cursor) {
    constexpr uint32_t kRowsAtOnce = config::kNumActsLoaderThreads / 8, kParts = config::kTokenKBytes / 128;
    comm::wait_counter(ctx.watchdog, &ctx.params.list_ready[tile.expert], 1, comm::WaitFor::kRoutedList, tile.expert);
    constexpr uint32_t kRowsPerThread = (config::kBlockN + kRowsAtOnce - 1) / kRowsAtOnce;
    const uint32_t piece = thread % 8, first_row = thread / 8;
    // In registers before the copies: each copy orders memory, so that an index loaded between two would wait on its own.
    // 32-bit offsets in units of 16 bytes: the 64-bit addresses would not fit the loader's registers.
    static_assert(config::kTokenRowBytes % 16 == 0);
    uint32_t offset[kRowsPerThread];
#pragma unroll
    for (uint32_t i = 0; i < kRowsPerThread; ++i) {
        const uint32_t row = first_row + i * kRowsAtOnce;
        offset[i] = row < tile.num_rows ? ctx.params.routed[tile.row + row] / config::kNumTopk * (config::kTokenRowBytes / 16) : ~0u;
    }
    const uint8_t* tokens = comm::part<const uint8_t>(ctx.params.peers, 0, ctx.params.sym.tokens) + piece * 16;
    for (uint32_t pass = 0; pass < config::kNumPasses; ++pass) {
        for (uint32_t k = 0; k < config::kL1KStages; ++k, cursor.advance()) {
            const uint32_t full = pipeline::wait_empty(ctx.watchdog, ctx.smem.ring, cursor);
            const uint32_t stage = ptx::smem_address(ctx.smem.tokens[cursor.stage]);
            const uint8_t* k_tokens = tokens + k * config::kTokenKBytes;
#pragma unroll
            for (uint32_t i = 0; i < kRowsPerThread; ++i) {
                const uint32_t row = first_row + i * kRowsAtOnce;
                if (row >= tile.width) break;
                const bool is_valid = offset[i] != ~0u;
                const uint8_t* source = k_tokens + uint64_t(is_valid ? offset[i] : 0) * 16;
#pragma unroll
                for (uint32_t part = 0; part < kParts; ++part) {
                    ptx::cp_async_16(stage + part * config::kBlockN * 128 + layout::swizzle_128b(row, piece), source + part * 128, is_valid);
                }
            }
            ptx::cp_async_mbarrier_arrive(full);
        }
    }
}

// Loads the token tile's rows of the pool. Rows past the expert's last hold anything: their columns are never stored.
__device__ __forceinline__ void load_pool(const mega_moe::Context& ctx, const mega_moe::Tile& tile, uint32_t thread, pipeline::RingCursor& cursor) {
    constexpr uint32_t kParts = config::kTokenKBytes / 128;
    comm::wait_counter(ctx.watchdog, &ctx.params.l1_done[tile.token_tile], config::kL1MTiles, comm::WaitFor::kL1Tiles, tile.token_tile);
    // The L1 epilogue wrote with ordinary stores, TMA reads through the async proxy.
    ptx::fence_proxy_async_global();
    for (uint32_t pass = 0; pass < config::kNumPasses; ++pass) {
        for (uint32_t k = 0; k < config::kL2KStages; ++k, cursor.advance()) {
            const uint32_t full = pipeline::wait_empty(ctx.watchdog, ctx.smem.ring, cursor);
            if (thread == 0) {
                ptx::mbarrier_expect_tx(full, tile.width * config::kTokenKBytes);
                for (uint32_t row = 0; row < tile.width; row += mega_moe::kWidthStep) {
#pragma unroll
                    for (uint32_t part = 0; part < kParts; ++part) {
                        ptx::cp_async_bulk_tensor_2d(ptx::smem_address(ctx.smem.tokens[cursor.stage]) + (part * config::kBlockN + row) * 128,
                                                     ctx.acts_map, (k * config::kTokenKBytes + part * 128) / config::kActBytes, tile.pool_row + row, full);
                    }
                }
            }
            if constexpr (config::kIsFp8) {
                for (uint32_t row = thread; row < tile.width; row += config::kNumActsLoaderThreads) {
                    const bool is_valid = row < tile.num_rows;
                    ptx::cp_async_4(ptx::smem_address(&ctx.smem.acts_sf[cursor.stage][row]),
                                    ctx.params.acts_sf + uint64_t(k) * ctx.params.pool_rows + tile.pool_row + (is_valid ? row : 0), is_valid);
                }
                ptx::cp_async_mbarrier_arrive(full);
            } else {
                ptx::mbarrier_arrive(full);
            }
        }
    }
}

__device__ __forceinline__ void load_acts(const mega_moe::Context& ctx, uint32_t thread) {
    pipeline::RingCursor cursor;
    if (thread == 0) ptx::prefetch_tensormap(ctx.acts_map);
    ctx.scheduler.for_each_tile([&](const mega_moe::Tile& tile) {
        if (tile.is_l2) {
            load_pool(ctx, tile, thread, cursor);
        } else {
            gather_tokens(ctx, tile, thread, cursor);
        }
    });
}

}  // namespace roles
#line 14 "/mega_moe/sm90.cuh"
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

__device__ __forceinline__ void load_weights(const mega_moe::Context& ctx) {
    const uint64_t policy = ptx::createpolicy_evict_first();
    pipeline::RingCursor cursor;
    ctx.scheduler.for_each_tile([&](const mega_moe::Tile& tile) {
        const uint32_t num_stages = tile.is_l2 ? config::kL2KStages : config::kL1KStages, m_tiles = tile.is_l2 ? config::kL2MTiles : config::kL1MTiles;
        const uint8_t* blocks = (tile.is_l2 ? ctx.params.l2_weights : ctx.params.l1_weights) +
                                uint64_t(tile.expert * m_tiles + tile.m_tile) * num_stages * config::kWeightBlockBytes;
        for (uint32_t pass = 0; pass < config::kNumPasses; ++pass) {
            const uint8_t* source = blocks;
            for (uint32_t k = 0; k < num_stages; ++k, cursor.advance(), source += config::kWeightBlockBytes) {
                const uint32_t full = pipeline::wait_empty(ctx.watchdog, ctx.smem.ring, cursor);
                // Consumers read the stage's last weights by ordinary loads; the copy writes through the async proxy.
                ptx::fence_proxy_async_shared();
                const uint32_t stage = ptx::smem_address(ctx.smem.weights[cursor.stage]);
                ptx::mbarrier_arrive_expect_tx(full, config::kWeightStageBytes);
                if constexpr (config::kNumPasses == 1) {
                    ptx::cp_async_bulk(stage, source, config::kWeightStageBytes, full, policy);
                } else {
                    // A pass takes its rows' run of the block's codes, and of the scale factors behind them.
                    ptx::cp_async_bulk(stage, source + pass * config::kStageCodeBytes, config::kStageCodeBytes, full, policy);
                    ptx::cp_async_bulk(stage + config::kStageCodeBytes, source + config::kNumPasses * config::kStageCodeBytes + pass * config::kStageScaleBytes,
                                       config::kStageScaleBytes, full, policy);
                }
            }
        }
    });
}

}  // namespace roles
#line 15 "/mega_moe/sm90.cuh"
//#include "mega_moe/roles/mma_sm90.cuh"
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
#line 17 "/mega_moe/sm90.cuh"
//#include "ptx/warp.cuh"

extern "C" __global__ void __launch_bounds__(config::kNumThreads, 1)
    mega_moe_sm90(const __grid_constant__ mega_moe::Params params, const __grid_constant__ ptx::TensorMap acts_map) {
    using namespace mega_moe;
    extern __shared__ __align__(1024) uint8_t smem_bytes[];
    SharedStorage& smem = *reinterpret_cast<SharedStorage*>(smem_bytes);

    if (threadIdx.x == 0) {
        pipeline::init(smem.ring);
        ptx::fence_mbarrier_init();
    }
    if constexpr (config::kIsFp8) fill_decode_table(smem.decode_table);
    if (threadIdx.x < config::kBlockN) smem.amax[threadIdx.x] = 0;
    roles::route(params, smem.schedule);
    __syncthreads();

    const Context ctx{params, &acts_map, smem, Scheduler{smem.schedule}, comm::Watchdog{params.error_record, params.timeout_ns, params.rank}};
    // Here rather than in the consumers' branch: there it moved their loop off the uniform registers, 8 % of a call's time.
    if (threadIdx.x >= config::kFirstConsumerThread) roles::wait_lists(ctx, threadIdx.x - config::kFirstConsumerThread);

    // The branch is uniform by warpgroup, as setmaxnreg needs it.
    if (threadIdx.x < config::kFirstConsumerThread) {
        ptx::setmaxnreg_dec<config::kLoaderRegisters>();
        if (threadIdx.x == 0) {
            roles::load_weights(ctx);
        } else if (threadIdx.x >= 32 && threadIdx.x < 32 + config::kNumActsLoaderThreads) {
            roles::load_acts(ctx, threadIdx.x - 32);
        }
    } else {
        ptx::setmaxnreg_inc<config::kConsumerRegisters>();
        const uint32_t thread = threadIdx.x - config::kFirstConsumerThread;
        roles::Consumer consumer{ctx, thread / 128, thread % 128, pipeline::RingCursor{}};
        ctx.scheduler.for_each_tile([&](const Tile& tile) {
            const roles::TileInputs inputs = roles::fetch_inputs(consumer, tile);
            for (uint32_t pass = 0; pass < config::kNumPasses; ++pass) {
                roles::Sums sums;
                if (tile.is_l2) {
                    roles::multiply_pass<true>(consumer, tile, sums);
                    roles::epilogue_l2(consumer, tile, pass, inputs, sums);
                } else {
                    roles::multiply_pass<false>(consumer, tile, sums);
                    roles::epilogue_l1(consumer, tile, pass, inputs, sums);
                }
            }
        });
        roles::combine(ctx, thread);
        roles::cleanup(ctx, thread, smem.slot);
    }
}
#line 2 "/kernel.cu"
