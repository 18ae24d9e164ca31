#line 1 "/kernel.cu"
#line 1 "/gemm/sm100.cuh"
// Block-scaled grouped GEMM for Blackwell: y[token] = alpha x weights[expert of token] @ tokens[token], persistent.
//
//   warp 0         load        weights, tokens and scale factors by TMA
//   warp 1         mma         scale factors to tensor memory, tcgen05.mma
//   warp 2         allocates and frees tensor memory
//   warps 4 .. 7   epilogue    tensor memory to BF16, bulk stores
//
// The smallest kernel with every instruction of the fused one. Weights are the M operand and tokens the N operand, so that few
// tokens waste little. With kCtaGroup 2 a pair of CTAs has one tile of 256 weight rows, and each loads half of the tokens.
#line 1 "/gemm/gemm_context.cuh"
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
constexpr uint32_t kNumExperts = 32;
constexpr uint32_t kN = 5760;
constexpr uint32_t kRowBlocks = 45;
constexpr uint32_t kKWords = 46;
constexpr uint32_t kCtaGroup = 2;
constexpr uint32_t kBlockM = 128;
constexpr uint32_t kBlockN = 64;
constexpr uint32_t kBlockK = 256;
constexpr uint32_t kTileM = 256;
constexpr uint32_t kLoadN = 32;
constexpr uint32_t kNumStages = 8;
constexpr uint32_t kNumAccums = 2;
constexpr uint32_t kKStages = 12;
constexpr uint32_t kMmaM = 256;
constexpr uint32_t kMmaAType = 1;
constexpr uint32_t kMmaBType = 1;
constexpr uint32_t kMmaScaleType = 0;
constexpr uint32_t kMmasPerStage = 4;
constexpr uint32_t kMmasPerTile = 46;
constexpr uint32_t kMmasPerWord = 1;
constexpr uint32_t kScalesPerMma = 4;
constexpr uint32_t kSfWords = 4;
constexpr uint32_t kTokenAtoms = 1;
constexpr uint32_t kTmemColumns = 256;
constexpr uint32_t kWeightRowBytes = 128;
constexpr uint32_t kFullArrivals = 1;
constexpr uint32_t kEmptyArrivals = 1;
constexpr uint32_t kAccumFullArrivals = 1;
constexpr uint32_t kAccumEmptyArrivals = 8;
constexpr uint32_t kNumThreads = 256;
constexpr uint32_t kFirstEpilogueWarp = 4;
constexpr uint32_t kSmemBytes = 214016;
constexpr uint32_t kParamBytes = 48;
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
#line 4 "/gemm/gemm_context.cuh"
#line 1 "/gemm/gemm_scheduler.cuh"
// One tile order that every role walks: expert by expert, weight rows outside, tokens inside.
//#pragma once
//#include "config.cuh"
#line 1 "/gemm/gemm_params.cuh"
// What a launch is told. Python packs the same fields in the same order (recipes/params.py) and config::kParamBytes ties the two.
//#pragma once
//#include "comm/wait.cuh"
//#include "config.cuh"
//#include "types.cuh"

namespace gemm {

struct Params {
    const int32_t* expert_ends;  // [kNumExperts]: one past each expert's last token
    const float* alphas;         // [kNumExperts]: factor of each expert's products, or null for 1
    uint16_t* y;                 // [tokens][kN] bf16, rows y_stride elements apart
    uint64_t y_stride;
    comm::ErrorRecord* error_record;
    uint64_t timeout_ns;
};
static_assert(sizeof(Params) == config::kParamBytes, "recipes/params.py packs other fields");

}  // namespace gemm
#line 5 "/gemm/gemm_scheduler.cuh"
//#include "types.cuh"

namespace gemm {

struct Tile {
    uint32_t expert;
    uint32_t row;        // first weight row of the CTA group's tile
    uint32_t token;      // first token, among all experts'
    uint32_t num_tokens; // 1 .. kBlockN
    uint32_t token_in_expert;
    uint32_t sf_block;   // 128-token block of scale factors that holds the first token: each expert's begin a block of their own
};

struct Scheduler {
    const Params& params;
    uint32_t group;  // this CTA's, or CTA pair's, number
    uint32_t num_groups;

