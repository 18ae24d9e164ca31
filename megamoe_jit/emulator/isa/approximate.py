"""Approximate functions. ex2, rcp, rsqrt, sqrt and div give the bits of the hardware (see `special_functions`).

The others are computed in f64 and rounded once, which is within every documented error; the last bits differ.
"""

# Every form has the same arguments, whether it looks at them or not.
# ruff: noqa: ARG001

from __future__ import annotations

import math
from collections.abc import Callable

from megamoe_jit.emulator.isa import rounding
from megamoe_jit.emulator.isa.codecs import BF16, F16, decode, encode
from megamoe_jit.emulator.isa.floating import half_format, per_half
from megamoe_jit.emulator.isa.lanes import Calc, Lanes
from megamoe_jit.emulator.isa.table import Form, pure

_FLOAT = "Floating Point Instructions: "
_HALF = "Half Precision Floating Point Instructions: "


def _flushed(form: Form, function: Callable[[Lanes], Lanes], a: Lanes) -> Lanes:
    """Evaluate on f32, subnormals flushed on both sides when the form asks for it."""
    if form.has("ftz"):
        a = rounding.flush(a)
    result = rounding.canonical(function(a))
    return rounding.flush(result) if form.has("ftz") else result


def _through_double(calc: Calc, name: str) -> Callable[[Lanes], Lanes]:
    return lambda a: calc.call(name, a.widen()).narrow()


def _half(form: Form, function: Callable[[Lanes], Lanes], a: Lanes) -> Lanes:
    """Evaluate on half precision: in f32, then rounded; bf16 with .ftz loses its subnormals."""
    format = half_format(form.type)

    def scalar(code: Lanes) -> Lanes:
        value = decode(code, format)
        if form.has("ftz"):
            value = rounding.flush(value)
        result = encode(function(value), format)
        return (result & 0x7F80).eq(0).where(result & 0x8000, result) if form.has("ftz") and format is BF16 else result

    return per_half(form.type, scalar, a)


# What the assembler makes of the forms without .ftz: operands and results that the function would flush are scaled.
_SMALLEST_NORMAL, _TOO_LARGE = 1 << 23, 253 << 23


def _magnitude(a: Lanes) -> Lanes:
    return a.cast("i32") & 0x7FFFFFFF


