"""Who goes next: deadlocks in words, limits, waves, seeds, time, lanes of a warp that wait for one another."""

from __future__ import annotations

import time

import numpy as np
import pytest

from megamoe_jit.emulator import Emulator, Limits
from megamoe_jit.errors import DeadlockFault, EmulatorFault
from tests.emulator.cuda_source import compile_cuda, object_cache

_STUCK = r"""
extern "C" __global__ void stuck(u32* flag, int what) {
    __shared__ alignas(8) u64 barrier;
    __shared__ u32 word[1];
    if (threadIdx.x == 0) { mbar_init(smem(&barrier), 3); fence_init(); word[0] = 6; }
    __syncthreads();
    if (threadIdx.x == 0) mbar_arrive_tx(smem(&barrier), 48);
    if (what == 0) mbar_wait(smem(&barrier), 0);
    if (what == 1) { while (ld_acquire_gpu(flag) != 7) {} }
    if (what == 2) { while (ld_acquire_gpu(flag) != 7) __nanosleep(50); }
    if (what == 3 && threadIdx.x < 32) __syncthreads();
    if (what == 4 && threadIdx.x < 32) { while (!mbar_test(smem(&barrier), 0)) {} } else if (what == 4) __syncthreads();
    if (what == 5) { while (atomicCAS(flag, 7, 8) != 7) __nanosleep(20); }
    if (what == 6) { while (*(volatile u32*)flag != 7) {} }
    if (what == 7) { while (*(volatile u32*)word != 7) {} }
}
"""


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (0, ["warps 0-1", "mbarrier at shared address 0x400", "phase 0", "2 of 3 arrivals", "48 transaction bytes"]),
        (1, ["polls and sees 0x5 at 0x", "ld.acquire.gpu"]),
        (2, ["polls and sees 0x5 at 0x"]),
        (3, ["barrier 0 of CTA 0: 32 of", "warps [0]"]),
        (4, ["mbarrier.test_wait", "barrier 0"]),
        (5, ["atom"]),
        (6, ["polls and sees 0x5 at 0x", "ld.volatile.global"]),
        (7, ["polls and sees 0x6 at 0x", "ld.volatile.shared"]),
    ],
)
def test_deadlocks_are_reported_within_seconds(what: int, words: list[str]) -> None:
    """A report names each warp's instruction, source line, and what it waits for; polling counts as waiting."""
    module = Emulator(cache_dir=object_cache()).load(compile_cuda(_STUCK))
    module.prepare("stuck")
    start = time.monotonic()
    if what == 3:  # the other warp leaves, so that the barrier of all who are left completes
        module.launch("stuck", 1, 64, args=[np.array([5], np.uint32), what])
        return
    with pytest.raises(DeadlockFault) as caught:
        module.launch("stuck", 1, 64, args=[np.array([5], np.uint32), what])
    assert time.monotonic() - start < 5
    for word in (*words, "/roles/kernel.cu:", "(kernel)", "[PTX line "):
        assert word in str(caught.value)


def test_a_count_that_never_comes() -> None:
    source = 'extern "C" __global__ void k() { if (threadIdx.x < 32) ASM("bar.sync 3, 64;"); }'
    with pytest.raises(DeadlockFault, match=r"barrier 3 of CTA 0: 32 of 64 threads came \(warps \[0\]\)"):
        Emulator(cache_dir=object_cache()).load(compile_cuda(source)).launch("k", 1, 64)


_TIMEOUT = r"""
extern "C" __global__ void timeout(u32* flag, u64* out, u64 limit) {
    u64 start, now;
    ASM("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do {
        ASM("mov.u64 %0, %%globaltimer;" : "=l"(now));
        if (now - start > limit) { out[0] = now - start; return; }
    } while (ld_acquire_gpu(flag) == 0);
}
"""


def test_time_passes_when_asked() -> None:
    """A wait with a time-out of 100 s deadlocks, or, where time may pass, runs into its time-out."""
    flag, out = np.zeros(1, np.uint32), np.zeros(1, np.uint64)
    ptx = compile_cuda(_TIMEOUT)
    with pytest.raises(DeadlockFault):
        Emulator(cache_dir=object_cache()).load(ptx).launch("timeout", 1, 1, args=[flag, out, 10**11])
    module = Emulator(cache_dir=object_cache(), limits=Limits(time_passes=True)).load(ptx)
    module.launch("timeout", 1, 1, args=[flag, out, 10**11])
    assert int(out[0]) > 10**11


