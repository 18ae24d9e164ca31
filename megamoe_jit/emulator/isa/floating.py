"""Floating-point arithmetic: f32, f64, f32x2, half precision (pairs too) and mixed precision."""

# Every form has the same arguments, whether it looks at them or not.
# ruff: noqa: ARG001

from __future__ import annotations

from collections.abc import Callable

from megamoe_jit.emulator.isa import rounding, softfloat
from megamoe_jit.emulator.isa.codecs import BF16, F16, F32_INFINITY, Format, decode, encode
from megamoe_jit.emulator.isa.integer import halves, joined
from megamoe_jit.emulator.isa.lanes import Calc, Lanes
from megamoe_jit.emulator.isa.table import Form, pure

_FLOAT = "Floating Point Instructions: "
_HALF = "Half Precision Floating Point Instructions: "
_MIXED = "Mixed Precision Floating-Point Instructions: "
HALF_TYPES = "f16 f16x2 bf16 bf16x2"
_ROUND = "{round:.rn|.rz|.rm|.rp|}"

Scalar = Callable[..., Lanes]
"""Computes an f32 of f32 values."""


def half_format(type: str) -> Format:
    """Return the format of f16, f16x2, bf16 or bf16x2."""
    return BF16 if type.startswith("bf16") else F16


def per_half(type: str, function: Scalar, *values: Lanes) -> Lanes:
    """Apply a function of i32 codes (16 bits used) to values of a half type, to both halves of a pair."""
    if not type.endswith("x2"):
        return function(*(value.zext("i32") for value in values)).trunc("i16")
    low = function(*(value & 0xFFFF for value in values))
    high = function(*(value >> 16 for value in values))
    return low | (high << 16)


def per_single(function: Scalar, *values: Lanes) -> Lanes:
    """Apply a function of f32 to both f32 of i64 values."""
    parts = [[half.cast("f32") for half in halves(value)] for value in values]
    low, high = (function(*operands).cast("i32") for operands in zip(*parts, strict=True))
    return joined(low, high)


def _mode(form: Form) -> str:
    return form["round"] or "rn"


_SCALED: dict[Scalar, Scalar] = {
    rounding.multiply: rounding.multiply_scaled,
    rounding.multiply_add: rounding.multiply_add_scaled,
    rounding.divide: rounding.divide_scaled,
}
"""What tells whether a result is tiny; sums below the normal numbers are exact, and roots are never there."""


def _single(form: Form, function: Scalar, *values: Lanes) -> Lanes:
    """Evaluate on f32 with the form's .ftz and .sat."""
    if form.has("ftz"):
        values = tuple(rounding.flush(value) for value in values)
    result = function(*values, _mode(form))
    if form.has("ftz"):
        scaled = _SCALED.get(function)
        result = rounding.flush_tiny(result, scaled(*values, _mode(form))) if scaled else rounding.flush(result)
    return rounding.saturate(result) if form.has("sat") else result


def _half(form: Form, function: Scalar, *values: Lanes) -> Lanes:
    """Evaluate on half precision: `function` of f32 values gives an f32 that one more rounding makes right.

    .ftz looks at the magnitude before that rounding, as the hardware does.
    """
    format = half_format(form.type)

    def scalar(*codes: Lanes) -> Lanes:
        operands = [decode(code, format) for code in codes]
        if form.has("ftz"):
            operands = [flush_half(operand) for operand in operands]
        result = function(*operands)
        if form.has("ftz"):
            result = flush_half(result)
        if form.has("sat"):
            result = rounding.saturate(result)
        return encode(result, format, relu=form.has("relu"))

    return per_half(form.type, scalar, *values)


def flush_half(value: Lanes) -> Lanes:
    """Make a zero with the same sign of an f32 below the normal numbers of f16 (only f16 has .ftz)."""
    bits = value.cast("i32")
    return (bits & 0x7FFFFFFF).ult((127 - 14) << 23).where(bits & 0x80000000, bits).cast("f32")


