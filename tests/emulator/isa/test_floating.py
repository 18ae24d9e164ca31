"""Floating-point arithmetic against exact fractions, rounded once by definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulator.isa.evaluate import one
from tests.emulator.isa.numbers import DTYPES, EDGES, operands, random_bits, round_fraction

Array = NDArray[Any]
Exact = Callable[..., Fraction]
MODES = ["rn", "rz", "rm", "rp"]
NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF}


def numbers(type: str, patterns: Array) -> list[float]:
    with np.errstate(invalid="ignore"):
        return patterns.view(DTYPES[type]).astype(np.float64).tolist()


def check(
    type: str, mode: str, result: Array, inputs: list[Array], exact: Exact, special: Callable[..., float]
) -> None:
    """Hold patterns to the exact function where all inputs are finite, to IEEE arithmetic of f64 where one is not."""
    got = numbers(type, result)
    for row, value, bits in zip(
        zip(*[numbers(type, x) for x in inputs], strict=True), got, result.tolist(), strict=True
    ):
        if not all(map(math.isfinite, row)):
            with np.errstate(all="ignore"):
                wanted = float(special(*map(np.float64, row)))
        else:
            rounded = round_fraction(exact(*map(Fraction, row)), type, mode)
            if rounded is None:
                wanted = math.inf if exact(*map(Fraction, row)) > 0 else -math.inf
            elif rounded == 0:
                assert value == 0, row
                continue
            else:
                wanted = float(rounded)
        if math.isnan(wanted):
            assert math.isnan(value), row
            assert type not in NAN or bits == NAN[type], row
        else:
            assert value == wanted, (row, value, wanted)


SUMS: dict[str, tuple[int, Exact, Callable[..., float]]] = {
    "add": (2, lambda a, b: a + b, lambda a, b: a + b),
    "sub": (2, lambda a, b: a - b, lambda a, b: a - b),
    "mul": (2, lambda a, b: a * b, lambda a, b: a * b),
    # A finite product has no place in f64's range to overflow from.
    "fma": (3, lambda a, b, c: a * b + c, lambda a, b, c: c if np.isfinite(a) and np.isfinite(b) else a * b + c),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SUMS)
def test_single(name: str, mode: str) -> None:
    count, exact, special = SUMS[name]
    inputs = operands("f32", 3000, count, 30)
    check("f32", mode, one(f"{name}.{mode}.f32", *inputs), inputs, exact, special)


@pytest.mark.parametrize("type", ["f16", "bf16"])
@pytest.mark.parametrize("name", SUMS)
def test_half(name: str, type: str) -> None:
    count, exact, special = SUMS[name]
    inputs = operands(type, 6000, count, 31)
    check(type, "rn", one(f"{name}.rn.{type}", *inputs), inputs, exact, special)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SUMS)
def test_double(name: str, mode: str) -> None:
    count, exact, special = SUMS[name]
    inputs = operands("f64", 1500, count, 32)
    # Results around the smallest normal number, and addends that almost cancel a product.
    tiny = [(x & np.uint64(0x800FFFFFFFFFFFFF)) | np.uint64((1023 - 511 - i % 2) << 52) for i, x in enumerate(inputs)]
    tiny[2:] = [x & np.uint64(0x803FFFFFFFFFFFFF) for x in inputs[2:]]
    near = [x.copy() for x in inputs]
    with np.errstate(all="ignore"):
        if count == 3:
            product = near[0].view(np.float64) * near[1].view(np.float64)
            near[2] = (-product).view(np.uint64) ^ np.random.default_rng(1).integers(0, 4, len(product)).astype(
                np.uint64
            )
    inputs = [np.concatenate(parts) for parts in zip(inputs, tiny, near, strict=True)]
    check("f64", mode, one(f"{name}.{mode}.f64", *inputs), inputs, exact, special)


def test_double_nans_propagate() -> None:
    """The operand whose NaN wins is the hardware's choice; an invalid operation has a NaN of its own."""
    first, second, third = (
        np.array([x], np.uint64) for x in (0x7FF0000000000001, 0xFFF8000000000002, 0x7FF8000000000003)
    )
    infinity = np.array([0x7FF0000000000000], np.uint64)
    quiet = np.uint64(1 << 51)
    for mode in MODES:
        assert one(f"add.{mode}.f64", first, second) == second
        assert one(f"mul.{mode}.f64", second, first) == first | quiet
        assert one(f"div.{mode}.f64", first, second) == first | quiet
        assert one(f"fma.{mode}.f64", first, second, third) == second
        assert one(f"fma.{mode}.f64", first, infinity, third) == third
        assert one(f"sub.{mode}.f64", infinity, infinity) == np.uint64(0xFFF8000000000000)


