"""Operands of matrix multiplications: elements whose values do not depend on where a layout puts them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.emulator.vectors.data import Source

Array = NDArray[Any]

# Bits of an element, exponent bits, mantissa bits; tf32 lies in a 32-bit word whose low 13 bits are not zero here.
FORMATS = {
    "f16": (16, 5, 10),
    "bf16": (16, 8, 7),
    "tf32": (32, 8, 23),
    "f32": (32, 8, 23),
    "e4m3": (8, 4, 3),
    "e5m2": (8, 5, 2),
}
_DTYPES: dict[str, Any] = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "tf32": np.float32,
    "f32": np.float32,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
UNSIGNED = {8: "uint8", 16: "uint16", 32: "uint32"}


def elements(source: Source, count: int, kind: str, style: str) -> Array:
    """Return `count` elements as unsigned integers.

    normal: Gaussian. wide: any sign and mantissa, exponents of a range in which sums lose bits. special: wide, and
    zeros, subnormals, now and then an infinity or NaN. small: integers from -2 to 2. Integer types: any bits.
    """
    if kind in ("s8", "u8", "s4", "u4"):
        return source.bits(count, "uint8")
    bits, exponent_bits, mantissa = FORMATS[kind]
    dtype = UNSIGNED[bits]
    if style == "normal":
        return source.normal(count).astype(_DTYPES[kind]).view(dtype)
    if style == "small":
        return source.between(count, -2, 2).astype(np.float32).astype(_DTYPES[kind]).view(dtype)
    bias = (1 << (exponent_bits - 1)) - 1
    reach = min(bias - 1, 7)
    exponent = (bias + source.between(count, -reach, reach)).astype(dtype)
    low = source.bits(count, dtype) & np.dtype(dtype).type((1 << mantissa) - 1)
    sign = source.below(count, 2).astype(dtype) << np.dtype(dtype).type(bits - 1)
    found = (sign | exponent << np.dtype(dtype).type(mantissa) | low).astype(dtype)
    if style == "special":
        choice = source.below(count, 400)
        zero = np.zeros_like(found)
        found = np.select(
            [choice < 30, choice < 60, choice == 60, choice == 61],
            [sign, sign | low, infinity(kind, sign), infinity(kind, zero) | low],
            found,
        ).astype(dtype)
    return found


def infinity(kind: str, sign: Array) -> Array:
    """Return infinities (of e4m3, which has none, the top binade) with the given sign bits."""
    _, exponent_bits, mantissa = FORMATS[kind]
    return (sign | sign.dtype.type(((1 << exponent_bits) - 1) << mantissa)).astype(sign.dtype)
