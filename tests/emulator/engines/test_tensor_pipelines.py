"""Whole kernels around the tensor core: right under every completion policy, and reported when a wait is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megamoe_jit.emulator import Emulator
from megamoe_jit.emulator.report import LaunchReport
from megamoe_jit.errors import EmulatorFault
from tests.emulator.cuda_source import compile_cuda

TILES, STEPS, N = 3, 4, 64

LOADER = r"""for (int i = 0; i < kTiles * kSteps; i++) {
            const int s = i % kStages;
            KEEP(kEmpty) mbar_wait(smem(&empty[s]), (i / kStages & 1) ^ 1);
            if (kDrop == kProxy) {
                for (int j = lane; j < int(kABytes); j += 32) a_tile[s][j] = a[i * kABytes + j];
                __syncwarp();
                if (lane == 0) mbar_arrive(smem(&full[s]));
            }
            if (lane == 0) {
                mbar_arrive_tx(smem(&full[s]), (kDrop == kProxy ? 0 : kABytes) + kBBytes);
                if (kDrop != kProxy) bulk_load(smem(a_tile[s]), a + i * kABytes, kABytes, smem(&full[s]));
                bulk_load(smem(b_tile[s]), b + i * kBBytes, kBBytes, smem(&full[s]));
            }
        }
"""
"""What a loading warp does in both kernels."""

# Warp 4 loads stages, warp 5 allocates and multiplies, warps 0 to 3 take D away. Operands are core matrices of 8 rows x
# 16 bytes: 128 bytes, the next 8 rows 128 bytes on, the next 16 bytes of K behind all rows.
TCGEN05 = r"""
constexpr int kTiles = 3, kSteps = 4, kStages = 2, kN = 64;
constexpr u32 kABytes = 128 * 32, kBBytes = kN * 32;
__device__ __forceinline__ u64 desc(u32 at, u32 leading) {
    return u64((at & 0x3ffff) >> 4) | u64(leading >> 4) << 16 | u64(128 >> 4) << 32 | u64(1) << 46;
}
#define KEEP(name) if (kDrop != name)
__device__ __forceinline__ void commit(u32 bar) {
    ASM("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(bar) : "memory");
}
enum Drop { kNothing, kFull, kEmpty, kDFull, kDEmpty, kFenceAfter, kWaitLd, kFenceBefore, kFenceAfterMma, kProxy, kSlot,
            kDealloc, kElect, kFenceInit, kCommit, kEarlyCommit };
constexpr int kDrop = DROP;
extern "C" __global__ void __launch_bounds__(192) gemm(const unsigned char* a, const unsigned char* b, float* d) {
    __shared__ alignas(1024) unsigned char a_tile[kStages][kABytes], b_tile[kStages][kBBytes];
    __shared__ alignas(8) u64 full[kStages], empty[kStages], d_full, d_empty;
    __shared__ u32 slot;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; s++) {
            mbar_init(smem(&full[s]), kDrop == kProxy ? 2 : 1), mbar_init(smem(&empty[s]), 1);
        }
        mbar_init(smem(&d_full), 1), mbar_init(smem(&d_empty), 4);
        KEEP(kFenceInit) fence_init();
    }
    if (warp == 5) {
        ASM("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], 64;" ::"r"(smem(&slot)) : "memory");
        ASM("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;");
    }
    ASM("tcgen05.fence::before_thread_sync;" ::: "memory");
    KEEP(kSlot) __syncthreads();
    ASM("tcgen05.fence::after_thread_sync;" ::: "memory");
    const u32 tmem = *(volatile u32*)&slot;
    if (warp == 4) {
        LOADER
    } else if (warp == 5) {
        const u32 idesc = 1 << 4 | (kN >> 3) << 17 | (128 >> 4) << 24;
        for (int t = 0; t < kTiles; t++) {
            KEEP(kDEmpty) mbar_wait(smem(&d_empty), (t & 1) ^ 1);
            KEEP(kFenceAfterMma) ASM("tcgen05.fence::after_thread_sync;" ::: "memory");
            for (int k = 0; k < kSteps; k++) {
                const int i = t * kSteps + k, s = i % kStages;
                KEEP(kFull) mbar_wait(smem(&full[s]), i / kStages & 1);
                if (lane == 0 || (kDrop == kElect && lane == 1)) {
                    ASM("{.reg .pred p; setp.ne.u32 p, %4, 0;"
                        " tcgen05.mma.cta_group::1.kind::f8f6f4 [%0], %1, %2, %3, p;}" ::"r"(tmem),
                        "l"(desc(smem(a_tile[s]), 128 * 16)), "l"(desc(smem(b_tile[s]), kN * 16)), "r"(idesc), "r"(k)
                        : "memory");
                    commit(smem(&empty[s]));
                }
                if (kDrop == kEarlyCommit && k == kSteps - 2 && lane == 0) commit(smem(&d_full));
                __syncwarp();
            }
            if (kDrop != kCommit && kDrop != kEarlyCommit && lane == 0) commit(smem(&d_full));
        }
    } else {
        for (int t = 0; t < kTiles; t++) {
            KEEP(kDFull) mbar_wait(smem(&d_full), t & 1);
            KEEP(kFenceAfter) ASM("tcgen05.fence::after_thread_sync;" ::: "memory");
            for (int half = 0; half < 2; half++) {
                u32 v[32];
                ASM("tcgen05.ld.sync.aligned.32x32b.x32.b32 {REGISTERS}, [%32];"
                    : OUTPUTS
                    : "r"(tmem + (warp << 21) + half * 32));
                KEEP(kWaitLd) ASM("tcgen05.wait::ld.sync.aligned;" ::: "memory");
                for (int c = 0; c < 32; c++) d[(t * 128 + threadIdx.x) * kN + half * 32 + c] = __uint_as_float(v[c]);
            }
            KEEP(kFenceBefore) ASM("tcgen05.fence::before_thread_sync;" ::: "memory");
            if (lane == 0) mbar_arrive(smem(&d_empty));
        }
    }
    __syncthreads();
    if (warp == 5 && kDrop != kDealloc) ASM("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, 64;" ::"r"(tmem));
}
"""


def core_matrices(codes: np.ndarray) -> np.ndarray:
    """Rows of 32 bytes as 8 x 16 byte matrices: two columns of K, each with all rows."""
    rows = codes.shape[0]
    return codes.reshape(rows, 2, 16).transpose(1, 0, 2).reshape(-1)


def operands(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Small whole numbers in E4M3, so that every sum is exact: (A, B as the kernel loads them, D)."""
    codes = np.array([0x00, 0x38, 0x40, 0xB8, 0xC0, 0x44], np.uint8)
    values = np.array([0, 1, 2, -1, -2, 3], np.float32)
    a = rng.integers(0, 6, (TILES, STEPS, 128, 32))
    b = rng.integers(0, 6, (TILES, STEPS, N, 32))
    d = np.einsum("tsmk,tsnk->tmn", values[a], values[b])
    pack = [np.concatenate([core_matrices(codes[tile]) for tile in x.reshape(-1, *x.shape[2:])]) for x in (a, b)]
    return pack[0], pack[1], d


