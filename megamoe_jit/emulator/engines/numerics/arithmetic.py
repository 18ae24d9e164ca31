"""Matrix products as tensor cores form them: operands and the old D in, bits of the new D out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from megamoe_jit.emulator.engines.numerics import native
from megamoe_jit.emulator.engines.numerics.adder import (
    NAN_F16,
    NAN_F32,
    Rounding,
    Rule,
    add_terms,
    exact_sum,
    round_sum,
    split_accumulator,
)
from megamoe_jit.emulator.engines.numerics.formats import (
    SPECIAL_EXPONENT,
    ZERO_EXPONENT,
    Array,
    ElementFormat,
    Operand,
    padded_columns,
)

Numerics: TypeAlias = Literal["hardware", "exact"]
"""How sums are formed: the published model of the hardware's adder, or exactly with one rounding."""

BLOCK_TERM = 16
"""Products that FP4 block-scaled instructions add exactly before they align."""
FP4_BLOCK_FRACTION_BITS = 35
"""F of FP4 block-scaled instructions."""


def rule_for(unit: Literal["wgmma", "mma", "tcgen05"], form: str, d_type: Literal["f32", "f16"]) -> Rule:
    """Return how `unit` adds products of operands of format `form` (without block scales, or with mxf8f6f4's)."""
    narrow = unit == "wgmma" and form in ("e4m3", "e5m2")
    rounding = Rounding.F16 if d_type == "f16" else Rounding.E8M13 if narrow else Rounding.F32
    return Rule(13 if narrow else 25, rounding)


