"""Packed conversions: order of the parts, NaN, limits and scales, against ml_dtypes and the scalar conversions."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulator.isa.evaluate import integers, one, signed, unsigned
from tests.emulator.isa.numbers import DTYPES, LARGEST, around, codes, operands, values

Array = NDArray[Any]
NARROW = ["e4m3", "e5m2", "e2m3", "e3m2", "e2m1"]
OF_NAN = {"e4m3": 0x7F, "e5m2": 0x7F, "e2m3": 0x1F, "e3m2": 0x1F, "e2m1": 0x7}
FIELD = {"e2m1": 4}


def pack(high: Array, low: Array, bits: int, dtype: str) -> Array:
    return (high.astype(np.uint64) << np.uint64(bits) | low.astype(np.uint64)).astype(dtype)


def finite_codes(type: str, numbers: Array) -> Array:
    """Nearest finite code, NaN as PTX has it."""
    with np.errstate(all="ignore"):
        clipped = np.clip(numbers, -np.float32(LARGEST[type]), np.float32(LARGEST[type])).astype(DTYPES[type])
    return np.where(np.isnan(numbers), OF_NAN[type], clipped.view(np.uint8))


@pytest.mark.parametrize("type", NARROW)
def test_singles_to_narrow(type: str) -> None:
    a = around(type)
    b = np.random.default_rng(60).permutation(a)
    x, y = finite_codes(type, a), finite_codes(type, b)
    size = "u1" if type == "e2m1" else "u2"
    expected = pack(x, y, FIELD.get(type, 8), size)
    assert np.array_equal(one(f"cvt.rn.satfinite.{type}x2.f32", a.view("u4"), b.view("u4")), expected)
    positive = [np.where(np.signbit(n) & ~np.isnan(n), 0, c) for n, c in ((a, x), (b, y))]
    expected = pack(*positive, FIELD.get(type, 8), size)
    assert np.array_equal(one(f"cvt.rn.satfinite.relu.{type}x2.f32", a.view("u4"), b.view("u4")), expected)


@pytest.mark.parametrize("half", ["f16", "bf16"])
@pytest.mark.parametrize("type", NARROW)
def test_every_half_to_narrow(type: str, half: str) -> None:
    low = np.arange(1 << 16, dtype=np.uint32)
    high = np.random.default_rng(61).permutation(low)
    result = one(f"cvt.rn.satfinite.{type}x2.{half}x2", low | high << np.uint32(16))
    with np.errstate(invalid="ignore"):
        parts = [finite_codes(type, x.astype(np.uint16).view(DTYPES[half]).astype(np.float32)) for x in (high, low)]
    assert np.array_equal(result, pack(*parts, FIELD.get(type, 8), result.dtype.str))


def narrow_pairs(type: str) -> tuple[Array, Array, Array]:
    """All pairs of codes (unused bits of FP6's bytes set at random): registers, upper and lower values."""
    every = codes(type)
    high, low = (grid.ravel() for grid in np.meshgrid(every, every))
    registers = pack(high, low, FIELD.get(type, 8), "u1" if type == "e2m1" else "u2")
    return registers, values(type, high), values(type, low)


@pytest.mark.parametrize("half", ["f16", "bf16"])
@pytest.mark.parametrize("type", NARROW)
def test_every_narrow_pair_to_halves(type: str, half: str) -> None:
    registers, high, low = narrow_pairs(type)

    def bits(numbers: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return np.where(np.isnan(numbers), 0x7FFF, numbers.astype(DTYPES[half]).view(np.uint16))

    assert np.array_equal(one(f"cvt.rn.{half}x2.{type}x2", registers), pack(bits(high), bits(low), 16, "u4"))
    positive = [np.where(np.signbit(x) & ~np.isnan(x), 0.0, x) for x in (high, low)]
    expected = pack(*map(bits, positive), 16, "u4")
    assert np.array_equal(one(f"cvt.rn.relu.{half}x2.{type}x2", registers), expected)


@pytest.mark.parametrize("type", NARROW)
def test_scaled_narrow_pairs(type: str) -> None:
    registers, high, low = narrow_pairs(type)
    rng = np.random.default_rng(62)
    scales = rng.integers(0, 256, (2, len(registers)))
    ends = min(1000, len(registers) // 2)
    scales[:, :ends] = rng.choice([0, 1, 126, 127, 128, 253, 254, 255], (2, ends))
    with np.errstate(all="ignore"):
        products = [
            np.where(s == 255, np.nan, x * 2.0 ** (s - 127.0)) for x, s in zip((high, low), scales, strict=True)
        ]
        halves = [p.astype(ml_dtypes.bfloat16).view(np.uint16) for p in products]
    plain = [np.where(np.isnan(p), 0x7FFF, h) for p, h in zip(products, halves, strict=True)]
    operand = pack(scales[0], scales[1], 8, "u2")
    opcode = "cvt.rn{}.scaled::n2::ue8m0.bf16x2." + type + "x2"
    assert np.array_equal(one(opcode.format(""), registers, operand), pack(*plain, 16, "u4"))
    finite = [np.where(h & 0x7FFF == 0x7F80, h & 0x8000 | 0x7F7F, h) for h in plain]
    assert np.array_equal(one(opcode.format(".satfinite"), registers, operand), pack(*finite, 16, "u4"))
    positive = [np.where(h & 0x8000, 0, h) for h in finite]
    assert np.array_equal(one(opcode.format(".relu.satfinite"), registers, operand), pack(*positive, 16, "u4"))


@pytest.mark.parametrize("modifiers", ["rn", "rz", "rn.satfinite", "rn.relu", "rz.relu.satfinite"])
@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_pairs_of_singles_to_halves(half: str, modifiers: str) -> None:
    a, b = operands("f32", 4000, 2, 63)
    parts = [one(f"cvt.{modifiers}.{half}.f32", x) for x in (a, b)]
    assert np.array_equal(one(f"cvt.{modifiers}.{half}x2.f32", a, b), pack(*parts, 16, "u4"))


def test_powers_of_two_by_the_table() -> None:
    rows = [  # input, rz, rp
        (1.0, 127, 127), (1.5, 127, 128), (2.0**127, 254, 254), (2.0**127 * 1.5, 254, 255), (0.0, 0, 0),
        (2.0**-127, 0, 0), (2.0**-128, 0, 0), (2.0**-127 * 1.25, 0, 1), (2.0**-126, 1, 1), (2.0**-126 * 1.5, 1, 2),
        (np.inf, 255, 255), (np.nan, 255, 255), (-1.5, 127, 128), (-np.inf, 255, 255),
    ]  # fmt: skip
    a = np.array([row[0] for row in rows], np.float32).view(np.uint32)
    b = np.roll(a, 1)
    for mode, column in (("rz", 1), ("rp", 2)):
        expected = np.array([row[column] for row in rows])
        result = one(f"cvt.{mode}.ue8m0x2.f32", a, b)
        assert np.array_equal(result, pack(expected, np.roll(expected, 1), 8, "u2"))
        nan = np.isnan(a.view(np.float32))
        finite = np.where((expected == 255) & ~nan, 254, expected)
        result = one(f"cvt.{mode}.satfinite.ue8m0x2.f32", a, b)
        assert np.array_equal(result, pack(finite, np.roll(finite, 1), 8, "u2"))
    every = np.arange(1 << 16, dtype=np.uint32)
    wide = [(x << np.uint32(16)).astype(np.uint32) for x in (every, every[::-1])]
    for mode in ("rz", "rp", "rz.satfinite", "rp.satfinite"):
        expected = one(f"cvt.{mode}.ue8m0x2.f32", *wide)
        assert np.array_equal(one(f"cvt.{mode}.ue8m0x2.bf16x2", every << np.uint32(16) | every[::-1]), expected)


def test_every_exponent_to_bf16() -> None:
    every = np.arange(256)
    halves = np.where(every == 0, 0x0040, np.where(every == 255, 0x7FFF, every << 7))
    high, low = np.repeat(every, 256), np.tile(every, 256)
    result = one("cvt.rn.bf16x2.ue8m0x2", pack(high, low, 8, "u2"))
    assert np.array_equal(result, pack(halves[high], halves[low], 16, "u4"))
    numbers = halves.astype(np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)
    scale = every.astype(np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    assert np.array_equal(numbers, scale, equal_nan=True)


def mirrored(value: int) -> int:
    return int(f"{value:016b}"[::-1], 2)


@pytest.mark.parametrize("type", NARROW)
def test_random_bits_of_quads(type: str) -> None:
    """Each element is rounded up exactly when its own 16 bits, as the public measurements assign them, carry."""
    rng = np.random.default_rng(64)
    step = {"e4m3": 2.0**-3, "e5m2": 2.0**-2, "e2m3": 2.0**-3, "e3m2": 2.0**-2, "e2m1": 0.5}[type]
    part = rng.integers(0, 1 << 16, (4, 3000))
    numbers = (1 + step * part / 65536).astype(np.float32)
    bits = rng.integers(0, 1 << 32, 3000, np.uint64).astype(np.uint32)
    result = one(f"cvt.rs.satfinite.{type}x4.f32", *[x.view(np.uint32) for x in numbers], bits)
    unit = one(f"cvt.rn.satfinite.{type}x2.f32", *[np.full(1, 0x3F800000, np.uint32)] * 2)[0]
    width = FIELD.get(type, 8)
    one_code = int(unit) & ((1 << width) - 1)
    for i in range(3000):
        word = int(bits[i])
        if type == "e2m1":
            upper, lower = (word >> 8 & 0xFF) | (word >> 16 & 0xFF00), (word & 0xFF) | (word >> 8 & 0xFF00)
        else:
            upper, lower = word >> 16, word & 0xFFFF
        randoms = [mirrored(upper), upper, mirrored(lower), lower]
        elements = [one_code + (int(part[j, i]) + randoms[j] >= 65536) for j in range(4)]
        expected = sum(element << (width * (3 - j)) for j, element in enumerate(elements))
        assert int(result[i]) == expected


@pytest.mark.parametrize(("half", "width"), [("f16", 13), ("bf16", 16)])
def test_random_bits_of_pairs(half: str, width: int) -> None:
    rng = np.random.default_rng(65)
    mantissa = 10 if half == "f16" else 7
    part = rng.integers(0, 1 << width, (2, 3000))
    numbers = (1 + 2.0**-mantissa * part / (1 << width)).astype(np.float32)
    bits = rng.integers(0, 1 << 32, 3000, np.uint64).astype(np.uint32)
    result = one(f"cvt.rs.{half}x2.f32", *[x.view(np.uint32) for x in numbers], bits)
    base = 0x3C00 if half == "f16" else 0x3F80
    mask = (1 << width) - 1
    high = base + (part[0] + (bits >> np.uint32(16) & np.uint32(mask)) >= 1 << width)
    low = base + (part[1] + (bits & np.uint32(mask)) >= 1 << width)
    assert np.array_equal(result, pack(high, low, 16, "u4"))


def test_fixed_point_pairs() -> None:
    a, b = operands("f32", 2000, 2, 66)
    a = np.concatenate([a, ((np.arange(-300, 300) / 128).astype(np.float32)).view(np.uint32)])
    b = np.concatenate([b, a[-600:][::-1]])
    rng = np.random.default_rng(67)
    scales = rng.integers(100, 150, (2, len(a)))

    def fixed(bits: Array, scale: Array, relu: bool) -> Array:
        with np.errstate(all="ignore"):
            number = bits.view(np.float32).astype(np.float64) / 2.0 ** (scale - 127.0)
            nearest = np.rint(number * 64)
            clipped = np.clip(nearest, 0 if relu else -128, 127)
            return np.where(np.isnan(number), 127, clipped).astype(np.int64) & 0xFF

    plain = np.full(len(a), 127)
    for relu in (False, True):
        name = ".relu" if relu else ""
        result = one(f"cvt.rn.satfinite{name}.s2f6x2.f32", a, b)
        assert np.array_equal(result, pack(fixed(a, plain, relu), fixed(b, plain, relu), 8, "u2"))
        operand = pack(scales[0], scales[1], 8, "u2")
        result = one(f"cvt.rn.satfinite{name}.scaled::n2::ue8m0.s2f6x2.f32", a, b, operand)
        assert np.array_equal(result, pack(fixed(a, scales[0], relu), fixed(b, scales[1], relu), 8, "u2"))
    every = np.arange(1 << 16).astype(np.uint16)
    scales = rng.integers(1, 250, (2, len(every)))
    parts = [(every >> s).astype(np.uint8).view(np.int8).astype(np.float64) / 64 for s in (8, 0)]
    wanted = [
        (p * 2.0 ** (s - 127.0)).astype(ml_dtypes.bfloat16).view(np.uint16) for p, s in zip(parts, scales, strict=True)
    ]
    result = one("cvt.rn.scaled::n2::ue8m0.bf16x2.s2f6x2", every, pack(scales[0], scales[1], 8, "u2"))
    assert np.array_equal(result, pack(*wanted, 16, "u4"))


@pytest.mark.parametrize("type", ["u16", "s16", "u8", "s8", "u4", "s4", "u2", "s2"])
def test_pack_of_integers(type: str) -> None:
    bits = int(type[1:])
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if type[0] == "s" else (0, (1 << bits) - 1)
    a, b, c = integers(32, 2000, np.random.default_rng(68), crossed=3)
    small = np.random.default_rng(69).integers(-20, 20, (2, 3000)).astype(np.int32).view(np.uint32)
    a, b, c = np.concatenate([a, small[0]]), np.concatenate([b, small[1]]), np.concatenate([c, c[:3000]])
    a, b, c = (x[: min(len(a), len(b), len(c))] for x in (a, b, c))

    def field(value: int) -> int:
        return max(low, min(high, value)) % (1 << bits)

    rows = zip(signed(a), signed(b), unsigned(c), strict=True)
    if bits == 16:
        result = one(f"cvt.pack.sat.{type}.s32", a, b)
        assert unsigned(result) == [field(x) << 16 | field(y) for x, y, _ in rows]
    else:
        result = one(f"cvt.pack.sat.{type}.s32.b32", a, b, c)
        expected = [(z << 2 * bits | field(x) << bits | field(y)) % (1 << 32) for x, y, z in rows]
        assert unsigned(result) == expected
