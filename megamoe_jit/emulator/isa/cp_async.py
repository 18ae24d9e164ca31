"""cp.async: each lane copies 4, 8 or 16 bytes from global to shared memory; groups, and arrivals on mbarriers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from megamoe_jit.emulator.engines.copies import Bytes, Site, signal_at
from megamoe_jit.emulator.engines.lanes import (
    Addresses,
    GlobalRows,
    Offsets,
    check_alignment,
    own_offsets,
    scattered,
)
from megamoe_jit.emulator.isa.bulk import check_operands, constant, site_of
from megamoe_jit.emulator.isa.decode import Decode, Reader, lanes_of
from megamoe_jit.emulator.isa.table import handler
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.machine.outcome import Outcome, Park
from megamoe_jit.emulator.machine.queues import AsyncOp, Group
from megamoe_jit.emulator.machine.state import Warp
from megamoe_jit.emulator.parser.nodes import Not, RegOp
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.interface import Range

_ASYNC = "Data Movement and Conversion Instructions: Asynchronous copy"
_SCRATCH = "cp.async"
_MANY = 64


@dataclass(slots=True, eq=False)
class _Committed:
    """A group: `mask` are the lanes that committed it and have not waited for it."""

    mask: int
    ops: list[AsyncOp]
    number: int


@dataclass(slots=True)
class _Copies:
    """A warp's copies.

    Attributes:
        under_way: woken whenever one ends.
        open: operations that may be under way, and the lanes that have not committed them.
        uncommitted: lanes with operations that they have not committed, whether over or not.
        committed: groups, oldest first.
        pending: operations and their lanes that have not run, as far as known.
    """

    under_way: Group
    open: list[tuple[AsyncOp, int]] = field(default_factory=list)
    uncommitted: int = 0
    committed: list[_Committed] = field(default_factory=list)
    pending: list[tuple[AsyncOp, int]] = field(default_factory=list)

    def add(self, op: AsyncOp, mask: int) -> None:
        """Note an operation of lanes `mask`."""
        if len(self.open) > _MANY:  # kernels that wait through mbarriers never commit
            self.open = [(op, lanes) for op, lanes in self.open if not op.done]
        if len(self.pending) > _MANY:
            self.pending = [(op, lanes) for op, lanes in self.pending if not op.done]
        self.open.append((op, mask))
        self.pending.append((op, mask))
        self.uncommitted |= mask

    def prior(self, mask: int) -> list[AsyncOp]:
        """Return the operations of lanes `mask` that are not over."""
        self.pending = [(op, lanes) for op, lanes in self.pending if not op.done]
        return [op for op, lanes in self.pending if lanes & mask]

    def commit(self, mask: int, number: int) -> None:
        """Close the group of each lane of `mask`."""
        ops = [op for op, lanes in self.open if lanes & mask]
        self.open = [(op, lanes & ~mask) for op, lanes in self.open if lanes & ~mask]
        self.uncommitted &= ~mask
        self.committed.append(_Committed(mask, ops, number))

    def older_than(self, mask: int, allowed: int) -> list[_Committed]:
        """Return the groups of `mask` but, for each lane, its `allowed` most recent ones."""
        if all(group.mask & mask == mask for group in self.committed):
            return self.committed[: max(len(self.committed) - allowed, 0)]
        found: set[int] = set()
        for lane in lanes_of(mask).tolist():
            own = [index for index, group in enumerate(self.committed) if group.mask >> lane & 1]
            found.update(own[: max(len(own) - allowed, 0)])
        return [self.committed[index] for index in sorted(found)]

    def forget(self, seen: list[_Committed], mask: int) -> None:
        """Lanes `mask` have waited for `seen`."""
        for group in seen:
            group.mask &= ~mask
        self.committed = [group for group in self.committed if group.mask]


def _copies(warp: Warp) -> _Copies:
    found: _Copies | None = warp.scratch.get(_SCRATCH)
    if found is None:
        found = warp.scratch[_SCRATCH] = _Copies(Group(f"cp.async of {warp.name()}"))
    return found


def _chain(warp: Warp) -> tuple[str, Warp]:
    return (_SCRATCH, warp)


@handler(
    "cp.async{cache:.ca|.cg}.shared{::cta}.global{hint:.L2::cache_hint|}{.L2::64B|.L2::128B|.L2::256B|}",
    section=f"{_ASYNC}: cp.async",
)
def cp_async(d: Decode) -> Handler:
    """Copy `cp-size` bytes a lane; bytes past `src-size`, or all with `ignore-src`, become zeros."""
    size = constant(d, 2)
    if size not in ((16,) if d.form["cache"] == "cg" else (4, 8, 16)):
        raise UnsupportedError(f"{d.instruction.text}: cp-size {size} is not possible.")
    has_hint = bool(d.form["hint"])
    has_source_size = d.count - has_hint == 4
    check_operands(d, 3 + has_source_size + has_hint)
    limits = _source_bytes(d, size) if has_source_size else None
    to, from_, site = d.address(0), d.address(1), site_of(d)

    def execute(warp: Warp, mask: int) -> Outcome:
        lanes = lanes_of(mask)
        targets, sources = to(warp)[lanes], from_(warp)[lanes]
        check_alignment(warp, site, targets, size, "Destination")
        offsets = own_offsets(warp, site, targets, size)
        limit = limits(warp)[lanes] if limits is not None else None
        if limit is not None and (limit > size).any():
            site.refuse(warp, f"src-size {int(limit.max())} is more than cp-size {size}.")
        read = _source_rows(warp, site, sources, size, limit)
        _submit(warp, site, mask, offsets, size, sources, limit, read)
        return None

    return execute


def _source_bytes(d: Decode, size: int) -> Reader:
    """Read how many bytes each lane really copies."""
    operand = d.operand(3)
    inner = operand.operand if isinstance(operand, Not) else operand
    if isinstance(inner, RegOp) and inner.reg.type == "pred":
        ignored = d.predicate(3)
        return lambda warp: np.where(ignored(warp), np.uint32(0), np.uint32(size))
    return d.value(3, np.uint32)


def _source_rows(warp: Warp, site: Site, sources: Addresses, size: int, limit: Offsets | None) -> Callable[[], Bytes]:
    """Look the sources up; the result reads them as (n, size) bytes."""
    if limit is None or (limit == size).all():
        check_alignment(warp, site, sources, size, "Source")
        return GlobalRows(warp, sources, size, write=False).read
    counts = limit.tolist()
    resolve = warp.machine.resolve
    parts = [
        resolve(warp, int(address), "global", count, write=False, align=1)[0] if count else None
        for address, count in zip(sources, counts, strict=True)
    ]
    check_alignment(warp, site, sources[limit > 0], size, "Source")

    def read() -> Bytes:
        rows = np.zeros((len(parts), size), np.uint8)
        for row, part in zip(rows, parts, strict=True):
            if part is not None:
                row[: len(part)] = part
        return rows

    return read


def _submit(
    warp: Warp,
    site: Site,
    mask: int,
    offsets: Offsets,
    size: int,
    sources: Addresses,
    limit: Offsets | None,
    read: Callable[[], Bytes],
) -> None:
    copies, checks, smem = _copies(warp), warp.machine.checks, warp.cta.smem
    reach = np.arange(size)

    def written() -> Iterable[Range]:
        return (("shared", warp.cta, (offsets[:, None] + reach).reshape(-1)),)

    def consumed() -> Iterable[Range]:
        addresses = sources.astype(np.int64)[:, None] + reach
        wanted = addresses.reshape(-1) if limit is None else addresses[reach < limit[:, None]]
        return (("global", None, wanted),) if len(wanted) else ()

    def run() -> None:
        if checks.enabled:
            checks.async_read(op, consumed())
            checks.async_write(op, written())
        scattered(smem, offsets, size, read())
        copies.under_way.finish(by=op)

    op = AsyncOp(issuer=warp, kind="cp.async", pc=site.pc, run=run, at_exit="flush", nbytes=size * len(offsets))
    if checks.enabled:
        op.access = checks.begin_async(warp, op, _chain(warp), proxy="generic", writes=written())
    copies.under_way.add()
    copies.add(op, mask)
    warp.machine.submit(op)


@handler("cp.async.commit_group", section=f"{_ASYNC}: cp.async.commit_group")
def cp_async_commit_group(d: Decode) -> Handler:  # noqa: ARG001
    """Close each lane's group."""

    def execute(warp: Warp, mask: int) -> Outcome:
        _commit(warp, mask)
        return None

    return execute