    // Calls visit(tile) for tiles group, group + num_groups, ...: the same ones in the same order in every role.
    template <typename Visit>
    __device__ __forceinline__ void for_each_tile(const Visit& visit) const {
        constexpr uint32_t kRowTiles = (config::kN + config::kTileM - 1) / config::kTileM;
        uint32_t next = group, first_tile = 0, first_token = 0, first_block = 0;
        for (uint32_t expert = 0; expert < config::kNumExperts; ++expert) {
            const uint32_t end = uint32_t(params.expert_ends[expert]), tokens = end - first_token;
            const uint32_t token_tiles = (tokens + config::kBlockN - 1) / config::kBlockN;
            for (; next < first_tile + token_tiles * kRowTiles; next += num_groups) {
                const uint32_t tile = next - first_tile, token = tile % token_tiles * config::kBlockN;
                visit(Tile{expert, tile / token_tiles * config::kTileM, first_token + token, min(config::kBlockN, tokens - token), token,
                           first_block + token / 128});
            }
            first_tile += token_tiles * kRowTiles, first_token = end, first_block += (tokens + 127) / 128;
        }
    }
};

// Columns of a tile's MMAs: tokens rounded up to what the instruction takes. Fewer tokens than kBlockN cost fewer columns.
__device__ __forceinline__ uint32_t mma_columns(const Tile& tile) {
    constexpr uint32_t kStep = 8 * config::kCtaGroup;
    return (tile.num_tokens + kStep - 1) / kStep * kStep;
}

}  // namespace gemm
#line 5 "/gemm/gemm_context.cuh"
#line 1 "/gemm/gemm_storage.cuh"
// Shared memory of the grouped GEMM. Python plans the same struct (recipes/sm100_gemm.py) and the assert below ties the two.
//#pragma once
//#include "config.cuh"
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
#line 5 "/gemm/gemm_storage.cuh"
//#include "types.cuh"

namespace gemm {

struct SharedStorage {
    // Rows of 128 bytes along K, swizzled by TMA: 256 FP4 codes, or 128 codes in 8-bit containers.
    alignas(1024) uint8_t weights[config::kNumStages][config::kBlockM * 128];
    alignas(1024) uint8_t tokens[config::kNumStages][config::kLoadN * 128];
    alignas(1024) uint16_t y[config::kBlockN][config::kBlockM];  // a tile of results on its way out
    // Scale factors: 512-byte atoms of 128 rows x 4 groups of K.
    alignas(128) uint8_t weights_sf[config::kNumStages][config::kSfWords][512];
    alignas(128) uint8_t tokens_sf[config::kNumStages][config::kTokenAtoms][config::kSfWords][512];
    alignas(8) pipeline::RingBarriers ring;
    uint64_t accum_full[config::kNumAccums];   // the MMAs of a tile are done
    uint64_t accum_empty[config::kNumAccums];  // the epilogue has read them
    uint32_t tmem;                             // address of the CTA's tensor memory
};
static_assert(sizeof(SharedStorage) == config::kSmemBytes, "recipes/sm100_gemm.py plans another shared memory");

}  // namespace gemm
#line 6 "/gemm/gemm_context.cuh"
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
#line 7 "/gemm/gemm_context.cuh"
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
#line 8 "/gemm/gemm_context.cuh"

