"""Native helpers of control flow: which group of lanes runs next, and how the engine is left.

The rules are those of context.py. Kernels call these out of line, only where lanes may disagree; a uniform jump is a
jump.
"""

from __future__ import annotations

from megamoe_jit.emulator.machine.engine import StopKind
from megamoe_jit.emulator.native.context import FaultKind
from megamoe_jit.emulator.native.fields import Fields, context
from megamoe_jit.emulator.native.ir import Body, Number, Val, vector

PCS = vector(32, "i32")
BITS = vector(32, "i1")
CTX = ("ptr", "ctx")


def lanes_of(bits: Val) -> Val:
    """Return the i1 lanes of an i32 mask."""
    return bits.bitcast(BITS)


def bits_of_lanes(lanes: Val) -> Val:
    """Return the i32 mask of i1 lanes."""
    return lanes.bitcast("i32")


def set_lane_pc(ctx: Fields, lanes: Val, pc: Val) -> None:
    """Set `lane_pc` of the lanes of a mask: the same for all, or a vector."""
    at = ctx.at("lane_pc")
    new = pc if pc.type == PCS else pc.splat()
    at.store(lanes_of(lanes).select(new, at.load(PCS, 4)), 4)


def control_helpers() -> list[Body]:
    """Return all of them."""
    return [_next(), _goto(), _yield(), _diverge(), _handler(), _exit(), _sync(), _warpsync(), _brx()]


def count_block(ctx: Fields, number: Number, instructions: int) -> None:
    """Count one execution of a block, and burn its fuel."""
    ctx.set("fuel", ctx.get("fuel") - instructions)
    count = ctx.pointer("block_counts").at(number, "i64")
    count.store(count.load("i64") + 1)


def record_fault(ctx: Fields, kind: int, pc: Val, lane: Val, address: Val) -> None:
    """Note a fault of a branch or a `.sync` instruction; the next jump goes to the dispatcher, which stops."""
    f = pc.f
    zero = f.const("i32", 0)
    f.call(
        "emu_fault", "void", ctx.address, f.const("i32", kind), zero, pc, lane, address, zero, zero
    )  # fmt: skip


def _stop(ctx: Fields, kind: StopKind) -> None:
    ctx.set("stop", int(kind))
    # What %clock64 showed meanwhile becomes exact: the fuel that was used up.
    ctx.set("executed", ctx.get("executed") + (ctx.get("fuel_start") - ctx.get("fuel")))
    ctx.set("fuel_start", ctx.get("fuel"))


def _next() -> Body:
    """Choose the next group; returns its PC, or -1 when the engine is to be left (`stop` says why)."""
    f = Body("emu_next", "i32", [CTX])
    ctx = context(f["ctx"])
    leave = f.const("i32", -1)
    with f.if_(ctx.get("fault_kind").ne(0)):
        ctx.set("pc", ctx.get("fault_pc"))
        _stop(ctx, StopKind.FAULT)
        f.ret(leave)
    live = ctx.get("live")
    with f.if_(live.eq(0)):
        _stop(ctx, StopKind.EXIT)
        f.ret(leave)
    runnable = live & ~ctx.get("blocked")
    with f.if_(runnable.eq(0)):
        _stop(ctx, StopKind.BLOCKED)
        f.ret(leave)
    rested = runnable & ~ctx.get("tired")
    candidates = f.var("i32", rested)
    with f.if_(rested.eq(0)):
        ctx.set("tired", 0)
        candidates.set(runnable)
    pcs = ctx.at("lane_pc").load(PCS, 4)
    considered = lanes_of(candidates.get()).select(pcs, 0x7FFFFFFF)
    lowest = f.intrinsic("vector.reduce.smin", "i32", considered)
    group = bits_of_lanes(pcs.eq(lowest.splat())) & live
    ctx.set("blocked", ctx.get("blocked") & ~group)
    ctx.set("waiting", ctx.get("waiting") & ~group)
    ctx.set("mask", group)
    ctx.set("straight", group.eq(live).select(group, 0))
    f.ret(lowest)
    return f


def _goto() -> Body:
    """All lanes of the group go to `pc`, where others may wait."""
    f = Body("emu_goto", "void", [CTX, ("i32", "pc")])
    ctx = context(f["ctx"])
    set_lane_pc(ctx, ctx.get("mask"), f["pc"])
    return f


