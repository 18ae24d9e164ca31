"""Accesses of all lanes at once: where their addresses lie, and their bytes as rows of an array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.engines.copies import Bytes, Site
from megamoe_jit.emulator.memory.spaces import OFFSET_MASK, RANK_SHIFT, SHARED_WINDOW
from megamoe_jit.emulator.parser.nodes import SHARED_BASE
from megamoe_jit.errors import MemoryFault

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Warp

Addresses: TypeAlias = npt.NDArray[np.uint64]
Offsets: TypeAlias = npt.NDArray[np.int64]

_LARGEST_SPAN = 1 << 32
_RANK_AND_WINDOW = np.uint64(SHARED_WINDOW | 0xFF << RANK_SHIFT)


def check_alignment(warp: Warp, site: Site, addresses: Addresses, alignment: int, what: str) -> None:
    """Refuse addresses that are no multiple of `alignment`."""
    wrong = addresses & np.uint64(alignment - 1)
    if wrong.any():
        address = int(addresses[np.flatnonzero(wrong)[0]])
        site.refuse(warp, f"{what} address 0x{address:x} is no multiple of {alignment}.", kind="misaligned")


def own_offsets(warp: Warp, site: Site, addresses: Addresses, size: int, *, space: str = "shared") -> Offsets:
    """Return the offsets of shared addresses, `size` bytes each, that all must be in the own CTA."""
    cta = warp.cta
    offsets = (addresses & np.uint64(OFFSET_MASK)).astype(np.int64)
    window = SHARED_WINDOW if space == "generic" else 0
    own = np.uint64(cta.rank << RANK_SHIFT | window)
    inside = (offsets >= SHARED_BASE) & (offsets <= len(cta.smem) - size)
    in_own = (addresses & ~np.uint64(OFFSET_MASK)) == own
    if window == 0:  # shared addresses may carry the window, as cvta leaves it
        in_own |= (addresses & ~np.uint64(OFFSET_MASK)) == own | np.uint64(SHARED_WINDOW)
    good = inside & in_own
    if not good.all():
        address = int(addresses[np.flatnonzero(~good)[0]])
        _, place = warp.machine.resolve(warp, address, space, size, write=True, align=1)
        where = place.cta.name() if place.cta is not None else f"{place.kind} memory"
        site.refuse(
            warp, f"Address 0x{address:x} is in {where}, and the instruction takes the own CTA's shared memory."
        )
    return offsets


class GlobalRows:
    """`size` bytes at each of some global addresses, as rows of an array.

    The memory is looked up once, for all of them together, where they lie in one allocation.
    """

    __slots__ = ("_index", "_rows", "_span", "addresses", "size")

    def __init__(self, warp: Warp, addresses: Addresses, size: int, *, write: bool) -> None:
        """Look the memory up; faults for what may not be touched. Addresses are multiples of `size`."""
        self.addresses = addresses
        self.size = size
        low, high = int(addresses.min()), int(addresses.max()) + size
        self._span: Bytes | None = None
        self._rows: list[Bytes] = []
        resolve = warp.machine.resolve
        if len(addresses) > 1 and high - low <= _LARGEST_SPAN:
            try:
                self._span, _ = resolve(warp, low, "global", high - low, write=write, align=1)
            except MemoryFault:
                self._span = None
        if self._span is None:
            self._rows = [resolve(warp, int(at), "global", size, write=write, align=1)[0] for at in addresses]
        self._index = ((addresses - np.uint64(low)) // np.uint64(size)).astype(np.intp)

    def read(self) -> npt.NDArray[Any]:
        """Return the rows, (n, size) bytes."""
        if self._span is None:
            return np.stack(self._rows)
        return self._span.reshape(-1, self.size)[self._index]


def scattered(smem: Bytes, offsets: Offsets, size: int, rows: Bytes) -> None:
    """Write (n, size) bytes to multiples of `size` in shared memory."""
    whole = len(smem) // size * size
    smem[:whole].reshape(-1, size)[offsets // size] = rows


def gathered(smem: Bytes, offsets: Offsets, size: int) -> Bytes:
    """Return (n, size) bytes from multiples of `size` in shared memory."""
    whole = len(smem) // size * size
    return smem[:whole].reshape(-1, size)[offsets // size]
