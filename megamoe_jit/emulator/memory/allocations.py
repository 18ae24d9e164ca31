"""What global addresses a kernel may touch: ranges of host memory, in a table that native code searches."""

from __future__ import annotations

import bisect
import ctypes
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.native.shadow_layout import GlobalShadow
from megamoe_jit.errors import ArgumentError, MemoryFault

READ = 1
WRITE = 2
PEER = 4
ALL_RANKS = -1


class Range(ctypes.Structure):
    """An entry of the native table.

    Attributes:
        start, end: host addresses.
        shadow: address of the GLOBAL_GRANULE that holds `start`; 0 without checks, and where nobody may write.
        flags: READ, WRITE, PEER.
        rank: whose it is, ALL_RANKS: everybody's.
    """

    _fields_ = (
        ("start", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("shadow", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("rank", ctypes.c_int32),
    )


class RangeTable(ctypes.Structure):
    """What `WarpContext.ranges` names: `count` entries, ascending and disjoint."""

    _fields_ = (("entries", ctypes.c_uint64), ("count", ctypes.c_uint32), ("padding", ctypes.c_uint32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Memory that was registered.

    Attributes:
        address, size: bytes [address, address + size).
        name: what reports call it.
        rank: whose it is; ALL_RANKS: any rank may touch it.
        writable: whether kernels may store to it.
        peer: whether ranks other than `rank` may touch it.
        keep: what owns the memory; kept alive.
    """

    address: int
    size: int
    name: str = ""
    rank: int = ALL_RANKS
    writable: bool = True
    peer: bool = False
    keep: object = field(default=None, repr=False, compare=False)

    @property
    def end(self) -> int:
        """Address behind the last byte."""
        return self.address + self.size

    def allows(self, rank: int, *, write: bool) -> bool:
        """Whether a kernel of `rank` may read, or write, it."""
        return (self.writable or not write) and (self.peer or self.rank in (rank, ALL_RANKS))


class Allocations:
    """The ranges of one machine.

    Allocations may overlap (views of one tensor): native code sees their union, which may be written when one of them
    may. Overlapping ones must belong to the same rank.
    """

    def __init__(self) -> None:
        """Nothing may be touched."""
        self._allocations: list[Allocation] = []
        self._starts: list[int] = []
        self._ranges: list[tuple[int, int, int, int]] = []
        self._shadows: dict[tuple[int, int], GlobalShadow] = {}
        self._has_shadow = False
        self._entries = (Range * 1)()
        self._table = RangeTable(entries=ctypes.addressof(self._entries))

    @property
    def table_address(self) -> int:
        """Where the native table is; stays the same when allocations come and go."""
        return ctypes.addressof(self._table)

    def __len__(self) -> int:
        """How many allocations there are."""
        return len(self._allocations)

    def add(
        self,
        address: int,
        size: int,
        *,
        writable: bool = True,
        name: str = "",
        rank: int = ALL_RANKS,
        peer: bool = False,
        keep: object = None,
    ) -> Allocation:
        """Register [address, address + size); raises ArgumentError when it overlaps another rank's memory."""
        if size < 0 or address < 0 or address + size > 1 << 56:
            raise ArgumentError(f"{name or 'memory'} at {address:#x} with {size} bytes is no range of host memory.")
        new = Allocation(address=address, size=size, name=name, rank=rank, writable=writable, peer=peer, keep=keep)
        for other in self._allocations:
            if other.address < new.end and new.address < other.end and other.rank != rank:
                raise ArgumentError(
                    f"{name or 'memory'} [{address:#x}, {new.end:#x}) of rank {rank} overlaps {other.name or 'memory'} "
                    f"[{other.address:#x}, {other.end:#x}) of rank {other.rank}; ranks share memory through peer=True."
                )
        self._insert(new)
        self._rebuild()
        return new

    def remove(self, allocation: Allocation) -> None:
        """Forget one registration (of equal ones, one)."""
        index = next(i for i, known in enumerate(self._allocations) if known is allocation)
        del self._allocations[index], self._starts[index]
        self._rebuild()

    def find(self, address: int, size: int = 1) -> Allocation | None:
        """Return the smallest allocation that holds all of [address, address + size), or None."""
        behind = bisect.bisect_right(self._starts, address)
        holds = (known for known in self._allocations[:behind] if address + size <= known.end)
        return min(holds, key=lambda known: known.size, default=None)

    def nearest(self, address: int) -> Allocation | None:
        """Return the allocation that begins closest below `address`, or None; for messages."""
        behind = bisect.bisect_right(self._starts, address)
        return self._allocations[behind - 1] if behind else None

    def view(self, address: int, size: int, *, write: bool = False, rank: int | None = None) -> npt.NDArray[np.uint8]:
        """Return the bytes [address, address + size); raises MemoryFault when they may not be touched.

        `rank` None asks for no rank's right.
        """
        index = bisect.bisect_right(self._ranges, (address, 1 << 64, 0, 0)) - 1
        start, end, flags, owner = self._ranges[index] if index >= 0 else (0, 0, 0, 0)
        if not (start <= address and address + size <= end):
            raise MemoryFault(f"{size} bytes at {address:#x} are in no allocation{self._near(address)}.")
        if write and not flags & WRITE:
            raise MemoryFault(f"{size} bytes at {address:#x} are written, but {self._name(address)} is read-only.")
        if rank is not None and owner not in (rank, ALL_RANKS) and not flags & PEER:
            raise MemoryFault(
                f"{size} bytes at {address:#x} belong to {self._name(address)} of rank {owner}, which rank {rank} may "
                "not touch: it is not peer accessible."
            )
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def enable_shadow(self) -> None:
        """Give each range that may be written, and those to come, a shadow for the race checker."""
        self._has_shadow = True
        self._rebuild()

    def shadow(self, address: int) -> GlobalShadow | None:
        """Return the shadow of the range that holds `address`, or None."""
        index = bisect.bisect_right(self._ranges, (address, 1 << 64, 0, 0)) - 1
        if index < 0 or address >= self._ranges[index][1]:
            return None
        return self._shadows.get(self._ranges[index][:2])

    def _insert(self, new: Allocation) -> None:
        index = bisect.bisect_right(self._starts, new.address)
        self._starts.insert(index, new.address)
        self._allocations.insert(index, new)

    def _rebuild(self) -> None:
        self._ranges = []
        for known in self._allocations:
            if known.size == 0:
                continue
            flags = READ | (WRITE if known.writable else 0) | (PEER if known.peer else 0)
            if self._ranges and known.address < self._ranges[-1][1]:
                start, end, others, rank = self._ranges[-1]
                self._ranges[-1] = (start, max(end, known.end), others | flags, rank)
            else:
                self._ranges.append((known.address, known.end, flags, known.rank))
        # Nothing collides with reads of what nobody may write.
        wanted = [known[:2] for known in self._ranges if known[2] & WRITE] if self._has_shadow else []
        self._shadows = {key: self._shadows.get(key) or GlobalShadow(*key) for key in wanted}
        entries = (Range * max(len(self._ranges), 1))()
        for entry, (start, end, flags, rank) in zip(entries, self._ranges, strict=False):
            shadow = self._shadows.get((start, end))
            entry.start, entry.end, entry.flags, entry.rank = start, end, flags, rank
            entry.shadow = shadow.address if shadow else 0
        self._entries = entries
        self._table.entries = ctypes.addressof(entries)
        self._table.count = len(self._ranges)

    def _name(self, address: int) -> str:
        found = self.find(address)
        return f"{found.name!r}" if found and found.name else "its allocation"

    def _near(self, address: int) -> str:
        near = self.nearest(address)
        if near is None:
            return ""
        return f" (the nearest below is {near.name or 'memory'!r}, [{near.address:#x}, {near.end:#x}))"