def test_half_fma_next_to_a_tie() -> None:
    """A product on a tie of bf16 with an addend far below it: one rounding goes the addend's way, two go to even."""
    one_and_a_half_ulp = np.array([1 + 2**-4], ml_dtypes.bfloat16)
    tie = Fraction(float(one_and_a_half_ulp[0])) ** 2
    assert tie == 1 + Fraction(1, 8) + Fraction(1, 256)
    tiny = [2.0**e * s for e in range(-133, -60) for s in (1, -1)]
    c = np.array(tiny, ml_dtypes.bfloat16).view(np.uint16)
    a = np.full(len(c), one_and_a_half_ulp.view(np.uint16)[0], np.uint16)
    check("bf16", "rn", one("fma.rn.bf16", a, a, c), [a, a, c], SUMS["fma"][1], SUMS["fma"][2])


QUOTIENTS: dict[str, tuple[int, Callable[..., float]]] = {
    "div": (2, lambda a, b: a / b),
    "rcp": (1, lambda a: 1 / a),
}


@pytest.mark.parametrize("type", ["f32", "f64"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", QUOTIENTS)
def test_quotients(name: str, mode: str, type: str) -> None:
    count, special = QUOTIENTS[name]
    inputs = operands(type, 2000, count, 33)
    result = one(f"{name}.{mode}.{type}", *inputs)
    divisors = np.array(numbers(type, inputs[-1]))
    keep = divisors != 0

    def exact(*row: Fraction) -> Fraction:
        return row[0] / row[1] if count == 2 else 1 / row[0]

    check(type, mode, result[keep], [x[keep] for x in inputs], exact, special)
    dividends = np.array(numbers(type, inputs[0])) if count == 2 else np.ones(len(divisors))
    with np.errstate(all="ignore"):
        wanted = dividends[~keep] / divisors[~keep]
    assert np.array_equal(np.array(numbers(type, result[~keep])), wanted, equal_nan=True)


@pytest.mark.parametrize("type", ["f32", "f64"])
@pytest.mark.parametrize("mode", MODES)
def test_square_roots(mode: str, type: str) -> None:
    (a,) = operands(type, 4000, 1, 34)
    got = numbers(type, one(f"sqrt.{mode}.{type}", a))
    for number, value in zip(numbers(type, a), got, strict=True):
        if not number > 0 or math.isinf(number):
            assert value == number or (math.isnan(value) and not number >= 0)
            continue
        exact, root = Fraction(number), Fraction(value)
        size = DTYPES[type]
        below = Fraction(float(np.nextafter(size(value), size(0))))
        above = Fraction(float(np.nextafter(size(value), size(np.inf))))
        if mode == "rn":
            assert ((root + below) / 2) ** 2 <= exact <= ((root + above) / 2) ** 2
        elif mode == "rp":
            assert below**2 < exact <= root**2
        else:
            assert root**2 <= exact < above**2


def test_zero_signs() -> None:
    """An exact zero sum is +0, but -0 rounding down, unless both terms agree."""
    zeros = np.array([0, 1 << 31, 0, 1 << 31], np.uint32)
    others = np.array([0, 0, 1 << 31, 1 << 31], np.uint32)
    for mode in MODES:
        down = [0, 1 << 31, 1 << 31, 1 << 31] if mode == "rm" else [0, 0, 0, 1 << 31]
        assert one(f"add.{mode}.f32", zeros, others).tolist() == down
        ones = np.full(4, 0x3F800000, np.uint32)
        assert one(f"fma.{mode}.f32", zeros, ones, others).tolist() == down
        assert one(f"add.{mode}.f32", ones, ones | np.uint32(1 << 31)).tolist() == [(1 << 31) * (mode == "rm")] * 4
        assert one(f"mul.{mode}.f32", zeros, ones).tolist() == zeros.tolist()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SUMS)
def test_pairs_of_singles(name: str, mode: str) -> None:
    count = SUMS[name][0]
    inputs = operands("f32", 2000, count, 35)
    others = [np.random.default_rng(9).permutation(x) for x in inputs]
    packed = [x.astype(np.uint64) | y.astype(np.uint64) << np.uint64(32) for x, y in zip(inputs, others, strict=True)]
    for ftz in ("", ".ftz"):
        result = one(f"{name}.{mode}{ftz}.f32x2", *packed)
        assert np.array_equal(result.astype(np.uint32), one(f"{name}.{mode}{ftz}.f32", *inputs))
        assert np.array_equal((result >> np.uint64(32)).astype(np.uint32), one(f"{name}.{mode}{ftz}.f32", *others))


@pytest.mark.parametrize("type", ["f16", "bf16"])
@pytest.mark.parametrize("form", ["add", "sub", "mul", "fma.rn", "fma.rn.relu", "neg", "abs", "min", "max", "max.NaN"])
def test_pairs_of_halves(form: str, type: str) -> None:
    count = {"fma": 3, "neg": 1, "abs": 1}.get(form.split(".")[0], 2)
    inputs = operands(type, 2000, count, 36)
    others = [np.random.default_rng(9).permutation(x) for x in inputs]
    packed = [x.astype(np.uint32) | y.astype(np.uint32) << np.uint32(16) for x, y in zip(inputs, others, strict=True)]
    result = one(f"{form}.{type}x2", *packed)
    assert np.array_equal(result.astype(np.uint16), one(f"{form}.{type}", *inputs))
    assert np.array_equal((result >> np.uint32(16)).astype(np.uint16), one(f"{form}.{type}", *others))


def flushed(bits: Array, mantissa: int = 23, exponent: int = 0xFF) -> Array:
    is_small = (bits >> np.array(mantissa, bits.dtype)) & np.array(exponent, bits.dtype) == 0
    return np.where(is_small, bits & ~np.array((1 << (8 * bits.dtype.itemsize - 1)) - 1, bits.dtype), bits)


@pytest.mark.parametrize("name", SUMS)
def test_flush_to_zero(name: str) -> None:
    inputs = operands("f32", 3000, SUMS[name][0], 37)
    # Numbers whose products are near the smallest normal one.
    small = [(x & np.uint32(0x807FFFFF)) | np.uint32((127 - 63 - i) << 23) for i, x in enumerate(inputs[:2])]
    inputs = [np.concatenate([x, y]) for x, y in zip(inputs, [*small, inputs[0] & np.uint32(0x81FFFFFF)], strict=False)]
    for mode in MODES:
        expected = flushed(one(f"{name}.{mode}.f32", *map(flushed, inputs)))
        result = one(f"{name}.{mode}.ftz.f32", *inputs)
        # What rounds up to the smallest normal number only because subnormals have fewer bits is tiny.
        rows = zip(*[numbers("f32", flushed(x)) for x in inputs], result.tolist(), expected.tolist(), strict=True)
        for *row, got, wanted in rows:
            if wanted & 0x7FFFFFFF == 0x00800000:
                exact = SUMS[name][1](*map(Fraction, row))
                wide = round_fraction(exact * 2**64, "f32", mode)
                assert wide is not None
                wanted = wanted if abs(wide) >= Fraction(2) ** (64 - 126) else wanted & (1 << 31)
            assert got == wanted, row


def test_flush_of_halves_looks_before_rounding() -> None:
    # 2**-14 - 2**-26 rounds to the smallest normal f16, but is below it.
    a = np.array([0x3BFF, 0x3C00, 0x3BFE], np.uint16)
    b = np.array([0x0400, 0x0400, 0x8400], np.uint16)
    assert one("mul.ftz.f16", a, b).tolist() == [0, 0x0400, 0x8000]
    assert one("mul.f16", a, b).tolist()[0] == 0x0400
    x, y = operands("f16", 4000, 2, 38)
    kept = one("add.f16", flushed(x, 10, 0x1F), flushed(y, 10, 0x1F))
    assert np.array_equal(one("add.ftz.f16", x, y), flushed(kept, 10, 0x1F))


@pytest.mark.parametrize(("type", "unit"), [("f32", 0x3F800000), ("f16", 0x3C00)])
def test_saturation(type: str, unit: int) -> None:
    x, y = operands(type, 3000, 2, 39)
    with np.errstate(invalid="ignore"):
        plain = one(f"add.{type}", x, y).view(DTYPES[type])
        expected = np.where(plain > 0, np.minimum(plain, DTYPES[type](1)), DTYPES[type](0)).astype(DTYPES[type])
    result = one(f"add.sat.{type}", x, y)
    assert np.array_equal(result, expected.view(result.dtype))
    assert result.max() == unit


@pytest.mark.parametrize("type", ["f16", "bf16"])
@pytest.mark.parametrize("mode", MODES)
def test_mixed_precision(mode: str, type: str) -> None:
    rng = np.random.default_rng(40)
    a, b = random_bits(type, 4000, 41), random_bits(type, 4000, 42)
    c = random_bits("f32", 4000, 43)
    with np.errstate(all="ignore"):
        like = np.array(numbers(type, a[:2000])) * rng.uniform(-2, 2, 2000)
        c[:2000] = like.astype(np.float32).view(np.uint32)
    with np.errstate(invalid="ignore"):
        wide = [x.view(DTYPES[type]).astype(np.float32).view(np.uint32) for x in (a, b)]
    assert np.array_equal(one(f"add.{mode}.f32.{type}", a, c), one(f"add.{mode}.f32", wide[0], c))
    assert np.array_equal(one(f"sub.{mode}.sat.f32.{type}", a, c), one(f"sub.{mode}.sat.f32", wide[0], c))
    assert np.array_equal(one(f"fma.{mode}.f32.{type}", a, b, c), one(f"fma.{mode}.f32", *wide, c))


@pytest.mark.parametrize("type", ["f16", "bf16", "f32", "f64"])
def test_signs_are_bits(type: str) -> None:
    a = np.concatenate(
        [np.array(EDGES[type], np.uint64).astype(random_bits(type, 1, 0).dtype), random_bits(type, 2000, 44)]
    )
    top = np.array(1 << (8 * a.dtype.itemsize - 1), a.dtype)
    nan = np.isnan(np.array(numbers(type, a)))
    # A NaN becomes the one that arithmetic gives; f64 only makes it quiet, and keeps its sign.
    of_nan = a | np.array(1 << 51, np.uint64) if type == "f64" else np.full(len(a), NAN[type], a.dtype)
    assert np.array_equal(one(f"neg.{type}", a), np.where(nan, of_nan, a ^ top))
    assert np.array_equal(one(f"abs.{type}", a), np.where(nan, of_nan, a & ~top))
    if type in ("f32", "f64"):
        b = np.random.default_rng(1).permutation(a)
        assert np.array_equal(one(f"copysign.{type}", a, b), (a & top) | (b & ~top))
    if type == "f32":
        assert np.array_equal(one("neg.ftz.f32", a), np.where(nan, of_nan, flushed(a) ^ top))
        assert np.array_equal(one("abs.ftz.f32", a), np.where(nan, of_nan, flushed(a) & ~top))


@pytest.mark.parametrize("type", ["f32", "f64"])
def test_classes(type: str) -> None:
    a = np.concatenate(
        [np.array(EDGES[type], np.uint64).astype(random_bits(type, 1, 0).dtype), random_bits(type, 2000, 45)]
    )
    x = a.view(DTYPES[type])
    with np.errstate(invalid="ignore"):
        subnormal = (x != 0) & (np.abs(x) < np.finfo(DTYPES[type]).tiny)
    expected = {
        "finite": np.isfinite(x), "infinite": np.isinf(x), "number": ~np.isnan(x), "notanumber": np.isnan(x),
        "subnormal": subnormal, "normal": np.isfinite(x) & ~subnormal,
    }  # fmt: skip
    for test, answer in expected.items():
        assert np.array_equal(one(f"testp.{test}.{type}", a), answer), test
