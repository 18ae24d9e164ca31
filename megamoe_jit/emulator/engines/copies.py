"""Asynchronous copies at run time: groups of bulk operations, barriers that copies complete on, poison.

All data moves when an `AsyncOp` runs. A copy from shared to global memory is two operations, one that reads and one
that writes, because `wait_group.read` ends between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.machine.outcome import Outcome, Park, Waitable
from megamoe_jit.emulator.machine.queues import AsyncOp, Group

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.interface import Range
    from megamoe_jit.emulator.machine.mbarrier import Mbarrier
    from megamoe_jit.emulator.machine.state import Cta, Place, Warp

Bytes: TypeAlias = npt.NDArray[np.uint8]
Ranges: TypeAlias = "Callable[[], Iterable[Range]]"
"""Ranges that are made only when a checker listens."""

POISON = 0xDB
"""Fills bytes whose content an instruction leaves unspecified."""


@dataclass(frozen=True, slots=True)
class Site:
    """An instruction, as reports name it."""

    pc: int
    section: str

    def refuse(self, warp: Warp, message: str, *, kind: str = "argument") -> NoReturn:
        """Report an operand that the instruction does not take; nothing sensible could follow."""
        warp.machine.fault(kind, message, by=warp, pc=self.pc, section=self.section)


@dataclass(frozen=True, slots=True)
class Signal:
    """An mbarrier that a copy completes on.

    It is looked up again when the copy is over: a barrier that was invalidated meanwhile is a report.
    """

    cta: Cta
    offset: int

    def barrier(self, warp: Warp) -> Mbarrier:
        """Return the barrier; reports one that nobody initialised."""
        return self.cta.mbarrier(self.offset, warp)


def signal_at(warp: Warp, site: Site, address: int, space: str) -> Signal:
    """Return the mbarrier at `address` of `space`; faults outside of shared memory and for one not initialised."""
    _, place = warp.machine.resolve(warp, address, space, 8, write=True, align=8)
    if place.kind != "shared" or place.cta is None:
        site.refuse(warp, f"The mbarrier operand 0x{address:x} is no shared address.")
    signal = Signal(place.cta, place.start)
    signal.barrier(warp)
    return signal


def range_of(place: Place, size: int) -> Range:
    """Return `size` bytes at `place` as the checker's range."""
    return (place.kind, place.cta, place.start, size)


def submit_load(
    warp: Warp,
    site: Site,
    kind: str,
    *,
    signal: Signal,
    move: Callable[[], None],
    transactions: int,
    reads: Ranges,
    writes: Ranges,
    smem_of: tuple[Cta, ...],
    proxy: str = "async",
    atomic: bool = False,
    at_exit: Literal["flush", "report"] = "report",
) -> None:
    """Start a copy that completes on an mbarrier: `move` does it, then `transactions` bytes are complete there."""
    checks = warp.machine.checks

    def run() -> None:
        if checks.enabled:
            checks.async_read(op, reads())
            checks.async_write(op, writes(), atomic=atomic)
        move()
        signal.barrier(warp).complete_tx(transactions, by=op)

    op = AsyncOp(issuer=warp, kind=kind, pc=site.pc, run=run, smem_of=smem_of, nbytes=transactions, at_exit=at_exit)
    if checks.enabled:
        op.access = checks.begin_async(warp, op, signal.barrier(warp), proxy=proxy, writes=writes())
    warp.machine.submit(op)


class BulkGroup:
    """A bulk async-group of one thread.

    Attributes:
        reads: operations that have yet to read their sources; writes: those that are not over.
        number: what the checker calls it, set when it is committed.
    """

    __slots__ = ("number", "reads", "writes")

    def __init__(self, name: str) -> None:
        """Start empty."""
        self.reads = Group(f"{name} (reads)")
        self.writes = Group(name)
        self.number = 0


@dataclass(slots=True)
class LaneGroups:
    """Bulk async-groups of one thread: the open one, and those committed that no wait has seen the end of."""

    open: BulkGroup | None = None
    committed: list[BulkGroup] = field(default_factory=list)

    def older_than(self, allowed: int) -> list[BulkGroup]:
        """Return all committed groups but the `allowed` most recent ones."""
        return self.committed[: max(len(self.committed) - allowed, 0)]

    def forget(self, seen: list[BulkGroup]) -> None:
        """Drop groups whose end a wait has seen."""
        self.committed = [group for group in self.committed if group not in seen]


