"""Shared-memory swizzles of TMA, wgmma and tcgen05 as integer maps on byte addresses.

A swizzle XORs the index of a 16-byte chunk with the index of the row that it lies in, so that eight rows read at the
same chunk fall into different banks. In 128B mode, chunk c of row r lies at c ^ (r % 8):

    row 0   0 1 2 3 4 5 6 7        row 4   4 5 6 7 0 1 2 3
    row 1   1 0 3 2 5 4 7 6        row 5   5 4 7 6 1 0 3 2
    row 2   2 3 0 1 6 7 4 5        row 6   6 7 4 5 2 3 0 1
    row 3   3 2 1 0 7 6 5 4        row 7   7 6 5 4 3 2 1 0        (entry = which chunk is stored there)

Source: CUTLASS, `Swizzle<B, 4, 3>` of the UMMA and GMMA layouts; CUDA driver API, CUtensorMapSwizzle.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

import torch

IntOrTensor = TypeVar("IntOrTensor", int, torch.Tensor)


class Swizzle(Enum):
    """Swizzle modes by width in bytes of a row of the pattern; `shift` and `mask` say which address bits are XORed."""

    NONE = (16, 0, 0)
    B32 = (32, 3, 0x10)
    B64 = (64, 3, 0x30)
    B128 = (128, 3, 0x70)
    B128_ATOM_32B = (128, 2, 0x60)

    def __init__(self, row_bytes: int, shift: int, mask: int) -> None:
        """Name the three numbers of a mode."""
        self.row_bytes = row_bytes
        self.shift = shift
        self.mask = mask

    @property
    def pattern_bytes(self) -> int:
        """After how many bytes the pattern repeats, and what its start must be aligned to (16 for NONE)."""
        return max(16, 1 << (self.mask << self.shift).bit_length())

    def apply(self, address: IntOrTensor) -> IntOrTensor:
        """Return where the byte at plain `address` (int or int tensor) of an aligned buffer lies; its own inverse."""
        return address ^ ((address >> self.shift) & self.mask)

    def offset(self, row: IntOrTensor, byte: IntOrTensor) -> IntOrTensor:
        """Return where byte `byte` (< row_bytes) of row `row` lies in a tile whose rows are `row_bytes` wide."""
        return self.apply(row * self.row_bytes + byte)