def _commit(warp: Warp, mask: int) -> None:
    copies, checks = _copies(warp), warp.machine.checks
    if copies.uncommitted & mask or copies.committed:
        copies.commit(mask, checks.commit_chain(warp, _chain(warp)) if checks.enabled else 0)


def _wait(warp: Warp, mask: int, allowed: int) -> Outcome:
    copies = _copies(warp)
    waited = copies.older_than(mask, allowed)
    if any(not op.done for group in waited for op in group.ops):
        return Park((copies.under_way,))
    if waited:
        if warp.machine.checks.enabled:
            warp.machine.checks.observe_chain(warp, _chain(warp), max(group.number for group in waited))
        warp.advance_to(max((op.finish_time for group in waited for op in group.ops), default=0))
        copies.forget(waited, mask)
    return None


@handler("cp.async.wait_group", section=f"{_ASYNC}: cp.async.wait_group")
def cp_async_wait_group(d: Decode) -> Handler:
    """Wait until at most N groups of each lane are pending."""
    allowed = constant(d, 0)
    return lambda warp, mask: _wait(warp, mask, allowed)


@handler("cp.async.wait_all", section=f"{_ASYNC}: cp.async.wait_all")
def cp_async_wait_all(d: Decode) -> Handler:  # noqa: ARG001
    """Commit, and wait for every group."""

    def execute(warp: Warp, mask: int) -> Outcome:
        if _copies(warp).uncommitted & mask:
            _commit(warp, mask)
        return _wait(warp, mask, 0)

    return execute


