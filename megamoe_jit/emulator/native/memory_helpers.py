"""Native helpers of loads and stores.

An access is two calls. `emu_access_<space>` turns the addresses of all lanes into host pointers: it checks range,
alignment and rights, notes what is wrong, lets the race checker look, and returns the lanes whose access may go on.
`emu_gather_<width>x<count>` and `emu_scatter_<width>x<count>` then move the data between these pointers and registers.
A load from a bad address reads zeros.
"""

from __future__ import annotations

import ctypes

from megamoe_jit.emulator.memory.allocations import ALL_RANKS, PEER, WRITE, Range, RangeTable
from megamoe_jit.emulator.memory.spaces import LOCAL_WINDOW, OFFSET_MASK, RANK_SHIFT, SHARED_WINDOW, WINDOW_SHIFT
from megamoe_jit.emulator.native.context import FaultKind, FaultSpace
from megamoe_jit.emulator.native.control_helpers import CTX, bits_of_lanes, lanes_of
from megamoe_jit.emulator.native.fields import Fields, context
from megamoe_jit.emulator.native.ir import Body, Val, vector
from megamoe_jit.emulator.parser.nodes import SHARED_BASE

ADDRESSES = vector(32, "i64")
NARROW = vector(32, "i32")
MAX_CTAS = 16
WIDTHS = (1, 2, 4, 8, 16)
COUNTS = {1: (1, 2, 4), 2: (1, 2, 4), 4: (1, 2, 4, 8), 8: (1, 2, 4), 16: (1,)}
"""Vector lengths of loads and stores of each element width."""
ZEROS = "@emu_zeros = internal constant [64 x i8] zeroinitializer, align 64"

ACCESS_PARAMS = [
    CTX, ("i32", "lanes"), ("ptr", "addresses"), ("i64", "offset"), ("i32", "size"), ("i32", "write"), ("i32", "space"),
    ("i32", "pc"), ("i32", "site"), ("ptr", "out"),
]  # fmt: skip
"""Parameters of the access helpers.

addresses: 64-bit ones, or 32-bit ones for the helpers with suffix `_narrow`; offset: added to each; size: bytes of one
lane's access; space: FaultSpace of the instruction; site: number of the instruction among those of the program that
access memory; out: [32] pointers, written for `lanes`.
"""

ACCESS_HELPERS = {
    FaultSpace.GENERIC: "emu_access_generic",
    FaultSpace.GLOBAL: "emu_access_global",
    FaultSpace.SHARED: "emu_access_shared",
    FaultSpace.SHARED_CLUSTER: "emu_access_shared",
    FaultSpace.LOCAL: "emu_access_local",
    FaultSpace.PARAM: "emu_access_param",
}
"""Which helper checks accesses to a space; those of SHARED and LOCAL have a `_narrow` twin for 32-bit addresses."""


def memory_helpers() -> list[Body]:
    """Return all of them."""
    moves = [_move(width, count, is_load) for is_load in (True, False) for width in WIDTHS for count in COUNTS[width]]
    return [
        _fault(), _search(), _global(), _shared("emu_access_shared", narrow=False),
        _shared("emu_access_shared_narrow", narrow=True), _local("emu_access_local", narrow=False),
        _local("emu_access_local_narrow", narrow=True), _param(), _generic(), *moves,
    ]  # fmt: skip


def _fault() -> Body:
    """Note a fault; the first one stays."""
    f = Body(
        "emu_fault", "void",
        [CTX, ("i32", "kind"), ("i32", "space"), ("i32", "pc"), ("i32", "lane"), ("i64", "address"), ("i32", "size"),
         ("i32", "write")],
        attributes="nounwind noinline cold",
    )  # fmt: skip
    ctx = context(f["ctx"])
    ctx.set("num_faults", ctx.get("num_faults") + 1)
    ctx.set("straight", 0)
    with f.if_(ctx.get("fault_kind").eq(0)):
        for field in ("kind", "space", "pc", "lane", "address", "size", "write"):
            ctx.set(f"fault_{field}", f[field])
    return f


