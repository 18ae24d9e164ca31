"""Work stealing: clusters that run take over those that have not started."""

from __future__ import annotations

import numpy as np
import pytest

from megamoe_jit.emulator import Emulator, Limits
from tests.emulator.cuda_source import compile_cuda, object_cache

_SOURCE = r"""
extern "C" __global__ void CLUSTER k(u32* owners, u32* tiles) {
    __shared__ alignas(16) u32 answer[4];
    __shared__ alignas(8) u64 ready;
    u32 x = blockIdx.x, y = blockIdx.y, phase = 0;
    if (threadIdx.x == 0) { mbar_init(smem(&ready), 1); fence_init(); }
    __syncthreads();
    BARRIER
    while (true) {
        if (threadIdx.x == 0) {
            mbar_arrive_tx(smem(&ready), 16);
            if (ASKS) ASM("clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytesALL.b128 [%0], [%1];"
                ::"r"(smem(answer)), "r"(smem(&ready)) : "memory");
            tiles[y * gridDim.x + x] += 1;
            owners[y * gridDim.x + x] = blockIdx.y * gridDim.x + blockIdx.x;
        }
        mbar_wait(smem(&ready), phase);
        phase ^= 1;
        u32 taken, next_x, next_y, also_y;
        ASM("{.reg .b128 r; .reg .pred p; .reg .b32 z, w;\n"
            "ld.shared.b128 r, [%4];\n"
            "clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 p, r;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "clusterlaunchcontrol.query_cancel.get_first_ctaid.v4.b32.b128 {%1, %2, z, w}, r;\n"
            "clusterlaunchcontrol.query_cancel.get_first_ctaid::y.b32.b128 %3, r;}"
            : "=r"(taken), "=r"(next_x), "=r"(next_y), "=r"(also_y) : "r"(smem(answer)) : "memory");
        if (!taken) break;
        x = next_x + OFFSET, y = next_y == also_y ? next_y : 10000;
        fence_async();
        __syncthreads();
        BARRIER
    }
    BARRIER
}
"""  # noqa: E501
_SYNC = "cluster_arrive(); cluster_wait();"


@pytest.mark.parametrize("resident", [4, 1000])
@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("completion", ["lazy", "eager", 0.2])
def test_every_tile_is_done_once(resident: int, cluster: int, completion: str | float) -> None:
    """24 CTAs with room for 4: the first ones do all the work; with room for all, each does its own."""
    source = _SOURCE.replace("CLUSTER", f"__cluster_dims__({cluster}, 1, 1)").replace(
        "ALL", ".multicast::cluster::all" if cluster > 1 else ""
    )
    source = source.replace("BARRIER", _SYNC if cluster > 1 else "")
    source = source.replace("ASKS", "cluster_rank() == 0").replace("OFFSET", "cluster_rank()")
    owners, tiles = np.zeros((3, 8), np.uint32), np.zeros((3, 8), np.uint32)
    module = Emulator(cache_dir=object_cache(), completion=completion, limits=Limits(resident_ctas=resident)).load(
        compile_cuda(source, "sm_100a")
    )
    module.launch("k", (8, 3), 32, cluster, args=[owners, tiles])
    assert (tiles == 1).all()
    assert module.report.findings == []
    if resident == 4:
        assert len(np.unique(owners)) < 24
        assert owners.max() < 24
    else:
        assert np.array_equal(owners.ravel(), np.arange(24, dtype=np.uint32))
