"""From ranges of bytes to the granules that shadow memory keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.native.shadow_layout import GRANULE, GlobalShadow, SharedShadow

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.interface import Range
    from megamoe_jit.emulator.machine.state import Cta
    from megamoe_jit.emulator.memory.allocations import Allocations

Index: TypeAlias = "slice | npt.NDArray[np.int64]"
Masks: TypeAlias = "npt.NDArray[np.uint64] | np.uint64"
_U = np.uint64
ALL_BYTES = _U(0xF)
_FEW = 4


class Watched(NamedTuple):
    """Granules of a range: their shadow, which of them, and which bytes of each are meant.

    Attributes:
        shadow: of a CTA's shared or tensor memory, or the records of global memory.
        granules: indices in the shadow.
        masks: bytes of each granule, or the same for all.
        first: offset (global: address) of the first granule of a slice; of the shadow, for global indices.
        is_tail: maybe nobody uses what is read here, see `watch`.
    """

    shadow: SharedShadow | npt.NDArray[Any]
    granules: Index
    masks: Masks
    first: int
    is_shared: bool
    is_tensor: bool = False
    is_tail: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether all bytes of all granules are meant."""
        return isinstance(self.masks, np.uint64) and self.masks == ALL_BYTES

    def offset(self, position: int) -> int:
        """Return the first byte meant of the granule at `position`."""
        if isinstance(self.granules, slice):
            base = self.first + position * GRANULE
        else:
            base = int(self.granules[position]) * GRANULE
            if not (self.is_shared or self.is_tensor):
                base += self.first
        mask = int(self.masks) if isinstance(self.masks, np.uint64) else int(self.masks[position])
        return base + ((mask & -mask).bit_length() - 1 if mask else 0)


def watch(ranges: Iterable[Range], allocations: Allocations, *, head_bytes: int | None = None) -> Iterator[Watched]:
    """Translate ranges to granules; memory without a shadow is left out.

    Args:
        ranges: as the checker's interface has them.
        allocations: where shadows of global memory are.
        head_bytes: of global ranges that are the rows of a tensor copy. Only so many bytes of the first row are surely
            used: boxes may reach into rows that belong to others, whose contents then are ignored.
    """
    rows: list[tuple[int, int]] = []
    for entry in ranges:
        kind, cta, start = entry[:3]
        length = entry[3] if len(entry) == 4 else 1
        scattered: npt.NDArray[np.int64] | None = None
        if isinstance(start, np.ndarray):
            scattered = start.astype(np.int64).ravel()
            if length > 1 and (kind == "global" or length % GRANULE or (scattered % GRANULE).any()):
                scattered, length = (scattered[:, None] + np.arange(length)).ravel(), 1
        if kind == "global":
            if scattered is not None:
                yield from _scattered(scattered, allocations)
            elif length:
                rows.append((int(start), length))
            continue
        shadow = _shadow(kind, cta)
        if shadow is None:
            continue
        is_tensor = kind == "tmem"
        if scattered is not None:
            if len(scattered):
                bits: Masks
                if length == 1:
                    index, bits = _granules(scattered)
                else:
                    index = (scattered[:, None] // GRANULE + np.arange(length // GRANULE)).ravel()
                    bits = ALL_BYTES
                yield Watched(shadow, index, bits, int(index[0]) * GRANULE, not is_tensor, is_tensor)
        elif length:
            first, last = int(start) // GRANULE, -(-(int(start) + length) // GRANULE)
            masks = _byte_masks(int(start), length)
            yield Watched(shadow, slice(first, last), masks, first * GRANULE, not is_tensor, is_tensor)
    yield from _rows(rows, allocations, head_bytes)


def _rows(rows: list[tuple[int, int]], allocations: Allocations, head_bytes: int | None) -> Iterator[Watched]:
    """Watch ranges of global memory; many of one length together, as numpy calls cost more than what they do."""
    is_tail = False
    if head_bytes is not None and rows:
        (start, length), *rows = rows
        yield from _row(start, min(length, head_bytes), allocations, is_tail=False)
        if length > head_bytes:
            rows.insert(0, (start + head_bytes, length - head_bytes))
        is_tail = True
    while rows:
        length = rows[0][1]
        alike = [start for start, other in rows if other == length]
        rows = [row for row in rows if row[1] != length]
        if len(alike) < _FEW or length % GRANULE or any(start % GRANULE for start in alike):
            for start in alike:
                yield from _row(start, length, allocations, is_tail=is_tail)
        else:
            yield from _alike(np.array(alike, np.int64), length, allocations, is_tail=is_tail)


def _row(start: int, length: int, allocations: Allocations, *, is_tail: bool) -> Iterator[Watched]:
    known = allocations.shadow(start)
    if known is not None:
        granules, masks = known.slice(start, length), _byte_masks(start, length)
        yield Watched(granules, slice(None), masks, start & -GRANULE, False, is_tail=is_tail)


def _alike(starts: npt.NDArray[np.int64], length: int, allocations: Allocations, *, is_tail: bool) -> Iterator[Watched]:
    while len(starts):
        known = allocations.shadow(int(starts[0]))
        if known is None:
            starts = starts[1:]
            continue
        first = starts // GRANULE - known.first
        inside = (first >= 0) & (first < len(known.granules))
        index = (first[inside][:, None] + np.arange(length // GRANULE)).ravel()
        yield Watched(known.granules, index, ALL_BYTES, known.first * GRANULE, False, is_tail=is_tail)
        starts = starts[~inside]


def _granules(offsets: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Return the granules that bytes lie in, and which bytes of each are meant."""
    granules, byte = np.divmod(offsets.ravel(), GRANULE)
    index, where = np.unique(granules, return_inverse=True)
    bits = np.zeros(len(index), np.uint64)
    np.bitwise_or.at(bits, where.ravel(), _U(1) << byte.astype(np.uint64))
    return index, bits


def _scattered(addresses: npt.NDArray[np.int64], allocations: Allocations) -> Iterator[Watched]:
    """Watch single bytes of global memory, those of one allocation at a time."""
    while len(addresses):
        known: GlobalShadow | None = allocations.shadow(int(addresses[0]))
        if known is None:
            addresses = addresses[1:]
            continue
        position = addresses // GRANULE - known.first
        inside = (position >= 0) & (position < len(known.granules))
        index, bits = _granules(addresses[inside])
        yield Watched(known.granules, index - known.first, bits, known.first * GRANULE, False)
        addresses = addresses[~inside]


def _shadow(kind: str, cta: Cta | None) -> SharedShadow | None:
    if cta is None:
        return None
    return cta.shadow if kind == "shared" else cta.tmem_shadow


def _byte_masks(start: int, length: int) -> Masks:
    """Which bytes of each granule [start, start + length) covers; one number when it is all of them."""
    head, tail = start % GRANULE, -(start + length) % GRANULE
    if not head and not tail:
        return ALL_BYTES
    masks = np.full(-(-(head + length) // GRANULE), 0xF, np.uint64)
    masks[0] &= _U(0xF << head & 0xF)
    masks[-1] &= _U(0xF >> tail)
    return masks
