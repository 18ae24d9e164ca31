"""Native helpers of the race checker: ordinary accesses of warps against the shadow (shadow_layout.py).

They run after an access was found to be allowed, for the lanes that it was allowed for. Lanes of one warp never collide
with each other. One execution of an instruction reports each kind of violation once.
"""

from __future__ import annotations

import ctypes

from megamoe_jit.emulator.memory.spaces import OFFSET_MASK, RANK_SHIFT
from megamoe_jit.emulator.native.context import RACE_CAPACITY, Race, RaceKind
from megamoe_jit.emulator.native.control_helpers import CTX
from megamoe_jit.emulator.native.fields import Fields, context
from megamoe_jit.emulator.native.ir import Body, Val, vector
from megamoe_jit.emulator.native.shadow_layout import (
    ACTOR_MASK,
    ACTOR_SHIFT,
    ASYNC,
    BYTES_SHIFT,
    EPOCH_BITS,
    EPOCH_MASK,
    GLOBAL_GRANULE,
    IN_FLIGHT,
    OBJECT,
    READ_PC_BITS,
    READ_STRIDE,
    SharedShadowPointers,
)

READERS = vector(READ_STRIDE, "i32")


def check_helpers() -> list[Body]:
    """Return all of them."""
    return [_race(), _check_shared(), _check_global()]


def _race() -> Body:
    """Add a violation to the ring; `other` is the write (or read) word of the earlier access."""
    f = Body(
        "emu_race", "void",
        [CTX, ("i32", "kind"), ("i32", "pc"), ("i32", "lane"), ("i64", "address"), ("i32", "size"), ("i64", "other"),
         ("i32", "other_pc"), ("i32", "is_shared")],
        attributes="nounwind noinline cold",
    )  # fmt: skip
    ctx = context(f["ctx"])
    count = ctx.get("num_races")
    ctx.set("num_races", count + 1)
    with f.if_(count.ult(RACE_CAPACITY)):
        race = Fields(ctx.at("races").at(count.zext("i64") * ctypes.sizeof(Race)), Race)
        for field in ("kind", "pc", "lane", "size", "address", "other_pc"):
            race.set(field, f[field])
        race.set("other_actor", _actor(f["other"]))
        race.set("other_epoch", _epoch(f["other"]))
        race.set("is_shared", f["is_shared"].trunc("i8"))
        race.set("is_async", (f["other"] & ASYNC).ne(0).zext("i8"))
    return f


def _actor(word: Val) -> Val:
    return ((word >> ACTOR_SHIFT) & ACTOR_MASK).trunc("i32")


def _epoch(word: Val) -> Val:
    return (word & EPOCH_MASK).trunc("i32")


class _Check:
    """What the checks of both spaces have in common."""

    def __init__(self, f: Body, *, is_shared: bool) -> None:
        self.f = f
        self.ctx = ctx = context(f["ctx"])
        self.is_shared = is_shared
        self.seen = f.var("i32", 0)
        self.clocks, self.num_actors = ctx.pointer("clocks"), ctx.get("num_actors")
        self.actor, self.epoch = ctx.get("actor"), ctx.get("epoch")
        self.size, self.pc = f["size"], f["pc"]
        self.mine = self.epoch.zext("i64") | self.actor.zext("i64") << ACTOR_SHIFT

    def byte_mask(self, low_bits: Val) -> Val:
        """Return which bytes of a granule the access touches; `low_bits` of its address."""
        narrow = (self.f.const("i32", 1) << self.size) - 1
        return self.size.uge(4).select(self.f.const("i32", 15), narrow << (low_bits & 3))

    def report(self, kind: RaceKind, lane: Val, address: Val, other: Val, other_pc: Val) -> None:
        """Add a violation unless this execution has added one of its kind."""
        f = self.f
        bit = 1 << kind
        with f.if_((self.seen.get() & bit).eq(0)):
            self.seen.set(self.seen.get() | bit)
            code, is_shared = f.const("i32", kind), f.const("i32", self.is_shared)
            f.call(
                "emu_race", "void", f["ctx"], code, self.pc, lane, address, self.size, other, other_pc, is_shared
            )  # fmt: skip

    def unordered(self, word: Val, byte_mask: Val) -> Val:
        """Whether an earlier access touched these bytes and is not ordered before this warp."""
        actor = _actor(word)
        # An actor that the clock has no entry for (yet) is ordered before nothing.
        is_known = actor.ult(self.num_actors)
        at = self.clocks.at(is_known.select(actor, 0).zext("i64"), "i32")
        clock = is_known.select(at.load("i32"), 0)
        touched = ((word >> BYTES_SHIFT).trunc("i32") & byte_mask).ne(0)
        return touched & _epoch(word).ugt(clock)

    def written(self, word: Val, byte_mask: Val) -> Val:
        """Return the write word after this access: bytes of the same epoch add up."""
        same = (word & ((1 << ASYNC.bit_length() - 1) - 1)).eq(self.mine)
        before = same.select((word >> BYTES_SHIFT) & 15, 0)
        return self.mine | (before | byte_mask.zext("i64")) << BYTES_SHIFT

    def earlier(self, kind: RaceKind, lane: Val, address: Val, word: Val, pc_at: Val, byte_mask: Val) -> None:
        """Report when the access of `word` collides with this one."""
        with self.f.if_(self.unordered(word, byte_mask)):
            self.report(kind, lane, address, word, pc_at.load("i32"))


