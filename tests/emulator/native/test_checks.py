"""The engine's race checker, against a plain model of the rules in shadow_layout.py."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from megamoe_jit.emulator.machine.state import Warp
from megamoe_jit.emulator.native.context import RACE_CAPACITY, FaultSpace, RaceKind
from megamoe_jit.emulator.native.shadow_layout import (
    ASYNC,
    IN_FLIGHT,
    INITIALISED,
    OBJECT,
    READ_PC_BITS,
    SharedShadow,
    pack_write,
)
from tests.emulator.native.calls import load, store
from tests.emulator.native.harness import SHARED_BASE, Bench, kernel_text

NUM_WARPS = 3
FIRST_ACTOR = 5
NUM_ACTORS = FIRST_ACTOR + 40
BYTES = 64  # a small piece of memory, so that accesses meet


@dataclass
class Event:
    """An access: who, when, which bytes of the granule, where."""

    actor: int
    epoch: int
    byte_mask: int
    pc: int


@dataclass
class Granule:
    """What is remembered of four bytes."""

    writer: Event | None = None
    readers: dict[int, Event] = field(default_factory=dict)
    initialised: int = 0
    flags: int = 0


class Model:
    """The rules, one granule at a time. `is_shared`: every reader is remembered, else the last one."""

    def __init__(self, is_shared: bool) -> None:
        self.is_shared = is_shared
        self.granules: dict[tuple[int, int], Granule] = {}

    def access(
        self, actor: int, clock: np.ndarray, lanes: list[tuple[int, tuple[int, int]]], size: int, write: bool, pc: int
    ) -> dict[RaceKind, tuple[int, Event | None]]:
        """Make the accesses of an instruction, (lane, (rank, offset)); returns its violations, kind -> lane, event."""
        found: dict[RaceKind, tuple[int, Event | None]] = {}
        epoch = int(clock[actor])
        for lane, (rank, offset) in lanes:
            for index in range(offset // 4, (offset + size - 1) // 4 + 1):
                byte_mask = 0
                for byte in range(4):
                    byte_mask |= (offset <= 4 * index + byte < offset + size) << byte
                granule = self.granules.setdefault((rank, index), Granule())
                for kind, event in self._violations(granule, clock, byte_mask, write):
                    found.setdefault(kind, (lane, event))
                self._note(granule, Event(actor, epoch, byte_mask, pc), write)
        return found

    def _violations(
        self, granule: Granule, clock: np.ndarray, byte_mask: int, write: bool
    ) -> list[tuple[RaceKind, Event | None]]:
        def collides(event: Event | None) -> bool:
            return event is not None and bool(event.byte_mask & byte_mask) and event.epoch > clock[event.actor]

        found: list[tuple[RaceKind, Event | None]] = []
        if granule.flags & IN_FLIGHT:
            found.append((RaceKind.WRITE_IN_FLIGHT if write else RaceKind.READ_IN_FLIGHT, granule.writer))
        if granule.flags & OBJECT and write:
            found.append((RaceKind.WRITE_OBJECT, granule.writer))
        if self.is_shared and not write and byte_mask & ~granule.initialised and not granule.flags & IN_FLIGHT:
            found.append((RaceKind.READ_UNINITIALISED, None))
        if collides(granule.writer):
            found.append((RaceKind.WRITE_AFTER_WRITE if write else RaceKind.READ_AFTER_WRITE, granule.writer))
        if write:
            late = [event for _, event in sorted(granule.readers.items()) if collides(event)]
            if late:
                found.append((RaceKind.WRITE_AFTER_READ, late[0]))
        return found

    def _note(self, granule: Granule, event: Event, write: bool) -> None:
        def merged(old: Event | None) -> Event:
            if old is not None and (old.actor, old.epoch) == (event.actor, event.epoch):
                return Event(event.actor, event.epoch, old.byte_mask | event.byte_mask, event.pc)
            return event

        if write:
            granule.writer = merged(granule.writer)
            granule.initialised |= event.byte_mask
        else:
            key = event.actor if self.is_shared else 0
            granule.readers[key] = merged(granule.readers.get(key))


class Rig:
    """Warps of a cluster of two CTAs with clocks, shadows of shared and of global memory."""

    def __init__(self) -> None:
        text = kernel_text("ret;", "", f".shared .align 16 .b8 smem[{BYTES}];")
        self.bench = Bench(text, cluster=2, block=32 * NUM_WARPS)
        raw = np.zeros(BYTES + 64, np.uint8)
        self.memory = raw[-raw.ctypes.data % 32 + 3 :][:BYTES]  # begins in the middle of a granule
        self.bench.allocations.add(self.memory.ctypes.data, BYTES)
        self.bench.allocations.enable_shadow()
        self.shadows = [SharedShadow(self.bench.grid.smem_bytes, FIRST_ACTOR, 2 * NUM_WARPS) for _ in range(2)]
        self.table = np.zeros(16, np.uint64)
        self.table[:2] = [shadow.address for shadow in self.shadows]
        self.clocks = np.zeros((2 * NUM_WARPS, NUM_ACTORS), np.uint32)
        self.warps: list[Warp] = []
        for cta in range(2):
            for index in range(NUM_WARPS):
                warp = self.bench.warp(index, cta)
                number = len(self.warps)
                warp.actor = FIRST_ACTOR + number
                self.clocks[number, warp.actor] = 1
                ctx = warp.ctx
                ctx.checks, ctx.actor, ctx.epoch = 1, warp.actor, 1
                ctx.clocks, ctx.num_actors = self.clocks[number].ctypes.data, NUM_ACTORS
                ctx.shadow_table = self.table.ctypes.data
                self.warps.append(warp)

    def release(self, number: int) -> None:
        warp = self.warps[number]
        warp.ctx.epoch += 1
        self.clocks[number, warp.actor] = warp.ctx.epoch

    def join(self, number: int, other: int) -> None:
        """Order what `other` has done so far before what `number` does next."""
        np.maximum(self.clocks[number], self.clocks[other], out=self.clocks[number])
        self.release(other)


def taken_races(warp: Warp) -> dict[int, tuple[int, int, int, int, int]]:
    ctx = warp.ctx
    found = {}
    for race in ctx.races[: ctx.num_races]:
        assert race.kind not in found, "one violation of a kind a time"
        found[race.kind] = race.lane, race.other_actor, race.other_epoch, race.other_pc, race.pc
    ctx.num_races = 0
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("is_shared", [True, False])
def test_violations_are_those_of_the_model(is_shared: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rig, model = Rig(), Model(is_shared)
    seen: set[int] = set()
    for step in range(250):
        number = int(rng.integers(len(rig.warps)))
        warp, pc = rig.warps[number], step
        chance = rng.random()
        if chance < 0.35:
            rig.join(number, int(rng.integers(len(rig.warps))))
            continue
        if chance < 0.4 and is_shared:
            rank, index, flag = int(rng.integers(2)), int(rng.integers(BYTES // 4)), rng.choice([IN_FLIGHT, OBJECT])
            rig.shadows[rank].state[SHARED_BASE // 4 + index] ^= flag
            granule = model.granules.setdefault((rank, SHARED_BASE // 4 + index), Granule())
            granule.flags ^= int(flag)
            continue
        size = int(rng.choice([1, 2, 4, 8, 16]))
        mask = int(rng.integers(1, 1 << 32)) if chance < 0.7 else 1 << int(rng.integers(32))
        spots = rng.integers(0, BYTES // size, 32) * size
        if not is_shared:
            start = -(-rig.memory.ctypes.data // 16) * 16
            spots = spots % (BYTES - 16 - 16 + 1) // size * size
        if chance > 0.9:
            spots[:] = spots[0]
        ranks = rng.integers(0, 2, 32)
        write = bool(rng.integers(2))
        width, count = (size, 1) if size <= 8 else (4, size // 4)
        if is_shared:
            space = FaultSpace.SHARED_CLUSTER
            offsets = SHARED_BASE + spots
            addresses = (ranks.astype(np.uint64) << np.uint64(24)) | offsets.astype(np.uint64)
            places = [(int(rank), int(offset)) for rank, offset in zip(ranks, offsets, strict=True)]
        else:
            space = FaultSpace.GLOBAL
            addresses = np.uint64(start) + spots.astype(np.uint64)
            places = [(0, int(address)) for address in addresses]
        lanes = [(lane, places[lane]) for lane in range(32) if mask >> lane & 1]
        expected = model.access(warp.actor, rig.clocks[number], lanes, size, write, pc)
        if write:
            store(warp, mask, space, addresses, np.zeros((count, 32), f"u{width}"), width, pc=pc)
        else:
            load(warp, mask, space, addresses, width, count, pc=pc)
        assert warp.ctx.fault_kind == 0
        races = taken_races(warp)
        assert set(races) == set(expected), (step, write)
        seen |= set(races)
        for kind, (lane, event) in expected.items():
            got_lane, actor, epoch, other_pc, own_pc = races[kind]
            assert own_pc == pc
            assert got_lane == lane
            if event is not None:
                assert (actor, epoch) == (event.actor, event.epoch)
                assert other_pc == event.pc or (other_pc == -1 and kind == RaceKind.WRITE_AFTER_READ and is_shared)
    wanted = {RaceKind.READ_AFTER_WRITE, RaceKind.WRITE_AFTER_WRITE, RaceKind.WRITE_AFTER_READ}
    if is_shared:
        wanted |= {RaceKind.READ_IN_FLIGHT, RaceKind.WRITE_IN_FLIGHT, RaceKind.WRITE_OBJECT}
    assert seen >= wanted, "the traces show every kind"


def one(rig: Rig, number: int, offset: int, size: int, *, write: bool, pc: int) -> dict[int, tuple[int, ...]]:
    """Lane 0 of a warp accesses its own CTA's shared memory."""
    warp = rig.warps[number]
    addresses = np.full(32, (warp.cta.rank << 24) | offset, np.uint64)
    if write:
        store(warp, 1, FaultSpace.SHARED, addresses, np.zeros((1, 32), f"u{size}"), size, pc=pc)
    else:
        load(warp, 1, FaultSpace.SHARED, addresses, size, pc=pc)
    return taken_races(warp)