class _Access:
    """What the access helpers have in common."""

    def __init__(self, name: str) -> None:
        self.f = f = Body(name, "i32", ACCESS_PARAMS)
        self.ctx = context(f["ctx"])
        self.size = f["size"]
        self.lanes = f["lanes"]

    def fault_lane(self, kind: int | Val, lane: Val, address: Val) -> None:
        f = self.f
        code = kind if isinstance(kind, Val) else f.const("i32", kind)
        f.call(
            "emu_fault", "void", f["ctx"], code, f["space"], f["pc"], lane, address, self.size, f["write"]
        )  # fmt: skip

    def fault_lanes(self, kind: int | Val, lanes: Val, addresses: Val) -> None:
        """Note a fault of the first of `lanes`, if there is one."""
        f = self.f
        with f.if_(lanes.ne(0)):
            lane = f.call("llvm.cttz.i32", "i32", lanes, f.const("i1", 0))
            self.fault_lane(kind, lane, addresses.element(lane).zext("i64"))

    def put(self, lanes: Val, pointers: Val) -> None:
        """Write the pointers of `lanes`."""
        out = self.f["out"]
        out.store(lanes_of(lanes).select(pointers, out.load(ADDRESSES, 8)), 8)

    def put_zeros(self, lanes: Val) -> None:
        """Let `lanes` read zeros."""
        with self.f.if_(lanes.ne(0)):
            self.put(lanes, Val(self.f, "ptr", "@emu_zeros").address().splat())

    def misaligned(self, addresses: Val) -> Val:
        """Return the lanes whose address is no multiple of the size."""
        element = addresses.type.split(" x ")[1].rstrip(">")
        low = (self.size if element == "i32" else self.size.zext("i64")) - 1
        return bits_of_lanes((addresses & low.splat()).ne(0)) & self.lanes

    def wide_addresses(self) -> Val:
        """Return the 64-bit addresses with the offset added."""
        return self.f["addresses"].load(ADDRESSES, 8) + self.f["offset"].splat()


def _search() -> Body:
    """Return the last range of the table that begins at or below `address`, or -1."""
    f = Body("emu_search", "i32", [("ptr", "table"), ("i64", "address")])
    table = Fields(f["table"], RangeTable)
    entries = table.pointer("entries")
    low, high = f.var("i32", 0), f.var("i32", table.get("count"))
    with f.while_(lambda: low.get().ult(high.get())):
        middle = (low.get() + high.get()) >> 1
        start = Fields(_entry(entries, middle), Range).get("start")
        below = start.ule(f["address"])
        low.set(below.select(middle + 1, low.get()))
        high.set(below.select(high.get(), middle))
    f.ret(low.get() - 1)
    return f


def _entry(entries: Val, index: Val) -> Val:
    return entries.at(index.zext("i64") * ctypes.sizeof(Range))


def _global() -> Body:
    access = _Access("emu_access_global")
    f, ctx, lanes = access.f, access.ctx, access.lanes
    addresses = access.wide_addresses()
    table = Fields(ctx.pointer("ranges"), RangeTable)
    hint_at = ctx.pointer("hints").at(f["site"].zext("i64"), "i32")
    size = access.size.zext("i64")

    bad = access.misaligned(addresses)
    access.fault_lanes(FaultKind.MISALIGNED, bad, addresses)
    left, good = f.var("i32", lanes & ~bad), f.var("i32", 0)
    hint = f.var("i32", hint_at.load("i32"))
    access.put(lanes, addresses)
    with f.while_(lambda: left.get().ne(0)):
        again, found, next_label = f.label("again"), f.label("found"), f.label("next")
        f.place(again)
        # A hint of another launch may point past the table's end.
        known = hint.get().ult(table.get("count")).select(hint.get(), 0)
        entry = Fields(_entry(table.pointer("entries"), known), Range)
        start, length = entry.get("start"), entry.get("end") - entry.get("start")
        # An empty table has one empty entry, so that there is always one to look at.
        inside = (addresses - start.splat()).ule((length - size).splat())
        here = length.uge(size).select(bits_of_lanes(inside) & left.get(), 0)
        missed = f.label("missed")
        f.branch(here.ne(0), found, missed)

        f.place(missed)
        lane = f.call("llvm.cttz.i32", "i32", left.get(), f.const("i1", 0))
        address = addresses.element(lane)
        index = f.call("emu_search", "i32", table.address, address)
        begun = Fields(_entry(table.pointer("entries"), index), Range)
        unmapped, mapped = f.label("unmapped"), f.label("mapped")
        f.branch(index.cmp("slt", 0), unmapped, mapped)
        f.place(mapped)
        holds = (address - begun.get("start")).ult(begun.get("end") - begun.get("start"))
        fits = holds & (begun.get("end") - address).uge(size)
        hit, outside = f.label("hit"), f.label("outside")
        f.branch(fits, hit, outside)
        f.place(hit)
        hint.set(index)
        hint_at.store(index)
        f.jump(again)

        f.place(outside)
        kind = holds.select(f.const("i32", FaultKind.OUT_OF_BOUNDS), FaultKind.UNMAPPED)
        access.fault_lane(kind, lane, address)
        left.set(left.get() & ~(f.const("i32", 1) << lane))
        f.jump(next_label)
        f.place(unmapped)
        access.fault_lane(FaultKind.UNMAPPED, lane, address)
        left.set(left.get() & ~(f.const("i32", 1) << lane))
        f.jump(next_label)

        f.place(found)
        left.set(left.get() & ~here)
        flags, owner = entry.get("flags"), entry.get("rank")
        foreign = owner.ne(ctx.get("rank")) & owner.ne(ALL_RANKS) & (flags & PEER).eq(0)
        forbidden = f["write"].ne(0) & (flags & WRITE).eq(0)
        refused, granted = f.label("refused"), f.label("granted")
        f.branch(foreign | forbidden, refused, granted)
        f.place(refused)
        kind = foreign.select(f.const("i32", FaultKind.FOREIGN_RANK), FaultKind.READ_ONLY)
        access.fault_lanes(kind, here, addresses)
        f.jump(next_label)
        f.place(granted)
        good.set(good.get() | here)
        watched = ctx.get("checks").ne(0) & entry.get("shadow").ne(0)
        with f.if_(watched):
            f.call(
                "emu_check_global", "void", f["ctx"], here, f["out"], access.size, f["write"], f["pc"],
                entry.pointer("shadow"), start,
            )  # fmt: skip
        f.place(next_label)
    access.put_zeros(lanes & ~good.get())
    f.ret(good.get())
    return f