_TEXTS = {
    "LOADER": LOADER,
    "REGISTERS": ", ".join(f"%{i}" for i in range(32)),
    "OUTPUTS": ", ".join(f'"=r"(v[{i}])' for i in range(32)),
    "ACCUMULATORS": ", ".join(f'"+f"(acc[{i}])' for i in range(32)),
}


def launch(
    source: str, drop: int, arch: str, threads: int, **settings: Any
) -> tuple[np.ndarray, np.ndarray, LaunchReport]:
    for name, text in {**_TEXTS, "DROP": str(drop)}.items():
        source = source.replace(name, text)
    module = Emulator(**settings).load(compile_cuda(source, arch))
    a, b, expected = operands(np.random.default_rng(drop))
    d = np.zeros((TILES, expected.shape[1], N), np.float32)
    module.launch("gemm", 1, threads, args=[a, b, d])
    return d, expected, module.report


@pytest.mark.parametrize("completion", ["lazy", "eager", 0.02, 0.3])
@pytest.mark.parametrize("seed", range(2))
def test_tcgen05_pipeline(completion: Any, seed: int) -> None:
    d, expected, report = launch(TCGEN05, 0, "sm_100a", 192, completion=completion, seed=seed)
    assert np.array_equal(d, expected)
    assert report.findings == []
    assert report.mmas == TILES * STEPS


