"""Approximate functions: computed in f64 and rounded once, which is within every documented error.

The hardware's tables differ from this in the last bits.
"""

# Every form has the same arguments, whether it looks at them or not.
# ruff: noqa: ARG001

from __future__ import annotations

from collections.abc import Callable

from megamoe_jit.emulator.isa import rounding
from megamoe_jit.emulator.isa.codecs import BF16, decode, encode
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


@pure("rcp.approx{.ftz}.f32", dst="f32", src="f32", section=_FLOAT + "rcp")
def rcp(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Reciprocal."""
    return _flushed(form, lambda x: 1.0 / x, a)


@pure("sqrt.approx{.ftz}.f32", dst="f32", src="f32", section=_FLOAT + "sqrt")
def sqrt(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Square root."""
    return _flushed(form, lambda x: x.sqrt(), a)


@pure("rsqrt.approx{.ftz}.f32", dst="f32", src="f32", section=_FLOAT + "rsqrt")
def rsqrt(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Reciprocal of the square root."""
    return _flushed(form, lambda x: (1.0 / x.widen().sqrt()).narrow(), a)


@pure("div.full{.ftz}.f32", dst="f32", src="f32 f32", section=_FLOAT + "div")
def div_full(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Quotient."""
    if form.has("ftz"):
        a, b = rounding.flush(a), rounding.flush(b)
    result = rounding.canonical(a / b)
    return rounding.flush(result) if form.has("ftz") else result


@pure("div.approx{.ftz}.f32", dst="f32", src="f32 f32", section=_FLOAT + "div")
def div_approx(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Quotient; a divisor past 2**126 gives zero, or NaN below infinity, as the manual says."""
    if form.has("ftz"):
        a, b = rounding.flush(a), rounding.flush(b)
    bits = b.cast("i32")
    magnitude = bits & 0x7FFFFFFF
    huge = magnitude.ugt((127 + 126) << 23) & magnitude.ult(0xFF << 23)
    zero = (bits & 0x80000000).cast("f32")
    result = rounding.canonical(huge.where(a * zero, a / b))
    return rounding.flush(result) if form.has("ftz") else result


@pure("ex2.approx{.ftz}.f32", dst="f32", src="f32", section=_FLOAT + "ex2")
def ex2(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Two to the power of a."""
    return _flushed(form, _through_double(calc, "exp2"), a)


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
    """Two to the power of a."""
    return _half(form, _through_double(calc, "exp2"), a)


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
