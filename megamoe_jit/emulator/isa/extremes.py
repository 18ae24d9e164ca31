"""Minimum and maximum of floats."""

# Every form has the same arguments, whether it looks at them or not.
# ruff: noqa: ARG001

from __future__ import annotations

from megamoe_jit.emulator.isa import rounding
from megamoe_jit.emulator.isa.codecs import decode, encode
from megamoe_jit.emulator.isa.floating import HALF_TYPES, flush_half, half_format, per_half
from megamoe_jit.emulator.isa.lanes import Calc, Lanes
from megamoe_jit.emulator.isa.table import Form, pure

_FLOAT = "Floating Point Instructions: "
_HALF = "Half Precision Floating Point Instructions: "
_SINGLE = "{.ftz}{.NaN}{.xorsign.abs|.abs|}.f32"
_HALVES = "{.ftz}{.NaN}{.xorsign.abs}.<type>"


def extreme(a: Lanes, b: Lanes, largest: bool, propagate: bool) -> Lanes:
    """Choose the smaller or larger of f32 or f64 values, -0 below +0.

    A NaN beside a number is ignored, or is the result (`propagate`).
    """
    integer = f"i{a.bits}"
    x, y = a.cast(integer), b.cast(integer)
    predicate = "ogt" if largest else "olt"
    # What is neither larger nor smaller is equal; zeros are equal and can differ in their sign.
    chosen = a.compare(predicate, b).where(x, b.compare(predicate, a).where(y, x & y if largest else x | y))
    x_nan, y_nan = a.is_nan(), b.is_nan()
    of_nan, other = (x, y) if propagate else (y, x)
    return x_nan.where(of_nan, y_nan.where(other, chosen)).cast(a.type)


def _single(form: Form, values: tuple[Lanes, ...], largest: bool, signs: Lanes) -> Lanes:
    """Two or three f32 values with the form's modifiers; the top bit of `signs` is the product's sign, for .xorsign."""
    if form.has("abs"):
        values = tuple(value.abs() for value in values)
    result = values[0]
    for value in values[1:]:
        result = extreme(result, value, largest, form.has("NaN"))
    if form.has("xorsign"):
        result = (result.cast("i32") | (signs & 0x80000000)).cast("f32")
    return rounding.canonical(result)


def _flushed(form: Form, values: tuple[Lanes, ...], largest: bool) -> Lanes:
    if form.has("ftz"):
        values = tuple(rounding.flush(value) for value in values)
    return _single(form, values, largest, values[0].cast("i32") ^ values[1].cast("i32"))


@pure(f"min{_SINGLE}", dst="f32", src="f32 f32 f32?", section=_FLOAT + "min")
def minimum(calc: Calc, form: Form, *values: Lanes) -> Lanes:
    """Smallest of two or three."""
    return _flushed(form, values, False)


@pure(f"max{_SINGLE}", dst="f32", src="f32 f32 f32?", section=_FLOAT + "max")
def maximum(calc: Calc, form: Form, *values: Lanes) -> Lanes:
    """Largest of two or three."""
    return _flushed(form, values, True)


@pure("min.f64", dst="f64", src="f64 f64", section=_FLOAT + "min")
def minimum_double(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Smaller one; of two NaNs the second, quiet."""
    result = extreme(a, b, False, False)
    return rounding.propagate64(result, result)


@pure("max.f64", dst="f64", src="f64 f64", section=_FLOAT + "max")
def maximum_double(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Larger one; of two NaNs the second, quiet."""
    result = extreme(a, b, True, False)
    return rounding.propagate64(result, result)


def _half(form: Form, a: Lanes, b: Lanes, largest: bool) -> Lanes:
    """Half values go through f32, which holds them all."""
    format = half_format(form.type)

    def scalar(x: Lanes, y: Lanes) -> Lanes:
        values = (decode(x, format), decode(y, format))
        if form.has("ftz"):
            values = (flush_half(values[0]), flush_half(values[1]))
        return encode(_single(form, values, largest, (x ^ y) << 16), format)

    return per_half(form.type, scalar, a, b)


def _has_ftz(form: Form) -> bool:
    return form.type.startswith("f16") or not form.has("ftz")


@pure(f"min{_HALVES}", types=HALF_TYPES, dst="<type>", src="<type> <type>", where=_has_ftz, section=_HALF + "min")
def minimum_half(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Smaller one."""
    return _half(form, a, b, False)


@pure(f"max{_HALVES}", types=HALF_TYPES, dst="<type>", src="<type> <type>", where=_has_ftz, section=_HALF + "max")
def maximum_half(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Larger one."""
    return _half(form, a, b, True)