# Addition, subtraction, multiplication, multiply-add.


@pure(f"add{_ROUND}{{.ftz}}{{.sat}}.f32", dst="f32", src="f32 f32", section=_FLOAT + "add")
def add(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Sum."""
    return _single(form, rounding.add, a, b)


@pure(f"sub{_ROUND}{{.ftz}}{{.sat}}.f32", dst="f32", src="f32 f32", section=_FLOAT + "sub")
def sub(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Difference."""
    return _single(form, rounding.add, a, -b)


@pure(f"mul{_ROUND}{{.ftz}}{{.sat}}.f32", dst="f32", src="f32 f32", section=_FLOAT + "mul")
def mul(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Product."""
    return _single(form, rounding.multiply, a, b)


@pure("fma{round:.rn|.rz|.rm|.rp}{.ftz}{.sat}.f32", dst="f32", src="f32 f32 f32", section=_FLOAT + "fma")
@pure("mad{round:.rn|.rz|.rm|.rp}{.ftz}{.sat}.f32", dst="f32", src="f32 f32 f32", section=_FLOAT + "mad")
def fma(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Product plus c, rounded once."""
    return _single(form, rounding.multiply_add, a, b, c)


@pure(f"add{_ROUND}{{.ftz}}.f32x2", dst="f32x2", src="f32x2 f32x2", section=_FLOAT + "add")
def add_pair(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Both sums."""
    return per_single(lambda x, y: _single(form, rounding.add, x, y), a, b)


@pure(f"sub{_ROUND}{{.ftz}}.f32x2", dst="f32x2", src="f32x2 f32x2", section=_FLOAT + "sub")
def sub_pair(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Both differences."""
    return per_single(lambda x, y: _single(form, rounding.add, x, -y), a, b)


@pure(f"mul{_ROUND}{{.ftz}}.f32x2", dst="f32x2", src="f32x2 f32x2", section=_FLOAT + "mul")
def mul_pair(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Both products."""
    return per_single(lambda x, y: _single(form, rounding.multiply, x, y), a, b)


@pure("fma{round:.rn|.rz|.rm|.rp}{.ftz}.f32x2", dst="f32x2", src="f32x2 f32x2 f32x2", section=_FLOAT + "fma")
def fma_pair(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Both products plus c, each rounded once."""
    return per_single(lambda x, y, z: _single(form, rounding.multiply_add, x, y, z), a, b, c)


@pure(f"add{_ROUND}.f64", dst="f64", src="f64 f64", section=_FLOAT + "add")
def add_double(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Sum."""
    return rounding.propagate64(a + b if _mode(form) == "rn" else softfloat.add(a, b, form["round"]), a, b)


@pure(f"sub{_ROUND}.f64", dst="f64", src="f64 f64", section=_FLOAT + "sub")
def sub_double(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Difference."""
    return rounding.propagate64(a - b if _mode(form) == "rn" else softfloat.add(a, -b, form["round"]), a, b)


@pure(f"mul{_ROUND}.f64", dst="f64", src="f64 f64", section=_FLOAT + "mul")
def mul_double(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Product."""
    return rounding.propagate64(a * b if _mode(form) == "rn" else softfloat.multiply(a, b, form["round"]), a, b)


@pure("fma{round:.rn|.rz|.rm|.rp}.f64", dst="f64", src="f64 f64 f64", section=_FLOAT + "fma")
@pure("mad{round:.rn|.rz|.rm|.rp}.f64", dst="f64", src="f64 f64 f64", section=_FLOAT + "mad")
def fma_double(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Product plus c, rounded once."""
    result = a.fma(b, c) if form["round"] == "rn" else softfloat.fused(a, b, c, form["round"])
    return rounding.propagate64(result, a, c, b)


def _half_ftz(form: Form) -> bool:
    return not form.type.startswith("bf16") or not (form.has("ftz") or form.has("sat"))


# A sum or product of two halves, rounded to f32 and then to half, is the exact one rounded once: 24 >= 2 * 11 + 2 bits.
@pure(
    "add{.rn}{.ftz}{.sat}.<type>", types=HALF_TYPES, dst="<type>", src="<type> <type>", where=_half_ftz,
    section=_HALF + "add",
)  # fmt: skip
def add_half(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Sum."""
    return _half(form, lambda x, y: x + y, a, b)


@pure(
    "sub{.rn}{.ftz}{.sat}.<type>", types=HALF_TYPES, dst="<type>", src="<type> <type>", where=_half_ftz,
    section=_HALF + "sub",
)  # fmt: skip
def sub_half(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Difference."""
    return _half(form, lambda x, y: x - y, a, b)


@pure(
    "mul{.rn}{.ftz}{.sat}.<type>", types=HALF_TYPES, dst="<type>", src="<type> <type>", where=_half_ftz,
    section=_HALF + "mul",
)  # fmt: skip
def mul_half(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Product."""
    return _half(form, lambda x, y: x * y, a, b)


@pure(
    "fma.rn{.ftz}{.sat|.relu|}.<type>", types=HALF_TYPES, dst="<type>", src="<type> <type> <type>", where=_half_ftz,
    section=_HALF + "fma",
)  # fmt: skip
def fma_half(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Product plus c, rounded once."""
    return _half(form, rounding.multiply_add_odd, a, b, c)


def _mixed(form: Form, value: Lanes) -> Lanes:
    """Widen a half operand of a mixed-precision form."""
    return decode(value.zext("i32"), half_format(form.type))


@pure(f"add{_ROUND}{{.sat}}.f32.<type>", types="f16 bf16", dst="f32", src="<type> f32", section=_MIXED + "add")
def add_mixed(calc: Calc, form: Form, a: Lanes, c: Lanes) -> Lanes:
    """Half a plus f32 c."""
    return _single(form, rounding.add, _mixed(form, a), c)


@pure(f"sub{_ROUND}{{.sat}}.f32.<type>", types="f16 bf16", dst="f32", src="<type> f32", section=_MIXED + "sub")
def sub_mixed(calc: Calc, form: Form, a: Lanes, c: Lanes) -> Lanes:
    """Half a minus f32 c."""
    return _single(form, rounding.add, _mixed(form, a), -c)


@pure(
    "fma{round:.rn|.rz|.rm|.rp}{.sat}.f32.<type>", types="f16 bf16", dst="f32", src="<type> <type> f32",
    section=_MIXED + "fma",
)  # fmt: skip
def fma_mixed(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Product of halves plus f32 c, rounded once."""
    return _single(form, rounding.multiply_add, _mixed(form, a), _mixed(form, b), c)


# Division, reciprocal and roots that are rounded once; approximate ones are in `approximate`.


@pure("div{round:.rn|.rz|.rm|.rp}{.ftz}.f32", dst="f32", src="f32 f32", section=_FLOAT + "div")
def div(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Quotient."""
    return _single(form, rounding.divide, a, b)


@pure("rcp{round:.rn|.rz|.rm|.rp}{.ftz}.f32", dst="f32", src="f32", section=_FLOAT + "rcp")
def rcp(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Reciprocal."""
    return _single(form, rounding.divide, a.const(1.0), a)


@pure("sqrt{round:.rn|.rz|.rm|.rp}{.ftz}.f32", dst="f32", src="f32", section=_FLOAT + "sqrt")
def sqrt(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Square root."""
    return _single(form, rounding.root, a)


@pure("div{round:.rn|.rz|.rm|.rp}.f64", dst="f64", src="f64 f64", section=_FLOAT + "div")
def div_double(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Quotient."""
    result = a / b if form["round"] == "rn" else softfloat.divide(a, b, form["round"])
    return rounding.propagate64(result, b, a)


@pure("rcp{round:.rn|.rz|.rm|.rp}.f64", dst="f64", src="f64", section=_FLOAT + "rcp")
def rcp_double(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Reciprocal."""
    one = a.const(1.0)
    return rounding.propagate64(one / a if form["round"] == "rn" else softfloat.divide(one, a, form["round"]), a)


@pure("sqrt{round:.rn|.rz|.rm|.rp}.f64", dst="f64", src="f64", section=_FLOAT + "sqrt")
def sqrt_double(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Square root."""
    return rounding.propagate64(a.sqrt() if form["round"] == "rn" else softfloat.root(a, form["round"]), a)


# Signs and classes.


def _bits(value: Lanes) -> Lanes:
    return value.cast(f"i{value.bits}")


@pure("neg{.ftz}.f32", dst="f32", src="f32", section=_FLOAT + "neg")
def neg(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Flip the sign."""
    a = rounding.flush(a) if form.has("ftz") else a
    return rounding.canonical((a.cast("i32") ^ 0x80000000).cast("f32"))


@pure("abs{.ftz}.f32", dst="f32", src="f32", section=_FLOAT + "abs")
def absolute(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Clear the sign."""
    a = rounding.flush(a) if form.has("ftz") else a
    return rounding.canonical(a.abs())


@pure("neg.f64", dst="f64", src="f64", section=_FLOAT + "neg")
def neg_double(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Flip the sign, but not of a NaN."""
    return rounding.propagate64(-a, a)


@pure("abs.f64", dst="f64", src="f64", section=_FLOAT + "abs")
def abs_double(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Clear the sign, but not of a NaN."""
    return rounding.propagate64(a.abs(), a)


def _signed_half(form: Form, a: Lanes, change: Callable[[Lanes], Lanes]) -> Lanes:
    """Change the sign of half codes (i32); a NaN becomes the one that arithmetic gives."""
    format = half_format(form.type)
    assert format.infinity is not None, "f16 and bf16 have one"
    infinity = format.infinity

    def scalar(code: Lanes) -> Lanes:
        if form.has("ftz"):
            code = (code & 0x7C00).eq(0).where(code & 0x8000, code)
        return (code & 0x7FFF).ugt(infinity).where(format.nan, change(code))

    return per_half(form.type, scalar, a)


@pure("neg{.ftz}.<type>", types=HALF_TYPES, dst="<type>", src="<type>", where=_half_ftz, section=_HALF + "neg")
def neg_half(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Flip the sign."""
    return _signed_half(form, a, lambda code: code ^ 0x8000)


@pure("abs{.ftz}.<type>", types=HALF_TYPES, dst="<type>", src="<type>", where=_half_ftz, section=_HALF + "abs")
def abs_half(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Clear the sign."""
    return _signed_half(form, a, lambda code: code & 0x7FFF)


@pure("copysign.<type>", types="f32 f64", dst="<type>", src="<type> <type>", section=_FLOAT + "copysign")
def copysign(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Sign of a, magnitude of b."""
    sign = 1 << (a.bits - 1)
    return ((_bits(a) & sign) | (_bits(b) & (sign - 1))).cast(a.type)


@pure(
    "testp{test:.finite|.infinite|.number|.notanumber|.normal|.subnormal}.<type>", types="f32 f64", dst="pred",
    src="<type>", section=_FLOAT + "testp",
)  # fmt: skip
def testp(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Ask for the class of a number; zero counts as normal."""
    bits = _bits(a)
    infinity, lowest = (F32_INFINITY, 1 << 23) if form.type == "f32" else (0x7FF << 52, 1 << 52)
    magnitude = bits & ((1 << (bits.bits - 1)) - 1)
    subnormal = magnitude.ne(0) & magnitude.ult(lowest)
    return {
        "finite": lambda: magnitude.ult(infinity),
        "infinite": lambda: magnitude.eq(infinity),
        "number": lambda: magnitude.ule(infinity),
        "notanumber": lambda: magnitude.ugt(infinity),
        "normal": lambda: magnitude.ult(infinity) & ~subnormal,
        "subnormal": lambda: subnormal,
    }[form["test"]]()