@handler(
    "cp.async.mbarrier.arrive{.noinc}{space:.shared{::cta}|}.b64",
    section="Parallel Synchronization and Communication Instructions: cp.async.mbarrier.arrive",
)
def cp_async_mbarrier_arrive(d: Decode) -> Handler:
    """Arrive on an mbarrier, once for each lane, when its earlier copies are over."""
    counts_itself = not d.form.has("noinc")
    space = "shared" if d.form["space"] else "generic"
    addresses, site = d.address(0), site_of(d)

    def execute(warp: Warp, mask: int) -> Outcome:
        lanes = lanes_of(mask)
        values = addresses(warp)
        for address in dict.fromkeys(values[lanes].tolist()):
            same = int(sum(1 << lane for lane in lanes.tolist() if values[lane] == address))
            _arrive(warp, site, address, space, same, counts_itself=counts_itself)
        return None

    return execute


def _arrive(warp: Warp, site: Site, address: int, space: str, mask: int, *, counts_itself: bool) -> None:
    machine = warp.machine
    signal, count = signal_at(warp, site, address, space), mask.bit_count()
    prior = _copies(warp).prior(mask)
    if counts_itself:
        signal.barrier(warp).add_pending(count, by=warp)

    def run() -> None:
        for earlier in prior:  # a warp that leaves has its copies run at once
            if not earlier.done:
                machine.queues.run(earlier)
        signal.barrier(warp).arrive(count, by=op)

    op = AsyncOp(
        issuer=warp,
        kind="cp.async arrival",
        pc=site.pc,
        run=run,
        ready=lambda: all(earlier.done for earlier in prior),
        at_exit="flush",
        smem_of=(signal.cta,),
    )
    if machine.checks.enabled:
        op.access = machine.checks.begin_async(warp, op, _chain(warp), proxy="generic")
        machine.checks.commit_chain(warp, _chain(warp))  # later copies are not part of what arrives
    machine.submit(op)