@pure("rcp.approx{.ftz}.f32", dst="f32", src="f32", section=_FLOAT + "rcp")
def rcp(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Reciprocal."""
    if form.has("ftz"):
        return calc.special("rcp", a)
    magnitude = _magnitude(a)
    factor = magnitude.ult(_SMALLEST_NORMAL).where(2.0**24, magnitude.uge(_TOO_LARGE).where(0.25, a.const(1.0)))
    return rounding.canonical(calc.special("rcp", a * factor) * factor)


@pure("sqrt.approx{.ftz}.f32", dst="f32", src="f32", section=_FLOAT + "sqrt")
def sqrt(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Square root."""
    if form.has("ftz"):
        return calc.special("sqrt", a)
    is_small = _magnitude(a).ult(_SMALLEST_NORMAL)
    root = calc.special("sqrt", is_small.where(a * 2.0**24, a))
    return rounding.canonical(is_small.where(root * 2.0**-12, root))


@pure("rsqrt.approx{.ftz}.f32", dst="f32", src="f32", section=_FLOAT + "rsqrt")
def rsqrt(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Reciprocal of the square root."""
    if form.has("ftz"):
        return calc.special("rsqrt", a)
    is_small = _magnitude(a).ult(_SMALLEST_NORMAL)
    root = calc.special("rsqrt", is_small.where(a * 2.0**24, a))
    return rounding.canonical(is_small.where(root * 2.0**12, root))


def _quotient(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Multiply by the reciprocal."""
    result = rounding.canonical(a * calc.special("rcp", b))
    return rounding.flush(result) if form.has("ftz") else result


@pure("div.full{.ftz}.f32", dst="f32", src="f32 f32", section=_FLOAT + "div")
def div_full(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Quotient; operands are scaled where the reciprocal of b would be lost."""
    if form.has("ftz"):
        a, b = rounding.flush(a), rounding.flush(b)
    magnitude = _magnitude(b)
    factor = magnitude.ult(_SMALLEST_NORMAL).where(2.0**24, magnitude.uge(_TOO_LARGE).where(0.25, a.const(1.0)))
    return _quotient(calc, form, a * factor, b * factor)


@pure("div.approx{.ftz}.f32", dst="f32", src="f32 f32", section=_FLOAT + "div")
def div_approx(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Quotient; a divisor past 2**126 gives zero, or NaN below infinity, as the manual says."""
    if form.has("ftz"):
        a, b = rounding.flush(a), rounding.flush(b)
        return _quotient(calc, form, a, b)
    factor = _magnitude(b).ult(_SMALLEST_NORMAL).where(2.0**24, a.const(1.0))
    return _quotient(calc, form, a * factor, b * factor)


@pure("ex2.approx{.ftz}.f32", dst="f32", src="f32", section=_FLOAT + "ex2")
def ex2(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Two to the power of a; without .ftz results below the normal numbers are squares of roots."""
    if form.has("ftz"):
        return calc.special("ex2", a)
    is_low = a.compare("olt", -126.0)
    power = calc.special("ex2", is_low.where(a * 0.5, a))
    return is_low.where(power * power, power)


@pure("lg2.approx{.ftz}.f32", dst="f32", src="f32", section=_FLOAT + "lg2")
def lg2(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Logarithm to base 2."""
    return _flushed(form, _through_double(calc, "log2"), a)


@pure("sin.approx{.ftz}.f32", dst="f32", src="f32", section=_FLOAT + "sin")
def sin(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Sine."""
    return _flushed(form, _through_double(calc, "sin"), a)


@pure("cos.approx{.ftz}.f32", dst="f32", src="f32", section=_FLOAT + "cos")
def cos(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Cosine."""
    return _flushed(form, _through_double(calc, "cos"), a)


@pure("tanh.approx.f32", dst="f32", src="f32", section=_FLOAT + "tanh")
def tanh(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Hyperbolic tangent."""
    return _flushed(form, _through_double(calc, "tanh"), a)


@pure("tanh.approx.<type>", types="f16 f16x2 bf16 bf16x2", dst="<type>", src="<type>", section=_HALF + "tanh")
def tanh_half(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Hyperbolic tangent."""
    return _half(form, _through_double(calc, "tanh"), a)


@pure("ex2.approx.ftz.<type>", types="bf16 bf16x2", dst="<type>", src="<type>", section=_HALF + "ex2")
@pure("ex2.approx.<type>", types="f16 f16x2", dst="<type>", src="<type>", section=_HALF + "ex2")
def ex2_half(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Two to the power of a: that of f32, cut off."""
    format = half_format(form.type)

    def scalar(code: Lanes) -> Lanes:
        power = calc.special("ex2", decode(code, format))
        too_large = power.compare("oge", 65536.0).where(math.inf, power) if format is F16 else power
        return encode(too_large, format, "rz")

    return per_half(form.type, scalar, a)


def _gross(a: Lanes, function: Callable[[Lanes], Lanes]) -> Lanes:
    """Evaluate an f64 form that looks at the upper word only and gives no more: about 20 bits of mantissa."""
    upper = a.cast("i64") & 0xFFFFFFFF00000000
    upper = (upper & (0x7FF << 52)).eq(0).where(upper & rounding.SIGN64, upper)
    result = function(upper.cast("f64"))
    bits = result.cast("i64")
    # Half an ulp of the upper word, ties to even, then cut; infinities have no low word to round.
    rounded = (bits + 0x7FFFFFFF + ((bits >> 32) & 1)) & 0xFFFFFFFF00000000
    rounded = (rounded & (0x7FF << 52)).eq(0).where(rounded & rounding.SIGN64, rounded)
    return result.is_nan().where(0x7FFFFFFF00000000, rounded).cast("f64")


@pure("rcp.approx.ftz.f64", dst="f64", src="f64", section=_FLOAT + "rcp.approx.ftz.f64")
def rcp_double(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Gross reciprocal."""
    return _gross(a, lambda x: 1.0 / x)


@pure("rsqrt.approx{.ftz}.f64", dst="f64", src="f64", section=_FLOAT + "rsqrt.approx.ftz.f64")
def rsqrt_double(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Gross reciprocal of the square root."""
    if form.has("ftz"):
        return _gross(a, lambda x: 1.0 / x.sqrt())
    return rounding.propagate64(1.0 / a.sqrt(), a)
