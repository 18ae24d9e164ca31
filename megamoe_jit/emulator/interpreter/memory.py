"""Loads and stores with checks in plain Python: every lane's address is looked at on its own."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from megamoe_jit.emulator.interpreter.control import lanes_in, note_fault
from megamoe_jit.emulator.isa.decode import Decode
from megamoe_jit.emulator.isa.memory import Access, access_of
from megamoe_jit.emulator.memory.allocations import ALL_RANKS, PEER, WRITE, Range, RangeTable
from megamoe_jit.emulator.memory.spaces import (
    LOCAL_WINDOW,
    OFFSET_MASK,
    RANK_SHIFT,
    SHARED_WINDOW,
    WINDOW_MASK,
    WINDOW_SHIFT,
)
from megamoe_jit.emulator.native.context import FaultKind, FaultSpace
from megamoe_jit.emulator.parser.nodes import SHARED_BASE, Address, RegOp, Sink
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Warp

Step = Callable[["Warp", int], None]


def _global(warp: Warp, address: int, size: int, write: bool) -> int | FaultKind:
    """Return the host address when the bytes are in one range that the rank may touch so."""
    table = RangeTable.from_address(warp.ctx.ranges)
    entries = (Range * table.count).from_address(table.entries) if table.count else ()
    held = next((entry for entry in entries if entry.start <= address < entry.end), None)
    if held is None:
        return FaultKind.UNMAPPED
    if address + size > held.end:
        return FaultKind.OUT_OF_BOUNDS
    if held.rank not in (warp.grid.rank, ALL_RANKS) and not held.flags & PEER:
        return FaultKind.FOREIGN_RANK
    if write and not held.flags & WRITE:
        return FaultKind.READ_ONLY
    return address


def _shared(warp: Warp, address: int, size: int, *, only_own: bool) -> int | FaultKind:
    rank, offset = address >> RANK_SHIFT, address & OFFSET_MASK
    table = warp.cluster.smem_table
    start, end = (int(word) for word in table[rank]) if rank < len(table) else (0, 0)
    if not end:
        return FaultKind.SHARED_RANK
    if only_own and rank != warp.cta.rank:
        return FaultKind.SHARED_FOREIGN
    if offset < SHARED_BASE or offset + size > end:
        return FaultKind.SHARED_BOUNDS
    return FaultKind.MISALIGNED if offset % size else start + offset


def _local(warp: Warp, offset: int, size: int, lane: int) -> int | FaultKind:
    frame = int(warp.ctx.local_bytes)
    if offset + size > frame:
        return FaultKind.LOCAL_BOUNDS
    return int(warp.ctx.local) + lane * frame + offset


def _translate(
    warp: Warp, space: FaultSpace, address: int, size: int, lane: int, write: bool
) -> tuple[int | FaultKind, FaultSpace]:
    """Return the host address of a lane's access, or what is wrong with it; and the space that it is in."""
    where = space
    if space is FaultSpace.GENERIC:
        windows = {SHARED_WINDOW: FaultSpace.SHARED_CLUSTER, LOCAL_WINDOW: FaultSpace.LOCAL}
        where = windows.get(address >> WINDOW_SHIFT << WINDOW_SHIFT, FaultSpace.GLOBAL)
    high = address & ~WINDOW_MASK
    if where in (FaultSpace.SHARED, FaultSpace.SHARED_CLUSTER):
        if high != (SHARED_WINDOW if space is FaultSpace.GENERIC else 0):
            return FaultKind.SHARED_BOUNDS, where
        return _shared(warp, address & WINDOW_MASK, size, only_own=space is FaultSpace.SHARED), where
    if where is FaultSpace.LOCAL:
        if high != LOCAL_WINDOW and (high or space is FaultSpace.GENERIC):
            return FaultKind.LOCAL_BOUNDS, where
        found = _local(warp, address & WINDOW_MASK, size, lane)
        return (FaultKind.MISALIGNED if not isinstance(found, FaultKind) and address % size else found), where
    if where is FaultSpace.PARAM:
        start, length = warp.ctx.params, warp.ctx.param_bytes
        if not start <= address <= start + length - size:
            return FaultKind.PARAM_BOUNDS, where
        return (FaultKind.MISALIGNED if address % size else FaultKind.READ_ONLY if write else address), where
    return (FaultKind.MISALIGNED if address % size else _global(warp, address, size, write)), where


