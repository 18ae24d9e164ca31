"""Numbers of addresses: which space a generic address is in, and which CTA a shared address names.

- global, const, param: host addresses.
- shared: 32 bits, (rank of the CTA in its cluster << RANK_SHIFT) | offset in its shared space, for the own CTA too.
- local: offset in the lane's own frame. The window may stay on: `.local` accesses take both, `cvta.local` adds it.
- generic: 64 bits; a shared address plus SHARED_WINDOW, a local one plus LOCAL_WINDOW, and all else a host address.
"""

from __future__ import annotations

SHARED_WINDOW = 1 << 56
LOCAL_WINDOW = 2 << 56
WINDOW_SHIFT = 56
RANK_SHIFT = 24
OFFSET_MASK = (1 << RANK_SHIFT) - 1
WINDOW_MASK = 0xFFFFFFFF
"""The bits of a generic shared or local address that are the address in its own space."""


def space_of(generic: int) -> str:
    """Return "shared", "local" or "global" (which const and param are in too) for a generic address."""
    window = generic >> WINDOW_SHIFT
    return "shared" if window == 1 else "local" if window == 2 else "global"


def shared_address(rank: int, offset: int) -> int:
    """Return the shared address of `offset` in the CTA with `rank` in the cluster."""
    return (rank << RANK_SHIFT) | offset


def split_shared(address: int) -> tuple[int, int]:
    """Return (rank, offset) of a shared address; the shared window may be on it."""
    return (address >> RANK_SHIFT) & 0xFF, address & OFFSET_MASK