_GROUPS = "bulk groups"
_MANY_GROUPS = 256


def bulk_groups(warp: Warp) -> dict[int, LaneGroups]:
    """Return the bulk async-groups of the warp's threads, by lane; lanes that never had one are not there."""
    groups: dict[int, LaneGroups] = warp.scratch.setdefault(_GROUPS, {})
    return groups


def open_group(warp: Warp, lane: int) -> BulkGroup:
    """Return the group that the next bulk operation of `lane` belongs to."""
    groups = bulk_groups(warp).setdefault(lane, LaneGroups())
    if groups.open is None:
        groups.open = BulkGroup(f"bulk group of {warp.name()} lane {lane}")
    return groups.open


def chain_of(warp: Warp) -> tuple[str, Warp]:
    """Return the checker's key of the warp's bulk operations."""
    return ("bulk", warp)


def submit_store(
    warp: Warp,
    site: Site,
    lane: int,
    kind: str,
    *,
    read: Callable[[], Any],
    write: Callable[[Any], None],
    nbytes: int,
    reads: Ranges,
    writes: Ranges,
    atomic: bool = False,
) -> None:
    """Start a copy from shared memory that belongs to the open bulk group of `lane`: `write` gets what `read` gave."""
    machine = warp.machine
    checks = machine.checks
    group = open_group(warp, lane)
    kept: list[Any] = []

    def run_read() -> None:
        if checks.enabled:
            checks.async_read(reader, reads())
        kept.append(read())
        group.reads.finish(by=reader)

    def run_write() -> None:
        if not reader.done:  # a warp that leaves has its stores run at once
            machine.queues.run(reader)
        if checks.enabled:
            checks.async_write(writer, writes(), atomic=atomic)
        write(kept.pop())
        group.writes.finish(by=writer)

    reader = AsyncOp(
        issuer=warp,
        kind=f"{kind} (read)",
        pc=site.pc,
        run=run_read,
        at_exit="flush",
        smem_of=(warp.cta,),
        nbytes=nbytes,
    )
    writer = AsyncOp(
        issuer=warp, kind=kind, pc=site.pc, run=run_write, at_exit="flush", nbytes=nbytes, ready=lambda: reader.done
    )
    group.reads.add()
    group.writes.add()
    if checks.enabled:
        for op in (reader, writer):
            op.access = checks.begin_async(warp, op, chain_of(warp))
    machine.submit(reader)
    machine.submit(writer)


def commit_groups(warp: Warp, lanes: Iterable[int]) -> None:
    """Commit the open groups of `lanes`; a thread without one gets an empty group, which counts as a recent one."""
    known = bulk_groups(warp)
    if not known:
        return
    number = warp.machine.checks.commit_chain(warp, chain_of(warp)) if warp.machine.checks.enabled else 0
    for lane in lanes:
        groups = known.get(lane)
        if groups is None or not (groups.open or groups.committed):
            continue
        group = groups.open or BulkGroup("an empty bulk group")
        group.number = number
        groups.committed.append(group)
        groups.open = None
        if len(groups.committed) > _MANY_GROUPS:  # nobody waits for their writes, it seems
            finished = [group for group in groups.committed[: _MANY_GROUPS // 2] if not group.writes.pending]
            groups.forget(finished)


def wait_groups(warp: Warp, lanes: Iterable[int], allowed: int, *, reads_only: bool) -> Outcome:
    """Wait until at most the `allowed` most recent groups of each of `lanes` are pending."""
    known = bulk_groups(warp)
    pending: list[Waitable] = []
    waited = [(groups, groups.older_than(allowed)) for lane in lanes if (groups := known.get(lane)) is not None]
    number = time = 0
    for _, old in waited:
        for group in old:
            counter = group.reads if reads_only else group.writes
            if counter.pending:
                pending.append(counter)
            number, time = max(number, group.number), max(time, counter.time)
    if pending:
        return Park(tuple(pending))
    if number and warp.machine.checks.enabled:
        warp.machine.checks.observe_chain(warp, chain_of(warp), number, reads_only=reads_only)
    warp.advance_to(time)
    if not reads_only:
        for groups, old in waited:
            if old:
                groups.forget(old)
    return None