def test_neighbouring_bytes_of_a_word_do_not_collide() -> None:
    rig = Rig()
    for number in range(3):
        assert not one(rig, number, SHARED_BASE + number, 1, write=True, pc=number)
    assert RaceKind.WRITE_AFTER_WRITE in one(rig, 0, SHARED_BASE + 2, 1, write=True, pc=9)
    assert not one(rig, 1, SHARED_BASE + 1, 1, write=False, pc=10)
    assert not one(rig, 2, SHARED_BASE, 1, write=True, pc=11)  # the last writer, as far as known, was another byte's


def test_the_last_reader_is_named_with_its_place() -> None:
    rig = Rig()
    rig.shadows[0].state[:] = INITIALISED
    one(rig, 1, SHARED_BASE + 8, 4, write=False, pc=3)
    one(rig, 2, SHARED_BASE + 8, 4, write=False, pc=4)
    granule = (SHARED_BASE + 8) // 4
    assert rig.shadows[0].last_read[granule] == 2 << READ_PC_BITS | 4
    races = one(rig, 0, SHARED_BASE + 8, 4, write=True, pc=5)
    assert races[RaceKind.WRITE_AFTER_READ][1:4] == (FIRST_ACTOR + 1, 1, -1)
    rig.join(0, 1)
    races = one(rig, 0, SHARED_BASE + 8, 4, write=True, pc=6)
    assert races[RaceKind.WRITE_AFTER_READ][1:4] == (FIRST_ACTOR + 2, 1, 4)
    rig.join(0, 2)
    assert not one(rig, 0, SHARED_BASE + 8, 4, write=True, pc=7)