COLLIDE = {"in-flight", "overwrite"}
"""Reports of two accesses that nothing orders: which of them is found depends on which comes first."""
MUTATIONS = {
    1: ("full barrier", {*COLLIDE, "mbarrier-count"}),
    2: ("empty barrier", {*COLLIDE, "mbarrier-count"}),
    3: ("D's full barrier", COLLIDE),
    4: ("D's empty barrier", COLLIDE),
    5: ("fence after the wait for D", {"tcgen05-fence"}),
    6: ("wait::ld", COLLIDE),
    7: ("fence before D is given back", {"tcgen05-fence"}),
    8: ("fence after the wait for D to be given back", {"tcgen05-fence"}),
    9: ("proxy fence behind ordinary stores", {"proxy"}),
    10: ("barrier behind the allocation", {"race", "mbarrier-init", "tmem-bounds", "argument", "tmem-lanes"}),
    11: ("dealloc", {"tmem-leak"}),
    12: ("election of one thread", {"tcgen05-issue"}),
    13: ("fence behind mbarrier.init", {"mbarrier-init-fence", "mbarrier-init"}),
    14: ("commit", {"deadlock"}),
    15: ("last step's commit (made one too early)", COLLIDE),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("drop", sorted(MUTATIONS))
def test_tcgen05_without(drop: int, seed: int) -> None:
    what, kinds = MUTATIONS[drop]
    with pytest.raises(EmulatorFault) as caught:
        launch(TCGEN05, drop, "sm_100a", 192, seed=seed)
    report: Any = caught.value.report
    assert report.kind in kinds, f"without {what}: {report}"


# A warpgroup multiplies what a fifth warp loads; operands in shared memory or A in registers.
WGMMA = r"""
constexpr int kTiles = 3, kSteps = 4, kStages = 2, kN = 64;
constexpr u32 kABytes = 128 * 32, kBBytes = kN * 32;
__device__ __forceinline__ u64 desc(u32 at, u32 leading) {
    return u64((at & 0x3ffff) >> 4) | u64(leading >> 4) << 16 | u64(128 >> 4) << 32;
}
#define KEEP(name) if (kDrop != name)
enum Drop { kNothing, kFull, kEmpty, kFence, kWait, kEarlyRelease, kProxy };
constexpr int kDrop = DROP;
extern "C" __global__ void __launch_bounds__(160) gemm(const unsigned char* a, const unsigned char* b, float* d) {
    __shared__ alignas(1024) unsigned char a_tile[kStages][kABytes], b_tile[kStages][kBBytes];
    __shared__ alignas(8) u64 full[kStages], empty[kStages];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; s++) {
            mbar_init(smem(&full[s]), kDrop == kProxy ? 2 : 1), mbar_init(smem(&empty[s]), 4);
        }
        fence_init();
    }
    __syncthreads();
    if (warp == 4) {
        LOADER
        return;
    }
    float acc[32];
    for (int t = 0; t < kTiles; t++) {
        for (int k = 0; k < kSteps; k++) {
            const int i = t * kSteps + k, s = i % kStages;
            KEEP(kFull) mbar_wait(smem(&full[s]), i / kStages & 1);
            if (kDrop != kFence || k) ASM("wgmma.fence.sync.aligned;" ::: "memory");
            ASM("{.reg .pred p; setp.ne.u32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 "
                "{REGISTERS}, %32, %33, p, 1, 1;}"
                : ACCUMULATORS
                : "l"(desc(smem(a_tile[s]), 128 * 16)), "l"(desc(smem(b_tile[s]), kN * 16)), "r"(k));
            ASM("wgmma.commit_group.sync.aligned;" ::: "memory");
            if (kDrop == kEarlyRelease && lane == 0) mbar_arrive(smem(&empty[s]));
            const bool is_last = t == kTiles - 1 && k == kSteps - 1;
            if (kDrop != kWait || !is_last) ASM("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            if (kDrop != kEarlyRelease && lane == 0) mbar_arrive(smem(&empty[s]));
        }
        for (int r = 0; r < 32; r++)
            d[(t * 64 + 16 * warp + lane / 4 + 8 * (r / 2 % 2)) * kN + 8 * (r / 4) + 2 * (lane % 4) + r % 2] = acc[r];
    }
}
"""


def launch_wgmma(drop: int, **settings: Any) -> tuple[np.ndarray, np.ndarray, LaunchReport]:
    d, expected, report = launch(WGMMA, drop, "sm_90a", 160, **settings)
    return d.reshape(-1, N)[: TILES * 64].reshape(TILES, 64, N), expected[:, :64], report


@pytest.mark.parametrize("completion", ["lazy", "eager", 0.02, 0.3])
@pytest.mark.parametrize("seed", range(2))
def test_wgmma_pipeline(completion: Any, seed: int) -> None:
    d, expected, report = launch_wgmma(0, completion=completion, seed=seed)
    assert np.array_equal(d, expected)
    assert report.findings == []
    assert report.mmas == TILES * STEPS


WGMMA_MUTATIONS = {
    1: ("full barrier", {*COLLIDE, "mbarrier-count"}),
    2: ("empty barrier", {*COLLIDE, "mbarrier-count"}),
    3: ("wgmma.fence at the start of a tile", {"wgmma-fence"}),
    4: ("last wait_group", {"exit-pending"}),
    5: ("wait before the stage is given back", COLLIDE),
    6: ("proxy fence behind ordinary stores", {"proxy"}),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("drop", sorted(WGMMA_MUTATIONS))
def test_wgmma_without(drop: int, seed: int) -> None:
    what, kinds = WGMMA_MUTATIONS[drop]
    with pytest.raises(EmulatorFault) as caught:
        launch_wgmma(drop, seed=seed)
    report: Any = caught.value.report
    assert report.kind in kinds, f"without {what}: {report}"
