"""Lanes that name different member masks at one `.sync` instruction: groups of their own, or a report; never a hang."""

from __future__ import annotations

import time

import numpy as np
import pytest

from megamoe_jit.emulator import Emulator
from megamoe_jit.errors import EmulatorFault
from tests.emulator.cuda_source import compile_cuda, object_cache

_SOURCE = r"""
extern "C" __global__ void k(u32* out, u32* masks) {
    u32 lane = threadIdx.x, got = 0;
    u32 mask = masks[lane];
    ASM("shfl.sync.bfly.b32 %0, %1, 1, 31, %2;" : "=r"(got) : "r"(lane), "r"(mask));
    out[lane] = got;
}
"""
_LANES = np.arange(32, dtype=np.uint32)
_HALVES = np.where(_LANES < 16, 0xFFFF, 0xFFFF0000).astype(np.uint32)


def _run(masks: np.ndarray, engine: str) -> np.ndarray:
    out = np.full(32, 99, np.uint32)
    module = Emulator(engine=engine, cache_dir=object_cache()).load(compile_cuda(_SOURCE))
    module.launch("k", 1, 32, args=[out, masks])
    return out


@pytest.mark.parametrize("engine", ["native", "numpy"])
@pytest.mark.parametrize(
    "masks",
    [
        _HALVES,
        np.uint32(3) << (_LANES // 2 * 2),
        np.full(32, 0xFFFFFFFF, np.uint32),
        np.where(_LANES < 16, 0xFFFFFFFF, 0xFFFF0000),  # the first half waits until the second has left
        np.where(_LANES < 16, 0xFFFF, 0xFFFFFFFF),
    ],
    ids=["halves", "pairs", "all", "first half of all", "second half of all"],
)
def test_groups_that_are_whole_go_on_each_by_itself(masks: np.ndarray, engine: str) -> None:
    assert (_run(masks.astype(np.uint32), engine) == _LANES ^ 1).all()


@pytest.mark.parametrize("engine", ["native", "numpy"])
@pytest.mark.parametrize(
    "masks",
    [
        _LANES,  # 0, 1, 2, ...: mostly masks that do not even name their own lane
        np.uint32(1) << ((_LANES + 1) % 32),
    ],
    ids=["numbers", "neighbours"],
)
def test_groups_that_never_are_whole_are_reported(masks: np.ndarray, engine: str) -> None:
    start = time.monotonic()
    with pytest.raises(EmulatorFault, match="member-mask") as caught:
        _run(masks.astype(np.uint32), engine)
    assert "shfl.sync" in str(caught.value)
    assert time.monotonic() - start < 10
