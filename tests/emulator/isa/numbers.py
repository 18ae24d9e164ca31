"""Float inputs that matter, and exact models to round with: fractions of Python integers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DTYPES: dict[str, Any] = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "f32": np.float32,
    "f64": np.float64,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
MANTISSA = {
    "f16": 10,
    "bf16": 7,
    "tf32": 10,
    "f32": 23,
    "f64": 52,
    "e4m3": 3,
    "e5m2": 2,
    "e2m3": 3,
    "e3m2": 2,
    "e2m1": 1,
}
# Exponent of the smallest normal number.
LOWEST = {"f16": -14, "bf16": -126, "tf32": -126, "f32": -126, "f64": -1022, "e4m3": -6, "e5m2": -14, "e2m3": 0,
          "e3m2": -2, "e2m1": 0}  # fmt: skip
LARGEST = {
    "f16": Fraction(65504),
    "bf16": Fraction(2) ** 127 * (2 - Fraction(1, 128)),
    "tf32": Fraction(2) ** 127 * (2 - Fraction(1, 1024)),
    "f32": Fraction(2) ** 127 * (2 - Fraction(1, 1 << 23)),
    "f64": Fraction(2) ** 1023 * (2 - Fraction(1, 1 << 52)),
    "e4m3": Fraction(448),
    "e5m2": Fraction(57344),
    "e2m3": Fraction(15, 2),
    "e3m2": Fraction(28),
    "e2m1": Fraction(6),
}


def codes(type: str) -> Array:
    """Return all codes of a format of 16 bits or less, unsigned."""
    dtype = np.dtype(DTYPES[type])
    count = {"e2m1": 16, "e2m3": 64, "e3m2": 64}.get(type, 1 << (8 * dtype.itemsize))
    return np.arange(count, dtype=np.uint16 if dtype.itemsize == 2 else np.uint8)


def values(type: str, patterns: Array) -> Array:
    """Return what codes of a format mean, as f64 (bits 8 and up of small codes are ignored by the cast)."""
    with np.errstate(invalid="ignore"):
        return patterns.view(DTYPES[type]).astype(np.float64)


def around(type: str) -> Array:
    """Return f32 at, below and above every number of a small format and every midpoint, both signs, and beyond."""
    exact = values(type, codes(type))
    exact = np.unique(np.abs(exact[np.isfinite(exact)]))
    beyond = exact[-1] + (exact[-1] - exact[-2]) * np.array([0.5, 1, 2, 8])
    with np.errstate(over="ignore"):
        points = np.concatenate([exact, (exact[1:] + exact[:-1]) / 2, beyond]).astype(np.float32)
    near = [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))]
    chosen = np.concatenate(near)
    special = [0x7F800000, 0x7FC00000, 0x7F800001, 0x7FFFFFFF, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0, 0x00400000]
    chosen = np.concatenate([chosen, np.array(special, np.uint32).view(np.float32)])
    return np.concatenate([chosen.view(np.uint32), chosen.view(np.uint32) | np.uint32(1 << 31)]).view(np.float32)


def random_bits(type: str, count: int, seed: int) -> Array:
    """Return random patterns of f16, bf16, f32 or f64, unsigned: every exponent is as likely as another."""
    size = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}[type]
    return np.frombuffer(np.random.default_rng(seed).bytes(size * count), f"u{size}").copy()


EDGES: dict[str, list[int]] = {}
for _type, _exponent in (("f16", 5), ("bf16", 8), ("f32", 8), ("f64", 11)):
    _m = MANTISSA[_type]
    _bias = (1 << (_exponent - 1)) - 1
    _inf = ((1 << _exponent) - 1) << _m
    _magnitudes = [0, 1, 2, (1 << _m) - 1, 1 << _m, (1 << _m) + 1, _bias << _m, (_bias << _m) + 1, (_bias << _m) - 1,
                   (_bias + 1) << _m, (_bias - 1) << _m, ((_bias + _m) << _m) + 1, (_bias + _m + 1) << _m, _inf - 1,
                   _inf - (1 << _m), _inf, _inf + 1, _inf + (1 << (_m - 1)), (1 << (_m + _exponent)) - 1]  # fmt: skip
    EDGES[_type] = [x | sign << (_m + _exponent) for x in _magnitudes for sign in (0, 1)]


def operands(type: str, count: int, number: int, seed: int) -> list[Array]:
    """Return arrays of patterns: edges against edges, random numbers, and numbers of like size (sums cancel)."""
    rng = np.random.default_rng(seed)
    size = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}[type]
    pool = np.array(EDGES[type], np.uint64)
    if number > 2:
        grid = [rng.choice(pool, 4000) for _ in range(number)]
    else:
        grid = [x.ravel() for x in np.meshgrid(*[pool] * number)]
    noise = [random_bits(type, count, seed + 1 + i) for i in range(number)]
    base = random_bits(type, count, seed + 50)
    close = []
    for i in range(number):
        step = rng.integers(-(4 << MANTISSA[type]), 4 << MANTISSA[type], count)
        near = (base.astype(np.int64) + step).astype(f"u{size}")
        close.append(near ^ (rng.integers(0, 2, count).astype(f"u{size}") << np.array(8 * size - 1, f"u{size}")))
        if i == 0 and number > 1:
            # The first of several operands is near one, so that products keep the size of the others.
            one = int(np.array(1.0, DTYPES[type]).view(f"u{size}")[()])
            close[0] = (one + rng.integers(-(2 << MANTISSA[type]), 2 << MANTISSA[type], count)).astype(f"u{size}")
    return [np.concatenate([g.astype(f"u{size}"), n, c]) for g, n, c in zip(grid, noise, close, strict=True)]


def power(exponent: int) -> Fraction:
    """Return 2**exponent."""
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)


def round_fraction(exact: Fraction, type: str, mode: str = "rn") -> Fraction | None:
    """Round to a format's numbers by definition; None is overflow to infinity. Modes: rn, rz, rm, rp."""
    if exact == 0:
        return exact
    sign, magnitude = (-1 if exact < 0 else 1), abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if power(exponent) > magnitude:
        exponent -= 1
    unit = power(max(exponent, LOWEST[type]) - MANTISSA[type])
    quotient = magnitude / unit
    whole = quotient.numerator // quotient.denominator
    rest = quotient - whole
    up = {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1),
        "rz": False,
        "rm": rest > 0 and sign < 0,
        "rp": rest > 0 and sign > 0,
    }[mode]
    rounded = (whole + up) * unit
    if rounded > LARGEST[type]:
        toward = mode == "rz" or (mode == "rm" and sign > 0) or (mode == "rp" and sign < 0)
        return sign * LARGEST[type] if toward else None
    return sign * rounded


def fraction(value: float) -> Fraction:
    """Return a finite float exactly."""
    return Fraction(value)
