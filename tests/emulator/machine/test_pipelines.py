"""Producers and consumers over mbarriers: right results under every completion policy, and no reports."""

from __future__ import annotations

import numpy as np
import pytest

from megamoe_jit.emulator import Emulator
from tests.emulator.cuda_source import compile_cuda, object_cache

TILE = 256
_PIPELINE = r"""
constexpr int kStages = STAGES, kTile = 256;
extern "C" __global__ void pipeline(const float* x, float* y, int num_tiles) {
    __shared__ alignas(128) float tiles[kStages][kTile];
    __shared__ alignas(8) u64 full[kStages], empty[kStages];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; s++) mbar_init(smem(&full[s]), 1), mbar_init(smem(&empty[s]), kTile / 32);
        fence_init();
    }
    __syncthreads();
    if (warp == kTile / 32) {
        if (lane == 0) {
            for (int t = 0; t < num_tiles; t++) {
                const int s = t % kStages;
                const u32 phase = (t / kStages) & 1;
                mbar_wait(smem(&empty[s]), phase ^ 1);
                mbar_arrive_tx(smem(&full[s]), kTile * 4);
                bulk_load(smem(tiles[s]), x + t * kTile, kTile * 4, smem(&full[s]));
            }
        }
    } else {
        float sum = 0;
        for (int t = 0; t < num_tiles; t++) {
            const int s = t % kStages;
            mbar_wait(smem(&full[s]), (t / kStages) & 1);
            sum = sum * 2 + tiles[s][threadIdx.x];
            __syncwarp();
            if (lane == 0) mbar_arrive(smem(&empty[s]));
        }
        y[blockIdx.x * kTile + threadIdx.x] = sum;
    }
}
"""


@pytest.mark.parametrize("stages", [1, 2, 5])
@pytest.mark.parametrize("completion", ["lazy", "eager", 0.05, 0.5])
def test_ring_of_stages(stages: int, completion: str | float) -> None:
    """Two CTAs each run the tiles in order through a ring; the order of tiles shows in the sum."""
    module = Emulator(cache_dir=object_cache(), seed=stages, completion=completion).load(
        compile_cuda(_PIPELINE.replace("STAGES", str(stages)))
    )
    rng = np.random.default_rng(stages)
    for num_tiles in (0, 1, stages, 11):
        x = rng.integers(-8, 8, (max(num_tiles, 1), TILE)).astype(np.float32)
        y = np.full((2, TILE), np.nan, np.float32)
        module.launch("pipeline", 2, TILE + 32, args=[x, y, num_tiles])
        expected = np.zeros(TILE, np.float32)
        for t in range(num_tiles):
            expected = expected * 2 + x[t]
        assert np.array_equal(y, np.stack([expected, expected]))
    assert module.report.findings == []
    assert module.report.tma_bytes == 2 * (1 + stages + 11) * TILE * 4


_STORE = r"""
extern "C" __global__ void copy(const u32* x, u32* y, int n) {
    __shared__ alignas(128) u32 tile[2][128];
    for (int t = 0; t < n; t++) {
        const int s = t % 2;
        if (threadIdx.x == 0) ASM("cp.async.bulk.wait_group.read 1;" ::: "memory");
        __syncthreads();
        tile[s][threadIdx.x] = x[t * 128 + threadIdx.x] ^ t;
        fence_async();
        __syncthreads();
        if (threadIdx.x == 0) bulk_store(y + t * 128, smem(tile[s]), 512), bulk_commit();
    }
}
"""


@pytest.mark.parametrize("completion", ["lazy", "eager", 0.1])
def test_double_buffered_stores(completion: str | float) -> None:
    """Stores that are still pending when the CTA leaves are flushed."""
    module = Emulator(cache_dir=object_cache(), completion=completion).load(compile_cuda(_STORE))
    x = np.arange(9 * 128, dtype=np.uint32)
    y = np.zeros_like(x)
    module.launch("copy", 1, 128, args=[x, y, 9])
    assert np.array_equal(y.reshape(9, 128), x.reshape(9, 128) ^ np.arange(9, dtype=np.uint32)[:, None])
    assert module.report.findings == []