def test_short_time_outs_come_true_by_themselves() -> None:
    source = r"""
    extern "C" __global__ void k(u32* flag, u64* out) {
        u64 start = clock64();
        while (ld_acquire_gpu(flag) == 0 && clock64() - start < 3000) __nanosleep(200);
        out[0] = clock64() - start;
    }"""
    out = np.zeros(1, np.uint64)
    Emulator(cache_dir=object_cache()).load(compile_cuda(source)).launch("k", 1, 1, args=[np.zeros(1, np.uint32), out])
    assert 3000 <= int(out[0]) < 4000


def test_clocks_go_on_without_events() -> None:
    """A loop on the clock alone is no deadlock, although another warp waits for it."""
    source = r"""
    extern "C" __global__ void k(u64* out) {
        if (threadIdx.x < 32) { u64 start = clock64(); while (clock64() - start < 2000000) __nanosleep(100000); }
        __syncthreads();
        out[threadIdx.x] = clock64();
    }"""
    out = np.zeros(64, np.uint64)
    Emulator(cache_dir=object_cache()).load(compile_cuda(source)).launch("k", 1, 64, args=[out])
    assert int(out.min()) >= 2000000  # a barrier hands the time over


@pytest.mark.parametrize("engine", ["native"])
def test_limits_end_loops(engine: str) -> None:
    source = r"""
    extern "C" __global__ void k(u32* x) { for (u32 i = 1; i != 0; i += 2) asm volatile("" ::: "memory"); x[0] = 1; }
    """
    x = np.zeros(1, np.uint32)
    for limits, words in (
        (Limits(max_instructions=300_000), "warp instructions were executed"),
        (Limits(max_seconds=0.3), "the launch took"),
        (Limits(stall_seconds=0.3), "nothing but loops happened"),
    ):
        module = Emulator(engine=engine, limits=limits).load(compile_cuda(source))
        start = time.monotonic()
        with pytest.raises(DeadlockFault, match=words):
            module.launch("k", 1, 32, args=[x])
        assert time.monotonic() - start < 20


_GRID = r"""
extern "C" __global__ void __cluster_dims__(2, 1, 1) k(u32* out, u32* arrived, int waits) {
    if (threadIdx.x == 0) {
        atomicAdd(arrived, 1);
        if (waits) { while (ld_acquire_gpu(arrived) < gridDim.x * gridDim.y) {} }
    }
    __syncthreads();
    u32 index, clusters;
    ASM("mov.u32 %0, %%clusterid.x;" : "=r"(index));
    ASM("mov.u32 %0, %%nclusterid.x;" : "=r"(clusters));
    out[(blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x] =
        ((blockIdx.y * clusters + index) * 2 + cluster_rank()) * blockDim.x + threadIdx.x;
}
"""


def test_waves_of_clusters() -> None:
    """24 CTAs with room for 5: waves of two clusters; one that waits for all of them needs to be cooperative."""
    ptx = compile_cuda(_GRID)
    emulator = Emulator(cache_dir=object_cache(), limits=Limits(resident_ctas=5))
    out, arrived = np.zeros(24 * 32, np.uint32), np.zeros(1, np.uint32)
    emulator.load(ptx).launch("k", (8, 3), 32, (2, 1, 1), args=[out, arrived, 0])
    assert np.array_equal(out, np.arange(24 * 32, dtype=np.uint32))
    assert arrived[0] == 24
    arrived[0] = 0
    with pytest.raises(DeadlockFault, match="polls and sees 0x4"):
        emulator.load(ptx).launch("k", (8, 3), 32, (2, 1, 1), args=[out, arrived, 1])
    arrived[0] = 0
    out[:] = 0
    emulator.load(ptx).launch("k", (8, 3), 32, (2, 1, 1), args=[out, arrived, 1], cooperative=True)
    assert np.array_equal(out, np.arange(24 * 32, dtype=np.uint32))


