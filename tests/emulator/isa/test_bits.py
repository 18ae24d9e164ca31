"""Bit fields, counts, logic, shifts and byte permutations against Python's integers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulator.isa.evaluate import evaluate, integers, one, signed, unsigned

RNG = np.random.default_rng(21)
Words = NDArray[np.generic]


def crossed(*columns: list[int], dtypes: tuple[str, ...]) -> list[Words]:
    """Return all combinations, one array a column."""
    rows = list(itertools.product(*columns))
    return [np.array([row[i] for row in rows], np.uint64).astype(dtype) for i, dtype in enumerate(dtypes)]


def samples(bits: int) -> list[int]:
    return [int(x) for x in integers(bits, 40, RNG, crossed=1)[0][-60:]] + [0, (1 << bits) - 1, 1 << (bits - 1), 1]


@pytest.mark.parametrize("bits", [32, 64])
def test_counts(bits: int) -> None:
    (a,) = integers(bits, 4000, RNG, crossed=1)
    words = unsigned(a)
    assert unsigned(one(f"popc.b{bits}", a)) == [x.bit_count() for x in words]
    assert unsigned(one(f"clz.b{bits}", a)) == [bits - x.bit_length() for x in words]
    assert unsigned(one(f"brev.b{bits}", a)) == [int(f"{x:0{bits}b}"[::-1], 2) for x in words]

    def found(x: int, sign: bool) -> int:
        x = x ^ ((1 << bits) - 1) if sign and x >> (bits - 1) else x
        return x.bit_length() - 1

    for sign in (False, True):
        type = f"{'s' if sign else 'u'}{bits}"
        positions = [found(x, sign) for x in words]
        assert signed(one(f"bfind.{type}", a)) == positions
        assert signed(one(f"bfind.shiftamt.{type}", a)) == [-1 if p < 0 else bits - 1 - p for p in positions]


@pytest.mark.parametrize("bits", [32, 64])
def test_extract_every_position_and_length(bits: int) -> None:
    counts = [*range(bits + 2), 127, 128, 255, 256 + 5, 0xFFFFFF00 + bits]
    a, position, length = crossed(samples(bits), counts, counts, dtypes=(f"u{bits // 8}", "u4", "u4"))

    def field(x: int, p: int, n: int, sign: bool) -> int:
        # The manual's loop, bit by bit.
        p, n, top = p & 255, n & 255, bits - 1
        fill = (x >> min(p + n - 1, top)) & 1 if sign and n else 0
        chosen = [(x >> (p + i)) & 1 if i < n and p + i <= top else fill for i in range(bits)]
        return sum(bit << i for i, bit in enumerate(chosen))

    pick = RNG.choice(len(a), 12000, replace=False)
    rows = [(int(a[i]), int(position[i]), int(length[i])) for i in pick]
    for sign in (False, True):
        result = one(f"bfe.{'s' if sign else 'u'}{bits}", a[pick], position[pick], length[pick])
        assert unsigned(result) == [field(*row, sign) for row in rows]


@pytest.mark.parametrize("bits", [32, 64])
def test_insert_every_position_and_length(bits: int) -> None:
    counts = [*range(bits + 2), 127, 128, 255, 256 + 5, 0xFFFFFF00 + bits]
    a, position, length = crossed(samples(bits), counts, counts, dtypes=(f"u{bits // 8}", "u4", "u4"))
    pick = RNG.choice(len(a), 12000, replace=False)
    a, position, length = a[pick], position[pick], length[pick]
    b = RNG.permutation(a)

    def inserted(x: int, y: int, p: int, n: int) -> int:
        mask = (((1 << (n & 255)) - 1) << (p & 255)) & ((1 << bits) - 1)
        return (y & ~mask) | ((x << (p & 255)) & mask)

    expected = [inserted(*row) for row in zip(*map(unsigned, (a, b, position, length)), strict=True)]
    assert unsigned(one(f"bfi.b{bits}", a, b, position, length)) == expected


def test_find_nth_set() -> None:
    masks = [0, 1, 0x80000000, 0xFFFFFFFF, 0x00F0F00F, 0x80000001, *[int(x) for x in RNG.integers(0, 1 << 32, 40)]]
    offsets = [*range(-34, 35), -(1 << 31), (1 << 31) - 1]
    a, base, offset = crossed(
        masks, [*range(32), 32, 40, 1 << 31], [o % (1 << 32) for o in offsets], dtypes=("u4", "u4", "u4")
    )

    def nth(mask: int, start: int, count: int) -> int:
        if start > 31:
            return -1
        if count == 0:
            return start if mask >> start & 1 else -1
        order = range(start, 32) if count > 0 else range(start, -1, -1)
        hits = [i for i in order if mask >> i & 1]
        return hits[abs(count) - 1] if abs(count) <= len(hits) else -1

    expected = [nth(*row) for row in zip(unsigned(a), unsigned(base), signed(offset), strict=True)]
    assert signed(one("fns.b32", a, base, offset)) == expected


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_masks_and_extensions(mode: str) -> None:
    counts = [*range(66), 255, 1 << 31, (1 << 32) - 1]
    position, width = crossed(counts, counts, dtypes=("u4", "u4"))

    def mask(p: int, w: int) -> int:
        if mode == "wrap":
            p, w = p & 31, w & 31
        return sum(1 << i for i in range(32) if p <= i < p + w)

    expected = [mask(*row) for row in zip(unsigned(position), unsigned(width), strict=True)]
    assert unsigned(one(f"bmsk.{mode}.b32", position, width)) == expected

    a, width = crossed(samples(32), counts, dtypes=("u4", "u4"))

    def extended(x: int, n: int, sign: bool) -> int:
        n = n & 31 if mode == "wrap" else min(n, 32)
        x &= (1 << n) - 1
        return (x - (1 << n)) % (1 << 32) if sign and n and x >> (n - 1) else x

    for type in ("u32", "s32"):
        expected = [extended(x, n, type == "s32") for x, n in zip(unsigned(a), unsigned(width), strict=True)]
        assert unsigned(one(f"szext.{mode}.{type}", a, width)) == expected


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(bits: int) -> None:
    a, b = integers(bits, 2000, RNG)
    rows = list(zip(unsigned(a), unsigned(b), strict=True))
    assert unsigned(one(f"and.b{bits}", a, b)) == [x & y for x, y in rows]
    assert unsigned(one(f"or.b{bits}", a, b)) == [x | y for x, y in rows]
    assert unsigned(one(f"xor.b{bits}", a, b)) == [x ^ y for x, y in rows]
    assert unsigned(one(f"not.b{bits}", a)) == [~x % (1 << bits) for x, _ in rows]
    assert unsigned(one(f"cnot.b{bits}", a)) == [int(x == 0) for x, _ in rows]


def test_predicate_logic() -> None:
    a, b = np.array([False, False, True, True] * 8), np.array([False, True] * 16)
    assert (one("and.pred", a, b) == (a & b)).all()
    assert (one("or.pred", a, b) == (a | b)).all()
    assert (one("xor.pred", a, b) == (a ^ b)).all()
    assert (one("not.pred", a) == ~a).all()


@pytest.mark.parametrize("known", [True, False])
def test_every_truth_table(known: bool) -> None:
    a, b, c = (RNG.integers(0, 1 << 32, 64, np.uint64).astype(np.uint32) for _ in range(3))
    bits = [(x >> np.arange(32, dtype=np.uint32)[:, None]) & 1 for x in (a, b, c)]
    for table in range(256):
        chosen = (table >> (bits[0] * 4 + bits[1] * 2 + bits[2]).astype(np.int64)) & 1
        expected = (chosen << np.arange(32)[:, None]).sum(axis=0)
        # The manual's own way to write a table down.
        formula = (0xF0, 0xCC, 0xAA)
        assert (formula[0] & formula[1]) == 0xC0
        lut = table if known else np.full(64, table, np.uint32)
        assert (one("lop3.b32", a, b, c, lut) == expected).all(), hex(table)


@pytest.mark.parametrize("op", ["or", "and"])
def test_truth_table_with_predicate(op: str) -> None:
    a, b, c = integers(32, 64, RNG, crossed=3)
    q = RNG.integers(0, 2, len(a)).astype(np.bool_)
    value, found = evaluate(f"lop3.{op}.b32", a, b, c, 0x80, q, num_dst=2)
    assert (value == (a & b & c)).all()
    nonzero = (a & b & c) != 0
    assert (found == (nonzero | q if op == "or" else nonzero & q)).all()


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts_clamp(bits: int) -> None:
    counts = [*range(bits + 3), 255, 256, 65536, 1 << 31, (1 << 32) - 1]
    a, count = crossed(samples(bits), counts, dtypes=(f"u{bits // 8}", "u4"))
    rows = list(zip(unsigned(a), unsigned(count), strict=True))
    assert unsigned(one(f"shl.b{bits}", a, count)) == [(x << min(n, 64)) % (1 << bits) for x, n in rows]
    for type in ("u", "b"):
        assert unsigned(one(f"shr.{type}{bits}", a, count)) == [x >> min(n, 64) for x, n in rows]
    expected = [(x >> min(n, 64)) % (1 << bits) for x, n in zip(signed(a), unsigned(count), strict=True)]
    assert unsigned(one(f"shr.s{bits}", a, count)) == expected


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_funnel_shifts(mode: str) -> None:
    counts = [*range(67), 255, 1 << 31, (1 << 32) - 1]
    a, count = crossed(samples(32), counts, dtypes=("u4", "u4"))
    b = RNG.permutation(a)
    rows = list(zip(unsigned(a), unsigned(b), unsigned(count), strict=True))

    def by(n: int) -> int:
        return min(n, 32) if mode == "clamp" else n & 31

    left = [((y << 32 | x) << by(n) >> 32) % (1 << 32) for x, y, n in rows]
    right = [((y << 32 | x) >> by(n)) % (1 << 32) for x, y, n in rows]
    assert unsigned(one(f"shf.l.{mode}.b32", a, b, count)) == left
    assert unsigned(one(f"shf.r.{mode}.b32", a, b, count)) == right


def permuted(a: int, b: int, selector: int) -> int:
    pool = (a | b << 32).to_bytes(8, "little")
    result = 0
    for i in range(4):
        digit = selector >> (4 * i) & 15
        byte = pool[digit & 7]
        result |= ((0xFF if byte & 0x80 else 0) if digit & 8 else byte) << (8 * i)
    return result


def test_permutes_by_every_selector() -> None:
    selector = np.arange(1 << 16, dtype=np.uint32) | 0xABCD0000
    a = RNG.integers(0, 1 << 32, len(selector), np.uint64).astype(np.uint32)
    b = RNG.permutation(a)
    expected = [permuted(*row) for row in zip(*map(unsigned, (a, b, selector)), strict=True)]
    assert unsigned(one("prmt.b32", a, b, selector)) == expected
    # As an immediate, whose bytes are moved together; every pair of digits is among these.
    a, b = a[:40], b[:40]
    for constant in [*range(0, 1 << 16, 251), *range(256), 0x5410, 0x7632, 0x3210, 0x7654, 0x0123, 0xFFFF, 0x1032]:
        expected = [permuted(x, y, constant) for x, y in zip(unsigned(a), unsigned(b), strict=True)]
        assert unsigned(one("prmt.b32", a, b, constant)) == expected, hex(constant)


MODES = {
    "f4e": lambda i, c: i + c,
    "b4e": lambda i, c: (c - i) % 8,
    "rc8": lambda i, c: c,
    "ecl": lambda i, c: max(i, c),
    "ecr": lambda i, c: min(i, c),
    "rc16": lambda i, c: (i & 1) + 2 * (c & 1),
}


@pytest.mark.parametrize("mode", MODES)
def test_permute_modes(mode: str) -> None:
    a, b = integers(32, 50, RNG)
    for c in (0, 1, 2, 3, 0xFFFFFFFC + 1):
        selector = sum(MODES[mode](i, c & 3) << (4 * i) for i in range(4))
        expected = [permuted(x, y, selector) for x, y in zip(unsigned(a), unsigned(b), strict=True)]
        assert unsigned(one(f"prmt.b32.{mode}", a, b, c)) == expected
        assert unsigned(one(f"prmt.b32.{mode}", a, b, np.full(len(a), c, np.uint32))) == expected