_STATES = r"""
extern "C" __global__ void states(u32* out) {
    __shared__ u64 barrier;
    if (threadIdx.x == 0) mbar_init(smem(&barrier), 64);
    __syncthreads();
    for (int round = 0; round < 3; round++) {
        const u64 state = mbar_arrive_state(smem(&barrier));
        u32 done, pending;
        ASM("mbarrier.pending_count.b64 %0, %1;" : "=r"(pending) : "l"(state));
        do {
            ASM("{.reg .pred p; mbarrier.try_wait.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                : "=r"(done) : "r"(smem(&barrier)), "l"(state) : "memory");
        } while (!done);
        out[round * 64 + threadIdx.x] = pending;
    }
}
"""


def test_states_and_pending_counts() -> None:
    """Each of 64 arrivals of a phase sees another pending count, 64 to 1."""
    module = Emulator(cache_dir=object_cache(), seed=3).load(compile_cuda(_STATES))
    out = np.zeros((3, 64), np.uint32)
    module.launch("states", 1, 64, args=[out])
    assert np.array_equal(np.sort(out, axis=1), np.tile(np.arange(1, 65, dtype=np.uint32), (3, 1)))
    assert module.report.findings == []


_CLUSTER = r"""
extern "C" __global__ void __cluster_dims__(4, 1, 1) ring(const u32* x, u32* y) {
    __shared__ alignas(8) u64 ready;
    __shared__ u32 box[64];
    const u32 rank = cluster_rank();
    if (threadIdx.x == 0) mbar_init(smem(&ready), 2), fence_init();
    cluster_arrive();
    cluster_wait();
    const u32 next = (rank + 1) % 4;
    st_cluster(mapa(smem(&box[threadIdx.x]), next), x[blockIdx.x * 64 + threadIdx.x] + rank);
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbar_arrive_remote(smem(&ready), next);
    mbar_wait(smem(&ready), 0);
    y[blockIdx.x * 64 + threadIdx.x] = box[threadIdx.x] * 3;
    cluster_arrive();
    cluster_wait();
}
"""


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_of_a_cluster(seed: int) -> None:
    """Each CTA writes into its neighbour's shared memory and arrives on its barrier."""
    module = Emulator(cache_dir=object_cache(), seed=seed).load(compile_cuda(_CLUSTER))
    x = np.arange(8 * 64, dtype=np.uint32).reshape(2, 4, 64)
    y = np.zeros_like(x)
    module.launch("ring", 8, 64, args=[x, y])
    sent = x + np.arange(4, dtype=np.uint32)[:, None]
    assert np.array_equal(y, 3 * np.roll(sent, 1, axis=1))
    assert module.report.findings == []


_NAMED = r"""
extern "C" __global__ void named(u32* y, int rounds) {
    __shared__ u32 box[2];
    const int group = threadIdx.x / 64;
    u32 sum = 0;
    for (int i = 0; i < rounds; i++) {
        if (group == 0) {
            ASM("bar.sync 2, 128;" ::: "memory");
            if (threadIdx.x == 0) box[0] = i * i;
            ASM("bar.arrive 1, 128;" ::: "memory");
        } else {
            ASM("bar.arrive 2, 128;" ::: "memory");
            ASM("bar.sync 1, 128;" ::: "memory");
            sum += box[0];
        }
    }
    const int any = __syncthreads_or(threadIdx.x == 77), all = __syncthreads_and(threadIdx.x < 127);
    const int count = __syncthreads_count(threadIdx.x % 3 == 0);
    y[threadIdx.x] = sum + 1000 * any + 2000 * all + 10000 * count;
}
"""


@pytest.mark.parametrize("seed", range(4))
def test_named_barriers_hand_over(seed: int) -> None:
    """Half of the CTA produces, the other consumes, over two named barriers; then all reduce predicates."""
    module = Emulator(cache_dir=object_cache(), seed=seed).load(compile_cuda(_NAMED))
    y = np.zeros(128, np.uint32)
    module.launch("named", 1, 128, args=[y, 7])
    base = 1000 + 10000 * len(range(0, 128, 3))
    assert np.array_equal(y[:64], np.full(64, base, np.uint32))
    assert np.array_equal(y[64:], np.full(64, base + sum(i * i for i in range(7)), np.uint32))
    assert module.report.findings == []
