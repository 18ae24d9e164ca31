"""Who goes next: a seeded choice among the warps of all CTAs, clusters and ranks, and among pending asynchronous work.

Warps are active, idle, or parked. An idle one polls: its last slice ended in a load that saw nothing new. Active warps
come first. Once there are none, pending work is completed, with a round of the idle ones now and then. When there is
none either and a round changes nothing, waits that hardware may give up time out; after many such rounds nothing can
ever happen again, and that is a deadlock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megamoe_jit.emulator.machine import stuck
from megamoe_jit.emulator.machine.clock import TRY_WAIT_TIMEOUT
from megamoe_jit.emulator.machine.engine import StopKind
from megamoe_jit.emulator.machine.outcome import AwaitLanes, Jump, Outcome, Park, Retry, Yield
from megamoe_jit.emulator.native.context import FULL_MASK, FaultKind

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.machine import Machine
    from megamoe_jit.emulator.machine.state import Cluster, Cta, Dims, Grid, Warp

_MEAN_FUEL = 512
_MIN_FUEL = 8
_HANDLER_FUEL = 4
"""What a handler costs of a slice: one instruction of the program, as long as thousands of native ones."""

_IDLE_CHANCE = 1 / 8
"""How often an idle warp is tried although there are active ones."""

_OPERATIONS_PER_ROUND = 8
"""Pending operations that run before idle warps are asked again whether they saw anything."""

_QUIET_ROUNDS = 64
"""Rounds without any change, with time-outs of waits between them, that make a deadlock: a program may look often, or
for some microseconds, before it does something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When the scheduler gives up, and how much it keeps in memory.

    Attributes:
        max_instructions: warp instructions of a launch, None: no limit.
        max_seconds: of a launch, None: no limit.
        stall_seconds: without any event (barrier, completion, exit), while warps execute all the time.
        resident_ctas: CTAs that exist at once. A larger grid runs in waves of clusters, in the order of their numbers;
            a cooperative one is always resident as a whole.
        time_passes: at a deadlock, let a thousand seconds of virtual time pass once instead of reporting it, so that
            time-outs written into a kernel come true.
    """

    max_instructions: int | None = None
    max_seconds: float | None = None
    stall_seconds: float = 300.0
    resident_ctas: int = 256
    time_passes: bool = False


class Scheduler:
    """Runs the grids of a machine."""

    def __init__(self, machine: Machine, limits: Limits) -> None:
        """Nothing runs yet."""
        self.machine = machine
        self.limits = limits
        self.active: list[Warp] = []
        self.idle: list[Warp] = []
        self.polled: list[Warp] = []
        self.resident: set[Cluster] = set()
        self.executed = 0
        self._ahead: dict[Grid, int] = {}  # clusters that were started, or taken over
        self._here: dict[Grid, int] = {}  # clusters that are resident
        self._quiet = 0
        self._operations = 0
        self._time_passed = False
        self._seen_events = -1
        self._event_time = 0.0
        self._started = 0.0

    def run(self) -> None:
        """Run until all grids have ended."""
        self._started = self._event_time = time.monotonic()
        for grid in self.machine.grids:
            self._ahead[grid] = self._here[grid] = 0
            self._start(grid)
        steps = 0
        while self.resident:
            self.machine.queues.chance()
            warp = self._pick()
            if warp is not None:
                self._slice(warp)
            else:
                self._nobody()
            steps += 1
            if steps % 256 == 0:
                self._check_limits()
        self.machine.queues.drain_ready()

    # Choosing.

    def _pick(self) -> Warp | None:
        rng = self.machine.rng
        if self.active and not (self.idle and rng.random() < _IDLE_CHANCE):
            return _take(self.active, rng.randrange(len(self.active)))
        if self.idle and (self.active or self._operations >= _OPERATIONS_PER_ROUND or not self.machine.queues.any):
            return _take(self.idle, rng.randrange(len(self.idle)))
        return None

    def _nobody(self) -> None:
        """No warp is active, and the idle ones have been asked, or pending work comes first."""
        machine = self.machine
        if machine.queues.step():
            self._operations = self._operations + 1 if self.idle else 1
            self._quiet = 0
            self._ask_again()
            return
        self._operations = _OPERATIONS_PER_ROUND
        if self.idle:
            return
        self._quiet += 1
        if self._quiet > _QUIET_ROUNDS:
            if not self.limits.time_passes or self._time_passed:
                stuck.report_deadlock(machine, self.resident)
            self._let_time_pass()
        self._ask_again()
        self._time_out()

    def _ask_again(self) -> None:
        self.idle += self.polled
        self.polled.clear()

    def _time_out(self) -> None:
        """Let waits that may give up do so."""
        for cluster in self.resident:
            for cta in cluster.ctas:
                for warp in cta.warps:
                    for pc, (mask, park, _) in list(warp.parks.items()):
                        if park.can_time_out:
                            warp.timed_out |= mask
                            warp.advance_to(warp.time + TRY_WAIT_TIMEOUT)
                            self._unblock(warp, pc)
                            self._enqueue(warp, self.idle)

    def _let_time_pass(self) -> None:
        self._time_passed = True
        self._quiet = 0
        for cluster in self.resident:
            for cta in cluster.ctas:
                for warp in cta.warps:
                    warp.ctx.clock += 1000 * 10**9

    def _progress(self) -> None:
        """Something happened: idle warps may see something new."""
        self._quiet = 0
        if self.polled:
            self._ask_again()

    def _check_limits(self) -> None:
        machine, limits = self.machine, self.limits
        now = time.monotonic()
        if machine.events != self._seen_events:
            self._seen_events, self._event_time = machine.events, now
        if limits.max_instructions is not None and self.executed > limits.max_instructions:
            stuck.report_livelock(machine, self.resident, f"{self.executed} warp instructions were executed")
        if limits.max_seconds is not None and now - self._started > limits.max_seconds:
            stuck.report_livelock(machine, self.resident, f"the launch took {now - self._started:.0f} s")
        if now - self._event_time > limits.stall_seconds:
            stuck.report_livelock(
                machine, self.resident, f"nothing but loops happened for {now - self._event_time:.0f} s"
            )

    # Running.

    def _slice(self, warp: Warp) -> None:
        """Run `warp` for a random number of instructions."""
        machine, ctx = self.machine, warp.ctx
        warp.queued = False
        before = ctx.executed
        ctx.fuel = _MIN_FUEL + int(machine.rng.expovariate(1 / _MEAN_FUEL))
        moved = False
        queue: list[Warp] | None = self.active
        while True:
            stop = machine.engine.run(warp)
            warp.pc = stop.pc
            if ctx.num_races:
                # After a bad access the engine goes on to the end of the block: what it saw there comes second.
                machine.checks.drain(warp, last_pc=ctx.fault_pc if stop.kind is StopKind.FAULT else None)
            if stop.kind is StopKind.HANDLER:
                outcome = self._handle(warp, stop.pc, stop.mask)
                if outcome is None or isinstance(outcome, Jump):
                    moved = True
                    ctx.fuel -= _HANDLER_FUEL
                    if ctx.fuel > 0:
                        continue
                    break
                if isinstance(outcome, Yield | Retry):
                    if isinstance(outcome, Retry) or outcome.spin:
                        queue = self.active if moved else self.polled
                    else:
                        moved = True
                    break
                continue  # parked lanes: others of the warp may go on
            if stop.kind is StopKind.YIELD:
                moved = True
                break
            if stop.kind is StopKind.BLOCKED:
                queue = self._blocked(warp)
                break
            if stop.kind is StopKind.EXIT:
                moved = True
                queue = None
                self._exit(warp)
                break
            _raise_fault(machine, warp)
        self.executed += ctx.executed - before
        if moved:
            self._progress()
        if queue is not None:
            self._enqueue(warp, queue)

    def _handle(self, warp: Warp, pc: int, mask: int) -> Outcome:
        """Execute one instruction's handler and do what its outcome says."""
        ctx = warp.ctx
        parked = warp.parks.pop(pc, None) if warp.parks else None
        if warp.awaiting:
            warp.awaiting.pop(pc, None)
        program = warp.program
        if mask != ctx.live and pc in warp.grid.aligned:
            outcome: Outcome = AwaitLanes(ctx.live)
        else:
            outcome = program.handlers[pc](warp, mask)
        if isinstance(outcome, Park | AwaitLanes | Retry):
            warp.grid.retries[program.function.instructions[pc].opcode] += 1
        if outcome is None:
            _advance(warp, mask, pc + 1)
            self.machine.events += 1
            if warp.spins and pc in warp.polls:  # the poll saw something new
                warp.spins = 0
        elif isinstance(outcome, Park):
            ctx.blocked |= mask
            since = parked[2] if parked is not None else warp.time
            warp.parks[pc] = (mask, outcome, since)
            for waitable in outcome.waitables:
                waitable.park(warp, mask)
            return outcome
        elif isinstance(outcome, AwaitLanes):
            ctx.blocked |= mask
            warp.awaiting[pc] = mask
        elif isinstance(outcome, Yield):
            _advance(warp, mask, pc + 1)
            if outcome.spin:
                warp.spins += 1
                ctx.tired |= mask  # other lanes of the warp may be who it waits for
        if parked is not None and not isinstance(outcome, Retry):
            self.machine.timeline.waited(warp, parked[1].waitables[0].describe(), parked[2])
        return outcome

    def _blocked(self, warp: Warp) -> list[Warp] | None:
        """Every live lane is blocked: leave a parked warp alone, report lanes that wait for others of their warp."""
        ctx = warp.ctx
        if warp.parks:
            return None
        for pc, lanes in list(warp.awaiting.items()):
            if lanes & ctx.live == ctx.live:  # those that were missing have left
                del warp.awaiting[pc]
                ctx.blocked &= ~lanes & FULL_MASK
                return self.active
        stuck.report_non_uniform(self.machine, warp)
        return None

    # Coming and going.

    def _start(self, grid: Grid) -> None:
        """Start as many clusters of `grid` as may be resident."""
        size = grid.cluster_dim[0] * grid.cluster_dim[1] * grid.cluster_dim[2]
        limit = grid.num_clusters if grid.cooperative else max(1, self.limits.resident_ctas // size)
        while self._ahead[grid] < grid.num_clusters and self._here[grid] < limit:
            cluster = self.machine.start_cluster(grid, self._ahead[grid])
            self._ahead[grid] += 1
            self._here[grid] += 1
            self.resident.add(cluster)
            for cta in cluster.ctas:
                for warp in cta.warps:
                    self._enqueue(warp, self.active)

    def take_cluster(self, grid: Grid) -> Dims | None:
        """Take over the next cluster of `grid` that has not started: return its first CTA, or None without one."""
        index = self._ahead[grid]
        if index >= grid.num_clusters:
            return None
        self._ahead[grid] += 1
        (x, y, _), (cx, cy, cz) = grid.num_clusters_dim, grid.cluster_dim
        return index % x * cx, index // x % y * cy, index // (x * y) * cz

    def _exit(self, warp: Warp) -> None:
        """`warp` has no live lane any more."""
        warp.exited = True
        self.machine.events += 1
        cta = warp.cta
        cta.barriers.warp_left()
        cta.cluster.barrier.check()
        if all(other.exited for other in cta.warps):
            self._exit_cta(cta)

    def _exit_cta(self, cta: Cta) -> None:
        stuck.leave(self.machine, cta)
        cta.exited = True
        cta.cluster.smem_table[cta.rank] = 0
        if all(other.exited for other in cta.cluster.ctas):
            self._exit_cluster(cta.cluster)

    def _exit_cluster(self, cluster: Cluster) -> None:
        grid = cluster.grid
        self.resident.discard(cluster)
        self._here[grid] -= 1
        self.machine.checks.free_cluster(cluster)
        for cta in cluster.ctas:
            for warp in cta.warps:
                grid.cycles = max(grid.cycles, warp.time)
                grid.program.free_warp(warp)
        self._start(grid)

    def unpark(self, warp: Warp, mask: int) -> None:
        """Lanes `mask` of `warp` may execute their instruction again."""
        found = False
        for pc, (parked, _, _) in list(warp.parks.items()):
            if parked & mask:
                self._unblock(warp, pc)
                found = True
        if found:
            self.machine.events += 1
            self._progress()
            self._enqueue(warp, self.active)

    def _unblock(self, warp: Warp, pc: int) -> None:
        """Free the lanes that are parked at `pc`; the entry stays until the handler is called, for its start time."""
        mask, _, _ = warp.parks[pc]
        warp.ctx.blocked &= ~mask & FULL_MASK

    def _enqueue(self, warp: Warp, queue: list[Warp]) -> None:
        if not warp.queued and not warp.exited:
            warp.queued = True
            queue.append(warp)


def _take(warps: list[Warp], index: int) -> Warp:
    warps[index], warps[-1] = warps[-1], warps[index]
    return warps.pop()


def _advance(warp: Warp, mask: int, pc: int) -> None:
    lane_pc = warp.ctx.lane_pc
    if mask == FULL_MASK:
        lane_pc[:] = [pc] * 32
        return
    while mask:
        low = mask & -mask
        lane_pc[low.bit_length() - 1] = pc
        mask ^= low


def _raise_fault(machine: Machine, warp: Warp) -> None:
    ctx = warp.ctx
    kind, message = stuck.memory_fault(warp, FaultKind(ctx.fault_kind))
    machine.fault(kind, message, by=warp, pc=ctx.fault_pc, lanes=1 << ctx.fault_lane)
