"""Inputs from a seed. Only raw PCG64 words are taken from NumPy: its distributions may change between versions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

U16_EDGES = (
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    17,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x5555,
    0x7FFE,
    0x7FFF,
    0x8000,
    0x8001,
    0xAAAA,
    0xFFFE,
    0xFFFF,
)
U32_EDGES = (
    *(0, 1, 2, 3, 7, 8, 16, 31, 32, 33, 63, 64, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x55555555),
    *(0x7FFFFFFE, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xAAAAAAAA, 0xFFFFFFFE, 0xFFFFFFFF),
)
U64_EDGES = (
    *(0, 1, 2, 3, 31, 32, 63, 64, 65, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x100000000),
    *(0x5555555555555555, 0x7FFFFFFFFFFFFFFE, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0x8000000000000001),
    *(0xAAAAAAAAAAAAAAAA, 0xFFFFFFFFFFFFFFFE, 0xFFFFFFFFFFFFFFFF),
)
# Zeros, subnormals, ends of the normal range, infinities, quiet and signalling NaN, one and its neighbours, ties.
F32_EDGES = (
    *(0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x807FFFFF, 0x00800000, 0x80800000, 0x00800001),
    *(0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FFFFFFF, 0x7F800001, 0xFFC00001, 0xFFFFFFFF),
    *(0x3F800000, 0xBF800000, 0x3F7FFFFF, 0x3F800001, 0x3F000000, 0xBF000000, 0x3FC00000, 0x40200000, 0xC0200000),
    *(0x4B000000, 0x4B000001, 0x4B800000, 0x4EFFFFFF, 0x4F000000, 0xCF000000, 0x4F7FFFFF, 0x4F800000, 0x5F000000),
    *(0x33800000, 0x34000000, 0x1F800000, 0x5F7FFFFF, 0x40490FDB, 0x477FE000, 0x477FF000, 0x38800000, 0x33000000),
)
F64_EDGES = (
    *(0x0000000000000000, 0x8000000000000000, 0x0000000000000001, 0x800FFFFFFFFFFFFF, 0x0010000000000000),
    *(0x7FEFFFFFFFFFFFFF, 0xFFEFFFFFFFFFFFFF, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000),
    *(0x7FF0000000000001, 0xFFF8000000000001, 0x3FF0000000000000, 0xBFF0000000000000, 0x3FE0000000000000),
    *(0x3FEFFFFFFFFFFFFF, 0x3FF0000000000001, 0x4004000000000000, 0xC004000000000000, 0x43E0000000000000),
    *(0xC3E0000000000000, 0x41DFFFFFFFC00000, 0x41E0000000000000, 0x41F0000000000000, 0x47EFFFFFE0000000),
    *(0x47EFFFFFF0000000, 0x36A0000000000000, 0x3690000000000000, 0x380FFFFFF0000000, 0x40EFFC0000000000),
)
F16_EDGES = (
    *(0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x7FFF),
    *(0x7C01, 0xFE01, 0xFFFF, 0x3C00, 0xBC00, 0x3BFF, 0x3C01, 0x3800, 0x3E00, 0x4100, 0x6400, 0x6401, 0x7800, 0x5BFF),
)
BF16_EDGES = (
    *(0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x807F, 0x0080, 0x8080, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0x7FFF),
    *(0x7F81, 0xFFC1, 0xFFFF, 0x3F80, 0xBF80, 0x3F7F, 0x3F81, 0x3F00, 0x3FC0, 0x4020, 0x4300, 0x4B00, 0x5F00, 0x1F80),
)

FLOATS: dict[str, tuple[str, int, tuple[int, ...]]] = {  # unsigned type of the bits, mantissa bits, edges
    "f16": ("uint16", 10, F16_EDGES),
    "bf16": ("uint16", 7, BF16_EDGES),
    "f32": ("uint32", 23, F32_EDGES),
    "f64": ("uint64", 52, F64_EDGES),
}
INTEGER_EDGES = {"uint16": U16_EDGES, "uint32": U32_EDGES, "uint64": U64_EDGES}


class Source:
    """A stream of reproducible values for one case."""

    def __init__(self, seed: str) -> None:
        """Start the stream that `seed` names."""
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little")
        self._words = np.random.PCG64(number)

    def raw(self, count: int) -> NDArray[np.uint64]:
        """Return uniform 64-bit words."""
        return np.asarray(self._words.random_raw(count), dtype=np.uint64).reshape(count)

    def bits(self, count: int, dtype: str) -> Array:
        """Return uniform unsigned integers."""
        return self.raw(count).astype(dtype)

    def below(self, count: int, bound: int) -> NDArray[np.int64]:
        """Return integers in [0, bound)."""
        return (self.raw(count) % np.uint64(bound)).astype(np.int64)

    def between(self, count: int, low: int, high: int) -> NDArray[np.int64]:
        """Return integers in [low, high]."""
        return self.below(count, high - low + 1) + low

    def unit(self, count: int) -> NDArray[np.float64]:
        """Return multiples of 2**-53 in [0, 1)."""
        return (self.raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return sums of twelve uniform values, which are close to Gaussian and the same on every machine."""
        return np.asarray(self.unit(12 * count).reshape(12, count).sum(axis=0) - 6.0)

    def pick(self, count: int, values: Sequence[int], dtype: str) -> Array:
        """Return values drawn from a list."""
        return np.array(values, dtype)[self.below(count, len(values))]

    def integers(self, count: int, dtype: str, edges: Iterable[int] | None = None) -> Array:
        """Return edges, uniform integers and integers of random length, a third of each."""
        width = np.dtype(dtype).itemsize * 8
        known = self.pick(count, tuple(INTEGER_EDGES[dtype] if edges is None else edges), dtype)
        uniform = self.bits(count, dtype)
        short = uniform >> self.below(count, width).astype(dtype)
        choice = self.below(count, 3)
        return np.select([choice == 0, choice == 1], [known, uniform], short).astype(dtype)

    def floats(self, count: int, kind: str) -> Array:
        """Return bits of edges, of any value and of values near one, a third of each."""
        dtype, mantissa, edges = FLOATS[kind]
        known = self.pick(count, edges, dtype)
        anything = self.bits(count, dtype)
        bias = (1 << (np.dtype(dtype).itemsize * 8 - 2 - mantissa)) - 1
        exponent = (bias + self.between(count, -4, 4)).astype(dtype)
        sign = (self.below(count, 2) << 1).astype(dtype) << np.dtype(dtype).type(np.dtype(dtype).itemsize * 8 - 2)
        near = sign | exponent << np.dtype(dtype).type(mantissa) | anything & np.dtype(dtype).type((1 << mantissa) - 1)
        choice = self.below(count, 3)
        return np.select([choice == 0, choice == 1], [known, anything], near).astype(dtype)


def all_pairs(values: Sequence[int], dtype: str) -> tuple[Array, Array]:
    """Return every pair of a list, as two arrays."""
    first, second = np.meshgrid(np.array(values, dtype), np.array(values, dtype), indexing="ij")
    return first.ravel(), second.ravel()


def packed(low: Array, high: Array) -> Array:
    """Return pairs of 16-bit values as 32-bit words."""
    return low.astype("uint32") | high.astype("uint32") << np.uint32(16)
