"""The checker: keeps vector clocks and shadow memory, and reports accesses that nothing orders."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.checks import describe, shadow
from megamoe_jit.emulator.checks.chains import AsyncAccess, Chains
from megamoe_jit.emulator.checks.clocks import GLOBAL, ORDER, SHARED, TENSOR, Actors, Location, WarpClock, reaches
from megamoe_jit.emulator.checks.granules import Watched, watch
from megamoe_jit.emulator.checks.sync import SyncChecks
from megamoe_jit.emulator.native.shadow_layout import (
    ASYNC,
    ATOMIC,
    GRANULE,
    READ_STRIDE,
    SharedShadow,
    pack_write,
)

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.interface import Access, Range, Scope, Semantics
    from megamoe_jit.emulator.machine.machine import Machine
    from megamoe_jit.emulator.machine.mbarrier import Mbarrier
    from megamoe_jit.emulator.machine.queues import AsyncOp
    from megamoe_jit.emulator.machine.state import Cluster, Place, Warp

ASYNC_READERS = 12
"""Chains of asynchronous work in a CTA whose reads of shared memory are remembered, beside half as many as warps."""

_HEAD_BYTES = 128
"""Of a tensor load: the widest row of a swizzled box."""


class Checker(SyncChecks):
    """Implements `interface.Checks`."""

    enabled = True

    def __init__(self, machine: Machine, *, has_tensor_memory: bool) -> None:
        """Watch `machine`; its allocations get shadows."""
        self.machine = machine
        self.actors = Actors()
        self.num_rows = 5 if has_tensor_memory else 3
        self.capacity = 256
        self.clocks: set[WarpClock] = set()
        self.locations: dict[tuple[object, ...], Location] = {}
        self.chains = Chains(self.actors)
        self.fenced_inits = {}
        machine.allocations.enable_shadow()

    # Coming and going.

    def new_cluster(self, cluster: Cluster) -> None:
        """Give the cluster's readers their numbers and its shared memory a shadow."""
        per_cta = readers_per_cta(cluster)
        count = per_cta * len(cluster.ctas)
        first = self.actors.add_block(count)
        cluster.first_actor = first
        cluster.shadow_table[:] = 0
        for cta in cluster.ctas:
            cta.shadow = SharedShadow(len(cta.smem), first, count)
            cluster.shadow_table[cta.rank] = cta.shadow.address
        self.reserve(max(len(self.actors), first + -(-count // READ_STRIDE) * READ_STRIDE))

    def new_warp(self, warp: Warp) -> None:
        """Give the warp its clock."""
        number = warp.cluster.first_actor + warp.cta.rank * readers_per_cta(warp.cluster) + warp.index
        self.actors.rename(number, "warp", warp.name(), warp.cta, warp)
        ctx = warp.ctx
        ctx.checks, ctx.actor = 1, number
        ctx.shadow_table = warp.cluster.shadow_table.ctypes.data
        warp.actor = number
        warp.clock = WarpClock(ctx, number, self.actors[number].last + 1, self.num_rows, self.capacity)
        self.clocks.add(warp.clock)

    def free_cluster(self, cluster: Cluster) -> None:
        """Take the numbers back; who gets them goes on where their epochs ended."""
        for cta in cluster.ctas:
            for warp in cta.warps:
                self.actors[warp.actor].last = warp.clock.epoch
                self.clocks.discard(warp.clock)
            for barrier in cta.mbarriers.values():
                self.forget_mbarrier(barrier)
            cta.shadow = cta.tmem_shadow = None
        self.chains.free(cluster)
        self.actors.free_block(cluster.first_actor, readers_per_cta(cluster) * len(cluster.ctas))

    def reserve(self, count: int) -> None:
        """Make clocks long enough for `count` actors."""
        if count <= self.capacity:
            return
        while self.capacity < count:
            self.capacity *= 2
        for clock in self.clocks:
            clock.grow(self.capacity)

    # Ordinary accesses.

    def drain(self, warp: Warp, *, last_pc: int | None = None) -> None:
        """Report what the engine saw, at instructions up to `last_pc`."""
        ctx = warp.ctx
        if ctx.num_races:
            races = [ctx.races[i] for i in range(min(ctx.num_races, len(ctx.races)))]
            for race in races:
                if last_pc is None or race.pc <= last_pc:
                    describe.native_race(self, warp, race)
            ctx.num_races = 0

    def generic(self, warp: Warp, place: Place, size: int, access: Access) -> None:
        """An ordinary access of a handler."""
        self.generic_ranges(warp, ((place.kind, place.cta, place.start, size),), access)

    def generic_ranges(self, warp: Warp, ranges: Iterable[Range], access: Access) -> None:
        """Ordinary accesses of a handler."""
        order = warp.clock.array[ORDER]
        epoch, pc = warp.clock.epoch, warp.pc
        for at in watch(self._ready(ranges), self.machine.allocations):
            fenced = warp.clock.array[TENSOR] if at.is_tensor and self.num_rows > TENSOR else None
            clash = shadow.unseen_write(at, order, warp.actor, strong=False, fenced=fenced)
            if clash is None and access != "read":
                clash = shadow.unseen_read(at, order, (warp.actor,), strong=False)
            if clash is not None:
                describe.clash(self, clash, at, warp, access)
            if shadow.in_flight(at):
                describe.in_flight(self, at, warp, access)
            if access == "read":
                missing = shadow.unwritten(at)
                if missing is not None:
                    describe.uninitialised(self, at, missing, warp)
                shadow.note_read(at, warp.actor, epoch, pc, 0)
            else:
                if shadow.touches_object(at):
                    describe.touches_mbarrier(self, at, warp)
                shadow.note_write(at, warp.actor, epoch, pc, 0)

    # Strong accesses.

    def atomic(
        self, warp: Warp, place: Place, size: int, semantics: Semantics = "relaxed", scope: Scope = "gpu"
    ) -> None:
        """An atomic."""
        self.strong(warp, place, size, "atomic", semantics, scope)

    def strong(self, warp: Warp, place: Place, size: int, access: Access, semantics: Semantics, scope: Scope) -> None:
        """A strong load, store or atomic."""
        if not (access == "read" and self._is_quiet(warp, place, size)):
            entry = (place.kind, place.cta, place.start, size)
            for at in watch((entry,), self.machine.allocations):
                self._strong_shadow(warp, at, access)
        key = (place.kind, place.cta, place.start)
        if access != "write":
            self._observe(warp, self.locations.get(key), semantics, scope)
        if access != "read":
            location = self.locations.get(key)
            if location is None:
                location = self.locations[key] = Location()
            self._hand_over(warp, location, access, semantics, scope)

    def _is_quiet(self, warp: Warp, place: Place, size: int) -> bool:
        """Whether a strong read of one word of global memory is the same as the one before: polls are many."""
        if place.kind != "global" or size != GRANULE or place.start % GRANULE:
            return False
        known = self.machine.allocations.shadow(place.start)
        if known is None:
            return True
        record = known.granules[place.start // GRANULE - known.first]
        writer, reader = int(record["writer"]), int(record["reader"])
        mine = pack_write(warp.actor, warp.clock.epoch, flags=ATOMIC)
        return reader == mine and (writer == 0 or bool(writer & ATOMIC))

    def _strong_shadow(self, warp: Warp, at: Watched, access: Access) -> None:
        order, epoch = warp.clock.array[ORDER], warp.clock.epoch
        clash = shadow.unseen_write(at, order, warp.actor, strong=True, fenced=None)
        if clash is None and access != "read":
            clash = shadow.unseen_read(at, order, (warp.actor,), strong=True)
        if clash is not None:
            describe.clash(self, clash, at, warp, access)
        if access != "read":
            if shadow.touches_object(at):
                describe.touches_mbarrier(self, at, warp)
            shadow.note_write(at, warp.actor, epoch, warp.pc, ATOMIC)
        elif not at.is_shared:  # entries of shared memory cannot say that a read was strong
            shadow.note_read(at, warp.actor, epoch, warp.pc, ATOMIC)

    def _observe(self, warp: Warp, location: Location | None, semantics: Semantics, scope: Scope) -> None:
        if location is None:
            return
        if location.last is not None:
            writer, pc, written = location.last
            if writer is not warp and not (reaches(written, writer, warp) and reaches(scope, warp, writer)):
                describe.narrow_scope(self, warp, scope, writer, pc, written)
        version = warp.clock.versions.get(location)
        if version == (location.version, semantics, scope):
            return
        warp.clock.versions[location] = (location.version, semantics, scope)
        for level, sync in location.reachable(warp, scope):
            if semantics in ("acquire", "acq_rel"):
                warp.clock.acquire(sync)
            else:
                warp.clock.saw(level, sync)

    def _hand_over(self, warp: Warp, location: Location, access: Access, semantics: Semantics, scope: Scope) -> None:
        if access == "write":  # a plain store begins anew; a read-modify-write continues what others released
            location.levels.clear()
        location.last = (warp, warp.pc, scope)
        location.version += 1
        if semantics in ("release", "acq_rel"):
            location.release(warp, warp.clock.rows, scope)
            warp.clock.tick()
            return
        for fenced, rows in warp.clock.fences.items():
            location.release(warp, rows, narrower(fenced, scope))

    # Asynchronous work.

    def begin_async(
        self,
        warp: Warp,
        op: AsyncOp,
        actor: Mbarrier | Hashable,
        *,
        proxy: str = "async",
        writes: Iterable[Range] = (),
        same_thread: Iterable[Hashable] = (),
    ) -> AsyncAccess:
        """Remember what the issuer has seen; what it does next is not ordered with the operation."""
        access = self.chains.begin(warp, op.pc, actor, proxy)
        self.reserve(len(self.actors))
        if len(access.rows) > TENSOR:
            for key in same_thread:
                chain = self.chains.find(key)
                for number in (chain.reads, chain.writes) if chain is not None else ():
                    if number < access.rows.shape[1]:
                        access.rows[TENSOR, number] = access.rows[ORDER, number]
        access.writes = tuple(watch(self._ready(writes), self.machine.allocations))
        for at in access.writes:
            shadow.mark_in_flight(at, True)
        warp.clock.tick()
        return access

    def async_read(self, op: AsyncOp, ranges: Iterable[Range]) -> None:
        """Hold the reads of `op` against all writes."""
        access: AsyncAccess = op.access
        head_bytes = _HEAD_BYTES if op.kind == "tensor load" else None
        for at in watch(self._ready(ranges), self.machine.allocations, head_bytes=head_bytes):
            clash = shadow.unseen_write(
                at, access.rows[ORDER], access.own, strong=False, fenced=self._fence_row(at, access)
            )
            if clash is not None:
                describe.clash(self, clash, at, op, "read")
            missing = shadow.unwritten(at)
            if missing is not None:
                describe.uninitialised(self, at, missing, op)
            actor, epoch = self._reader(access, at)
            shadow.note_read(at, actor, epoch, op.pc, ASYNC | (shadow.TAIL if at.is_tail else 0))

    def async_write(
        self, op: AsyncOp, ranges: Iterable[Range], *, actor: Mbarrier | None = None, atomic: bool = False
    ) -> None:
        """Hold the writes of `op` against all reads and writes."""
        access: AsyncAccess = op.access
        flags = (ASYNC if access.proxy == "async" else 0) | (ATOMIC if atomic else 0)
        number, epoch = self._writer(access, actor)
        for at in access.writes:
            shadow.mark_in_flight(at, False)
        access.writes = ()
        for at in watch(self._ready(ranges), self.machine.allocations):
            order = access.rows[ORDER]
            fenced = self._fence_row(at, access)
            clash = shadow.unseen_write(at, order, access.own, strong=atomic, fenced=fenced)
            if clash is None:
                clash = shadow.unseen_read(at, order, access.own_reads, strong=False)
            if clash is None and at.is_tensor and fenced is not None:  # reads of tensor memory are fenced too
                clash = shadow.unseen_read(at, fenced, access.own_reads, strong=False)
                clash = clash and clash._replace(is_ordered=True)
            if clash is not None:
                describe.clash(self, clash, at, op, "write")
            if shadow.touches_object(at):
                describe.touches_mbarrier(self, at, op)
            shadow.note_write(at, number, epoch, op.pc, flags)

    def end_async(self, op: AsyncOp) -> None:
        """`op` has run."""
        access: AsyncAccess | None = op.access
        if access is not None:
            for at in access.writes:
                shadow.mark_in_flight(at, False)
            access.writes = ()

    def commit_chain(self, warp: Warp, actor: Hashable) -> int:
        """Close a group."""
        return self.chains.commit(warp, actor)

    def observe_chain(
        self, warp: Warp, actor: Hashable, number: int, *, reads_only: bool = False, tensor: bool = True
    ) -> None:
        """Note that a group is done."""
        chain = self.chains.find(actor)
        if chain is None:  # nothing was ever issued
            return
        if chain.has_reader:
            warp.clock.observe(chain.reads, chain.base + number, tensor=tensor)
        if not reads_only:
            warp.clock.observe(chain.writes, chain.base + number, tensor=tensor)

    def _fence_row(self, at: Watched, access: AsyncAccess) -> npt.NDArray[np.uint32] | None:
        """Return what an access to `at` must be in too: fences of proxies, for tensor memory of tcgen05."""
        if at.is_tensor:
            return access.rows[TENSOR] if len(access.rows) > TENSOR else None
        if access.proxy != "async":
            return None
        row: npt.NDArray[np.uint32] = access.rows[SHARED if at.is_shared else GLOBAL]
        return row

    def _reader(self, access: AsyncAccess, at: Watched) -> tuple[int, int]:
        if access.chain is not None:
            if at.is_shared or at.is_tensor:
                self.chains.give_reader(access.chain)
            return access.chain.reads, access.epoch
        return self._writer(access, None)

    def _writer(self, access: AsyncAccess, barrier: Mbarrier | None) -> tuple[int, int]:
        barrier = barrier or access.barrier
        if barrier is not None:
            return self.mbarrier_actor(barrier), self.mbarrier_epoch(barrier)
        assert access.chain is not None
        return access.chain.writes, access.epoch

    def _ready(self, ranges: Iterable[Range]) -> Iterable[Range]:
        """Make sure that tensor memory has a shadow before it is looked up."""
        for entry in ranges:
            cta = entry[1]
            if entry[0] == "tmem" and cta is not None and cta.tmem_shadow is None:
                cluster = cta.cluster
                count = readers_per_cta(cluster) * len(cluster.ctas)
                cta.tmem_shadow = SharedShadow(shadow.TMEM_BYTES, cluster.first_actor, count)
            yield entry


def readers_per_cta(cluster: Cluster) -> int:
    """Return how many numbers a CTA's readers take."""
    warps = cluster.grid.num_warps
    return warps + ASYNC_READERS + warps // 2


def narrower(one: Scope | str, other: Scope | str) -> str:
    """Return the narrower of two scopes."""
    order = ("cta", "cluster", "gpu", "sys")
    return min(one, other, key=order.index)


__all__ = ["ASYNC_READERS", "Checker", "narrower", "readers_per_cta"]


def make_checker(machine: Machine, *, has_tensor_memory: bool) -> Any:
    """Make the checker of `machine`."""
    return Checker(machine, has_tensor_memory=has_tensor_memory)
