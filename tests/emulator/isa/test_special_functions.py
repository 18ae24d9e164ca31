"""Approximations of the hardware: all results of whole binades, as hashes of what an H200 gave."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from megamoe_jit.emulator.isa.special_functions import TABLES
from tests.emulator.isa.evaluate import one

# (function, bits of the first operand) -> hash of its result and of those of the 2**23 - 1 operands that follow.
BINADES = {
    ("ex2", 0x3F800000): "cce5df10202dbfcde720ca547d147edb",
    ("ex2", 0xBF800000): "503d2238b9f4c00e8686f80a703dd13d",
    ("ex2", 0x3F000000): "ac81d74ed3b84eb18194bceedf3490cf",
    ("ex2", 0x3E000000): "c2ca36452c37bdecffd3be10f7507cb0",
    ("ex2", 0x41000000): "faa9de4bc61220311159c40c02d51bcd",
    ("rcp", 0x3F800000): "c408381446132e07fa5581e930dc33fb",
    ("rsqrt", 0x3F800000): "c733e1437c713cd7e87f4c7e52e9aab2",
    ("rsqrt", 0x40000000): "fd7b866f4085a9e88ef6abdd9ba2726e",
    ("sqrt", 0x3F800000): "dc6925bfdd56d604760414da31328a65",
    ("sqrt", 0x40000000): "ffc55416e1586610267a0adf5b3a1498",
}
CHUNK = 1 << 20


@pytest.mark.parametrize(("name", "first"), BINADES)
def test_whole_binade(name: str, first: int) -> None:
    digest = hashlib.sha256()
    for start in range(0, 1 << 23, CHUNK):
        operands = np.arange(start, start + CHUNK, dtype=np.uint32) + np.uint32(first)
        digest.update(one(f"{name}.approx.ftz.f32", operands).astype("<u4").tobytes())
    assert digest.hexdigest()[:32] == BINADES[name, first]


@pytest.mark.parametrize("name", TABLES)
def test_neighbouring_pieces_meet(name: str) -> None:
    """Coefficients of a row lead to the next row's start, to within a few units of the last place."""
    fraction = np.arange(0, 1 << 23, 1 << 16, dtype=np.uint32)[1:]
    for binade in (127,) if name == "ex2" else (127, 128):
        after = fraction + np.uint32(binade << 23)
        below, above = (one(f"{name}.approx.ftz.f32", bits).astype(np.int64) for bits in (after - 1, after))
        assert np.abs(above - below).max() <= 3
