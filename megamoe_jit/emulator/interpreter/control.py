"""Which group of lanes runs next, in Python: the rules that the docstring of `native/context.py` states."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.machine.engine import Stop, StopKind
from megamoe_jit.emulator.native.context import FULL_MASK, NUM_LANES, FaultKind, FaultSpace, WarpContext

_LANES = np.arange(NUM_LANES, dtype=np.uint32)


def lanes_in(mask: int) -> Iterator[int]:
    """Yield the lanes of a mask, ascending."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


@functools.lru_cache(maxsize=4096)
def bools(mask: int) -> npt.NDArray[np.bool_]:
    """Return a mask as (32,) bool; read-only, as it is kept."""
    lanes = ((np.uint32(mask) >> _LANES) & 1).astype(np.bool_)
    lanes.flags.writeable = False
    return lanes


def mask_of(lanes: npt.NDArray[np.bool_]) -> int:
    """Return (32,) bool as a mask."""
    return int.from_bytes(np.packbits(lanes, bitorder="little").tobytes(), "little")


def go(ctx: WarpContext, lanes: int, pc: int) -> None:
    """Set the next instruction of `lanes`."""
    for lane in lanes_in(lanes):
        ctx.lane_pc[lane] = pc


def split(ctx: WarpContext, lanes: int, pc: int, otherwise: int) -> None:
    """Of the group, `lanes` go to `pc`, the others to `otherwise`."""
    go(ctx, lanes, pc)
    go(ctx, ctx.mask & ~lanes, otherwise)


def note_fault(
    ctx: WarpContext,
    kind: FaultKind,
    pc: int,
    lane: int,
    address: int,
    *,
    space: int = FaultSpace.NONE,
    size: int = 0,
    write: bool = False,
) -> None:
    """Note a fault; the first one stays, all are counted."""
    ctx.num_faults += 1
    if not ctx.fault_kind:
        ctx.fault_kind, ctx.fault_space, ctx.fault_pc, ctx.fault_lane = kind, space, pc, lane
        ctx.fault_address, ctx.fault_size, ctx.fault_write = address % (1 << 64), size, write


def stop_at(ctx: WarpContext, kind: StopKind, pc: int, mask: int = 0) -> Stop:
    """Leave the engine."""
    ctx.stop, ctx.pc, ctx.stop_mask = kind, pc, mask
    return Stop(kind, pc, mask)


def next_group(ctx: WarpContext) -> Stop | None:
    """Choose the lanes that run next: `ctx.mask` and `ctx.pc`; or say why nobody can."""
    if ctx.fault_kind:
        return stop_at(ctx, StopKind.FAULT, ctx.fault_pc)
    if not ctx.live:
        return stop_at(ctx, StopKind.EXIT, ctx.pc)
    free = ctx.live & ~ctx.blocked
    if not free:
        return stop_at(ctx, StopKind.BLOCKED, ctx.pc)
    candidates = free & ~ctx.tired
    if not candidates:
        ctx.tired = 0
        candidates = free
    pc = min(ctx.lane_pc[lane] for lane in lanes_in(candidates))
    group = sum(1 << lane for lane in lanes_in(ctx.live) if ctx.lane_pc[lane] == pc)
    ctx.blocked &= ~group
    ctx.waiting &= ~group
    ctx.mask, ctx.pc = group, pc
    return None


def tire(ctx: WarpContext, pc: int) -> Stop:
    """The fuel is used up before `pc`: others of the warp, if there are any, go first the next time."""
    go(ctx, ctx.mask, pc)
    if ctx.live & ~ctx.blocked != ctx.mask:
        ctx.tired |= ctx.mask
    return stop_at(ctx, StopKind.YIELD, pc, ctx.mask)


def leave(ctx: WarpContext, lanes: int, otherwise: int) -> None:
    """`lanes` exit; whoever waits for lanes of the warp looks again, as only live ones count."""
    go(ctx, ctx.mask & ~lanes, otherwise)
    ctx.live &= ~lanes
    ctx.blocked &= ~ctx.waiting
    ctx.waiting = 0


def _check_members(ctx: WarpContext, pc: int, lanes: int, members: int) -> None:
    outside = lanes & ~members
    if outside:
        note_fault(ctx, FaultKind.MEMBER_MASK, pc, next(lanes_in(outside)), members)


def gather(ctx: WarpContext, pc: int, lanes: int, masks: npt.NDArray[np.uint32]) -> bool:
    """Bring the lanes of a member mask together; `masks` has each lane's. Returns whether `ctx.mask` may go on.

    The first mask counts whose lanes are all here; lanes with another one are a group of their own, later.
    """
    left = lanes
    while left:
        members = int(masks[next(lanes_in(left))])
        alike = sum(1 << lane for lane in lanes_in(left) if int(masks[lane]) == members)
        left &= ~alike
        if members & ctx.live & ~alike:
            continue
        _check_members(ctx, pc, alike, members)
        if alike != ctx.mask:
            split(ctx, lanes, pc, pc + 1)
            ctx.mask = alike
        return True
    split(ctx, lanes, pc, pc + 1)
    ctx.blocked |= lanes
    ctx.waiting |= lanes
    return False


def warp_barrier(ctx: WarpContext, pc: int, lanes: int, masks: npt.NDArray[np.uint32]) -> None:
    """`bar.warp.sync`: lanes wait until all live lanes of their mask are at some `bar.warp.sync`."""
    ctx.arrived = (ctx.arrived | lanes) & ctx.live
    split(ctx, lanes, pc, pc + 1)
    while lanes:
        members = int(masks[next(lanes_in(lanes))])
        alike = sum(1 << lane for lane in lanes_in(lanes) if int(masks[lane]) == members)
        lanes &= ~alike
        _check_members(ctx, pc, alike, members)
        wanted = members & ctx.live
        if wanted & ~ctx.arrived:
            ctx.blocked |= alike
            ctx.waiting |= alike
            continue
        for lane in lanes_in(wanted):
            ctx.lane_pc[lane] += 1
        ctx.arrived &= ~wanted & FULL_MASK
        ctx.blocked &= ~wanted & FULL_MASK
        ctx.waiting &= ~wanted & FULL_MASK