namespace gemm {

struct TensorMaps {
    const ptx::TensorMap &weights, &weights_sf, &tokens, &tokens_sf;
};

struct Context {
    const Params& params;
    TensorMaps maps;
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

}  // namespace gemm
#line 11 "/gemm/sm100.cuh"
#line 1 "/gemm/roles/epilogue.cuh"
// Role: epilogue (warps 4 .. 7; warp w reads lanes 32 (w - 4) .. of tensor memory, one weight row a thread)
// Waits for:  an accumulator's full barrier
// Produces:   y in BF16, one bulk copy of up to 128 values a token; releases accumulators on the even CTA's empty barrier
// Registers:  32 values at a time
//#pragma once
//#include "gemm/gemm_context.cuh"
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
#line 8 "/gemm/roles/epilogue.cuh"
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
#line 9 "/gemm/roles/epilogue.cuh"
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
#line 10 "/gemm/roles/epilogue.cuh"
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
#line 11 "/gemm/roles/epilogue.cuh"
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
#line 12 "/gemm/roles/epilogue.cuh"

namespace roles {

constexpr uint32_t kEpilogueBarrier = 1, kEpilogueThreads = 128;  // 0 is __syncthreads

__device__ __forceinline__ void epilogue(const gemm::Context& ctx, uint32_t tmem, uint32_t thread) {
    constexpr uint32_t kColumnsAtOnce = 32;
    gemm::AccumCursor accum;
    ctx.scheduler.for_each_tile([&](const gemm::Tile& tile) {
        const float alpha = ctx.params.alphas == nullptr ? 1.0f : ctx.params.alphas[tile.expert];
        comm::wait_barrier(ctx.watchdog, ptx::smem_address(&ctx.smem.accum_full[accum.index]), accum.phase, comm::WaitFor::kAccumFull, accum.index);
        ptx::tcgen05_fence_after_thread_sync();
        // The tile before this one may still be on its way out of shared memory.
        ptx::cp_async_bulk_wait_read();
        ptx::barrier_sync(kEpilogueBarrier, kEpilogueThreads);
        for (uint32_t first = 0; first < tile.num_tokens; first += kColumnsAtOnce) {
            uint32_t values[kColumnsAtOnce];
            ptx::tcgen05_ld_32x32b_x32(values, tmem + ((thread & ~31u) << 16) + accum.index * config::kBlockN + first);
            ptx::tcgen05_wait_ld();
#pragma unroll
            for (uint32_t i = 0; i < kColumnsAtOnce; ++i) ctx.smem.y[first + i][thread] = uint16_t(ptx::cvt_bf16x2(__uint_as_float(values[i]) * alpha, 0.0f));
        }
        ptx::tcgen05_fence_before_thread_sync();
        ptx::fence_proxy_async_shared();
        ptx::barrier_sync(kEpilogueBarrier, kEpilogueThreads);
        if (thread % 32 == 0) {
            const uint32_t barrier = ptx::smem_address(&ctx.smem.accum_empty[accum.index]);
            if constexpr (config::kCtaGroup == 1) {
                ptx::mbarrier_arrive(barrier);
            } else {
                ptx::mbarrier_arrive_cluster(ptx::map_to_cta(barrier, 0));
            }
        }
        const uint32_t row = tile.row + ctx.cta * config::kBlockM;
        const uint32_t rows = row < config::kN ? min(config::kBlockM, config::kN - row) : 0;
        if (rows > 0) {
            for (uint32_t token = thread; token < tile.num_tokens; token += kEpilogueThreads)
                ptx::cp_async_bulk_store(ctx.params.y + (tile.token + token) * ctx.params.y_stride + row, ptx::smem_address(ctx.smem.y[token]), rows * 2);
        }
        ptx::cp_async_bulk_commit_group();
        accum.advance();
    });
    ptx::cp_async_bulk_wait();
}

}  // namespace roles
#line 12 "/gemm/sm100.cuh"
#line 1 "/gemm/roles/load.cuh"
// Role: load (one thread of warp 0, in each CTA of a pair)
// Waits for:  a stage's empty barrier
// Produces:   a stage of weights, tokens and both scale factors; bytes of both CTAs complete on the even one's full barrier
// Registers:  few
//#pragma once
//#include "gemm/gemm_context.cuh"
//#include "ptx/tma_sm100.cuh"

namespace roles {

__device__ __forceinline__ void load(const gemm::Context& ctx) {
    constexpr uint32_t kBytes = config::kBlockM * config::kWeightRowBytes + config::kLoadN * 128 + (1 + config::kTokenAtoms) * config::kSfWords * 512;
    pipeline::RingCursor cursor;
    ctx.scheduler.for_each_tile([&](const gemm::Tile& tile) {
        // Rows past an expert's last are another's, or zeros: their results are not stored.
        const uint32_t row_in_expert = tile.row + ctx.cta * config::kBlockM, row = tile.expert * config::kN + row_in_expert;
        const uint32_t row_block = tile.expert * config::kRowBlocks + row_in_expert / 128;
        // A pair's CTAs hold the halves of the MMA's columns, and each all of their scale factors.
        const uint32_t token = tile.token + ctx.cta * (gemm::mma_columns(tile) / config::kCtaGroup);
        for (uint32_t k = 0; k < config::kKStages; ++k, cursor.advance()) {
            const uint32_t full = pipeline::wait_empty(ctx.watchdog, ctx.smem.ring, cursor);
            if (ctx.cta == 0) ptx::mbarrier_arrive_expect_tx(full, config::kCtaGroup * kBytes);
            const uint32_t stage = cursor.stage;
            const int32_t word = k * config::kSfWords;
            ptx::tma_load_2d(ptx::smem_address(ctx.smem.weights[stage]), &ctx.maps.weights, k * config::kBlockK, row, full);
            ptx::tma_load_2d(ptx::smem_address(ctx.smem.tokens[stage]), &ctx.maps.tokens, k * config::kBlockK, token, full);
            // The last stage of a row block may take atoms of the next one along: they are not used.
            ptx::tma_load_2d(ptx::smem_address(ctx.smem.weights_sf[stage]), &ctx.maps.weights_sf, 0, row_block * config::kKWords + word, full);
#pragma unroll
            for (uint32_t atom = 0; atom < config::kTokenAtoms; ++atom)
                ptx::tma_load_2d(ptx::smem_address(ctx.smem.tokens_sf[stage][atom]), &ctx.maps.tokens_sf, 0, (tile.sf_block + atom) * config::kKWords + word, full);
        }
    });
    pipeline::drain(ctx.watchdog, ctx.smem.ring, cursor);
}

}  // namespace roles
#line 13 "/gemm/sm100.cuh"
#line 1 "/gemm/roles/mma.cuh"
// Role: mma (one thread of warp 1, in the even CTA of a pair)
// Waits for:  a stage's full barrier; an accumulator's empty barrier
// Produces:   a tile's products in tensor memory; commits release stages and hand over accumulators
// Registers:  few
//
// Scale factors of a stage go to tensor memory right before the MMAs that read them, always to the same columns. Copies and
// MMAs of one thread run in order as cp -> mma; that a later cp does not overtake an mma is how all public kernels use it.
//#pragma once
//#include "gemm/gemm_context.cuh"
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
#line 11 "/gemm/roles/mma.cuh"
//#include "ptx/tcgen05.cuh"

namespace roles {

__device__ __forceinline__ void copy_scales(const gemm::Context& ctx, uint32_t stage, uint32_t tmem, uint32_t atoms) {
#pragma unroll
    for (uint32_t word = 0; word < config::kSfWords; ++word) {
        ptx::tcgen05_cp_32x128b_warpx4(tmem + gemm::kSfaColumn + word * 4, layout::umma_scale_atom(ptx::smem_address(ctx.smem.weights_sf[stage][word])));
        for (uint32_t atom = 0; atom < atoms; ++atom)
            ptx::tcgen05_cp_32x128b_warpx4(tmem + gemm::kSfbColumn + word * gemm::kSfbWordColumns + atom * 4,
                                           layout::umma_scale_atom(ptx::smem_address(ctx.smem.tokens_sf[stage][atom][word])));
    }
}

__device__ __forceinline__ void mma(const gemm::Context& ctx, uint32_t tmem) {
    pipeline::RingCursor cursor;
    gemm::AccumCursor accum;
    ctx.scheduler.for_each_tile([&](const gemm::Tile& tile) {
        comm::wait_barrier(ctx.watchdog, ptx::smem_address(&ctx.smem.accum_empty[accum.index]), accum.phase ^ 1, comm::WaitFor::kAccumEmpty, accum.index);
        const uint32_t columns = gemm::mma_columns(tile), atoms = (tile.token_in_expert % 128 + columns + 127) / 128;
        const uint32_t d = tmem + accum.index * config::kBlockN;
        // Tiles narrower than an atom begin inside of one: 32 tokens a column.
        const uint32_t sfb = tmem + gemm::kSfbColumn + tile.token_in_expert % 128 / 32;
        for (uint32_t k = 0; k < config::kKStages; ++k, cursor.advance()) {
            pipeline::wait_full(ctx.watchdog, ctx.smem.ring, cursor);
            ptx::tcgen05_fence_after_thread_sync();
            const uint32_t stage = cursor.stage;
            copy_scales(ctx, stage, tmem, atoms);
            const uint64_t a = layout::umma_operand(ptx::smem_address(ctx.smem.weights[stage])), b = layout::umma_operand(ptx::smem_address(ctx.smem.tokens[stage]));
#pragma unroll
            for (uint32_t step = 0; step < config::kMmasPerStage; ++step) {
                // Past the end of K there are no scale factors, and nothing to multiply.
                if (k * config::kMmasPerStage + step >= config::kMmasPerTile) break;
                const uint32_t word = step / config::kMmasPerWord, sf_id = step % config::kMmasPerWord * config::kScalesPerMma;
                ptx::tcgen05_mma_block_scale(d, a + step * layout::kOperandStep, b + step * layout::kOperandStep, layout::umma_instruction(columns, sf_id),
                                             tmem + gemm::kSfaColumn + word * 4, sfb + word * gemm::kSfbWordColumns, k + step > 0);
            }
            ptx::tcgen05_commit(ptx::smem_address(&ctx.smem.ring.empty[stage]));
        }
        ptx::tcgen05_commit(ptx::smem_address(&ctx.smem.accum_full[accum.index]));
        accum.advance();
    });
}

}  // namespace roles
#line 14 "/gemm/sm100.cuh"

namespace gemm {

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

}  // namespace gemm

extern "C" __global__ void __launch_bounds__(config::kNumThreads, 1)
    grouped_gemm_sm100(const __grid_constant__ gemm::Params params, const __grid_constant__ ptx::TensorMap weights, const __grid_constant__ ptx::TensorMap weights_sf,
                       const __grid_constant__ ptx::TensorMap tokens, const __grid_constant__ ptx::TensorMap tokens_sf) {
    using namespace gemm;
    extern __shared__ __align__(1024) uint8_t smem_bytes[];
    SharedStorage& smem = *reinterpret_cast<SharedStorage*>(smem_bytes);
    const uint32_t warp = threadIdx.x / 32, cta = config::kCtaGroup == 1 ? 0 : ptx::cluster_cta_rank();

    if (threadIdx.x == 0) init_barriers(smem);
    if (warp == 2) ptx::tcgen05_alloc<config::kTmemColumns>(ptx::smem_address(&smem.tmem));
    ptx::tcgen05_fence_before_thread_sync();
    sync_group();
    ptx::tcgen05_fence_after_thread_sync();

    const uint32_t tmem = smem.tmem;
    const Context ctx{params, TensorMaps{weights, weights_sf, tokens, tokens_sf}, smem,
                      Scheduler{params, blockIdx.x / config::kCtaGroup, gridDim.x / config::kCtaGroup}, comm::Watchdog{params.error_record, params.timeout_ns, 0}, cta};
    if (warp == 0) {
        if (ptx::elect_one()) roles::load(ctx);
    } else if (warp == 1) {
        if (cta == 0 && ptx::elect_one()) roles::mma(ctx, tmem);
    } else if (warp >= config::kFirstEpilogueWarp) {
        roles::epilogue(ctx, tmem, threadIdx.x - config::kFirstEpilogueWarp * 32);
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