def _yield() -> Body:
    """The fuel is used up before `pc`; the group lets others run first, should it not be alone."""
    f = Body("emu_yield", "void", [CTX, ("i32", "pc")])
    ctx = context(f["ctx"])
    mask = ctx.get("mask")
    set_lane_pc(ctx, mask, f["pc"])
    others = (ctx.get("live") & ~ctx.get("blocked")).ne(mask)
    ctx.set("tired", ctx.get("tired") | others.select(mask, 0))
    ctx.set("pc", f["pc"])
    ctx.set("stop_mask", mask)
    _stop(ctx, StopKind.YIELD)
    return f


def _diverge() -> Body:
    """Lanes `taken` go to `target`, the others of the group to `otherwise`; `uniform` says that they should agree."""
    f = Body(
        "emu_diverge", "void",
        [CTX, ("i32", "pc"), ("i32", "taken"), ("i32", "target"), ("i32", "otherwise"), ("i32", "uniform")],
    )  # fmt: skip
    ctx = context(f["ctx"])
    new = lanes_of(f["taken"]).select(f["target"].splat(), f["otherwise"].splat())
    set_lane_pc(ctx, ctx.get("mask"), new)
    with f.if_(f["uniform"].ne(0)):
        lane = f.call("llvm.cttz.i32", "i32", f["taken"], f.const("i1", 0))
        record_fault(ctx, FaultKind.DIVERGENT_UNIFORM, f["pc"], lane, f["taken"].zext("i64"))
    return f


def _handler() -> Body:
    """Leave the engine so that Python executes instruction `pc` for `lanes`; the others of the group skip it.

    `block` is the instruction's block, which is counted here, or -1 when it has been.
    """
    f = Body("emu_handler", "void", [CTX, ("i32", "pc"), ("i32", "lanes"), ("i32", "block")])
    ctx = context(f["ctx"])
    with f.if_(f["block"].cmp("sge", 0)):
        count_block(ctx, f["block"].zext("i64"), 1)
    pc, lanes = f["pc"], f["lanes"]
    mask = ctx.get("mask")
    with f.if_(ctx.get("fault_kind").ne(0)):
        set_lane_pc(ctx, mask, pc)
        ctx.set("pc", ctx.get("fault_pc"))
        _stop(ctx, StopKind.FAULT)
        f.ret()
    set_lane_pc(ctx, mask, lanes_of(lanes).select(pc.splat(), (pc + 1).splat()))
    ctx.set("pc", pc)
    ctx.set("stop_mask", lanes)
    _stop(ctx, StopKind.HANDLER)
    return f


def _exit() -> Body:
    """`lanes` leave for good; the others of the group go to `otherwise`."""
    f = Body("emu_exit", "void", [CTX, ("i32", "lanes"), ("i32", "otherwise")])
    ctx = context(f["ctx"])
    lanes = f["lanes"]
    set_lane_pc(ctx, ctx.get("mask") & ~lanes, f["otherwise"])
    ctx.set("live", ctx.get("live") & ~lanes)
    # Member masks count live lanes only: those who wait for others look again.
    ctx.set("blocked", ctx.get("blocked") & ~ctx.get("waiting"))
    ctx.set("waiting", 0)
    return f


def _member_fault(f: Body, ctx: Fields, lanes: Val, members: Val) -> None:
    outside = lanes & ~members
    with f.if_(outside.ne(0)):
        lane = f.call("llvm.cttz.i32", "i32", outside, f.const("i1", 0))
        record_fault(ctx, FaultKind.MEMBER_MASK, f["pc"], lane, members.zext("i64"))


