"""Arithmetic that is rounded once in a chosen direction: exact or rounded to odd in a wider format first.

A result rounded to odd (when inexact, the neighbour whose last bit is set) in p + 2 bits or more can be rounded again
to p bits in any direction without harm.
"""

from __future__ import annotations

from megamoe_jit.emulator.isa.codecs import F32_INFINITY, F32_NAN, F32_SIGN
from megamoe_jit.emulator.isa.lanes import Lanes

SIGN64 = 1 << 63


def canonical(value: Lanes) -> Lanes:
    """Return an f32 result with the one NaN that the hardware gives."""
    return value.is_nan().where(F32_NAN, value.cast("i32")).cast("f32")


def flush(value: Lanes) -> Lanes:
    """Make a zero with the same sign of a subnormal f32."""
    bits = value.cast("i32")
    return (bits & F32_INFINITY).eq(0).where(bits & F32_SIGN, bits).cast("f32")


def flush_tiny(result: Lanes, scaled: Lanes) -> Lanes:
    """Make a zero with the same sign of an f32 result that is tiny: `scaled` is 2**64 times the result.

    The hardware looks at the result rounded to 24 bits wherever it is, so what gradual underflow would round up to the
    smallest normal number may be tiny nevertheless.
    """
    bits = result.cast("i32")
    return scaled.abs().compare("olt", 2.0**-62).where(bits & F32_SIGN, bits).cast("f32")


def saturate(value: Lanes) -> Lanes:
    """Clamp a float to [0, 1]; NaN and -0 become +0."""
    positive = value.compare("ogt", 0.0).where(value, 0.0)
    return positive.compare("olt", 1.0).where(positive, 1.0)


def to_odd(rounded: Lanes, error: Lanes) -> Lanes:
    """Turn an f64 rounded to nearest into the one rounded to odd; `error` has the sign of exact - rounded."""
    bits = rounded.cast("i64")
    step = (error.cast("i64") ^ bits).slt(0).where(bits.const(-1), 1)
    # An error that is NaN came of infinities, where nothing was rounded.
    inexact = error.compare("one", 0.0) & (bits & 1).eq(0)
    return (bits + inexact.where(step, 0)).cast("f64")


def sum_odd(a: Lanes, b: Lanes) -> Lanes:
    """Add f64 values, rounded to odd (Knuth's TwoSum gives the error)."""
    total = a + b
    back = total - a
    return to_odd(total, (a - (total - back)) + (b - back))


def quotient_odd(a: Lanes, b: Lanes) -> Lanes:
    """Divide f64 values that came of f32, rounded to odd."""
    quotient = a / b
    remainder = (-quotient).fma(b, a)
    error = (remainder.cast("i64") ^ (b.cast("i64") & SIGN64)).cast("f64")
    return to_odd(quotient, error)


def root_odd(a: Lanes) -> Lanes:
    """Square root of an f64 value that came of f32, rounded to odd."""
    root = a.sqrt()
    return to_odd(root, (-root).fma(root, a))


def narrow(value: Lanes, rounding: str) -> Lanes:
    """Round f64 to f32: rn, rz, rm, rp or odd. A NaN keeps its sign and upper payload, and is quiet."""
    nearest = value.narrow()
    bits, wide = nearest.cast("i32"), value.cast("i64")
    if rounding != "rn":
        magnitude = bits & 0x7FFFFFFF
        exact = (wide & (SIGN64 - 1)).cast("f64")
        down = magnitude.cast("f32").widen().compare("ogt", exact)
        magnitude = magnitude - down.zext("i32")
        inexact = magnitude.cast("f32").widen().ne(exact)
        negative = wide.slt(0)
        if rounding == "odd":
            magnitude = magnitude | inexact.zext("i32")
        elif rounding != "rz":
            away = inexact & (negative if rounding == "rm" else ~negative)
            magnitude = magnitude + away.zext("i32")
        bits = magnitude | (negative.zext("i32") << 31)
    sign = (wide >> 32).trunc("i32") & F32_SIGN
    nan = sign | 0x7FC00000 | ((wide >> 29).trunc("i32") & 0x3FFFFF)
    return value.is_nan().where(nan, bits).cast("f32")


def _sum(a: Lanes, b: Lanes, rounding: str) -> Lanes:
    """Add f64 to an f32. Rounding down, a sum that is zero before it is rounded is -0 unless both terms are +0."""
    total = sum_odd(a, b)
    result = narrow(total, rounding)
    if rounding != "rm":
        return result
    sign = (((a.cast("i64") | b.cast("i64")) >> 32).trunc("i32")) & F32_SIGN
    return total.compare("oeq", 0.0).where(sign, result.cast("i32")).cast("f32")


def add(a: Lanes, b: Lanes, rounding: str) -> Lanes:
    """Add f32."""
    if rounding == "rn":
        return canonical(a + b)
    return canonical(_sum(a.widen(), b.widen(), rounding))


def multiply(a: Lanes, b: Lanes, rounding: str) -> Lanes:
    """Multiply f32; the product is exact in f64."""
    if rounding == "rn":
        return canonical(a * b)
    return canonical(narrow(a.widen() * b.widen(), rounding))


def multiply_add(a: Lanes, b: Lanes, c: Lanes, rounding: str) -> Lanes:
    """Multiply and add f32, rounded once."""
    if rounding == "rn":
        return canonical(a.fma(b, c))
    return canonical(_sum(a.widen() * b.widen(), c.widen(), rounding))


def divide(a: Lanes, b: Lanes, rounding: str) -> Lanes:
    """Divide f32."""
    if rounding == "rn":
        return canonical(a / b)
    return canonical(narrow(quotient_odd(a.widen(), b.widen()), rounding))


def multiply_scaled(a: Lanes, b: Lanes, rounding: str) -> Lanes:
    """2**64 times the product, for `flush_tiny`: too large where the product is not tiny."""
    return multiply(a * 2.0**32, b * 2.0**32, rounding)


def multiply_add_scaled(a: Lanes, b: Lanes, c: Lanes, rounding: str) -> Lanes:
    """2**64 times a * b + c, for `flush_tiny`."""
    return multiply_add(a * 2.0**32, b * 2.0**32, c * 2.0**64, rounding)


def divide_scaled(a: Lanes, b: Lanes, rounding: str) -> Lanes:
    """2**64 times the quotient, for `flush_tiny`."""
    return divide(a * 2.0**64, b, rounding)


def root(a: Lanes, rounding: str) -> Lanes:
    """Square root of f32."""
    if rounding == "rn":
        return canonical(a.sqrt())
    return canonical(narrow(root_odd(a.widen()), rounding))


def multiply_add_odd(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Multiply and add f32 values of few bits (f16, bf16), rounded to odd in f32: any smaller format may follow."""
    return narrow(sum_odd(a.widen() * b.widen(), c.widen()), "odd")


def propagate64(result: Lanes, *operands: Lanes) -> Lanes:
    """Choose the NaN of an f64 result: the last operand that is one, quiet; 0xfff8... of an invalid operation."""
    bits = result.is_nan().where(0xFFF8000000000000, result.cast("i64"))
    for operand in operands:
        bits = operand.is_nan().where(operand.cast("i64") | (1 << 51), bits)
    return bits.cast("f64")
