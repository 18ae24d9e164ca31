"""Calls the engine's loads and stores: the same checks of range, rights and races as in native code."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.native.context import NUM_LANES, FaultSpace
from megamoe_jit.emulator.native.helpers import load_helpers
from megamoe_jit.emulator.native.memory_helpers import ACCESS_HELPERS

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Warp


@functools.cache
def _function(name: str, result: Any, *types: Any) -> Any:
    return ctypes.CFUNCTYPE(result, *types)(load_helpers().addresses[name])


def _access(
    warp: Warp, mask: int, space: FaultSpace, addresses: npt.NDArray[np.uint64], size: int, write: bool, pc: int
) -> tuple[int, Any]:
    pointers = (ctypes.c_uint64 * NUM_LANES)()
    lanes = np.ascontiguousarray(addresses, np.uint64)
    assert lanes.shape == (NUM_LANES,), "one address a lane"
    u32, u64, i32, address = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32, ctypes.c_void_p
    call = _function(ACCESS_HELPERS[space], u32, address, u32, address, u64, u32, u32, u32, i32, u32, address)
    good: int = call(
        ctypes.addressof(warp.ctx), mask, lanes.ctypes.data, 0, size, int(write), int(space), pc, 0, pointers
    )  # fmt: skip
    return good, pointers


def load(
    warp: Warp,
    mask: int,
    space: FaultSpace,
    addresses: npt.NDArray[np.uint64],
    width: int,
    count: int = 1,
    *,
    pc: int,
) -> npt.NDArray[Any]:
    """Load `count` elements of `width` bytes (1, 2, 4 or 8) for each lane of `mask`.

    Addresses are as the program computed them. A bad access is noted in `warp.ctx.fault_*` and reads zeros.

    Returns:
        [count, 32] unsigned; lanes that are not in `mask` hold zeros.
    """
    _, pointers = _access(warp, mask, space, addresses, width * count, False, pc)
    values = np.zeros((count, NUM_LANES), f"u{width}")
    move = _function(f"emu_gather_{width}x{count}", None, ctypes.c_uint32, *(ctypes.c_void_p,) * (1 + count))
    move(mask, pointers, *(row.ctypes.data for row in values))
    return values


def store(
    warp: Warp,
    mask: int,
    space: FaultSpace,
    addresses: npt.NDArray[np.uint64],
    values: npt.NDArray[Any],
    width: int,
    *,
    pc: int,
) -> None:
    """Store `values` ([count, 32], items of `width` bytes) for each lane of `mask`.

    A bad access is noted in `warp.ctx.fault_*` and does nothing.
    """
    values = np.ascontiguousarray(values)
    assert values.dtype.itemsize == width, "values have the width of the access"
    values = values.reshape(-1, NUM_LANES)
    count = len(values)
    good, pointers = _access(warp, mask, space, addresses, width * count, True, pc)
    move = _function(f"emu_scatter_{width}x{count}", None, ctypes.c_uint32, *(ctypes.c_void_p,) * (1 + count))
    move(good, pointers, *(row.ctypes.data for row in values))