def _check_shared() -> Body:
    f = Body(
        "emu_check_shared", "void",
        [CTX, ("i32", "lanes"), ("ptr", "addresses"), ("i32", "size"), ("i32", "write"), ("i32", "pc")],
        attributes="nounwind noinline",
    )  # fmt: skip
    check = _Check(f, is_shared=True)
    table = check.ctx.pointer("shadow_table")
    is_write = f["write"].ne(0)
    with f.if_(table.address().eq(0)):
        f.ret()
    with f.each_bit(f["lanes"]) as lane:
        address = f["addresses"].at(lane.zext("i64"), "i32").load("i32")
        offset = address & OFFSET_MASK
        at = table.at((address >> RANK_SHIFT).zext("i64"), "ptr").load("ptr")
        with f.if_(at.address().ne(0)):
            shadow = Fields(at, SharedShadowPointers)
            byte_mask = check.byte_mask(offset)
            first, last = offset >> 2, (offset + f["size"] - 1) >> 2
            with f.range_(first.zext("i64"), last.zext("i64") + 1) as granule:
                shown = address.zext("i64")
                write, read, end = f.label("write"), f.label("read"), f.label("end")
                f.branch(is_write, write, read)
                f.place(write)
                _shared_write(check, shadow, granule, lane, shown, byte_mask)
                f.jump(end)
                f.place(read)
                _shared_read(check, shadow, granule, lane, shown, byte_mask)
                f.place(end)
    return f


def _flags(
    check: _Check, shadow: Fields, granule: Val, state: Val, flags: int, lane: Val, address: Val,
    kinds: dict[int, RaceKind],
) -> None:  # fmt: skip
    """Report the state flags that forbid this access."""
    with check.f.if_((state & flags).ne(0)):
        word = shadow.pointer("writer").at(granule, "i64").load("i64")
        pc = shadow.pointer("writer_pc").at(granule, "i32").load("i32")
        for flag, kind in kinds.items():
            with check.f.if_((state & flag).ne(0)):
                check.report(kind, lane, address, word, pc)


def _shared_read(check: _Check, shadow: Fields, granule: Val, lane: Val, address: Val, byte_mask: Val) -> None:
    f = check.f
    state = shadow.pointer("state").at(granule, "i8").load("i8").zext("i32")
    _flags(check, shadow, granule, state, IN_FLIGHT, lane, address, {IN_FLIGHT: RaceKind.READ_IN_FLIGHT})
    with f.if_((byte_mask & ~state).ne(0) & (state & IN_FLIGHT).eq(0)):
        check.report(RaceKind.READ_UNINITIALISED, lane, address, f.const("i64", 0), f.const("i32", -1))
    word = shadow.pointer("writer").at(granule, "i64").load("i64")
    pc_at = shadow.pointer("writer_pc").at(granule, "i32")
    check.earlier(RaceKind.READ_AFTER_WRITE, lane, address, word, pc_at, byte_mask)

    slot = check.actor - shadow.get("first_reader")
    with f.if_(slot.ult(shadow.get("num_readers"))):
        index = granule * shadow.get("read_stride").zext("i64") + slot.zext("i64")
        at = shadow.pointer("reads").at(index, "i32")
        entry = at.load("i32")
        before = (entry & EPOCH_MASK).eq(check.epoch).select(entry, check.epoch)
        at.store(before | byte_mask << EPOCH_BITS)
        shadow.pointer("last_read").at(granule, "i32").store(slot << READ_PC_BITS | check.pc)


