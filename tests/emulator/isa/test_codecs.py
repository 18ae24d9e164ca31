"""Small formats to and from f32: against ml_dtypes, and against rounding by definition."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from megamoe_jit.emulator.interpreter.ops import NumpyOps
from megamoe_jit.emulator.isa.codecs import FORMATS, TF32, decode, encode
from megamoe_jit.emulator.isa.lanes import Lanes
from tests.emulator.isa.numbers import DTYPES, LARGEST, around, codes, random_bits, round_fraction, values

Array = NDArray[Any]
SMALL = ["f16", "bf16", "e4m3", "e5m2", "e2m3", "e3m2", "e2m1"]
HAS_INFINITY = ("f16", "bf16", "e5m2")


def decoded(type: str, patterns: Array) -> Array:
    ops = NumpyOps(num_lanes=len(patterns))
    with np.errstate(all="ignore"):
        result: Array = decode(Lanes(ops, patterns.astype(np.uint32)), FORMATS[type]).raw
    return result


def encoded(type: str, numbers: Array, mode: str = "rn", **options: Any) -> Array:
    ops = NumpyOps(num_lanes=len(numbers))
    with np.errstate(all="ignore"):
        result: Array = encode(Lanes(ops, numbers), FORMATS[type], mode, **options).raw
    return result


def inputs(type: str, count: int = 1 << 18) -> Array:
    """All boundaries, and random numbers of all sizes and of the format's sizes."""
    rng = np.random.default_rng(3)
    with np.errstate(over="ignore"):
        sized = (rng.standard_normal(count) * float(LARGEST[type]) ** rng.uniform(-1.2, 1.05, count)).astype(np.float32)
    return np.concatenate([around(type), random_bits("f32", count, 4).view(np.float32), sized])


@pytest.mark.parametrize("type", SMALL)
def test_every_code_decodes(type: str) -> None:
    patterns = codes(type)
    with np.errstate(invalid="ignore"):
        result, expected = decoded(type, patterns).astype(np.float64), values(type, patterns)
    assert np.array_equal(result, expected, equal_nan=True)
    assert np.array_equal(np.signbit(result)[~np.isnan(expected)], np.signbit(expected)[~np.isnan(expected)])
    if type != "bf16":
        assert (decoded(type, patterns).view(np.uint32)[np.isnan(expected)] == 0x7FFFFFFF).all()


@pytest.mark.parametrize("type", SMALL)
def test_bits_above_the_code_are_ignored(type: str) -> None:
    patterns = codes(type).astype(np.uint32)
    noise = np.random.default_rng(5).integers(0, 1 << 16, len(patterns)).astype(np.uint32)
    dirty = patterns | (noise << np.uint32(FORMATS[type].bits))
    assert np.array_equal(decoded(type, dirty).view(np.uint32), decoded(type, patterns).view(np.uint32))


@pytest.mark.parametrize("type", SMALL)
def test_every_code_comes_back(type: str) -> None:
    patterns = codes(type)
    numbers = decoded(type, patterns)
    keep = ~np.isnan(numbers)
    assert np.array_equal(encoded(type, numbers[keep], satfinite=type not in HAS_INFINITY), patterns[keep])


def saturated(type: str, numbers: Array) -> Array:
    """Nearest code by ml_dtypes, made finite the way PTX asks."""
    largest = np.float32(LARGEST[type])
    with np.errstate(all="ignore"):
        clipped = np.clip(numbers, -largest, largest)
        result = clipped.astype(DTYPES[type])
    bits = result.view(np.uint16 if result.dtype.itemsize == 2 else np.uint8)
    return np.where(np.isnan(numbers), FORMATS[type].nan, bits).astype(np.uint32)


