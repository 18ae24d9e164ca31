"""Barriers of a CTA and of a cluster. `bar` is `barrier.aligned`; alignment is checked by the scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megamoe_jit.emulator.isa.decode import Decode, lanes_of, one_lane
from megamoe_jit.emulator.isa.table import handler
from megamoe_jit.emulator.machine.barriers import NUM_BARRIERS, WARP, NamedBarrier
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.machine.outcome import Outcome, Park

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Warp

_SECTION = "Parallel Synchronization and Communication Instructions: bar, barrier"
_ARRIVED = "barriers"


def _barrier(warp: Warp, index: int) -> NamedBarrier:
    if not 0 <= index < NUM_BARRIERS:
        warp.machine.fault("barrier-args", f"barrier {index}; a CTA has 0 to {NUM_BARRIERS - 1}.", by=warp)
    return warp.cta.barriers[index]


def _count(warp: Warp, count: int | None) -> int | None:
    if count is not None and (count == 0 or count % WARP):
        warp.machine.fault("barrier-args", f"A barrier of {count} threads; the count is a multiple of {WARP}.", by=warp)
    if count is not None and count > WARP * len(warp.cta.warps):
        threads = WARP * len(warp.cta.warps)
        warp.machine.fault("barrier-args", f"A barrier of {count} threads in a CTA of {threads}.", by=warp)
    return count


@handler("bar{.cta}.sync", section=_SECTION)
@handler("barrier{.cta}.sync", section=_SECTION)
@handler("barrier{.cta}.sync.aligned", section=_SECTION)
def barrier_sync(d: Decode) -> Handler:
    """Arrive and wait until all have come."""
    return _waiting(d, "")


@handler("bar{.cta}.red{operation:.popc|.and|.or}.{u32|pred}", section=_SECTION)
@handler("barrier{.cta}.red{operation:.popc|.and|.or}.{u32|pred}", section=_SECTION)
@handler("barrier{.cta}.red{operation:.popc|.and|.or}.aligned.{u32|pred}", section=_SECTION)
def barrier_reduce(d: Decode) -> Handler:
    """Arrive and wait, and tell all how many, whether all, or whether any had a predicate set."""
    return _waiting(d, d.form["operation"])


def _waiting(d: Decode, reduces: str) -> Handler:
    pc = d.pc
    at = 1 if reduces else 0
    indices = d.value(at, np.uint32)
    has_count = d.count > at + (2 if reduces else 1)
    counts = d.value(at + 1, np.uint32) if has_count else None
    predicates = d.predicate(d.count - 1) if reduces else None
    write = d.write(0, np.uint32 if reduces == "popc" else np.uint8) if reduces else None

    def run(warp: Warp, mask: int) -> Outcome:
        # A woken lane executes the instruction again: what it arrived at is kept until then.
        arrived: dict[int, tuple[NamedBarrier, int, int]] = warp.scratch.setdefault(_ARRIVED, {})
        before = arrived.get(pc)
        new = mask & ~(before[2] if before else 0)
        if new:
            lane = one_lane(mask)
            barrier = before[0] if before else _barrier(warp, int(indices(warp)[lane]))
            count = _count(warp, int(counts(warp)[lane]) if counts is not None else None)
            values = tuple(predicates(warp)[lanes_of(new)].tolist()) if predicates is not None else ()
            generation = barrier.arrive(warp, new, count, reduces=reduces, values=values)
            arrived[pc] = before = (barrier, generation, mask)
        assert before is not None
        barrier, generation, _ = before
        if barrier.generation == generation:
            warp.machine.counters.barrier_waits += bool(new)
            return Park((barrier,))
        del arrived[pc]
        warp.advance_to(barrier.wave_time)
        warp.machine.checks.barrier_observe(barrier, warp)
        if write is not None:
            write(warp, mask, barrier.verdicts.get(generation, 0))
        return None

    return run


@handler("bar{.cta}.arrive", section=_SECTION)
@handler("barrier{.cta}.arrive", section=_SECTION)
@handler("barrier{.cta}.arrive.aligned", section=_SECTION)
def barrier_arrive(d: Decode) -> Handler:
    """Arrive and go on."""
    indices, counts = d.value(0, np.uint32), d.value(1, np.uint32)

    def run(warp: Warp, mask: int) -> Outcome:
        lane = one_lane(mask)
        barrier = _barrier(warp, int(indices(warp)[lane]))
        barrier.arrive(warp, mask, _count(warp, int(counts(warp)[lane])))
        return None

    return run


_CLUSTER = "Parallel Synchronization and Communication Instructions: barrier.cluster"


@handler("barrier.cluster.arrive{semantics:.release|.relaxed|}{.aligned}", section=_CLUSTER)
def cluster_arrive(d: Decode) -> Handler:
    """Arrive at the barrier of the cluster."""
    releases = d.form["semantics"] != "relaxed"

    def run(warp: Warp, mask: int) -> Outcome:
        warp.cluster.barrier.arrive(warp, mask, release=releases)
        return None

    return run


@handler("barrier.cluster.wait{semantics:.acquire|}{.aligned}", section=_CLUSTER)
def cluster_wait(d: Decode) -> Handler:  # noqa: ARG001
    """Wait for all threads of the cluster to arrive."""

    def run(warp: Warp, mask: int) -> Outcome:
        barrier = warp.cluster.barrier
        if not barrier.try_wait(warp, mask):
            warp.machine.counters.barrier_waits += 1
            return Park((barrier,))
        warp.advance_to(barrier.wave_time)
        warp.machine.checks.cluster_observe(barrier, warp, True)
        return None

    return run