def test_writes_of_asynchronous_work_count_and_are_marked() -> None:
    rig = Rig()
    shadow = rig.shadows[0]
    copy, granule = FIRST_ACTOR + 20, SHARED_BASE // 4
    shadow.state[:] = INITIALISED
    shadow.writer[granule] = pack_write(copy, 7, 0xF, ASYNC)
    shadow.writer_pc[granule] = 77
    one(rig, 0, SHARED_BASE, 4, write=False, pc=1)
    warp = rig.warps[0]
    assert warp.ctx.races[0].is_async == 1
    assert warp.ctx.races[0].is_shared == 1
    assert warp.ctx.races[0].other_pc == 77
    assert warp.ctx.races[0].address == SHARED_BASE
    rig.clocks[0, copy] = 7
    assert not one(rig, 0, SHARED_BASE, 4, write=False, pc=2)
    # An actor that the clock has no entry for is ordered before nothing.
    shadow.writer[granule] = pack_write(NUM_ACTORS + 3, 1)
    assert RaceKind.READ_AFTER_WRITE in one(rig, 0, SHARED_BASE, 4, write=False, pc=3)


def test_more_violations_than_the_ring_holds_are_counted() -> None:
    rig = Rig()
    warp = rig.warps[0]
    addresses = np.full(32, SHARED_BASE, np.uint64)
    for pc in range(RACE_CAPACITY + 9):
        load(warp, 1, FaultSpace.SHARED, addresses, 4, pc=pc)
    assert warp.ctx.num_races == RACE_CAPACITY + 9
    assert [race.pc for race in warp.ctx.races] == list(range(RACE_CAPACITY))
    assert {race.kind for race in warp.ctx.races} == {RaceKind.READ_UNINITIALISED}


