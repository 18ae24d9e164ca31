"""Integer forms against Python's integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulator.isa.evaluate import evaluate, integers, one, signed, unsigned

RNG = np.random.default_rng(20)
WIDTHS = {"u16": 16, "s16": 16, "u32": 32, "s32": 32, "u64": 64, "s64": 64}


def read(type: str, values: NDArray[np.generic]) -> list[int]:
    return signed(values) if type[0] == "s" else unsigned(values)


def clamp(value: int, type: str) -> int:
    bits = WIDTHS[type]
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if type[0] == "s" else (0, (1 << bits) - 1)
    return max(low, min(high, value))


def quotient(a: int, b: int) -> int:
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a: int, b: int) -> int:
    return -1 if b == 0 else abs(a) % abs(b) * (-1 if a < 0 else 1)


BINARY: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, n: a + b,
    "sub": lambda a, b, n: a - b,
    "mul.lo": lambda a, b, n: a * b,
    "mul.hi": lambda a, b, n: a * b >> n,
    "div": lambda a, b, n: quotient(a, b),
    "rem": lambda a, b, n: remainder(a, b),
    "min": lambda a, b, n: min(a, b),
    "max": lambda a, b, n: max(a, b),
}


@pytest.mark.parametrize("type", WIDTHS)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str, type: str) -> None:
    bits = WIDTHS[type]
    a, b = integers(bits, 3000, RNG)
    expected = [BINARY[name](x, y, bits) % (1 << bits) for x, y in zip(read(type, a), read(type, b), strict=True)]
    assert unsigned(one(f"{name}.{type}", a, b)) == expected


@pytest.mark.parametrize("type", WIDTHS)
@pytest.mark.parametrize("part", ["lo", "hi", "wide"])
def test_multiply_add(part: str, type: str) -> None:
    bits = WIDTHS[type]
    if part == "wide" and bits == 64:
        pytest.skip("there is no 128-bit result")
    a, b, c = integers(bits, 2000, RNG, crossed=3)
    if part == "wide":
        c = np.concatenate([c, c]).view(f"u{bits // 4}")[: len(a)]
    width = 2 * bits if part == "wide" else bits
    expected = [
        ((x * y >> (bits if part == "hi" else 0)) + z) % (1 << width)
        for x, y, z in zip(read(type, a), read(type, b), unsigned(c), strict=True)
    ]
    assert unsigned(one(f"mad.{part}.{type}", a, b, c)) == expected
    expected = [
        (x * y >> (bits if part == "hi" else 0)) % (1 << width)
        for x, y in zip(read(type, a), read(type, b), strict=True)
    ]
    assert unsigned(one(f"mul.{part}.{type}", a, b)) == expected


@pytest.mark.parametrize("type", ["u32", "s32"])
@pytest.mark.parametrize("part", ["lo", "hi"])
def test_24_bits(part: str, type: str) -> None:
    a, b, c = integers(32, 2000, RNG, crossed=3)

    def low24(value: int) -> int:
        value &= 0xFFFFFF
        return value - (1 << 24) if type == "s32" and value >> 23 else value

    products = [
        low24(x) * low24(y) >> (0 if part == "lo" else 16) for x, y in zip(unsigned(a), unsigned(b), strict=True)
    ]
    assert unsigned(one(f"mul24.{part}.{type}", a, b)) == [p % (1 << 32) for p in products]
    sums = [(p % (1 << 32) + z) % (1 << 32) for p, z in zip(products, unsigned(c), strict=True)]
    assert unsigned(one(f"mad24.{part}.{type}", a, b, c)) == sums
    if (part, type) == ("hi", "s32"):
        clamped = [clamp(p + z, "s32") for p, z in zip(products, signed(c), strict=True)]
        assert signed(one("mad24.hi.sat.s32", a, b, c)) == clamped


def test_saturating() -> None:
    a, b, c = integers(32, 2000, RNG, crossed=3)
    x, y, z = signed(a), signed(b), signed(c)
    assert signed(one("add.sat.s32", a, b)) == [clamp(i + j, "s32") for i, j in zip(x, y, strict=True)]
    assert signed(one("sub.sat.s32", a, b)) == [clamp(i - j, "s32") for i, j in zip(x, y, strict=True)]
    expected = [clamp((i * j >> 32) + k, "s32") for i, j, k in zip(x, y, z, strict=True)]
    assert signed(one("mad.hi.sat.s32", a, b, c)) == expected
    assert signed(one("min.relu.s32", a, b)) == [max(min(i, j), 0) for i, j in zip(x, y, strict=True)]
    assert signed(one("max.relu.s32", a, b)) == [max(i, j, 0) for i, j in zip(x, y, strict=True)]


@pytest.mark.parametrize("type", WIDTHS)
def test_sum_of_absolute_differences(type: str) -> None:
    bits = WIDTHS[type]
    a, b, c = integers(bits, 2000, RNG, crossed=3)
    expected = [
        (abs(x - y) + z) % (1 << bits) for x, y, z in zip(read(type, a), read(type, b), unsigned(c), strict=True)
    ]
    assert unsigned(one(f"sad.{type}", a, b, c)) == expected


@pytest.mark.parametrize("type", ["s16", "s32", "s64"])
def test_signs(type: str) -> None:
    bits = WIDTHS[type]
    (a,) = integers(bits, 2000, RNG, crossed=1)
    assert unsigned(one(f"abs.{type}", a)) == [abs(x) % (1 << bits) for x in signed(a)]
    assert unsigned(one(f"neg.{type}", a)) == [-x % (1 << bits) for x in signed(a)]


@pytest.mark.parametrize("type", ["u16", "s16"])
def test_pairs(type: str) -> None:
    a, b = integers(32, 4000, RNG)
    halves = [[(value.astype(np.uint32) >> s).astype(np.uint16) for s in (0, 16)] for value in (a, b)]

    def expected(function: Callable[[int, int], int]) -> list[int]:
        parts = [
            [function(x, y) & 0xFFFF for x, y in zip(read(type, p), read(type, q), strict=True)]
            for p, q in zip(*halves, strict=True)
        ]
        return [low | high << 16 for low, high in zip(*parts, strict=True)]

    assert unsigned(one(f"add.{type}x2", a, b)) == expected(lambda x, y: x + y)
    assert unsigned(one(f"min.{type}x2", a, b)) == expected(min)
    assert unsigned(one(f"max.{type}x2", a, b)) == expected(max)
    if type == "s16":
        assert unsigned(one("min.relu.s16x2", a, b)) == expected(lambda x, y: max(min(x, y), 0))
        assert unsigned(one("max.relu.s16x2", a, b)) == expected(lambda x, y: max(x, y, 0))


def fields(value: int, count: int, width: int, type: str) -> list[int]:
    found = [value >> (i * width) & ((1 << width) - 1) for i in range(count)]
    return [f - (1 << width) if type[0] == "s" and f >> (width - 1) else f for f in found]


@pytest.mark.parametrize("b_type", ["u32", "s32"])
@pytest.mark.parametrize("a_type", ["u32", "s32"])
def test_dot_products(a_type: str, b_type: str) -> None:
    a, b, c = integers(32, 3000, RNG, crossed=3)
    rows = list(zip(unsigned(a), unsigned(b), unsigned(c), strict=True))

    def total(x: list[int], y: list[int], z: int) -> int:
        return (sum(p * q for p, q in zip(x, y, strict=True)) + z) % (1 << 32)

    expected = [total(fields(x, 4, 8, a_type), fields(y, 4, 8, b_type), z) for x, y, z in rows]
    assert unsigned(one(f"dp4a.{a_type}.{b_type}", a, b, c)) == expected
    for half, start in (("lo", 0), ("hi", 2)):
        expected = [total(fields(x, 2, 16, a_type), fields(y, 4, 8, b_type)[start : start + 2], z) for x, y, z in rows]
        assert unsigned(one(f"dp2a.{half}.{a_type}.{b_type}", a, b, c)) == expected


@pytest.mark.parametrize("type", ["u32", "s32", "u64", "s64"])
def test_carries_chain_to_wide_sums(type: str) -> None:
    bits = WIDTHS[type]
    whole = 1 << (3 * bits)
    parts = integers(bits, 3000, RNG, crossed=3)
    others = [np.random.default_rng(i).permutation(part) for i, part in enumerate(parts)]

    def wide(words: list[NDArray[np.generic]]) -> list[int]:
        columns = [unsigned(word) for word in words]
        return [x | y << bits | z << (2 * bits) for x, y, z in zip(*columns, strict=True)]

    a, b = wide(parts), wide(others)
    for first, middle, last, sign in (("add.cc", "addc.cc", "addc", 1), ("sub.cc", "subc.cc", "subc", -1)):
        low, carry = evaluate(f"{first}.{type}", parts[0], others[0])
        mid, carry = evaluate(f"{middle}.{type}", parts[1], others[1], carry)
        high = one(f"{last}.{type}", parts[2], others[2], carry)
        assert wide([low, mid, high]) == [(x + sign * y) % whole for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("type", ["u32", "s32", "u64", "s64"])
def test_multiply_add_with_carry(type: str) -> None:
    bits = WIDTHS[type]
    a, b, c = integers(bits, 3000, RNG, crossed=3)
    d = np.random.default_rng(1).permutation(c)
    products = [x * y for x, y in zip(read(type, a), read(type, b), strict=True)]
    low, carry = evaluate(f"mad.lo.cc.{type}", a, b, c)
    high, top = evaluate(f"madc.hi.cc.{type}", a, b, d, carry)
    again = one(f"madc.hi.{type}", a, b, d, carry)
    addends = [x | y << bits for x, y in zip(unsigned(c), unsigned(d), strict=True)]
    sums = [p % (1 << 2 * bits) + z for p, z in zip(products, addends, strict=True)]
    assert [x | y << bits for x, y in zip(unsigned(low), unsigned(high), strict=True)] == [
        s % (1 << 2 * bits) for s in sums
    ]
    assert [int(x) for x in top] == [s >> (2 * bits) for s in sums]
    assert (high == again).all()


def test_multiply_add_hands_its_carry_on() -> None:
    one_bits = np.full(32, 0xFFFFFFFF, np.uint32)
    zero = np.zeros(32, np.uint32)
    for opcode in ("madc.lo.cc.u32", "mad.lo.cc.u32"):
        carry = () if opcode.startswith("mad.") else (np.ones(32, np.bool_),)
        low, out = evaluate(opcode, one_bits, one_bits, one_bits, *carry)
        # (2**32 - 1)**2 has the low word 1; with 2**32 - 1 added it carries.
        assert (low == len(carry)).all()
        assert out.all()
        _, out = evaluate(opcode, zero, zero, zero, *carry)
        assert not out.any()
