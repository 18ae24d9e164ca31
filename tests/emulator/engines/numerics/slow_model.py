"""The adder's model in fractions, from numbers and not from codes: an independent expectation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import ml_dtypes
import numpy as np

DTYPES = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "tf32": np.float32,
    "ue4m3": ml_dtypes.float8_e4m3fn,
    "ue8m0": ml_dtypes.float8_e8m0fnu,
}
LEAST = {"e2m1": 0, "e2m3": 0, "e3m2": -2, "e4m3": -6, "e5m2": -14, "f16": -14, "ue4m3": -6, "ue8m0": -127}


def numbers(name: str, codes: np.ndarray) -> np.ndarray:
    """Values of codes, float64, as ml_dtypes has them."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        if name == "tf32":
            return (codes.astype(np.uint32) << 13).view(np.float32).astype(np.float64)
        return codes.view(DTYPES[name]).astype(np.float64)


def exponent_of(name: str, value: float) -> int:
    """Exponent of a nonzero number, no less than its format's least."""
    return max(math.frexp(value)[1] - 1, LEAST.get(name, -126))


def fused(products: Sequence[tuple[Fraction, int]], d: float, d_name: str, fraction_bits: int | None) -> Fraction:
    """Add (value, exponent) terms and D: truncated to `fraction_bits` below the largest exponent, or exactly."""
    terms = [*products, (Fraction(d), exponent_of(d_name, d) if d else -126)]
    if fraction_bits is None:
        return sum((value for value, _ in terms), Fraction(0))
    unit = Fraction(2) ** (max(exponent if value else -126 for value, exponent in terms) - fraction_bits)
    return sum((unit * math.trunc(value / unit) for value, _ in terms), Fraction(0))


def rounded(value: Fraction, fraction_bits: int, least: int, largest: int, *, nearest: bool) -> float:
    """Round to a binary format; too large is infinite."""
    if value == 0:
        return 0.0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent = exponent if magnitude >= Fraction(2) ** exponent else exponent - 1
    unit = Fraction(2) ** (max(exponent, least) - fraction_bits)
    count = round(magnitude / unit) if nearest else math.floor(magnitude / unit)  # round() is to even
    result = count * unit
    if result >= Fraction(2) ** (largest + 1):
        return math.copysign(math.inf, value)
    return math.copysign(float(result), value) if count else 0.0


def result(value: Fraction, rounding: str) -> float:
    """Round a sum as an instruction with this output does."""
    return {
        "f32": lambda: rounded(value, 23, -126, 127, nearest=False),
        "e8m13": lambda: rounded(value, 13, -126, 127, nearest=False),
        "f32 nearest": lambda: rounded(value, 23, -126, 127, nearest=True),
        "f16": lambda: rounded(value, 10, -14, 15, nearest=True),
    }[rounding]()


def dot(
    a: tuple[str, np.ndarray],
    b: tuple[str, np.ndarray],
    d: np.ndarray,
    fraction_bits: int | None,
    rounding: str,
    scales: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """d + a @ b.T of codes by name; d and the result are float32 or float16; scales: UE8M0 codes, one a row."""
    (a_name, a_codes), (b_name, b_codes) = a, b
    left, right = numbers(a_name, a_codes), numbers(b_name, b_codes)
    d_name = "f16" if d.dtype == np.float16 else "f32"
    out = np.empty_like(d)
    for m, n in np.ndindex(d.shape):
        power = 0
        if scales is not None:
            power = int(scales[0][m, 0]) - 127 + int(scales[1][n, 0]) - 127
        terms = []
        for x, y in zip(left[m], right[n], strict=True):
            value = Fraction(float(x)) * Fraction(float(y)) * Fraction(2) ** power
            exponent = exponent_of(a_name, x) + exponent_of(b_name, y) + power if value else -126
            terms.append((value, exponent))
        out[m, n] = result(fused(terms, float(d[m, n]), d_name, fraction_bits), rounding)
    return out


def block_dot(
    a_codes: np.ndarray,
    b_codes: np.ndarray,
    scales: tuple[str, np.ndarray, np.ndarray],
    d: np.ndarray,
    fraction_bits: int | None,
    rounding: str,
) -> np.ndarray:
    """d + a @ b.T of E2M1 codes with block scales: a term is a dot product of 16 times both scales."""
    left, right = numbers("e2m1", a_codes), numbers("e2m1", b_codes)
    name, sfa, sfb = scales
    left_scales, right_scales = numbers(name, sfa), numbers(name, sfb)
    depth, blocks = left.shape[1], sfa.shape[1]
    out = np.empty_like(d)
    for m, n in np.ndindex(d.shape):
        terms = []
        for first in range(0, depth, 16):
            block = first * blocks // depth
            s, t = float(left_scales[m, block]), float(right_scales[n, block])
            total = sum(
                (Fraction(float(left[m, k])) * Fraction(float(right[n, k])) for k in range(first, first + 16)),
                Fraction(0),
            )
            value = total * Fraction(s) * Fraction(t)
            exponent = exponent_of(name, s) + exponent_of(name, t) if value else -126
            terms.append((value, exponent))
        out[m, n] = result(fused(terms, float(d[m, n]), "f32", fraction_bits), rounding)
    return out