def _shared(name: str, *, narrow: bool) -> Body:
    access = _Access(name)
    f, ctx, lanes, size = access.f, access.ctx, access.lanes, access.size
    if narrow:
        addresses = f["addresses"].load(NARROW, 4) + f["offset"].trunc("i32").splat()
        shown, high_wrong = addresses, f.const("i32", 0)
    else:
        shown = access.wide_addresses()
        window = f["space"].eq(FaultSpace.GENERIC).select(f.const("i64", SHARED_WINDOW >> 32), 0)
        high_wrong = bits_of_lanes((shown >> 32).ne(window.splat())) & lanes
        addresses = shown.trunc(NARROW)
    ranks, offsets = addresses >> RANK_SHIFT, addresses & OFFSET_MASK
    own = ctx.get("cta_rank")
    table = ctx.pointer("smem_table")

    def row(rank: Val) -> tuple[Val, Val]:
        at = table.at(rank.zext("i64") * 16)
        return at.load("i64"), at.at(8).load("i64").trunc("i32")

    base, end = row(own)
    fits = offsets.ule((end - size).splat()) & offsets.uge(SHARED_BASE) & ranks.eq(own.splat()) & end.ne(0).splat()
    aligned = (offsets & (size - 1).splat()).eq(0)
    good = f.var("i32", bits_of_lanes(fits & aligned) & lanes & ~high_wrong)
    access.put(good.get(), offsets.zext(ADDRESSES) + base.splat())
    others = lanes & ~good.get()
    with f.each_bit(others) as lane:
        bit = f.const("i32", 1) << lane
        rank, offset = ranks.element(lane), offsets.element(lane)
        exists = rank.ult(MAX_CTAS)
        other_base, other_end = row(exists.select(rank, 0))
        exists = exists & other_end.ne(0)
        in_bounds = offset.uge(SHARED_BASE) & offset.ule(other_end - size)
        is_wide = (high_wrong & bit).ne(0)
        is_aligned = (offset & (size - 1)).eq(0)
        foreign = f["space"].eq(FaultSpace.SHARED) & rank.ne(own)
        fine = exists & in_bounds & is_aligned & ~foreign & ~is_wide
        with f.if_(fine):
            f["out"].at(lane.zext("i64"), "i64").store(other_base + offset.zext("i64"))
            good.set(good.get() | bit)
        with f.if_(~fine):
            kind = is_aligned.select(f.const("i32", FaultKind.NONE), FaultKind.MISALIGNED)
            kind = in_bounds.select(kind, FaultKind.SHARED_BOUNDS)
            kind = foreign.select(f.const("i32", FaultKind.SHARED_FOREIGN), kind)
            kind = exists.select(kind, FaultKind.SHARED_RANK)
            kind = is_wide.select(f.const("i32", FaultKind.SHARED_BOUNDS), kind)
            access.fault_lane(kind, lane, shown.element(lane).zext("i64"))
    with f.if_(ctx.get("checks").ne(0)):
        kept = f.alloca(NARROW, 64)
        kept.store(addresses, 64)
        f.call("emu_check_shared", "void", f["ctx"], good.get(), kept, size, f["write"], f["pc"])
    access.put_zeros(lanes & ~good.get())
    f.ret(good.get())
    return f