@dataclass(frozen=True, slots=True)
class Scales:
    """Scale factors of the rows of an operand.

    Attributes:
        form: UE4M3 or UE8M0.
        codes: [rows, blocks] uint8; each covers K / blocks elements.
    """

    form: ElementFormat
    codes: Array

    def split(self) -> tuple[Array, Array]:
        """Return significands and exponents; the unused top bit of a UE4M3 byte is ignored."""
        return self.form.split(self.codes & ((1 << self.form.bits) - 1))

    def values(self, depth: int) -> Array:
        """Return the factor of each of `depth` elements, float64 [rows, depth]."""
        values = self.form.values(self.codes & ((1 << self.form.bits) - 1))
        return np.repeat(values, depth // values.shape[1], axis=1)


def dot(
    a: Operand,
    b: Operand,
    d: Array | None,
    rule: Rule,
    *,
    numerics: Numerics = "hardware",
    scales: tuple[Scales, Scales] | None = None,
) -> Array:
    """Multiply and add: d + a @ b.T, every product a term of the sum.

    Args:
        a: [M, K]; b: [N, K].
        d: [M, N] bits of the old D, uint32 for FP32 and uint16 for FP16; None adds nothing.
        rule: how the instruction adds.
        numerics: "exact" replaces the rule by its exact one.
        scales: UE8M0 factors of a's and b's rows, one a row: they raise the products' exponents (mxf8f6f4).

    Returns:
        [M, N] bits of the new D.
    """
    rule = rule.exact if numerics == "exact" else rule
    special = a.has_special or b.has_special
    (sa, ea), (sb, eb) = a.parts, b.columns
    if scales is not None:
        for factors in scales:
            assert factors.codes.shape[1] == 1, "one factor a row: more are sums of blocks"
        row_exponents, column_exponents = (factors.split()[1] for factors in scales)
        special |= bool(max(row_exponents.max(), column_exponents.max()) == SPECIAL_EXPONENT)
        ea = ea + row_exponents
        eb = eb + padded_columns(column_exponents, 0)
    if special:
        # a special's significand is zero: it must not decide an alignment either
        ea = np.where(ea >= SPECIAL_EXPONENT // 2, ZERO_EXPONENT, ea)
        eb = np.where(eb >= SPECIAL_EXPONENT // 2, ZERO_EXPONENT, eb)
    product_bits = a.form.fraction_bits + b.form.fraction_bits
    out = _run(
        (sa, np.ascontiguousarray(ea)), (sb, np.ascontiguousarray(eb)),
        None, (a.rows, b.rows), product_bits, d, rule,
    )  # fmt: skip
    if special:
        values = [operand.values() for operand in (a, b)]
        if scales is not None:
            values = [value * factors.values(a.depth) for value, factors in zip(values, scales, strict=True)]
        _set_specials(out, values[0], values[1], d)
    return out


def block_dot(
    a: Operand, b: Operand, scales: tuple[Scales, Scales], d: Array | None, *, numerics: Numerics = "hardware"
) -> Array:
    """Multiply and add packed FP4 with block scales: a term is the exact dot product of 16 pairs times both factors.

    Args:
        a: [M, K] E2M1; b: [N, K] E2M1.
        scales: factors of a's and b's rows, K / blocks elements each (a multiple of 16).
        d: [M, N] bits of the old FP32 D, or None.
        numerics: "hardware" (F = 35) or "exact".

    Returns:
        [M, N] bits of the new D.
    """
    rule = Rule(FP4_BLOCK_FRACTION_BITS, Rounding.F32)
    rule = rule.exact if numerics == "exact" else rule
    num_terms = a.depth // BLOCK_TERM
    dots = _block_dots(a, b, num_terms)
    parts = []
    special = False
    for factors in scales:
        significands, exponents = factors.split()
        special |= bool(exponents.max() == SPECIAL_EXPONENT)
        repeat = num_terms // factors.codes.shape[1]
        parts.append((np.repeat(significands, repeat, axis=1), np.repeat(exponents, repeat, axis=1)))
    (sa, ea), (sb, eb) = parts
    if special:
        ea, eb = (np.where(exponents == SPECIAL_EXPONENT, ZERO_EXPONENT, exponents) for exponents in (ea, eb))
    term_bits = 2 + scales[0].form.fraction_bits + scales[1].form.fraction_bits
    columns = (padded_columns(sb, 0), padded_columns(eb, ZERO_EXPONENT))
    out = _run((sa, np.ascontiguousarray(ea)), columns, dots, (a.rows, b.rows), term_bits, d, rule)
    if special:
        values = [operand.values() * factors.values(a.depth) for operand, factors in zip((a, b), scales, strict=True)]
        _set_specials(out, values[0], values[1], d)
    return out


def _block_dots(a: Operand, b: Operand, num_terms: int) -> Array:
    """Dot products of 16, in quarters: float32 [terms, M, N padded]. Exact: they are integers below 2**12."""
    left = a.halves().reshape(a.rows, num_terms, BLOCK_TERM).transpose(1, 0, 2)
    right = padded_columns(b.halves(), 0).reshape(num_terms, BLOCK_TERM, -1)
    dots: Array = np.matmul(left, right)
    return dots


def _run(
    a: tuple[Array, Array],
    b: tuple[Array, Array],
    blocks: Array | None,
    shape: tuple[int, int],
    term_bits: int,
    d: Array | None,
    rule: Rule,
) -> Array:
    """Add finite terms (D may hold specials): significands and exponents of a by rows, of b by columns."""
    columns = shape[1]
    terms = _Terms(a, b, blocks, shape[0], term_bits, _padded_accumulator(d, b[0].shape[1]), d is not None)
    if rule.fraction_bits is not None:
        variant = native.Variant(blocks is not None, 32 if blocks is None else 64)
        kept = {Rounding.F32: 23, Rounding.E8M13: 13}.get(rule.rounding, 0)
        out, _ = terms.add(variant, rule.fraction_bits, -14 if rule.rounding.is_f16 else -126, kept)
        return out[:, :columns] if kept else round_sum(out[:, :columns], rule.rounding)
    for bits, fraction in native.EXACT_FRACTION_BITS.items():
        out, flags = terms.add(native.Variant(blocks is not None, bits, exact=True), fraction, -126, 0)
        if not flags[:, :columns].any():
            break
    for m, n in zip(*np.nonzero(flags[:, :columns]), strict=True):
        out[m, n] = terms.exact_sum(int(m), int(n))
    return round_sum(out[:, :columns], rule.rounding)


@dataclass(frozen=True, slots=True)
class _Terms:
    """What one product adds: see `native._ARGUMENTS`."""

    a: tuple[Array, Array]
    b: tuple[Array, Array]
    blocks: Array | None
    rows: int
    term_bits: int
    old: Array
    adds_old: bool

    def add(self, variant: native.Variant, fraction: int, d_min: int, kept: int) -> tuple[Array, Array]:
        """Run a kernel: results (bits when `kept`, else float64) and flags."""
        padded = self.b[0].shape[1]
        left, right = max(fraction - self.term_bits, 0), max(self.term_bits - fraction, 0)
        # a product is below 4, so at F fraction bits 2**(29 - F) of them fit in 31 bits
        chunk = 1 << (29 - fraction) if variant.bits == 32 else 1
        out = np.empty((self.rows, padded), np.uint32 if kept else np.float64)
        flags = np.empty((self.rows, padded) if variant.exact else (1, 1), np.uint8)
        blocks = self.old if self.blocks is None else self.blocks
        data = [array.ctypes.data for array in (*self.a, *self.b, blocks, self.old)]
        native.kernel(variant)(
            self.rows, padded, self.a[0].shape[1], *data, padded if self.adds_old else 0, left, right, fraction,
            d_min, chunk, kept, out.ctypes.data, flags.ctypes.data,
        )  # fmt: skip
        return out, flags

    def exact_sum(self, m: int, n: int) -> float:
        """Add the terms of one element with unbounded integers."""
        significands = self.a[0][m].astype(object) * self.b[0][:, n]
        if self.blocks is not None:
            significands = significands * self.blocks[:, m, n].astype(np.int64)
        exponents = self.a[1][m].astype(object) + self.b[1][:, n]
        old, old_exponent = split_accumulator(self.old[m if self.adds_old else 0, n][None])
        pairs = zip(map(int, significands), map(int, exponents), strict=True)
        return exact_sum(pairs, self.term_bits, (int(old[0]), int(old_exponent[0])))


def _padded_accumulator(d: Array | None, columns: int) -> Array:
    """Return D as FP32 bits with `columns` columns; one row of zeros when nothing is added."""
    if d is None:
        return np.zeros((1, columns), np.uint32)
    if d.dtype.itemsize == 2:
        with np.errstate(invalid="ignore"):  # a signalling NaN
            d = d.view(np.float16).astype(np.float32).view(np.uint32)
    if d.shape[1] == columns:
        return np.ascontiguousarray(d)
    padded = np.zeros((d.shape[0], columns), np.uint32)
    padded[:, : d.shape[1]] = d
    return padded


def _set_specials(out: Array, a: Array, b: Array, d: Array | None) -> None:
    """Set what infinities and NaNs of the operands make of D; `a` [M, K] and `b` [N, K] are float64 values."""
    with np.errstate(invalid="ignore", over="ignore"):
        sums = a @ b.T
        if d is not None:
            sums = sums + d.view(np.float16 if d.dtype.itemsize == 2 else np.float32)
    is_f16 = out.dtype.itemsize == 2
    for place, code in (
        (np.isnan(sums), NAN_F16 if is_f16 else NAN_F32),
        (sums == np.inf, 0x7C00 if is_f16 else 0x7F800000),
        (sums == -np.inf, 0xFC00 if is_f16 else 0xFF800000),
    ):
        out[place] = code


def integer_dot(a: Array, b: Array, d: Array | None, *, saturate: bool = False) -> Array:
    """Multiply and add integers: int32 d + a @ b.T, wrapping, or held in its range with `saturate`.

    Args:
        a: [M, K] int8 or uint8; b: [N, K] int8 or uint8.
        d: [M, N] int32 or its bits, or None.
        saturate: hold the sum in int32's range.
    """
    # sums of at most 64 products below 2**16 are exact in float64
    sums = (a.astype(np.float64) @ b.astype(np.float64).T).astype(np.int64)
    if d is not None:
        sums += d.view(np.int32)
    if saturate:
        sums = np.clip(sums, -(1 << 31), (1 << 31) - 1)
    return sums.astype(np.uint32)


def dot_reference(
    a: Operand, b: Operand, d: Array | None, rule: Rule, *, scales: tuple[Scales, Scales] | None = None
) -> Array:
    """Compute what `dot` computes for finite operands, by the NumPy statement of the model."""
    terms = a.parts[0][:, None].astype(np.int64) * b.parts[0][None]
    exponents = a.parts[1][:, None].astype(np.int64) + b.parts[1][None]
    if scales is not None:
        exponents = exponents + scales[0].split()[1][:, None] + scales[1].split()[1][None]
    old = np.zeros((a.rows, b.rows), np.uint16 if rule.rounding.is_f16 else np.uint32) if d is None else d
    return add_terms(terms, exponents, a.form.fraction_bits + b.form.fraction_bits, old, rule)


def block_dot_reference(a: Operand, b: Operand, scales: tuple[Scales, Scales], d: Array | None, rule: Rule) -> Array:
    """Compute what `block_dot` computes for finite scales, by the NumPy statement of the model."""
    num_terms = a.depth // BLOCK_TERM
    grouped = [operand.halves().astype(np.int64).reshape(operand.rows, num_terms, -1) for operand in (a, b)]
    terms = np.einsum("mtk,ntk->mnt", *grouped)
    exponents = np.zeros_like(terms)
    for factors, axis in zip(scales, (1, 0), strict=True):
        repeat = num_terms // factors.codes.shape[1]
        significands, exponent = (np.repeat(part.astype(np.int64), repeat, axis=1) for part in factors.split())
        terms = terms * np.expand_dims(significands, axis)
        exponents = exponents + np.expand_dims(exponent, axis)
    old = np.zeros((a.rows, b.rows), np.uint32) if d is None else d
    term_bits = 2 + scales[0].form.fraction_bits + scales[1].form.fraction_bits
    return add_terms(terms, exponents, term_bits, old, rule)
