"""From an address of a program to bytes of the host: what Python handlers use; native code has its own."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.machine.state import Place
from megamoe_jit.emulator.memory.spaces import OFFSET_MASK, RANK_SHIFT, WINDOW_MASK, space_of
from megamoe_jit.emulator.parser.nodes import SHARED_BASE
from megamoe_jit.errors import MemoryFault

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.machine import Machine
    from megamoe_jit.emulator.machine.state import Warp

_MAX_ALIGN = 16


def resolve(
    machine: Machine,
    warp: Warp,
    address: int,
    space: str,
    size: int,
    *,
    write: bool,
    align: int | None = None,
    lane: int | None = None,
) -> tuple[npt.NDArray[np.uint8], Place]:
    """Translate an address; `Machine.resolve` says how."""
    if align is None:
        align = min(size & -size, _MAX_ALIGN) if size else 1
    if address % align:
        machine.fault(
            "misaligned",
            f"{'Writes' if write else 'Reads'} {size} bytes at {space} address {address:#x}, which is no multiple of "
            f"{align}.",
            by=warp,
            lanes=_bit(lane),
        )
    if space == "generic":
        space = space_of(address)
        if space == "shared":
            space = "shared::cluster"
    if space.startswith("shared"):
        return _shared(machine, warp, address & WINDOW_MASK, space, size, write, lane)
    if space == "local":
        return _local(machine, warp, address & WINDOW_MASK, size, lane)
    return _global(machine, warp, address, size, write, lane)


def _bit(lane: int | None) -> int | None:
    return None if lane is None else 1 << lane


def _shared(
    machine: Machine, warp: Warp, address: int, space: str, size: int, write: bool, lane: int | None
) -> tuple[npt.NDArray[np.uint8], Place]:
    cta = warp.cta
    rank, offset = address >> RANK_SHIFT, address & OFFSET_MASK
    if rank != cta.rank:
        if space != "shared::cluster":
            machine.fault(
                "out-of-bounds",
                f"Shared address {address:#x} is in the window of CTA {rank} of the cluster, but a .shared::cta access "
                f"of CTA {cta.rank} may only name its own; use .shared::cluster.",
                by=warp,
                lanes=_bit(lane),
            )
        cta = machine.cluster_cta(cta, rank, warp)
    end = len(cta.smem)
    if offset < SHARED_BASE or offset + size > end:
        machine.fault(
            "out-of-bounds",
            f"{'Writes' if write else 'Reads'} {size} bytes at shared address {address:#x}; {cta.name()} has "
            f"[{SHARED_BASE:#x}, {end:#x}).",
            by=warp,
            lanes=_bit(lane),
        )
    return cta.smem[offset : offset + size], Place("shared", cta, offset)


def _local(
    machine: Machine, warp: Warp, offset: int, size: int, lane: int | None
) -> tuple[npt.NDArray[np.uint8], Place]:
    frame = int(warp.ctx.local_bytes)
    if offset + size > frame:
        machine.fault(
            "out-of-bounds",
            f"{size} bytes at local address {offset:#x}; a lane's frame has {frame} bytes.",
            by=warp,
            lanes=_bit(lane),
        )
    start = int(warp.ctx.local) + (lane or 0) * frame + offset
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(start)), Place("local", None, offset)


def _global(
    machine: Machine, warp: Warp, address: int, size: int, write: bool, lane: int | None
) -> tuple[npt.NDArray[np.uint8], Place]:
    try:
        view = machine.allocations.view(address, size, write=write, rank=warp.grid.rank)
    except MemoryFault as fault:
        text = str(fault)
        kind = "read-only" if "read-only" in text else "foreign-rank" if "not peer" in text else "out-of-bounds"
        machine.fault(kind, text, by=warp, lanes=_bit(lane))
    return view, Place("global", None, address)
