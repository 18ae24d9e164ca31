"""Allocation of tensor memory by one warp of a CTA, or by one warp of each CTA of a pair together.

PTX ISA, "tcgen05.alloc, tcgen05.dealloc, tcgen05.relinquish_alloc_permit".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from megamoe_jit.emulator.engines.tcgen05 import SECTION, TensorMemory, ctas_of, refuse, tmem_of
from megamoe_jit.emulator.machine.outcome import Outcome, Park, Waitable

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.queues import AsyncOp
    from megamoe_jit.emulator.machine.state import Cluster, Warp

_SECTION = f"{SECTION}: tcgen05.alloc, tcgen05.dealloc"


@dataclass(slots=True)
class _Request:
    """An allocation that one CTA of a pair has asked for: columns, then where they are."""

    columns: int
    first: int | None = None


class _Pair(Waitable):
    """What two CTAs that allocate together have asked for; lanes wait here for the other CTA."""

    def __init__(self, ranks: tuple[int, int]) -> None:
        super().__init__()
        self.ranks = ranks
        self.requests: dict[int, _Request] = {}

    def describe(self) -> str:
        missing = [rank for rank in self.ranks if rank not in self.requests]
        return f"tcgen05.alloc.cta_group::2 of CTA {missing[0] if missing else '?'} of the cluster"


@dataclass(slots=True)
class _Pairs:
    """Pairs of a cluster, by even rank."""

    known: dict[int, _Pair] = field(default_factory=dict)

    def get(self, even: int) -> _Pair:
        return self.known.setdefault(even, _Pair((even, even + 1)))


def _pairs(cluster: Cluster) -> _Pairs:
    pairs: _Pairs = cluster.scratch.setdefault("tcgen05.alloc", _Pairs())
    return pairs


def allocate(warp: Warp, address: int, space: str, columns: int, cta_group: int) -> Outcome:
    """Take columns and write their address to shared memory; parks while there are too few."""
    own = tmem_of(warp.cta)
    if cta_group == 1:
        _check(warp, own, columns)
        first = own.find(columns)
        if first is None:
            return Park((own.freed,))
        own.allocate(first, columns)
        _write(warp, address, space, first)
        return None
    pair = _pairs(warp.cluster).get(warp.cta.rank & ~1)
    request = pair.requests.get(warp.cta.rank)
    if request is None:
        _check(warp, own, columns)
        request = pair.requests[warp.cta.rank] = _Request(columns)
    if request.first is None:  # else the peer has allocated for both, and may have left by now
        outcome = _allocate_together(warp, pair, [tmem_of(cta) for cta in ctas_of(warp, cta_group)])
        if outcome is not None:
            return outcome
    assert request.first is not None
    del pair.requests[warp.cta.rank]
    _write(warp, address, space, request.first)
    return None


def _allocate_together(warp: Warp, pair: _Pair, memories: list[TensorMemory]) -> Outcome:
    """Allocate in both CTAs of a pair once both have asked."""
    if len(pair.requests) < 2:
        return Park((pair,))
    requests = [pair.requests[rank] for rank in pair.ranks]
    if requests[0].columns != requests[1].columns:
        refuse(
            warp,
            f"tcgen05.alloc.cta_group::2 of {requests[0].columns} columns in CTA {pair.ranks[0]} of the cluster, but "
            f"of {requests[1].columns} in CTA {pair.ranks[1]}",
            section=_SECTION,
        )
    first = memories[0].find(requests[0].columns, memories[1])
    if first is None:
        return Park(tuple(memory.freed for memory in memories))
    for memory, request in zip(memories, requests, strict=True):
        memory.allocate(first, request.columns)
        request.first = first
    pair.wake()
    for memory in memories:  # the other warp may wait for columns
        memory.freed.wake()
    return None


def _check(warp: Warp, memory: TensorMemory, columns: int) -> None:
    problem = memory.allocation_problem(columns)
    if problem:
        refuse(warp, f"tcgen05.alloc: {problem}", kind="tmem-alloc", section=_SECTION)


def _write(warp: Warp, address: int, space: str, first: int) -> None:
    machine = warp.machine
    view, place = machine.resolve(warp, address, space, 4, write=True)
    if place.kind != "shared":
        refuse(warp, f"tcgen05.alloc writes its result to shared memory; {address:#x} is not there", section=_SECTION)
    machine.checks.generic(warp, place, 4, "write")
    view[:] = np.array([first], np.uint32).view(np.uint8)


def free(warp: Warp, address: int, columns: int, cta_group: int) -> None:
    """Give columns back. A CTA of a pair gives back its own; its peer may have done so, and left, before."""
    machine = warp.machine
    group = range(warp.cta.rank & -cta_group, (warp.cta.rank & -cta_group) + cta_group)
    lane, first = address >> 16, address & 0xFFFF
    memory = tmem_of(warp.cta)
    problem = f"address {address:#010x} has lane {lane}" if lane else memory.free(first, columns)
    if problem:
        refuse(warp, f"tcgen05.dealloc: {problem}", kind="tmem-alloc", section=_SECTION)
    for op in machine.queues.operations():
        if op.kind.startswith("tcgen05") and op.kind != "tcgen05.commit" and _issued_by(op, warp, group):
            machine.report(
                "tmem-alloc",
                f"tcgen05.dealloc while a {op.kind} of {op.issuer.name()} is under way: wait for it first.",
                by=warp,
                section=_SECTION,
            )
            break
    memory.freed.wake()


def _issued_by(op: AsyncOp, warp: Warp, ranks: range) -> bool:
    cta = op.issuer.cta
    return cta.cluster is warp.cluster and cta.rank in ranks


def relinquish(warp: Warp) -> None:
    """Give up the right to allocate."""
    tmem_of(warp.cta).relinquished = True
