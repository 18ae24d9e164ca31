"""The adder of tensor cores, stated once in NumPy. `native.py` computes the same faster.

A matrix multiply-accumulate adds, for each element of D, the products along K and the old D. The published model
(MMA-Sim, arXiv 2511.10909), which probes on an H200 confirm for Hopper's FP8:

1. A term is a pair (significand, exponent). A product's significands are multiplied and its exponents added, without
   renormalising; a subnormal operand keeps its format's least exponent. A term that is zero has exponent -126.
2. E is the largest exponent of all terms, the old D among them.
3. Each term is truncated toward zero to a multiple of 2**(E - F), and all are added exactly.
4. The sum is truncated toward zero to the output's significand, with FP32's least exponent; FP16 output is rounded to
   nearest even instead. What is too large becomes an infinity.
5. A NaN anywhere, or infinities that cancel, give the NaN of all ones without a sign.

"exact" replaces 2 to 4 by the exact sum, rounded once to nearest even.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction

import numpy as np

from megamoe_jit.emulator.engines.numerics.formats import F16, F32, Array

MIN_EXPONENT = -126
"""Exponent of a term that is zero: FP32's least."""
NAN_F32 = 0x7FFFFFFF
NAN_F16 = 0x7FFF


class Rounding(Enum):
    """How a sum becomes an output."""

    F32 = "f32"
    """Truncated to 23 fraction bits."""
    E8M13 = "e8m13"
    """Truncated to 13 fraction bits, stored as FP32."""
    F16 = "f16"
    """FP16, to nearest even."""
    F32_NEAREST = "f32 nearest"
    """FP32, to nearest even; only exact sums use it."""

    @property
    def is_f16(self) -> bool:
        """Whether D is FP16."""
        return self is Rounding.F16


@dataclass(frozen=True, slots=True)
class Rule:
    """How an instruction adds.

    Attributes:
        fraction_bits: F of the model; None for an exact sum.
        rounding: of the sum.
    """

    fraction_bits: int | None
    rounding: Rounding

    @property
    def exact(self) -> Rule:
        """The rule of "exact" numerics for the same output."""
        return replace(
            self, fraction_bits=None, rounding=Rounding.F16 if self.rounding.is_f16 else Rounding.F32_NEAREST
        )


def split_accumulator(d: Array) -> tuple[Array, Array]:
    """Take D apart, bits of FP32 (uint32) or FP16 (uint16): significands with 23 fraction bits, exponents; int64."""
    form = F16 if d.dtype.itemsize == 2 else F32
    significands, exponents = form.split(d)
    return significands.astype(np.int64) << (23 - form.fraction_bits), exponents.astype(np.int64)


def add_terms(terms: Array, exponents: Array, term_fraction_bits: int, d: Array, rule: Rule) -> Array:
    """Add terms and the old D of every element by the model.

    Args:
        terms: [..., T] int64 significands, in units of 2**-term_fraction_bits.
        exponents: [..., T].
        term_fraction_bits: fraction bits of the significands.
        d: [...] bits of the old D, uint32 (FP32) or uint16 (FP16); zeros where it is not added.
        rule: fraction bits and rounding.

    Returns:
        [...] bits of the new D, of d's dtype. All terms and the old D must be finite.
    """
    if rule.fraction_bits is None:
        return round_sum(_exact_sums(terms, exponents, term_fraction_bits, d), rule.rounding)
    fraction_bits = rule.fraction_bits
    old, old_exponents = split_accumulator(d)
    exponents = np.where(terms == 0, MIN_EXPONENT, exponents)
    old_exponents = np.where(old == 0, MIN_EXPONENT, old_exponents)
    top = np.maximum(exponents.max(axis=-1, initial=MIN_EXPONENT), old_exponents)
    total = _truncated(terms, top[..., None] - exponents, fraction_bits - term_fraction_bits).sum(axis=-1)
    total += _truncated(old, top - old_exponents, fraction_bits - 23)
    return round_sum(np.ldexp(total.astype(np.float64), top - fraction_bits), rule.rounding)


def _truncated(significands: Array, right: Array, left: int) -> Array:
    """Shift magnitudes left by `left` (which may be negative) and right by `right`, dropping bits; signs are kept."""
    magnitude = np.abs(significands) << max(left, 0)
    shifted: Array = magnitude >> np.clip(right - min(left, 0), 0, 62)
    return np.where(significands < 0, -shifted, shifted)


def round_sum(sums: Array, rounding: Rounding) -> Array:
    """Round float64 sums; returns bits, uint32 or uint16. NaNs become the NaN of all ones."""
    with np.errstate(over="ignore", under="ignore"):
        if rounding is Rounding.F16:
            half: Array = sums.astype(np.float16).view(np.uint16)
            return np.where(np.isnan(sums), np.uint16(NAN_F16), half)
        if rounding is not Rounding.F32_NEAREST:
            sums = _truncate_f64(sums, 13 if rounding is Rounding.E8M13 else 23)
        bits: Array = sums.astype(np.float32).view(np.uint32)
    return np.where(np.isnan(sums), np.uint32(NAN_F32), bits)


def _truncate_f64(values: Array, fraction_bits: int) -> Array:
    """Truncate toward zero to `fraction_bits` after the leading one, and no finer than FP32's least exponent allows."""
    finite = np.isfinite(values)
    _, exponents = np.frexp(np.where(finite, values, 0))
    unit = np.maximum(exponents - 1, MIN_EXPONENT) - fraction_bits
    truncated = np.ldexp(np.trunc(np.ldexp(np.where(finite, values, 0), -unit)), unit) + 0.0
    return np.where(finite, truncated, values)


def _exact_sums(terms: Array, exponents: Array, term_fraction_bits: int, d: Array) -> Array:
    old, old_exponents = split_accumulator(d)
    sums = np.empty(d.shape, np.float64)
    for place in np.ndindex(d.shape):
        sums[place] = exact_sum(
            zip(terms[place].tolist(), exponents[place].tolist(), strict=True),
            term_fraction_bits,
            (int(old[place]), int(old_exponents[place])),
        )
    return sums


def exact_sum(terms: object, term_fraction_bits: int, old: tuple[int, int]) -> float:
    """Add (significand, exponent) pairs and the old D exactly; rounded to odd, so that a second rounding is right."""
    total = Fraction(old[0]) * Fraction(2) ** (max(old[1], -200) - 23)
    for significand, exponent in terms:  # type: ignore[attr-defined]
        if significand:
            total += Fraction(significand) * Fraction(2) ** (exponent - term_fraction_bits)
    return round_to_odd(total)


def round_to_odd(value: Fraction) -> float:
    """Return `value` as a float64 whose last bit is set when bits were lost."""
    if value == 0:
        return 0.0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length() - 53
    scaled = magnitude / Fraction(2) ** exponent
    whole = int(scaled)
    if whole.bit_length() > 53:
        exponent += 1
        scaled /= 2
        whole = int(scaled)
    whole |= scaled != whole
    return float(np.ldexp(np.float64(-whole if value < 0 else whole), exponent))