def _sync() -> Body:
    """Bring the lanes of a member mask together before a `.sync` instruction.

    Returns 1 when some of `lanes` (the group, reduced by the guard) may execute it: then the group is those that have
    the first member mask whose lanes are all here. Returns 0 when the dispatcher must choose another group.
    """
    f = Body("emu_sync", "i32", [CTX, ("i32", "pc"), ("i32", "lanes"), ("ptr", "members")])
    ctx = context(f["ctx"])
    pc, lanes = f["pc"], f["lanes"]
    mask, live = ctx.get("mask"), ctx.get("live")
    all_members = f["members"].load(PCS, 4)
    left, chosen, named = f.var("i32", lanes), f.var("i32", 0), f.var("i32", 0)
    with f.while_(lambda: left.get().ne(0)):
        members = all_members.element(f.call("llvm.cttz.i32", "i32", left.get(), f.const("i1", 0)))
        alike = bits_of_lanes(all_members.eq(members.splat())) & left.get()
        left.set(left.get() & ~alike)
        with f.if_((members & live & ~alike).eq(0)):
            chosen.set(alike)
            named.set(members)
            left.set(0)
    ready = chosen.get()
    here = lanes_of(lanes).select(pc.splat(), (pc + 1).splat())
    with f.if_(ready.eq(0)):
        set_lane_pc(ctx, mask, here)
        ctx.set("blocked", ctx.get("blocked") | lanes)
        ctx.set("waiting", ctx.get("waiting") | lanes)
        f.ret(f.const("i32", 0))
    _member_fault(f, ctx, ready, named.get())
    with f.if_(ready.ne(mask)):
        set_lane_pc(ctx, mask, here)
        ctx.set("mask", ready)
        ctx.set("straight", 0)
    f.ret(f.const("i32", 1))
    return f


def _warpsync() -> Body:
    """bar.warp.sync: lanes wait here until all live lanes of their mask wait at some bar.warp.sync.

    Afterwards the dispatcher must choose a group.
    """
    f = Body("emu_warpsync", "void", [CTX, ("i32", "pc"), ("i32", "lanes"), ("ptr", "members")])
    ctx = context(f["ctx"])
    pc, lanes = f["pc"], f["lanes"]
    all_members = f["members"].load(PCS, 4)
    ctx.set("arrived", (ctx.get("arrived") | lanes) & ctx.get("live"))
    set_lane_pc(ctx, ctx.get("mask"), lanes_of(lanes).select(pc.splat(), (pc + 1).splat()))
    left = f.var("i32", lanes)
    with f.while_(lambda: left.get().ne(0)):
        members = all_members.element(f.call("llvm.cttz.i32", "i32", left.get(), f.const("i1", 0)))
        alike = bits_of_lanes(all_members.eq(members.splat())) & left.get()
        left.set(left.get() & ~alike)
        _member_fault(f, ctx, alike, members)
        wanted = members & ctx.get("live")
        complete = (wanted & ~ctx.get("arrived")).eq(0)
        with f.if_(complete):
            pcs = ctx.at("lane_pc").load(PCS, 4)
            set_lane_pc(ctx, wanted, pcs + 1)
            for field in ("arrived", "blocked", "waiting"):
                ctx.set(field, ctx.get(field) & ~wanted)
        with f.if_(~complete):
            for field in ("blocked", "waiting"):
                ctx.set(field, ctx.get(field) | alike)
    return f


def _brx() -> Body:
    """brx.idx: each lane of `lanes` goes where the table of `count` PCs says, the others of the group to pc + 1."""
    f = Body(
        "emu_brx", "void",
        [CTX, ("i32", "pc"), ("i32", "lanes"), ("ptr", "index"), ("ptr", "table"), ("i32", "count"),
         ("i32", "uniform")],
    )  # fmt: skip
    ctx = context(f["ctx"])
    pc, lanes, count = f["pc"], f["lanes"], f["count"]
    set_lane_pc(ctx, ctx.get("mask"), pc + 1)
    lane_pc = ctx.at("lane_pc")
    first = f.call("llvm.cttz.i32", "i32", lanes, f.const("i1", 0))
    with f.each_bit(lanes) as lane:
        wide = lane.zext("i64")
        index = f["index"].at(wide, "i32").load("i32")
        with f.if_(index.uge(count)):
            record_fault(ctx, FaultKind.BRANCH_INDEX, pc, lane, index.zext("i64"))
        with f.if_(index.ult(count)):
            lane_pc.at(wide, "i32").store(f["table"].at(index.zext("i64"), "i32").load("i32"))
        other = f["index"].at(first.zext("i64"), "i32").load("i32").ne(index)
        with f.if_(other & f["uniform"].ne(0)):
            record_fault(ctx, FaultKind.DIVERGENT_UNIFORM, pc, lane, index.zext("i64"))
    return f