def test_bad_accesses_leave_no_trace_in_the_shadow() -> None:
    rig = Rig()
    warp = rig.warps[0]
    addresses = np.full(32, 8, np.uint64)
    store(warp, 1, FaultSpace.SHARED, addresses, np.zeros((1, 32), np.uint32), 4, pc=1)
    assert warp.ctx.fault_kind
    assert not rig.shadows[0].writer.any()


def test_native_code_is_checked_as_calls_are() -> None:
    text = kernel_text(
        "mov.u32 %r0, smem;\nmov.u32 %r1, %laneid;\nmad.lo.u32 %r0, %r1, 4, %r0;\n"
        "st.shared.u32 [%r0], %r1;\nld.shared.u32 %r2, [%r0];\nret;",
        "",
        ".reg .b32 %r<3>; .shared .align 16 .b8 smem[128];",
    )
    bench = Bench(text, block=64)
    shadow = SharedShadow(bench.grid.smem_bytes, 1, 2)
    table = np.array([shadow.address, *[0] * 15], np.uint64)
    clocks = np.zeros((2, 17), np.uint32)
    for index in range(2):
        warp = bench.warp(index)
        clocks[index, 1 + index] = 1
        ctx = warp.ctx
        ctx.checks, ctx.actor, ctx.epoch = 1, 1 + index, 1
        ctx.clocks, ctx.num_actors, ctx.shadow_table = clocks[index].ctypes.data, 17, table.ctypes.data
        bench.run(warp)
        races = taken_races(warp)
        if index == 0:
            assert not races
        else:
            assert set(races) == {RaceKind.WRITE_AFTER_WRITE, RaceKind.WRITE_AFTER_READ}
            assert races[RaceKind.WRITE_AFTER_WRITE] == (0, 1, 1, 3, 3)
            assert races[RaceKind.WRITE_AFTER_READ] == (0, 1, 1, 4, 3)
    first = SHARED_BASE // 4
    np.testing.assert_array_equal(shadow.state[first : first + 32], INITIALISED)
    np.testing.assert_array_equal(shadow.writer_pc[first : first + 32], 3)