@pytest.mark.parametrize("type", SMALL)
def test_nearest_is_what_ml_dtypes_gives(type: str) -> None:
    numbers = inputs(type)
    assert np.array_equal(encoded(type, numbers, satfinite=True), saturated(type, numbers))
    if type in HAS_INFINITY:
        with np.errstate(all="ignore"):
            bits = numbers.astype(DTYPES[type])
        expected = bits.view(np.uint16 if bits.dtype.itemsize == 2 else np.uint8)
        expected = np.where(np.isnan(numbers), FORMATS[type].nan, expected)
        assert np.array_equal(encoded(type, numbers), expected)


@pytest.mark.parametrize("type", SMALL)
def test_relu_leaves_positives_and_nan(type: str) -> None:
    numbers = inputs(type, 1 << 12)
    plain = encoded(type, numbers, satfinite=True)
    expected = np.where(np.signbit(numbers) & ~np.isnan(numbers), 0, plain)
    assert np.array_equal(encoded(type, numbers, satfinite=True, relu=True), expected)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("type", ["f16", "bf16", "e5m2", "e2m1"])
def test_rounding_is_by_definition(type: str, mode: str) -> None:
    numbers = inputs(type, 1 << 11)
    numbers = numbers[np.isfinite(numbers)]
    if type in ("f16", "bf16"):
        numbers = np.concatenate([np.random.default_rng(6).choice(numbers, 6000), numbers[-6000:]])
    satfinite = type not in HAS_INFINITY
    result = encoded(type, numbers, mode, satfinite=satfinite)
    got = decoded(type, result)
    for number, value in zip(numbers.tolist(), got.tolist(), strict=True):
        expected = round_fraction(Fraction(number), type, mode)
        if expected is None:
            expected_value = float(LARGEST[type]) if satfinite else float("inf")
            assert abs(value) == expected_value, number
        else:
            assert Fraction(value) == expected, number
    assert np.array_equal(np.signbit(got), np.signbit(numbers))


@pytest.mark.parametrize("mode", ["rn", "rz"])
def test_tf32_keeps_ten_bits(mode: str) -> None:
    numbers = random_bits("f32", 20000, 7).view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    ops = NumpyOps(num_lanes=len(numbers))
    kept = (encode(Lanes(ops, numbers), TF32, mode).raw << np.uint32(13)).view(np.float32)
    for number, value in zip(numbers.tolist(), kept.tolist(), strict=True):
        expected = round_fraction(Fraction(number), "tf32", mode)
        assert (
            value == (float("inf") if number > 0 else -float("inf"))
            if expected is None
            else Fraction(value) == expected
        )


@pytest.mark.parametrize(("type", "width"), [("f16", 13), ("bf16", 16), ("e4m3", 16), ("e5m2", 16), ("e2m1", 16)])
def test_stochastic_rounding_is_a_carry(type: str, width: int) -> None:
    """The result is the upper neighbour exactly when fraction + random >= 1."""
    rng = np.random.default_rng(8)
    numbers = inputs(type, 1 << 10)
    numbers = rng.choice(numbers[np.isfinite(numbers)], 8000)
    numbers = numbers[np.abs(numbers) < float(LARGEST[type])]
    random = rng.integers(0, 1 << width, len(numbers)).astype(np.uint32)
    random[:2000] = 0
    random[2000:3000] = (1 << width) - 1
    ops = NumpyOps(num_lanes=len(numbers))
    result = encoded(type, numbers, "rs", satfinite=True, random=(Lanes(ops, random), width))
    down = decoded(type, encoded(type, numbers, "rz", satfinite=True))
    up = np.where(np.signbit(numbers), "rm", "rp")
    away = np.where(
        up == "rp",
        decoded(type, encoded(type, numbers, "rp", satfinite=True)),
        decoded(type, encoded(type, numbers, "rm", satfinite=True)),
    )
    got = decoded(type, result)
    for i, number in enumerate(numbers.tolist()):
        low, high = Fraction(float(down[i])), Fraction(float(away[i]))
        part = Fraction(0) if low == high else (Fraction(number) - low) / (high - low)
        carries = part + Fraction(int(random[i]), 1 << width) >= 1
        assert Fraction(float(got[i])) == (high if carries else low), (number, int(random[i]))