def _pointers(warp: Warp, mask: int, addresses: Any, access: Access, pc: int) -> dict[int, int]:
    """Return lane -> host address of the lanes whose access is in order; note what is wrong with the others."""
    ctx = warp.ctx
    size, write = access.size, not access.is_load
    good: dict[int, int] = {}
    ranges: list[tuple[str, Any, int, int]] = []
    for lane in lanes_in(mask):
        address = int(addresses[lane])
        found, where = _translate(warp, access.space, address, size, lane, write)
        if isinstance(found, FaultKind):
            note_fault(ctx, found, pc, lane, address, space=access.space, size=size, write=write)
            continue
        good[lane] = found
        if where in (FaultSpace.SHARED, FaultSpace.SHARED_CLUSTER):
            cta = warp.cluster.ctas[(address & WINDOW_MASK) >> RANK_SHIFT]
            ranges.append(("shared", cta, address & OFFSET_MASK, size))
        elif where is FaultSpace.GLOBAL:
            ranges.append(("global", None, address, size))
    if ctx.checks and ranges and not ctx.fault_kind:  # what follows a bad access in its block is of no interest
        warp.pc = pc
        warp.machine.checks.generic_ranges(warp, ranges, "write" if write else "read")
    return good


def _address_of(d: Decode, index: int, space: FaultSpace) -> Callable[[Warp], Any]:
    operand = d.operand(index)
    if not isinstance(operand, Address) or operand.coords is not None:
        raise UnsupportedError("an address is needed.")
    narrow = isinstance(operand.base, RegOp) and operand.base.reg.width == 4
    if narrow and space not in (FaultSpace.SHARED, FaultSpace.SHARED_CLUSTER, FaultSpace.LOCAL):
        raise UnsupportedError(f"addresses of space {space.name.lower()} have 64 bits.")
    return d.address(index)


def memory_step(d: Decode) -> Step | None:
    """Return what executes a load or store; None for what is neither (`isspacep`)."""
    access = access_of(d.op)
    if access is None:
        return None
    is_load, pc, width = access.is_load, d.pc, access.width
    address = _address_of(d, 1 if is_load else 0, access.space)
    items = d.items(0 if is_load else 1)
    if len(items) != access.count:
        raise UnsupportedError(f"{access.count} registers are needed, {len(items)} are given.")
    letter = "i" if access.type[0] == "s" else "u"
    element = np.dtype(f"{letter}{width}" if width <= 8 else "V16")
    accessors = _wide(d, items) if width == 16 else None

    def load(warp: Warp, mask: int) -> None:
        data = np.zeros((32, access.count), element)
        for lane, pointer in _pointers(warp, mask, address(warp), access, pc).items():
            data[lane] = np.frombuffer(ctypes.string_at(pointer, access.size), element)
        for write, column in zip(writers, data.T, strict=True):
            write(warp, mask, column)

    def store(warp: Warp, mask: int) -> None:
        data = np.stack([np.broadcast_to(read(warp), (32,)) for read in readers], axis=1)
        for lane, pointer in _pointers(warp, mask, address(warp), access, pc).items():
            ctypes.memmove(pointer, data[lane].tobytes(), access.size)

    if is_load:
        writers = [accessors[1]] if accessors else [d.writer(item, element) for item in items]
        return load
    readers = [accessors[0]] if accessors else [d.reader(item, np.dtype(f"u{width}")) for item in items]
    return store


def _wide(d: Decode, items: Any) -> tuple[Callable[[Warp], Any], Callable[[Warp, int, Any], None]]:
    """Return what reads and writes a 128-bit register as 16-byte items."""
    (item,) = items
    if isinstance(item, Sink):
        return lambda warp: np.zeros(32, "V16"), lambda warp, mask, values: None  # noqa: ARG005
    if not isinstance(item, RegOp) or item.reg.width != 16:
        raise UnsupportedError("128 bits are loaded to and stored from a .b128 register.")
    view, reg = d.layout.view, item.reg

    def write(warp: Warp, mask: int, values: Any) -> None:
        lanes = list(lanes_in(mask))
        view(warp, reg)[lanes] = np.ascontiguousarray(values).view(np.uint64).reshape(32, 2)[lanes]

    return (lambda warp: np.ascontiguousarray(view(warp, reg)).view("V16")[:, 0]), write