def _shared_write(check: _Check, shadow: Fields, granule: Val, lane: Val, address: Val, byte_mask: Val) -> None:
    f = check.f
    state_at = shadow.pointer("state").at(granule, "i8")
    state = state_at.load("i8").zext("i32")
    kinds = {IN_FLIGHT: RaceKind.WRITE_IN_FLIGHT, OBJECT: RaceKind.WRITE_OBJECT}
    _flags(check, shadow, granule, state, IN_FLIGHT | OBJECT, lane, address, kinds)
    at = shadow.pointer("writer").at(granule, "i64")
    pc_at = shadow.pointer("writer_pc").at(granule, "i32")
    word = at.load("i64")
    check.earlier(RaceKind.WRITE_AFTER_WRITE, lane, address, word, pc_at, byte_mask)

    stride = shadow.get("read_stride").zext("i64")
    row = shadow.pointer("reads").at(granule * stride, "i32")
    clocks = check.clocks.at(shadow.get("first_reader").zext("i64"), "i32")
    touching = (byte_mask << EPOCH_BITS).splat(READ_STRIDE)
    slots = f.var("i64", 0)
    with f.while_(lambda: slots.get().ult(stride)):
        start = slots.get()
        slots.set(start + READ_STRIDE)
        entries = row.at(start, "i32").load(READERS, 4)
        late = (entries & EPOCH_MASK).ugt(clocks.at(start, "i32").load(READERS, 4))
        unordered = late & (entries & touching).ne(0)
        readers = unordered.bitcast(f"i{READ_STRIDE}").zext("i32")
        with f.if_(readers.ne(0)):
            slot = f.call("llvm.cttz.i32", "i32", readers, f.const("i1", 0)) + start.trunc("i32")
            _report_reader(check, shadow, granule, lane, address, slot, row)
    at.store(check.written(word, byte_mask))
    pc_at.store(check.pc)
    state_at.store((state | byte_mask).trunc("i8"))


def _report_reader(
    check: _Check, shadow: Fields, granule: Val, lane: Val, address: Val, slot: Val, row: Val
) -> None:  # fmt: skip
    """Report the reader of `slot`; where it read is known when it was the last one."""
    last = shadow.pointer("last_read").at(granule, "i32").load("i32")
    was_last = (last >> READ_PC_BITS).eq(slot)
    pc = was_last.select(last & ((1 << READ_PC_BITS) - 1), -1)
    epoch = row.at(slot.zext("i64"), "i32").load("i32") & EPOCH_MASK
    actor = slot + shadow.get("first_reader")
    word = epoch.zext("i64") | actor.zext("i64") << ACTOR_SHIFT
    check.report(RaceKind.WRITE_AFTER_READ, lane, address, word, pc)


def _granule_field(at: Val, name: str) -> Val:
    offset = GLOBAL_GRANULE.fields[name][1]  # type: ignore[index]  # it has fields
    return at.at(offset)


def _check_global() -> Body:
    f = Body(
        "emu_check_global", "void",
        [CTX, ("i32", "lanes"), ("ptr", "addresses"), ("i32", "size"), ("i32", "write"), ("i32", "pc"),
         ("ptr", "shadow"), ("i64", "start")],
        attributes="nounwind noinline",
    )  # fmt: skip
    check = _Check(f, is_shared=False)
    is_write = f["write"].ne(0)
    base = f["start"] >> 2
    with f.each_bit(f["lanes"]) as lane:
        address = f["addresses"].at(lane.zext("i64"), "i64").load("i64")
        byte_mask = check.byte_mask((address & 3).trunc("i32"))
        last = (address + f["size"].zext("i64") - 1) >> 2
        with f.range_((address >> 2) - base, last - base + 1) as granule:
            at = f["shadow"].at(granule * GLOBAL_GRANULE.itemsize)
            write_at, write_pc = _granule_field(at, "writer"), _granule_field(at, "writer_pc")
            read_at, read_pc = _granule_field(at, "reader"), _granule_field(at, "reader_pc")
            word = write_at.load("i64")
            write, read, end = f.label("write"), f.label("read"), f.label("end")
            f.branch(is_write, write, read)
            f.place(write)
            check.earlier(RaceKind.WRITE_AFTER_WRITE, lane, address, word, write_pc, byte_mask)
            check.earlier(RaceKind.WRITE_AFTER_READ, lane, address, read_at.load("i64"), read_pc, byte_mask)
            write_at.store(check.written(word, byte_mask))
            write_pc.store(check.pc)
            f.jump(end)
            f.place(read)
            check.earlier(RaceKind.READ_AFTER_WRITE, lane, address, word, write_pc, byte_mask)
            read_at.store(check.written(read_at.load("i64"), byte_mask))
            read_pc.store(check.pc)
            f.place(end)
    return f
