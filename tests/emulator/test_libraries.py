"""CUDA C++ libraries' synchronisation, as their users write it: right results, and nothing to report."""

from __future__ import annotations

import numpy as np
import pytest

from megamoe_jit.emulator import Emulator
from megamoe_jit.errors import RaceFault
from tests.emulator.cuda_source import compile_cuda, object_cache

BLOCK, GRID = 64, 4
N = BLOCK * GRID
I = np.arange(N, dtype=np.uint32)  # noqa: E741  # the index of each thread
T = I % BLOCK

# Kernels `k(unsigned* x, unsigned* y, unsigned* ws)` of four blocks, with x[i] = i, and what y holds then.
KERNELS = {
    "grid barrier": (
        r"""
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
extern "C" __global__ void k(unsigned* x, unsigned* y, unsigned* ws) {
    auto grid = cg::this_grid();
    const unsigned i = grid.thread_rank(), n = grid.size();
    for (int r = 0; r < 3; r++) {
        x[i] = i * 7 + r;
        grid.sync();
        y[i] += x[n - 1 - i];
        grid.sync();
    }
}""",
        3 * 7 * (N - 1 - I) + 3,
    ),
    "cluster": (
        r"""
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
extern "C" __global__ void __cluster_dims__(4, 1, 1) k(unsigned* x, unsigned* y, unsigned* ws) {
    __shared__ unsigned tile[64];
    auto cluster = cg::this_cluster();
    for (int r = 0; r < 3; r++) {
        tile[threadIdx.x] = blockIdx.x * 64 + threadIdx.x + r;
        cluster.sync();
        const unsigned* other = cluster.map_shared_rank(tile, (cluster.block_rank() + 1) % 4);
        y[blockIdx.x * 64 + threadIdx.x] += other[threadIdx.x];
        cluster.sync();
    }
}""",
        3 * ((I + BLOCK) % N) + 3,
    ),
    "barrier": (
        r"""
#include <cuda/barrier>
#pragma nv_diag_suppress static_var_with_dynamic_init
extern "C" __global__ void k(unsigned* x, unsigned* y, unsigned* ws) {
    __shared__ unsigned tile[64];
    __shared__ cuda::barrier<cuda::thread_scope_block> barrier;
    if (threadIdx.x == 0) init(&barrier, blockDim.x);
    __syncthreads();
    for (int r = 0; r < 4; r++) {
        tile[threadIdx.x] = x[threadIdx.x] + r;
        auto token = barrier.arrive();
        barrier.wait(cuda::std::move(token));
        y[blockIdx.x * 64 + threadIdx.x] += tile[63 - threadIdx.x];
        barrier.arrive_and_wait();
    }
}""",
        4 * (BLOCK - 1 - T) + 6,
    ),
    "atomic_ref": (
        r"""
#include <cuda/atomic>
extern "C" __global__ void k(unsigned* x, unsigned* y, unsigned* ws) {
    cuda::atomic_ref<unsigned, cuda::thread_scope_device> flag(ws[0]);
    if (blockIdx.x == 0) {
        y[threadIdx.x] = threadIdx.x * 3;
        __syncthreads();
        if (threadIdx.x == 0) flag.store(1, cuda::std::memory_order_@RELEASE@);
    } else {
        if (threadIdx.x == 0) while (flag.load(cuda::std::memory_order_acquire) == 0) {}
        __syncthreads();
        y[blockIdx.x * 64 + threadIdx.x] = y[threadIdx.x] + 1;
    }
}""",
        3 * T + (I >= BLOCK),
    ),
    "spin lock": (
        r"""
extern "C" __global__ void k(unsigned* x, unsigned* y, unsigned* ws) {
    if (threadIdx.x % 32 == 0) {
        while (atomicCAS(ws, 0, 1) != 0) __nanosleep(50);
        @FENCE@;
        y[0] = y[0] + 1;
        y[1] = y[1] * 3 + 1;
        @FENCE@;
        atomicExch(ws, 0);
    }
}""",
        np.where(I == 0, 2 * GRID, np.where(I == 1, sum(3**i for i in range(2 * GRID)), 0)),
    ),
    "memcpy_async": (
        r"""
#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
namespace cg = cooperative_groups;
extern "C" __global__ void k(unsigned* x, unsigned* y, unsigned* ws) {
    __shared__ alignas(16) unsigned tile[2][64];
    auto block = cg::this_thread_block();
    cg::memcpy_async(block, tile[0], x, 256);
    for (int r = 0; r < 4; r++) {
        if (r < 3) {
            cg::memcpy_async(block, tile[(r + 1) % 2], x + 64 * (r + 1), 256);
            cg::wait_prior<1>(block);
        } else {
            cg::wait(block);
        }
        y[blockIdx.x * 64 + threadIdx.x] += tile[r % 2][threadIdx.x ^ 5];
        block.sync();
    }
}""",
        4 * (T ^ 5) + 6 * BLOCK,
    ),
    "pipeline": (
        r"""
#include <cooperative_groups.h>
#include <cuda/pipeline>
extern "C" __global__ void k(unsigned* x, unsigned* y, unsigned* ws) {
    __shared__ alignas(16) unsigned tile[2][64];
    __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, 2> state;
    auto block = cooperative_groups::this_thread_block();
    auto pipeline = cuda::make_pipeline(block, &state);
    for (int fetch = 0, r = 0; r < 4; r++) {
        for (; fetch < 4 && fetch < r + 2; fetch++) {
            pipeline.producer_acquire();
            cuda::memcpy_async(block, tile[fetch % 2], x + 64 * fetch, cuda::aligned_size_t<16>(256), pipeline);
            pipeline.producer_commit();
        }
        pipeline.consumer_wait();
        y[blockIdx.x * 64 + threadIdx.x] += tile[r % 2][threadIdx.x ^ 5];
        block.sync();
        pipeline.consumer_release();
    }
}""",
        4 * (T ^ 5) + 6 * BLOCK,
    ),
    "last block reduces": (
        r"""
extern "C" __global__ void k(unsigned* x, unsigned* y, unsigned* ws) {
    __shared__ bool is_last;
    __shared__ unsigned sum;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    atomicAdd(&sum, x[blockIdx.x * 64 + threadIdx.x]);
    __syncthreads();
    if (threadIdx.x == 0) {
        y[blockIdx.x] = sum;
        @FENCE@;
        is_last = atomicInc(ws, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (is_last && threadIdx.x == 0) {
        __threadfence();
        unsigned total = 0;
        for (int i = 0; i < gridDim.x; i++) total += y[i];
        y[100] = total;
    }
}""",
        np.where(I == 100, N * (N - 1) // 2, np.where(I < GRID, I * BLOCK**2 + BLOCK * (BLOCK - 1) // 2, 0)),
    ),
}  # fmt: skip


def launch(source: str, **settings: object) -> tuple[np.ndarray, list[str]]:
    module = Emulator(cache_dir=object_cache(), **settings).load(compile_cuda(source, headers=True))  # type: ignore[arg-type]
    x, y, ws = np.arange(1024, dtype=np.uint32), np.zeros(N, np.uint32), np.zeros(64, np.uint32)
    module.launch("k", GRID, BLOCK, args=[x, y, ws], cooperative=True)
    return y, [str(finding) for finding in module.report.findings]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("completion", ["lazy", "eager", 0.2])
def test_libraries(name: str, completion: str | float) -> None:
    source, expected = KERNELS[name]
    source = source.replace("@FENCE@", "__threadfence()").replace("@RELEASE@", "release")
    for seed in range(3):
        y, findings = launch(source, seed=seed, completion=completion)
        assert np.array_equal(y, expected.astype(np.uint32))
        assert findings == []


@pytest.mark.parametrize(
    ("name", "mark", "code"),
    [
        ("atomic_ref", "@RELEASE@", "relaxed"),
        ("spin lock", "@FENCE@", ""),
        ("spin lock", "@FENCE@", "__threadfence_block()"),
        ("last block reduces", "@FENCE@", ""),
    ],
)
def test_what_their_users_forget(name: str, mark: str, code: str) -> None:
    source = KERNELS[name][0].replace(mark, code)
    for seed in range(3):
        with pytest.raises(RaceFault, match="nothing orders this"):
            launch(source, seed=seed)