_ORDER = r"""
extern "C" __global__ void k(u32* next, u32* order) {
    if (threadIdx.x % 32 == 0) order[atomicAdd(next, 1)] = blockIdx.x * 100 + threadIdx.x / 32;
}
"""


def test_seeds_choose_and_repeat() -> None:
    """The same seed gives the same order of warps, others give others."""
    ptx = compile_cuda(_ORDER)

    def order(seed: int) -> tuple[int, ...]:
        out = np.zeros(32, np.uint32)
        Emulator(cache_dir=object_cache(), seed=seed).load(ptx).launch("k", 4, 256, args=[np.zeros(1, np.uint32), out])
        return tuple(out.tolist())

    seen = [order(seed) for seed in range(5)]
    assert [order(seed) for seed in range(5)] == seen
    assert len(set(seen)) == 5
    assert all(sorted(one) == sorted(seen[0]) for one in seen)


def test_spins_inside_a_warp_make_progress() -> None:
    """Lane 0 waits for lane 31 of its own warp, which is behind it in the program."""
    source = r"""
    extern "C" __global__ void k(volatile u32* flag, u32* out) {
        if (threadIdx.x == 0) { while (*flag == 0) {} out[0] = 1; }
        else if (threadIdx.x == 31) { for (volatile int i = 0; i < 500; i = i + 1) {} *flag = 1; out[1] = 2; }
    }"""
    for seed in range(3):
        out = np.zeros(2, np.uint32)
        Emulator(cache_dir=object_cache(), seed=seed).load(compile_cuda(source)).launch(
            "k", 1, 32, args=[np.zeros(1, np.uint32), out]
        )
        assert out.tolist() == [1, 2]


def test_lanes_that_left_are_not_waited_for() -> None:
    """A guard at the top of a kernel: some lanes, and whole warps, return before the barriers."""
    source = r"""
    extern "C" __global__ void k(u32* out, int n) {
        __shared__ u32 sum;
        if (threadIdx.x >= n) return;
        if (threadIdx.x == 0) sum = 0;
        __syncthreads();
        atomicAdd(&sum, threadIdx.x);
        __syncthreads();
        out[threadIdx.x] = sum;
    }"""
    module = Emulator(cache_dir=object_cache()).load(compile_cuda(source))
    for n in (1, 31, 32, 33, 70, 128):
        out = np.zeros(128, np.uint32)
        module.launch("k", 1, 128, args=[out, n])
        assert np.array_equal(out[:n], np.full(n, n * (n - 1) // 2, np.uint32)), n
        assert not out[n:].any()


def test_aligned_instructions_want_all_lanes() -> None:
    source = r"""
    extern "C" __global__ void k(u32* out) {
        if (threadIdx.x < 7) { __syncthreads(); out[0] = 1; } else { ASM("bar.sync 5, 32;"); }
    }"""
    with pytest.raises(EmulatorFault) as caught:
        Emulator(cache_dir=object_cache()).load(compile_cuda(source)).launch("k", 1, 32, args=[np.zeros(1, np.uint32)])
    assert caught.value.report.kind == "non-uniform"
    for words in ("lanes 0-6 at bar.sync", "lanes 7-31 at bar.sync 5, 32", "/roles/kernel.cu:3"):
        assert words in str(caught.value)


def test_an_odd_number_of_threads() -> None:
    source = r"""
    extern "C" __global__ void k(u32* out) {
        __shared__ u32 tile[256];
        const u32 i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        tile[i] = i;
        __syncthreads();
        out[i] = tile[blockDim.x * blockDim.y * blockDim.z - 1 - i];
    }"""
    module = Emulator(cache_dir=object_cache()).load(compile_cuda(source))
    for block in ((1, 1, 1), (33, 1, 1), (5, 7, 3), (50, 2, 2)):
        n = block[0] * block[1] * block[2]
        out = np.zeros(n + 64, np.uint32)
        module.launch("k", 1, block, args=[out])
        assert np.array_equal(out[:n], np.arange(n, dtype=np.uint32)[::-1])
        assert not out[n:].any()
