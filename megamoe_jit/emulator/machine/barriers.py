"""Barriers of a CTA (`barrier.cta`, 16 of them) and of a cluster (`barrier.cluster`).

PTX ISA, "Parallel Synchronization and Communication Instructions: barrier{.cta}, barrier.cluster".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megamoe_jit.emulator.machine.outcome import Waitable

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Cluster, Cta, Warp

NUM_BARRIERS = 16
WARP = 32


class NamedBarrier(Waitable):
    """One barrier of a CTA. Warps count as a whole, once all their live lanes have come.

    Attributes:
        generation: completed uses.
        count: threads that must come, None: all of the CTA that have not left; set by the first arrival of a use.
        arrived: threads that came; partial: lanes of warps that came in part.
        reduces: the operation of `barrier.red`, "" for sync and arrive.
        verdicts: generation -> result of the reduction.
        warps: names of the warps that came, for reports.
    """

    __slots__ = (
        "arrived", "count", "cta", "generation", "index", "partial", "reduces", "sync", "time", "values", "verdicts",
        "warps", "wave_time",
    )  # fmt: skip

    def __init__(self, cta: Cta, index: int) -> None:
        """Idle."""
        super().__init__()
        self.cta = cta
        self.index = index
        self.generation = 0
        self.count: int | None = None
        self.arrived = 0
        self.partial: dict[Warp, int] = {}
        self.warps: list[int] = []
        self.reduces = ""
        self.values: list[bool] = []
        self.verdicts: dict[int, int] = {}
        self.time = 0
        self.wave_time = 0
        self.sync: Any = None

    def arrive(
        self, warp: Warp, lanes: int, count: int | None, *, reduces: str = "", values: tuple[bool, ...] = ()
    ) -> int:
        """Lanes of `warp` come; returns the generation they belong to, which is over when `generation` is larger."""
        generation = self.generation
        if self.arrived == 0 and not self.partial:
            self.count, self.reduces, self.values = count, reduces, []
        elif count != self.count or reduces != self.reduces:
            self.cta.machine.report(
                "barrier-args",
                f"barrier {self.index} of {self.cta.name()} is used with {_counted(count, reduces)}, while warps "
                f"{self.warps} wait there with {_counted(self.count, self.reduces)}.",
                warp=warp,
            )
        self.values += values
        self.time = max(self.time, warp.time)
        self.cta.machine.checks.barrier_arrive(self, warp)
        here = self.partial.pop(warp, 0) | lanes
        if warp.ctx.live & ~here:
            self.partial[warp] = here
        else:
            self.arrived += WARP
            self.warps.append(warp.index)
        self.check()
        return generation

    def check(self) -> None:
        """Complete the use when all have come; called again when a warp leaves."""
        if not self.arrived:
            return
        for warp, here in list(self.partial.items()):
            if not warp.ctx.live & ~here:  # the lanes that were missing have left
                del self.partial[warp]
                self.arrived += WARP
        needed = self.count if self.count is not None else WARP * sum(not warp.exited for warp in self.cta.warps)
        if self.arrived < needed:
            return
        if self.arrived > needed:
            self.cta.machine.report(
                "barrier-args",
                f"{self.arrived} threads are at barrier {self.index} of {self.cta.name()}, which waits for {needed}.",
            )
        self.verdicts[self.generation] = _reduce(self.reduces, self.values)
        self.verdicts.pop(self.generation - 4, None)
        self.generation += 1
        self.arrived, self.warps, self.wave_time = 0, [], self.time
        self.cta.machine.checks.barrier_complete(self)
        self.wake()

    def describe(self) -> str:
        """Say in words what is waited for."""
        wanted = f"of {self.count} threads" if self.count is not None else "of all threads"
        partial = "".join(f", warp {warp.index} in part" for warp in self.partial)
        came = f"warps {self.warps}" if self.warps else "none"
        return f"barrier {self.index} of {self.cta.name()}: {self.arrived} {wanted} came ({came}{partial})"


def _counted(count: int | None, reduces: str) -> str:
    text = f"{count} threads" if count is not None else "no count"
    return f"{text} and .red.{reduces}" if reduces else text


def _reduce(operation: str, values: list[bool]) -> int:
    if operation == "popc":
        return sum(values)
    return int(all(values)) if operation == "and" else int(any(values))


class NamedBarriers:
    """The 16 barriers of a CTA, each made when it is first used."""

    __slots__ = ("_cta", "_used")

    def __init__(self, cta: Cta) -> None:
        """All idle."""
        self._cta = cta
        self._used: dict[int, NamedBarrier] = {}

    def __getitem__(self, index: int) -> NamedBarrier:
        """Return barrier `index`, 0 to 15."""
        barrier = self._used.get(index)
        if barrier is None:
            barrier = self._used[index] = NamedBarrier(self._cta, index)
        return barrier

    def warp_left(self) -> None:
        """A warp has left: barriers that wait for all may be complete."""
        for barrier in self._used.values():
            barrier.check()


class ClusterBarrier(Waitable):
    """`barrier.cluster` of one cluster: every live thread arrives, then waits.

    Attributes:
        phase: completed phases.
        arrived: lanes of each warp that came in this phase.
        unwaited: lanes that arrived and have yet to wait, with the phase they arrived in.
    """

    __slots__ = ("arrived", "cluster", "phase", "sync", "time", "unwaited", "wave_time")

    def __init__(self, cluster: Cluster) -> None:
        """Phase 0."""
        super().__init__()
        self.cluster = cluster
        self.phase = 0
        self.arrived: dict[Warp, int] = {}
        self.unwaited: dict[Warp, dict[int, int]] = {}
        self.time = 0
        self.wave_time = 0
        self.sync: Any = None

    def arrive(self, warp: Warp, lanes: int, *, release: bool) -> None:
        """Lanes of `warp` come."""
        waits = self.unwaited.setdefault(warp, {})
        twice = sum(waits.values()) & lanes  # masks of different phases share no lane
        if twice:
            self.cluster.machine.report(
                "cluster-barrier", "barrier.cluster.arrive again before barrier.cluster.wait.", warp=warp, lanes=twice
            )
            for phase in list(waits):
                waits[phase] &= ~twice
        waits[self.phase] = waits.get(self.phase, 0) | lanes
        self.time = max(self.time, warp.time)
        self.cluster.machine.checks.cluster_arrive(self, warp, release)
        self.arrived[warp] = self.arrived.get(warp, 0) | lanes
        if not warp.ctx.live & ~self.arrived[warp]:
            self.check()

    def check(self) -> None:
        """Complete the phase when all have come; called again when a warp leaves."""
        if not self.arrived:
            return
        for cta in self.cluster.ctas:
            for warp in cta.warps:
                if not warp.exited and warp.ctx.live & ~self.arrived.get(warp, 0):
                    return
        self.phase += 1
        self.arrived = {}
        self.wave_time = self.time
        self.cluster.machine.checks.cluster_complete(self)
        self.wake()

    def try_wait(self, warp: Warp, lanes: int) -> bool:
        """Whether the phase that `lanes` arrived in is over; the wait is then done."""
        waits = self.unwaited.setdefault(warp, {})
        never = lanes & ~sum(waits.values())
        if never:
            self.cluster.machine.report(
                "cluster-barrier", "barrier.cluster.wait without barrier.cluster.arrive.", warp=warp, lanes=never
            )
            return True
        if any(phase >= self.phase and mask & lanes for phase, mask in waits.items()):
            return False
        for phase in list(waits):
            waits[phase] &= ~lanes
            if not waits[phase]:
                del waits[phase]
        return True

    def describe(self) -> str:
        """Say in words what is waited for."""
        missing = [
            f"{cta.name()} warp {warp.index}"
            for cta in self.cluster.ctas
            for warp in cta.warps
            if not warp.exited and warp.ctx.live & ~self.arrived.get(warp, 0)
        ]
        return (
            f"barrier.cluster, phase {self.phase}: missing {', '.join(missing[:8])}{' ...' if len(missing) > 8 else ''}"
        )
