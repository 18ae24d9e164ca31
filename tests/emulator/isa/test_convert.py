"""Scalar conversions against Python's integers and fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulator.isa.evaluate import integers, one, signed, unsigned
from tests.emulator.isa.numbers import DTYPES, EDGES, operands, random_bits, round_fraction

Array = NDArray[Any]
RNG = np.random.default_rng(50)
BITS = {f"{s}{b}": b for s in "us" for b in (8, 16, 32, 64)}
FLOATS = ["f16", "bf16", "f32", "f64"]
MODES = ["rn", "rz", "rm", "rp"]
ENDS = [-2, -1, 0, 1, 6, 7, 8, 14, 15, 16, 22, 23, 24, 30, 31, 32, 52, 53, 62, 63, 64, 65]
WHOLE = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


def limits(type: str) -> tuple[int, int]:
    bits = BITS[type]
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if type[0] == "s" else (0, (1 << bits) - 1)


def read(type: str, values: Array) -> list[int]:
    return signed(values) if type[0] == "s" else unsigned(values)


def patterns(type: str, count: int, seed: int) -> Array:
    return operands(type, count, 1, seed)[0]


def numbers(type: str, bits: Array) -> list[float]:
    with np.errstate(invalid="ignore"):
        return bits.view(DTYPES[type]).astype(np.float64).tolist()


@pytest.mark.parametrize("to", BITS)
@pytest.mark.parametrize("source", BITS)
def test_integers(source: str, to: str) -> None:
    (a,) = integers(BITS[source], 500, RNG, crossed=1)
    low, high = limits(to)
    assert unsigned(one(f"cvt.{to}.{source}", a)) == [x % (1 << BITS[to]) for x in read(source, a)]
    if limits(source)[0] < low or limits(source)[1] > high:
        assert read(to, one(f"cvt.sat.{to}.{source}", a)) == [max(low, min(high, x)) for x in read(source, a)]


def whole_inputs(source: str) -> Array:
    """Numbers near halves and near the ends of every integer type, and any others."""
    ends = [s * (2.0**e + d) for e in ENDS for d in (-1, -0.5, 0, 0.5, 1) for s in (1, -1)]
    near = np.array([*ends, *(np.arange(-64, 64) / 4)], np.float64)
    with np.errstate(over="ignore"):
        chosen = near.astype(DTYPES[source])
        steps = [np.nextafter(chosen, DTYPES[source](way)) for way in (np.inf, -np.inf)]
        random = (RNG.standard_normal(300) * 2.0 ** RNG.uniform(-3, 66, 300)).astype(DTYPES[source])
    size = chosen.dtype.itemsize
    return np.concatenate([np.concatenate([chosen, *steps, random]).view(f"u{size}"), patterns(source, 300, 51)])


@pytest.mark.parametrize("mode", WHOLE)
@pytest.mark.parametrize("to", BITS)
@pytest.mark.parametrize("source", FLOATS)
def test_floats_to_integers(source: str, to: str, mode: str) -> None:
    a = whole_inputs(source)
    low, high = limits(to)
    got = read(to, one(f"cvt.{mode}.{to}.{source}", a))
    of_nan = 1 << (BITS[to] - 1) if source == "f64" or BITS[to] == 64 else 0
    for number, value in zip(numbers(source, a), got, strict=True):
        if math.isnan(number):
            assert value % (1 << BITS[to]) == of_nan
        elif math.isinf(number):
            assert value == (high if number > 0 else low)
        else:
            assert value == max(low, min(high, WHOLE[mode](Fraction(number)))), number


def test_flushed_subnormals_are_whole() -> None:
    tiny = np.array([1, 1 | 1 << 31, 0x007FFFFF, 0x807FFFFF], np.uint32)
    assert signed(one("cvt.rpi.s32.f32", tiny)) == [1, 0, 1, 0]
    assert signed(one("cvt.rmi.s32.f32", tiny)) == [0, -1, 0, -1]
    assert signed(one("cvt.rpi.ftz.s32.f32", tiny)) == signed(one("cvt.rmi.ftz.s32.f32", tiny)) == [0] * 4
    assert one("cvt.rpi.ftz.f32.f32", tiny).tolist() == [0, 1 << 31] * 2
    assert one("cvt.rpi.f32.f32", tiny).tolist() == [0x3F800000, 1 << 31] * 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("to", FLOATS)
@pytest.mark.parametrize("source", BITS)
def test_integers_to_floats(source: str, to: str, mode: str) -> None:
    (a,) = integers(BITS[source], 300, RNG, crossed=1)
    if BITS[source] > 8:
        # Next to the midpoints of every mantissa.
        base = RNG.integers(0, 1 << BITS[source] - 1, 400, np.uint64)
        shift = RNG.integers(0, BITS[source], 400).astype(np.uint64)
        ties = (base >> shift << shift) | (np.uint64(1) << shift >> np.uint64(1))
        near = np.concatenate([ties, ties + np.uint64(1), ties - np.uint64(1)]).astype(a.dtype)
        a = np.concatenate([a, near])
    got = numbers(to, one(f"cvt.{mode}.{to}.{source}", a))
    for number, value in zip(read(source, a), got, strict=True):
        rounded = round_fraction(Fraction(number), to, mode)
        if rounded is None:
            assert value == math.copysign(math.inf, number)
        else:
            assert math.isfinite(value), number
            assert Fraction(value) == rounded, number


NARROWING = [
    (source, to)
    for source in FLOATS
    for to in FLOATS[:3]
    if source != to and FLOATS.index(to) <= max(1, FLOATS.index(source))
]


@pytest.mark.parametrize(("source", "to"), [("f16", "bf16"), ("bf16", "f16")])
def test_between_halves_no_rounding_is_the_nearest(source: str, to: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    assert np.array_equal(one(f"cvt.{to}.{source}", every), one(f"cvt.rn.{to}.{source}", every))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("source", "to"), [pair for pair in NARROWING if pair[1] != "f32" or pair[0] == "f64"])
def test_narrowing(source: str, to: str, mode: str) -> None:
    a = patterns(source, 1000, 52)
    extra = patterns(to, 1000, 53)
    with np.errstate(all="ignore"):
        close = extra.view(DTYPES[to]).astype(np.float64).astype(DTYPES[source])
        ulp = np.nextafter(close, DTYPES[source](np.inf)) if source != "f16" else close
        middle = ((close.astype(np.float64) + np.nextafter(close, close.dtype.type(0)).astype(np.float64)) / 2).astype(
            DTYPES[source]
        )
        if source == "f64" and to != "f32":
            # A hair off f32's rounding of a tie of the smaller format.
            half = (extra.astype(np.uint32) << np.uint32(16) | np.uint32(0x8000)).view(np.float32).astype(np.float64)
            middle = np.concatenate([middle, half * (1 + 2.0**-50), half * (1 - 2.0**-50), half])
    a = np.concatenate([a, *(x.view(a.dtype) for x in (close, ulp, middle))])
    result = one(f"cvt.{mode}.{to}.{source}", a)
    for number, value, bits in zip(numbers(source, a), numbers(to, result), result.tolist(), strict=True):
        if math.isnan(number):
            assert math.isnan(value)
            assert source == "f64" or bits == 0x7FFF
            continue
        rounded = math.inf if math.isinf(number) else round_fraction(Fraction(number), to, mode)
        if math.isinf(number) or rounded is None:
            assert value == math.copysign(math.inf, number), number
        else:
            assert value == float(rounded), number
        assert math.copysign(1, value) == math.copysign(1, number)


@pytest.mark.parametrize(
    ("source", "to"), [("f16", "f32"), ("bf16", "f32"), ("f16", "f64"), ("bf16", "f64"), ("f32", "f64")]
)
def test_widening(source: str, to: str) -> None:
    a = patterns(source, 1 << 15, 54)
    with np.errstate(invalid="ignore"):
        expected = a.view(DTYPES[source]).astype(DTYPES[to])
    result = one(f"cvt.{to}.{source}", a)
    keep = ~np.isnan(expected)
    assert np.array_equal(result[keep], expected.view(result.dtype)[keep])
    assert np.isnan(result[~keep].view(DTYPES[to])).all()
    if to == "f64":
        # A NaN keeps its sign and payload, and is quiet.
        wide = result[~keep]
        assert np.array_equal(
            wide >> np.uint64(63), (a[~keep] >> np.array(8 * a.dtype.itemsize - 1, a.dtype)).astype(np.uint64)
        )
        assert (wide >> np.uint64(51) & np.uint64(1)).all()


def test_double_nan_keeps_its_sign_and_payload() -> None:
    a = np.array([0x7FF0000000000001, 0xFFF8000000000000, 0xFFF4567890ABCDEF, 0x7FFFFFFFFFFFFFFF], np.uint64)
    assert one("cvt.rn.f32.f64", a).tolist() == [0x7FC00000, 0xFFC00000, 0xFFE2B3C4, 0x7FFFFFFF]
    assert one("cvt.rn.f16.f64", a).tolist() == [0x7E00, 0xFE00, 0xFF15, 0x7FFF]
    assert one("cvt.rn.bf16.f64", a).tolist() == [0x7FC0, 0xFFC0, 0xFFE2, 0x7FFF]


@pytest.mark.parametrize("type", FLOATS)
@pytest.mark.parametrize("mode", WHOLE)
def test_whole_numbers_as_floats(mode: str, type: str) -> None:
    a = whole_inputs(type)
    result = one(f"cvt.{mode}.{type}.{type}", a)
    for number, value in zip(numbers(type, a), numbers(type, result), strict=True):
        if math.isfinite(number):
            assert value == WHOLE[mode](Fraction(number))
            assert math.copysign(1, value) == math.copysign(1, number)
        else:
            assert value == number or math.isnan(number) == math.isnan(value)


def test_identities_keep_bits_and_flushing_does_not() -> None:
    a = np.array(EDGES["f32"], np.uint32)
    assert np.array_equal(one("cvt.f32.f32", a), a)
    result = one("cvt.ftz.f32.f32", a)
    small, nan = (a & np.uint32(0x7F800000)) == 0, (a & np.uint32(0x7FFFFFFF)) > 0x7F800000
    expected = np.where(nan, np.uint32(0x7FFFFFFF), np.where(small, a & np.uint32(1 << 31), a))
    assert np.array_equal(result, expected)
    assert np.array_equal(one("cvt.ftz.f32.bf16", np.array([1, 0x8001, 0x7FC1], np.uint16)), [0, 1 << 31, 0x7FFFFFFF])


@pytest.mark.parametrize(
    "form",
    [
        "cvt.sat.f32.f32",
        "cvt.sat.f64.f64",
        "cvt.rn.sat.f16.f32",
        "cvt.rn.sat.f32.f64",
        "cvt.sat.f32.f16",
        "cvt.sat.f64.f32",
    ],
)
def test_saturation(form: str) -> None:
    to, source = form.split(".")[-2:]
    a = patterns(source, 3000, 55)
    result = numbers(to, one(form, a))
    for number, value in zip(numbers(source, a), result, strict=True):
        if not number > 0:
            assert (value, math.copysign(1, value)) == (0, 1)
        elif number >= 1:
            assert value == 1
        else:
            assert Fraction(value) == round_fraction(Fraction(number), to)


@pytest.mark.parametrize("type", ["f16", "bf16"])
@pytest.mark.parametrize("mode", ["rn", "rz"])
def test_limits_of_halves(mode: str, type: str) -> None:
    a = np.concatenate([patterns("f32", 5000, 56), np.array([0x477FF000, 0x477FEFFF, 0x7F7F8000], np.uint32)])
    with np.errstate(invalid="ignore"):
        x = a.view(np.float32)
        negative = np.signbit(x) & ~np.isnan(x)
    plain = one(f"cvt.{mode}.{type}.f32", a)
    infinity, largest = (0x7C00, 0x7BFF) if type == "f16" else (0x7F80, 0x7F7F)
    finite = np.where(plain & 0x7FFF == infinity, plain & 0x8000 | largest, plain)
    assert np.array_equal(one(f"cvt.{mode}.satfinite.{type}.f32", a), finite)
    assert np.array_equal(one(f"cvt.{mode}.relu.{type}.f32", a), np.where(negative, 0, plain))
    assert np.array_equal(one(f"cvt.{mode}.relu.satfinite.{type}.f32", a), np.where(negative, 0, finite))
    assert np.array_equal(one(f"cvt.{mode}.satfinite.relu.{type}.f32", a), np.where(negative, 0, finite))


def test_tf32() -> None:
    a = np.array([0x3F800FFF, 0x3F801000, 0x3F801001, 0x3F803000, 0xBF801000, 0x7F7FF000, 0x7F7FFFFF, 0x7F800000,
                  0x7FC00000, 0xFFC00000, 0x7F800001, 0x00001000, 0x00000FFF], np.uint32)  # fmt: skip
    assert one("cvt.rna.tf32.f32", a).tolist() == [
        0x3F800000, 0x3F802000, 0x3F802000, 0x3F804000, 0xBF802000, 0x7F800000, 0x7F800000, 0x7F800000,
        0x7FC00000, 0xFFC00000, 0x7F800000, 0x00002000, 0,
    ]  # fmt: skip
    assert one("cvt.rn.tf32.f32", a).tolist() == [
        0x3F800000, 0x3F800000, 0x3F802000, 0x3F804000, 0xBF800000, 0x7F800000, 0x7F800000, 0x7F800000,
        0x7FFFE000, 0x7FFFE000, 0x7FFFE000, 0, 0,
    ]  # fmt: skip
    assert one("cvt.rz.relu.tf32.f32", a).tolist() == [
        0x3F800000, 0x3F800000, 0x3F800000, 0x3F802000, 0, 0x7F7FE000, 0x7F7FE000, 0x7F800000,
        0x7FFFE000, 0x7FFFE000, 0x7FFFE000, 0, 0,
    ]  # fmt: skip
    assert one("cvt.rna.satfinite.tf32.f32", a).tolist()[5:8] == [0x7F7FE000] * 3


def test_a_million_singles_become_bf16_as_ml_dtypes_says() -> None:
    a = random_bits("f32", 1 << 20, 57)
    with np.errstate(all="ignore"):
        expected = a.view(np.float32).astype(DTYPES["bf16"]).view(np.uint16)
        nan = np.isnan(a.view(np.float32))
    assert np.array_equal(one("cvt.rn.bf16.f32", a), np.where(nan, 0x7FFF, expected))
    assert np.array_equal(one("cvt.rz.bf16.f32", a), np.where(nan, 0x7FFF, a >> np.uint32(16)))
    with np.errstate(all="ignore"):
        expected = a.view(np.float32).astype(np.float16).view(np.uint16)
    assert np.array_equal(one("cvt.rn.f16.f32", a), np.where(nan, 0x7FFF, expected))
