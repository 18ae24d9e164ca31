"""Number formats of tensor-core operands, and operands taken apart into significands and exponents.

A value is significand * 2**(exponent - fraction_bits). Significands are integers with a sign; they are not normalised:
a subnormal keeps its format's least exponent, as the adder's alignment (`adder.py`) wants it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

ZERO_EXPONENT = -2000
"""Exponent of a zero's significand: below every other, so that a zero never decides an alignment."""
SPECIAL_EXPONENT = 4000
"""Exponent that marks an infinity or NaN; its significand is zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementFormat:
    """A floating-point format: [sign] exponent mantissa, most significant first.

    Attributes:
        name: as in PTX.
        bits: width of a code.
        fraction_bits: mantissa bits.
        bias: of the exponent field.
        specials: "ieee": the highest exponent field holds infinities and NaNs; "fn": only the all-ones code is a NaN;
            "none": every code is a number.
        signed: whether bit `bits - 1` is a sign.
        storage: bytes that hold a code in an array.
    """

    name: str
    bits: int
    fraction_bits: int
    bias: int
    specials: Literal["ieee", "fn", "none"]
    signed: bool = True
    storage: int = 1

    @property
    def min_exponent(self) -> int:
        """Exponent of the least normal number, and of all subnormals."""
        return 1 - self.bias

    def split(self, codes: Array) -> tuple[Array, Array]:
        """Take codes apart: (significands, exponents), int32; zeros and specials have the exponents above."""
        tables = _tables(self)
        if tables is None:
            return _split(self, codes)
        return tables[0][codes], tables[1][codes]

    def values(self, codes: Array) -> Array:
        """Return the numbers that codes stand for, float64."""
        significands, exponents = self.split(codes)
        plain: Array = np.ldexp(significands.astype(np.float64), np.clip(exponents, -1000, 1000) - self.fraction_bits)
        special = exponents == SPECIAL_EXPONENT
        if not special.any():
            return plain
        fraction = codes.astype(np.int64) & ((1 << self.fraction_bits) - 1)
        is_inf = (fraction == 0) & (self.specials == "ieee")
        sign = np.where(codes.astype(np.int64) >> (self.bits - 1) & 1, -1.0, 1.0) if self.signed else 1.0
        with np.errstate(invalid="ignore"):
            return np.where(special, np.where(is_inf, np.inf * sign, np.nan), plain)


E2M1 = ElementFormat(name="e2m1", bits=4, fraction_bits=1, bias=1, specials="none")
E2M3 = ElementFormat(name="e2m3", bits=6, fraction_bits=3, bias=1, specials="none")
E3M2 = ElementFormat(name="e3m2", bits=6, fraction_bits=2, bias=3, specials="none")
E4M3 = ElementFormat(name="e4m3", bits=8, fraction_bits=3, bias=7, specials="fn")
E5M2 = ElementFormat(name="e5m2", bits=8, fraction_bits=2, bias=15, specials="ieee")
F16 = ElementFormat(name="f16", bits=16, fraction_bits=10, bias=15, specials="ieee", storage=2)
BF16 = ElementFormat(name="bf16", bits=16, fraction_bits=7, bias=127, specials="ieee", storage=2)
TF32 = ElementFormat(name="tf32", bits=19, fraction_bits=10, bias=127, specials="ieee", storage=4)
"""Codes are the upper 19 bits of a 32-bit word: the lower 13 are ignored, which truncates."""
F32 = ElementFormat(name="f32", bits=32, fraction_bits=23, bias=127, specials="ieee", storage=4)
UE4M3 = ElementFormat(name="ue4m3", bits=7, fraction_bits=3, bias=7, specials="fn", signed=False)
"""A scale factor; callers drop the unused top bit of its byte."""
UE8M0 = ElementFormat(name="ue8m0", bits=8, fraction_bits=0, bias=127, specials="fn", signed=False)
"""A scale factor: a power of two, without a zero."""

FORMATS = {item.name: item for item in (E2M1, E2M3, E3M2, E4M3, E5M2, F16, BF16, TF32, F32, UE4M3, UE8M0)}


def _split(form: ElementFormat, codes: Array) -> tuple[Array, Array]:
    codes = codes.astype(np.int64)
    exponent_bits = form.bits - form.fraction_bits - form.signed
    fraction = codes & ((1 << form.fraction_bits) - 1)
    field = codes >> form.fraction_bits & ((1 << exponent_bits) - 1)
    if form is UE8M0:
        significand, exponent = np.ones_like(codes), field - form.bias
    else:
        significand = np.where(field > 0, fraction | 1 << form.fraction_bits, fraction)
        exponent = np.maximum(field, 1) - form.bias
        exponent = np.where(significand == 0, ZERO_EXPONENT, exponent)
    top = (1 << exponent_bits) - 1
    if form.specials != "none":
        special = field == top
        if form.specials == "fn":
            special &= fraction == (1 << form.fraction_bits) - 1
        significand = np.where(special, 0, significand)
        exponent = np.where(special, SPECIAL_EXPONENT, exponent)
    if form.signed:
        significand = np.where(codes >> (form.bits - 1) & 1, -significand, significand)
    return significand.astype(np.int32), exponent.astype(np.int32)


@functools.cache
def _tables(form: ElementFormat) -> tuple[Array, Array] | None:
    """Significand and exponent of every code; None where there are too many."""
    if form.bits > 16:
        return None
    return _split(form, np.arange(1 << form.bits))


class Operand:
    """Rows of codes along K, and what the adder needs of them, worked out when first asked for.

    Attributes:
        form: format of the codes.
        codes: [rows, K] unsigned.
    """

    __slots__ = ("_columns", "_parts", "codes", "form")

    def __init__(self, form: ElementFormat, codes: Array, *, negate: bool = False) -> None:
        """Keep `codes`; `negate` flips every sign."""
        self.form = form
        self.codes = codes ^ codes.dtype.type(1 << (form.bits - 1)) if negate else codes
        self._parts: tuple[Array, Array] | None = None
        self._columns: tuple[Array, Array] | None = None

    @property
    def rows(self) -> int:
        """Number of rows (M or N)."""
        return int(self.codes.shape[0])

    @property
    def depth(self) -> int:
        """Number of elements along K."""
        return int(self.codes.shape[1])

    @property
    def parts(self) -> tuple[Array, Array]:
        """Significands and exponents, int32 [rows, K], contiguous."""
        if self._parts is None:
            significands, exponents = self.form.split(self.codes)
            self._parts = np.ascontiguousarray(significands), np.ascontiguousarray(exponents)
        return self._parts

    @property
    def columns(self) -> tuple[Array, Array]:
        """Significands and exponents as [K, rows], contiguous, rows padded with zeros to a multiple of 16."""
        if self._columns is None:
            significands, exponents = self.parts
            self._columns = padded_columns(significands, 0), padded_columns(exponents, ZERO_EXPONENT)
        return self._columns

    @property
    def has_special(self) -> bool:
        """Whether an infinity or NaN is among the codes."""
        return self.form.specials != "none" and bool(self.parts[1].max(initial=0) == SPECIAL_EXPONENT)

    def values(self) -> Array:
        """Return the numbers, float64 [rows, K]."""
        return self.form.values(self.codes)

    def halves(self) -> Array:
        """Return E2M1 values times two, whole numbers as float32 [rows, K]."""
        return _halves()[self.codes]


@functools.cache
def _halves() -> Array:
    return (2 * E2M1.values(np.arange(16))).astype(np.float32)


def padded_columns(array: Array, fill: int, multiple: int = 16) -> Array:
    """Return [rows, K] transposed to [K, rows rounded up to `multiple`], contiguous."""
    rows, depth = array.shape
    width = -(-rows // multiple) * multiple
    if width == rows:
        return np.ascontiguousarray(array.T)
    out = np.full((depth, width), fill, array.dtype)
    out[:, :rows] = array.T
    return out