def _local(name: str, *, narrow: bool) -> Body:
    access = _Access(name)
    f, ctx, lanes, size = access.f, access.ctx, access.lanes, access.size
    if narrow:
        shown = f["addresses"].load(NARROW, 4) + f["offset"].trunc("i32").splat()
        offsets, high_wrong = shown, f.const("i32", 0)
    else:
        shown = access.wide_addresses()
        high = shown >> 32
        # `.local` takes offsets in the frame, with or without the window; see memory/spaces.py.
        fine = high.eq(LOCAL_WINDOW >> 32) | (high.eq(0) & f["space"].ne(FaultSpace.GENERIC).splat())
        high_wrong = ~bits_of_lanes(fine) & lanes
        offsets = shown.trunc(NARROW)
    frame = ctx.get("local_bytes")
    fits = offsets.ule((frame - size).splat()) & frame.uge(size).splat()
    inside = bits_of_lanes(fits) & lanes & ~high_wrong
    misaligned = access.misaligned(offsets)
    good = inside & ~misaligned
    access.fault_lanes(FaultKind.LOCAL_BOUNDS, lanes & ~inside, shown)
    access.fault_lanes(FaultKind.MISALIGNED, inside & misaligned, shown)
    frames = f.lanes("i64", range(32)) * frame.zext("i64").splat()
    access.put(good, offsets.zext(ADDRESSES) + frames + ctx.get("local").splat())
    access.put_zeros(lanes & ~good)
    f.ret(good)
    return f


def _param() -> Body:
    """The kernel's parameters, by host address; read only."""
    access = _Access("emu_access_param")
    f, ctx, lanes = access.f, access.ctx, access.lanes
    addresses = access.wide_addresses()
    length, size = ctx.get("param_bytes").zext("i64"), access.size.zext("i64")
    fits = (addresses - ctx.get("params").splat()).ule((length - size).splat()) & length.uge(size).splat()
    inside = bits_of_lanes(fits) & lanes
    misaligned = access.misaligned(addresses)
    good = f["write"].ne(0).select(f.const("i32", 0), inside & ~misaligned)
    access.fault_lanes(FaultKind.PARAM_BOUNDS, lanes & ~inside, addresses)
    access.fault_lanes(FaultKind.MISALIGNED, inside & misaligned, addresses)
    access.fault_lanes(FaultKind.READ_ONLY, inside & ~misaligned & ~good, addresses)
    access.put(good, addresses)
    access.put_zeros(lanes & ~good)
    f.ret(good)
    return f


def _generic() -> Body:
    """Send each lane to the space whose window its address is in."""
    access = _Access("emu_access_generic")
    f, lanes = access.f, access.lanes
    windows = access.wide_addresses() >> WINDOW_SHIFT
    shared = bits_of_lanes(windows.eq(SHARED_WINDOW >> WINDOW_SHIFT)) & lanes
    local = bits_of_lanes(windows.eq(LOCAL_WINDOW >> WINDOW_SHIFT)) & lanes
    parts = {"global": lanes & ~shared & ~local, "shared": shared, "local": local}
    good = f.var("i32", 0)
    for space, part in parts.items():
        with f.if_(part.ne(0)):
            args = [f[param] if param != "lanes" else part for _, param in ACCESS_PARAMS]
            good.set(good.get() | f.call(f"emu_access_{space}", "i32", *args))
    f.ret(good.get())
    return f


def _move(width: int, count: int, is_load: bool) -> Body:
    """Copy `count` elements of `width` bytes between each lane's pointer and `count` registers."""
    items = [("ptr noalias", f"item{i}") for i in range(count)]
    name = f"emu_{'gather' if is_load else 'scatter'}_{width}x{count}"
    f = Body(name, "void", [("i32", "lanes"), ("ptr noalias", "pointers"), *items])
    element = f"i{8 * width}"

    def one(lane: Val) -> None:
        pointer = f["pointers"].at(lane, "ptr").load("ptr")
        for i in range(count):
            memory, register = pointer.at(i, element), f[f"item{i}"].at(lane, element)
            source, target = (memory, register) if is_load else (register, memory)
            target.store(source.load(element, 1), 1)

    full, partial, end = f.label("full"), f.label("partial"), f.label("end")
    f.branch(f["lanes"].eq(-1), full, partial)
    f.place(full)
    with f.range_(0, 32) as lane:
        one(lane)
    f.jump(end)
    f.place(partial)
    with f.each_bit(f["lanes"]) as bit:
        one(bit.zext("i64"))
    f.place(end)
    return f
