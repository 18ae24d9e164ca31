"""What barriers and fences hand from one thread to another: the checker's half that knows no addresses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from megamoe_jit.emulator.checks import describe, shadow
from megamoe_jit.emulator.checks.clocks import BEFORE, GLOBAL, LEVELS, ORDER, SHARED, TENSOR, Actors, SyncClock
from megamoe_jit.emulator.checks.granules import watch

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.interface import Scope, Semantics
    from megamoe_jit.emulator.machine.barriers import ClusterBarrier, NamedBarrier
    from megamoe_jit.emulator.machine.machine import Machine
    from megamoe_jit.emulator.machine.mbarrier import Mbarrier
    from megamoe_jit.emulator.machine.queues import AsyncOp
    from megamoe_jit.emulator.machine.state import Warp

import numpy as np


@dataclass(slots=True, eq=False)
class PhaseSync:
    """Clocks of a barrier: of the phase that is open, and of those that are over."""

    open: SyncClock = field(default_factory=SyncClock)
    over: SyncClock = field(default_factory=SyncClock)


@dataclass(slots=True, eq=False)
class MbarrierSync(PhaseSync):
    """The same for an mbarrier.

    Attributes:
        actor: its number, 0 until an asynchronous write completes on it; base: added to phases to give epochs.
        init_warp, init_pc, init_actor, init_epoch: who initialised it, where and when.
        is_fenced: a fence has made the initialisation visible to the async proxy.
        is_published: all threads of the cluster met after that fence.
    """

    actor: int = 0
    base: int = 0
    init_warp: Warp | None = None
    init_pc: int = -1
    init_actor: int = 0
    init_epoch: int = 0
    is_fenced: bool = False
    is_published: bool = False
    reported: bool = False


class SyncChecks:
    """Fences and barriers."""

    machine: Machine
    actors: Actors
    fenced_inits: dict[ClusterBarrier, list[MbarrierSync]]

    # Fences.

    def fence(self, warp: Warp, semantics: Semantics, scope: Scope) -> None:
        """Hand relaxed reads' knowledge over to what follows, and what came before to relaxed writes that follow."""
        clock = warp.clock
        if semantics in ("acquire", "acq_rel"):
            for level in LEVELS[: LEVELS.index(scope) + 1]:
                sync = clock.seen.pop(level, None)
                if sync is not None:
                    clock.acquire(sync)
            clock.versions.clear()
        if semantics in ("release", "acq_rel"):
            clock.fences[scope] = clock.rows.copy()
            clock.tick()

    def fence_proxy(self, warp: Warp, space: Literal["", "global", "shared"] = "") -> None:
        """All that is ordered before is visible to the async proxy."""
        clock = warp.clock
        for row, name in ((SHARED, "shared"), (GLOBAL, "global")):
            if space in ("", name):
                np.maximum(clock.array[row], clock.array[ORDER], out=clock.array[row])
        clock.tick()
        if space != "global":
            self.fence_mbarrier_init(warp)

    def fence_mbarrier_init(self, warp: Warp) -> None:
        """Barriers that `warp` has initialised are visible to the async proxy."""
        for sync in warp.scratch.pop("unfenced mbarriers", ()):
            sync.is_fenced = True
            warp.scratch.setdefault("fenced mbarriers", []).append(sync)

    def tensor_fence(self, warp: Warp, when: Literal["before", "after"]) -> None:
        """Close, or take up, what came before for tcgen05."""
        array = warp.clock.array
        if len(array) <= TENSOR:
            return
        if when == "before":
            np.maximum(array[BEFORE], array[ORDER], out=array[BEFORE])
            warp.clock.tick()
        else:
            np.maximum(array[TENSOR], array[BEFORE], out=array[TENSOR])

    # mbarriers.

    def mbarrier_init(self, barrier: Mbarrier, warp: Warp) -> None:
        """Remember who made it; its bytes are an object from now on."""
        sync = MbarrierSync(init_warp=warp, init_pc=warp.pc, init_actor=warp.actor, init_epoch=warp.clock.epoch)
        barrier.sync = sync
        warp.scratch.setdefault("unfenced mbarriers", []).append(sync)
        for at in watch((("shared", barrier.cta, barrier.offset, 8),), self.machine.allocations):
            shadow.note_write(at, warp.actor, warp.clock.epoch, warp.pc, 0)
            shadow.mark_object(at, True)

    def mbarrier_inval(self, barrier: Mbarrier, warp: Warp) -> None:
        """Its bytes are ordinary again."""
        self._known(barrier, warp)
        for at in watch((("shared", barrier.cta, barrier.offset, 8),), self.machine.allocations):
            shadow.mark_object(at, False)
            shadow.note_write(at, warp.actor, warp.clock.epoch, warp.pc, 0)
        self.forget_mbarrier(barrier)

    def forget_mbarrier(self, barrier: Mbarrier) -> None:
        """Take its number back."""
        sync: MbarrierSync | None = barrier.sync
        if sync is not None and sync.actor:
            self.actors[sync.actor].last = sync.base + barrier.phase + 1
            self.actors.free([sync.actor])
            sync.actor = 0

    def mbarrier_actor(self, barrier: Mbarrier) -> int:
        """Return the number of `barrier`, given at the first call."""
        sync: MbarrierSync = barrier.sync
        if not sync.actor:
            sync.actor = self.actors.add("mbarrier", barrier.name(), barrier.cta)
            # Phases that ended before it had a number are epochs that never were.
            sync.base = self.actors[sync.actor].last
            self.reserve(len(self.actors))
        return sync.actor

    def mbarrier_epoch(self, barrier: Mbarrier) -> int:
        """Return the epoch of what completes in the phase that is open."""
        sync: MbarrierSync = barrier.sync
        return sync.base + barrier.phase + 1

    def reserve(self, count: int) -> None:
        """Make clocks long enough; the checker's."""
        raise NotImplementedError

    def mbarrier_arrive(self, barrier: Mbarrier, by: Warp | AsyncOp | None, release: bool, scope: str) -> None:  # noqa: ARG002
        """Join what the arriving one has seen; any scope counts as the cluster's, which all code relies on."""
        self._known(barrier, by)
        sync: MbarrierSync = barrier.sync
        access = getattr(by, "access", None)
        if access is not None:
            sync.open.add(access.rows)
            if access.chain is not None:
                sync.open.mark(access.chain.reads, access.epoch)
                sync.open.mark(access.chain.writes, access.epoch)
        elif by is None or hasattr(by, "access"):
            return
        elif release:
            sync.open.add(by.clock.rows)
            by.clock.tick()
        else:
            _add_fenced(sync.open, by)

    def mbarrier_complete(self, barrier: Mbarrier, by: Warp | AsyncOp | None) -> None:
        """Asynchronous writes of this phase are done."""
        self._known(barrier, by)
        access = getattr(by, "access", None)
        if access is not None:
            sync: MbarrierSync = barrier.sync
            sync.open.add(access.rows)
            sync.open.mark(self.mbarrier_actor(barrier), self.mbarrier_epoch(barrier))

    def mbarrier_phase(self, barrier: Mbarrier) -> None:
        """What the phase collected may be observed."""
        barrier.sync.over.take(barrier.sync.open)

    def mbarrier_observe(self, barrier: Mbarrier, warp: Warp, *, acquire: bool = True) -> None:
        """Take over what the phases before have collected."""
        self._known(barrier, warp)
        if acquire:
            warp.clock.acquire(barrier.sync.over)
        else:
            warp.clock.saw("cluster", barrier.sync.over)

    def _known(self, barrier: Mbarrier, by: Any) -> None:
        """Report a barrier whose initialisation the user cannot have seen."""
        sync: MbarrierSync = barrier.sync
        if sync.reported or by is None:
            return
        access = getattr(by, "access", None)
        if access is not None:
            order, own = access.rows[ORDER], access.warp.actor
        elif hasattr(by, "clock"):
            order, own = by.clock.array[ORDER], by.actor
        else:
            return
        seen = int(order[sync.init_actor]) if sync.init_actor < len(order) else 0
        if own != sync.init_actor and seen < sync.init_epoch and not sync.is_published:
            sync.reported = True
            describe.unseen_init(self, barrier, sync, by)
        elif access is not None and access.proxy == "async" and not sync.is_fenced:
            sync.reported = True
            describe.unfenced_init(self, barrier, sync, by)

    # Barriers of CTA and cluster.

    def barrier_arrive(self, barrier: NamedBarrier, warp: Warp) -> None:
        """Join what the warp has seen."""
        self._join(barrier, warp)

    def barrier_complete(self, barrier: NamedBarrier) -> None:
        """What was collected may be observed."""
        if barrier.sync is not None:
            barrier.sync.over.take(barrier.sync.open)

    def barrier_observe(self, barrier: NamedBarrier, warp: Warp) -> None:
        """Take over what all have seen."""
        if barrier.sync is not None:
            warp.clock.acquire(barrier.sync.over)

    def cluster_arrive(self, barrier: ClusterBarrier, warp: Warp, release: bool) -> None:
        """Join what the warp has seen; of a relaxed arrival what its last fences have (that of mbarriers too)."""
        if release:
            self._join(barrier, warp)
        elif barrier.sync is not None or warp.clock.fences:
            barrier.sync = barrier.sync or PhaseSync()
            _add_fenced(barrier.sync.open, warp)
        if made := warp.scratch.pop("fenced mbarriers", None):
            self.fenced_inits.setdefault(barrier, []).extend(made)

    def cluster_complete(self, barrier: ClusterBarrier) -> None:
        """What was collected may be observed."""
        for sync in self.fenced_inits.pop(barrier, ()):
            sync.is_published = True
        if barrier.sync is not None:
            barrier.sync.over.take(barrier.sync.open)

    def cluster_observe(self, barrier: ClusterBarrier, warp: Warp, acquire: bool) -> None:
        """Take over what all have seen."""
        if barrier.sync is not None and acquire:
            warp.clock.acquire(barrier.sync.over)

    def _join(self, barrier: NamedBarrier | ClusterBarrier, warp: Warp) -> None:
        if barrier.sync is None:
            barrier.sync = PhaseSync()
        barrier.sync.open.add(warp.clock.rows)
        warp.clock.tick()


def _add_fenced(clock: SyncClock, warp: Warp) -> None:
    """Join what came before fences that reach the cluster: with one, a relaxed arrival releases it."""
    for scope, rows in warp.clock.fences.items():
        if scope != "cta":
            clock.add(rows)
