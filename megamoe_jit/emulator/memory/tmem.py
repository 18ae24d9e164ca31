"""Tensor memory of a CTA: 128 lanes x 512 columns of 32-bit words, and who has allocated which columns.

PTX ISA, "Tensor Memory", "tcgen05.alloc". Each CTA is taken to be alone on its multiprocessor: it has all 512 columns.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

LANES = 128
COLUMNS = 512
MIN_COLUMNS = 32
WORD_BYTES = 4


class Tmem:
    """Words and allocations of one CTA.

    Attributes:
        words: [128, 512] uint32; poisoned at the start.
        allocations: first column -> number of columns.
        used: [512] whether a column is allocated.
        last_size: columns of the latest allocation; a later one must not be larger.
        relinquished: no more allocations.
    """

    __slots__ = ("allocations", "last_size", "relinquished", "used", "words")

    def __init__(self, seed: int = 0) -> None:
        """Fill all words with noise that no kernel can count on."""
        rng = np.random.default_rng(seed)
        # NaNs as FP32 and as two FP16, so that results of a read before a write are seen
        noise = rng.integers(0, 1 << 32, (LANES, COLUMNS), dtype=np.uint32)
        self.words: npt.NDArray[np.uint32] = noise | np.uint32(0x7FC07E00)
        self.allocations: dict[int, int] = {}
        self.used: npt.NDArray[np.bool_] = np.zeros(COLUMNS, np.bool_)
        self.last_size: int | None = None
        self.relinquished = False

    def find(self, columns: int, other: Tmem | None = None) -> int | None:
        """Return the first place where `columns` are free (in `other` as well), or None."""
        used = self.used if other is None else self.used | other.used
        for first in range(0, COLUMNS - columns + 1, MIN_COLUMNS):
            if not used[first : first + columns].any():
                return first
        return None

    def allocate(self, first: int, columns: int) -> None:
        """Take columns that `find` found."""
        self.allocations[first] = columns
        self.used[first : first + columns] = True
        self.last_size = columns

    def free(self, first: int, columns: int) -> str | None:
        """Give columns back; returns what is wrong, if they are not one allocation."""
        held = self.allocations.get(first)
        if held != columns:
            return f"no allocation of {columns} columns at {first}; {self.describe()}"
        del self.allocations[first]
        self.used[first : first + columns] = False
        return None

    def allocation_problem(self, columns: int) -> str | None:
        """Return why `columns` may not be asked for."""
        if columns not in (32, 64, 128, 256, 512):
            return f"{columns} columns asked for; a power of two from 32 to 512 is needed"
        if self.relinquished:
            return "an allocation after tcgen05.relinquish_alloc_permit of this CTA"
        if self.last_size is not None and columns > self.last_size:
            return f"{columns} columns asked for after {self.last_size}: a later allocation must not be larger"
        return None

    def access_problem(self, lane: int, lanes: int, column: int, columns: int) -> str | None:
        """Return why a block of cells may not be touched: beyond tensor memory, or not allocated."""
        if lane + lanes > LANES or column + columns > COLUMNS:
            return (
                f"lanes {lane}..{lane + lanes - 1}, columns {column}..{column + columns - 1} are not all in "
                f"{LANES} lanes x {COLUMNS} columns"
            )
        if self.used[column : column + columns].all():
            return None
        free = np.flatnonzero(~self.used[column : column + columns])
        return f"column {column + int(free[0])} is not allocated; {self.describe()}"

    def leak(self) -> str | None:
        """Return what is still allocated, for the report when the CTA exits."""
        return None if not self.allocations else f"still allocated: {self.describe()}"

    def describe(self) -> str:
        """Say in words what is allocated."""
        if not self.allocations:
            return "nothing is allocated"
        return "allocated: " + ", ".join(
            f"{first}..{first + size - 1}" for first, size in sorted(self.allocations.items())
        )


# The checker keeps one entry for 16 lanes of a column: instructions touch whole halves of quarters, but for a few. Its
# bytes: [quarter, column, half], four each.
_COLUMN_BYTES = 2 * WORD_BYTES
_QUARTER_BYTES = COLUMNS * _COLUMN_BYTES
SHADOW_BYTES = 4 * _QUARTER_BYTES
"""Size of tensor memory as the checker counts it."""


def shadow_pieces(lanes: npt.NDArray[Any], column: int, columns: int) -> tuple[npt.NDArray[Any], int]:
    """Return what the checker is told of cells: where pieces of one length begin, and that length.

    Args:
        lanes: those that are touched.
        column: first column; columns: how many.
    """
    halves = np.bincount(lanes // 16, minlength=8) > 0
    return _pieces(halves.tobytes(), column, columns)


@functools.lru_cache(maxsize=1024)
def _pieces(touched: bytes, column: int, columns: int) -> tuple[npt.NDArray[Any], int]:
    halves = np.frombuffer(touched, np.bool_).reshape(4, 2)
    quarters = np.flatnonzero(halves.any(axis=1))
    starts = quarters * _QUARTER_BYTES + column * _COLUMN_BYTES
    if halves[quarters].all():
        return starts, columns * _COLUMN_BYTES
    places = np.arange(columns) * _COLUMN_BYTES
    found = [start + places + WORD_BYTES * half for start, q in zip(starts, quarters, strict=True)
             for half in range(2) if halves[q, half]]  # fmt: skip
    return np.concatenate(found), WORD_BYTES


def describe_cell(offset: int) -> str:
    """Say in words which cells a byte of the checker stands for."""
    quarter, rest = divmod(offset, _QUARTER_BYTES)
    column, half = divmod(rest, _COLUMN_BYTES)
    first = 32 * quarter + 16 * (half // WORD_BYTES)
    return f"lanes {first}..{first + 15}, column {column}"
