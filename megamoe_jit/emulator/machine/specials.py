"""Values of the special registers that stay the same for a thread. Clocks are the engines' (`Warp.time`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.parser.nodes import SHARED_BASE
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Dims, Warp

NUM_SMS = 132
_DIRECTIONS = {"x": 0, "y": 1, "z": 2}
_LANE = np.arange(32, dtype=np.uint64)
_LANE_MASKS = {
    "eq": 1 << _LANE,
    "lt": (np.uint64(1) << _LANE) - np.uint64(1),
    "le": (np.uint64(2) << _LANE) - np.uint64(1),
    "ge": np.uint64(0xFFFFFFFF) & ~((np.uint64(1) << _LANE) - np.uint64(1)),
    "gt": np.uint64(0xFFFFFFFF) & ~((np.uint64(2) << _LANE) - np.uint64(1)),
}


def special_values(warp: Warp, name: str) -> npt.NDArray[np.uint64]:
    """Return the (32,) values of special register `name` ("%tid.x"); raises UnsupportedError for one without meaning.

    `%smid` counts resident CTAs over the SMs of an H200; `%nsmid` is their number.
    """
    register, _, direction = name.lstrip("%").partition(".")
    axis = _DIRECTIONS.get(direction)
    if axis is not None and (dims := _vector(warp, register)) is not None:
        return np.full(32, dims[axis], np.uint64)
    if register == "tid" and axis is not None:
        return _tids(warp)[axis]
    if register.startswith("lanemask_"):
        return _LANE_MASKS[register.removeprefix("lanemask_")].astype(np.uint64)
    if register == "laneid":
        return _LANE.copy()
    value = _scalar(warp, register)
    if value is None:
        raise UnsupportedError(f"The emulator does not know the special register {name} (PTX ISA: Special Registers).")
    return np.full(32, value, np.uint64)


def _vector(warp: Warp, register: str) -> Dims | None:
    cta, grid = warp.cta, warp.grid
    cluster, position = grid.cluster_dim, cta.cluster.position
    match register:
        case "ntid":
            return grid.block_dim
        case "ctaid":
            return cta.ctaid
        case "nctaid":
            return grid.grid_dim
        case "clusterid":
            return position
        case "nclusterid":
            return grid.num_clusters_dim
        case "cluster_nctaid":
            return cluster
        case "cluster_ctaid":
            x, y, z = cta.ctaid
            return x - position[0] * cluster[0], y - position[1] * cluster[1], z - position[2] * cluster[2]
    return None


def _tids(warp: Warp) -> tuple[npt.NDArray[np.uint64], ...]:
    x, y, _ = warp.grid.block_dim
    linear = 32 * warp.index + _LANE
    return linear % np.uint64(x), linear // np.uint64(x) % np.uint64(y), linear // np.uint64(x * y)


def _scalar(warp: Warp, register: str) -> int | None:
    cta, grid = warp.cta, warp.grid
    match register:
        case "warpid":
            return warp.index
        case "nwarpid":
            return 64
        case "smid":
            return cta.index % NUM_SMS
        case "nsmid":
            return NUM_SMS
        case "gridid":
            return grid.index
        case "cluster_ctarank":
            return cta.rank
        case "cluster_nctarank":
            x, y, z = grid.cluster_dim
            return x * y * z
        case "is_explicit_cluster":
            return int(grid.cluster_dim != (1, 1, 1))
        case "dynamic_smem_size":
            return grid.dynamic_shared_bytes
        case "total_smem_size" | "aggr_smem_size":
            return grid.smem_bytes
        case "reserved_smem_offset_begin":
            return 0
        case "reserved_smem_offset_end" | "reserved_smem_offset_cap":
            return SHARED_BASE
        case "current_graph_exec" | "pm0" | "pm1":
            return 0
    if register in ("envreg1", "envreg2") and len(grid.workspace):  # high and low half
        return int(grid.workspace.ctypes.data) >> (32 if register == "envreg1" else 0) & 0xFFFFFFFF
    return 0 if register.startswith("envreg") else None
