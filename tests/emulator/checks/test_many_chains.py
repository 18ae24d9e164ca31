"""A store that nobody waits for is seen in a block whose warps all have asynchronous work of other kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megamoe_jit.emulator import Emulator
from megamoe_jit.errors import RaceFault
from tests.emulator.cuda_source import compile_cuda, object_cache

_SOURCE = r"""
extern "C" __global__ void __launch_bounds__(512) k(u32* y) {
    __shared__ alignas(128) u32 tile[512];
    __shared__ u32 columns;
    u32 t = threadIdx.x, warp = t / 32, value;
    if (warp == 0) {
        ASM("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], 32;" ::"r"(smem(&columns)) : "memory");
        ASM("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;");
    }
    ASM("tcgen05.fence::before_thread_sync;" ::: "memory");
    __syncthreads();
    ASM("tcgen05.fence::after_thread_sync;" ::: "memory");
    u32 cell = columns + (warp % 4 << 21) + warp / 4;
    for (u32 round = 0; round < 2; ++round) {
        ASM("tcgen05.st.sync.aligned.32x32b.x1.b32 [%0], {%1};" ::"r"(cell), "r"(t + round) : "memory");
        ASM("tcgen05.wait::st.sync.aligned;" ::: "memory");
        ASM("tcgen05.ld.sync.aligned.32x32b.x1.b32 {%0}, [%1];" : "=r"(value) : "r"(cell) : "memory");
        ASM("tcgen05.wait::ld.sync.aligned;" ::: "memory");
        tile[t] = value;
        fence_async();
        __syncthreads();
        if (t == 0) { bulk_store(y + 512 * round, smem(tile), sizeof(tile)); bulk_commit(); @wait@; }
        __syncthreads();
    }
    if (t == 0) bulk_wait();
    ASM("tcgen05.fence::before_thread_sync;" ::: "memory");
    __syncthreads();
    if (warp == 0) {
        ASM("tcgen05.fence::after_thread_sync;" ::: "memory");
        ASM("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, 32;" ::"r"(columns));
    }
}
"""


def _run(wait: str, completion: Any) -> np.ndarray:
    """Run one block; returns what it stored in both rounds."""
    ptx = compile_cuda(_SOURCE.replace("@wait@", wait), "sm_100a")
    y = np.zeros((2, 512), np.uint32)
    Emulator(completion=completion, cache_dir=object_cache()).load(ptx).launch("k", 1, 512, args=[y])
    return y


@pytest.mark.parametrize("completion", ["lazy", "eager", 0.3])
def test_with_its_wait_nothing_is_reported(completion: Any) -> None:
    assert (_run("bulk_wait_read()", completion) == np.arange(512) + np.array([[0], [1]])).all()


@pytest.mark.parametrize("completion", ["lazy", "eager", 0.3])
def test_without_it_the_next_stores_are_reported(completion: Any) -> None:
    with pytest.raises(RaceFault, match="overwrite") as caught:
        _run("", completion)
    assert "bulk" in str(caught.value)
