"""cvt between scalars: integers, f16, bf16, tf32, f32 and f64. Packed and narrow formats are in `convert_packed`."""

# Every form has the same arguments, whether it looks at them or not.
# ruff: noqa: ARG001

from __future__ import annotations

from megamoe_jit.emulator.isa import rounding
from megamoe_jit.emulator.isa.codecs import BF16, F16, TF32, decode, encode, is_nan
from megamoe_jit.emulator.isa.integer import is_signed, larger, smaller
from megamoe_jit.emulator.isa.lanes import Calc, Lanes
from megamoe_jit.emulator.isa.table import Form, pure

SECTION = "Data Movement and Conversion Instructions: cvt"
_INTEGERS = "u8 u16 u32 u64 s8 s16 s32 s64"
_FLOATS = "f16 bf16 f32 f64"
_HALVES = {"f16": F16, "bf16": BF16}
_ROUND = "{round:.rn|.rz|.rm|.rp}"
_ROUND_INTEGER = "{round:.rni|.rzi|.rmi|.rpi}"


def _bits(type: str) -> int:
    return int(type.lstrip("subf"))


def _modifiers_fit(form: Form) -> bool:
    """Tell whether .ftz (about f32, on either side) and .sat (not with bf16) can stand there."""
    types = (form["to"], form["from"])
    return (not form.has("ftz") or "f32" in types) and (not form.has("sat") or "bf16" not in types)


# Between integers.


@pure("cvt{.sat}.<to>.<from>", sets={"to": _INTEGERS, "from": _INTEGERS}, dst="<to>", src="<from>", section=SECTION)
def convert_integer(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Cut or extend; .sat clamps to the range of the result."""
    to, signed = form["to"], is_signed(form["from"])
    if not form.has("sat"):
        return a.resize(f"i{_bits(to)}", signed=signed)
    wide = a.resize("i64", signed=signed)
    top = (1 << (_bits(to) - is_signed(to))) - 1
    if signed:
        wide = larger(wide, wide.const(~top if is_signed(to) else 0), True)
    # A non-negative value's order is the same with and without sign; of negative ones only s64 fits all as they are.
    clamped = smaller(wide, wide.const(top), signed and to != "u64")
    return clamped.resize(f"i{_bits(to)}")


# Integers to floats.


def _integer_odd(value: Lanes, signed: bool) -> Lanes:
    """Return an i64 as f64, rounded to odd: of the eleven bits that may not fit, one says whether any was set."""
    negative = value.slt(0)
    magnitude = negative.where(-value, value) if signed else value
    wide = magnitude.uge(1 << 53)
    sticky = (magnitude >> 11) | (magnitude & 0x7FF).ne(0).zext("i64")
    result = wide.where(sticky, magnitude).from_unsigned("f64") * wide.where(magnitude.const(2048), 1).from_unsigned(
        "f64"
    )
    return negative.where(-result, result) if signed else result


def _integer_to_double(value: Lanes, signed: bool, mode: str) -> Lanes:
    """Return an i64 as f64, in a direction other than to nearest."""
    negative = value.slt(0)
    magnitude = negative.where(-value, value) if signed else value
    shift = 11 - smaller(magnitude.leading_zeros(), magnitude.const(11), False)
    kept = (magnitude >> shift) << shift
    result = kept.from_unsigned("f64")
    if mode == "rp" or (mode == "rm" and signed):
        away = kept.ne(magnitude)
        if signed:
            away = away & (negative if mode == "rm" else ~negative)
        result = result + away.where(1 << shift, 0).from_unsigned("f64")
    return negative.where(-result, result) if signed else result


@pure(
    f"cvt{_ROUND}{{.ftz}}{{.sat}}.<to>.<from>",
    sets={"to": _FLOATS, "from": _INTEGERS},
    dst="<to>",
    src="<from>",
    where=_modifiers_fit,
    section=SECTION,
)
def convert_integer_to_float(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Nearest float, or the next in a direction."""
    to, signed, mode = form["to"], is_signed(form["from"]), form["round"]
    saturated = rounding.saturate if form.has("sat") else lambda value: value
    if mode == "rn" and to in ("f32", "f64"):
        return saturated(a.from_signed(to) if signed else a.from_unsigned(to))
    if a.bits < 64:
        exact = a.from_signed("f64") if signed else a.from_unsigned("f64")
    elif to == "f64":
        return saturated(_integer_to_double(a, signed, mode))
    else:
        exact = _integer_odd(a, signed)
    if to == "f64":
        return saturated(exact)
    if to == "f32":
        return saturated(rounding.narrow(exact, mode))
    return encode(saturated(rounding.narrow(exact, "odd")), _HALVES[to], mode).trunc("i16")


# Floats to integers.


def _to_single_or_double(a: Lanes, type: str) -> Lanes:
    return decode(a.zext("i32"), _HALVES[type]) if type in _HALVES else a


def round_to_integer(value: Lanes, mode: str) -> Lanes:
    """Round a float to a whole number, as a float."""
    return {"rni": value.rint, "rzi": value.truncate, "rmi": value.floor, "rpi": value.ceil}[mode]()


@pure(
    f"cvt{_ROUND_INTEGER}{{.ftz}}{{.sat}}.<to>.<from>", sets={"to": _INTEGERS, "from": _FLOATS}, dst="<to>",
    src="<from>", where=_modifiers_fit, section=SECTION,
)  # fmt: skip
def convert_float_to_integer(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Whole number, clamped to the range; NaN is 0, or the top bit alone when either side has 64 bits."""
    to, source = form["to"], form["from"]
    value = _to_single_or_double(a, source)
    if form.has("ftz"):
        value = rounding.flush(value)
    if value.type == "f32":
        value = value.widen()
    value = round_to_integer(value, form["round"])
    bits, signed = _bits(to), is_signed(to)
    highest = (1 << (bits - signed)) - 1
    lowest = -(1 << (bits - 1)) if signed else 0
    # 2**63 - 1 and 2**64 - 1 are no f64: the bounds themselves are compared as the powers of two that follow.
    over, under = value.compare("oge", float(highest + 1)), value.compare("olt", float(lowest))
    inside = (over | under | value.is_nan()).where(0.0, value)
    result = inside.to_signed("i64") if signed else inside.to_unsigned("i64")
    result = over.where(highest, under.where(lowest, result))
    of_nan = 0 if source != "f64" and bits != 64 else 1 << (bits - 1)
    return value.is_nan().where(of_nan, result).resize(f"i{bits}")


# Between floats.


def _widening(form: Form) -> bool:
    """Whether the result has every value of the source; such forms have no rounding."""
    order = {"f16": 0, "bf16": 0, "f32": 1, "f64": 2}
    to, source = form["to"], form["from"]
    return (to == source or order[to] > order[source]) and _modifiers_fit(form)


def _narrowing(form: Form) -> bool:
    order = {"f16": 0, "bf16": 0, "f32": 1, "f64": 2}
    to, source = form["to"], form["from"]
    return to != source and order[to] <= order[source] and _modifiers_fit(form)


def _between_halves(form: Form) -> bool:
    return form["to"] != form["from"]


def _quiet_double(a: Lanes, type: str, exact: Lanes) -> Lanes:
    """Give the f64 of a half or f32 NaN its sign and payload, quiet; `exact` is the f64 of numbers."""
    mantissa = {"f16": 10, "bf16": 7, "f32": 23}[type]
    bits = a.cast(f"i{a.bits}").zext("i64")
    payload = (bits & ((1 << mantissa) - 1)) << (52 - mantissa)
    nan = ((bits >> (a.bits - 1)) << 63) | (0x7FF8 << 48) | payload
    return exact.is_nan().where(nan, exact.cast("i64")).cast("f64")


@pure(
    "cvt{.ftz}{.sat}.<to>.<from>", sets={"to": _FLOATS, "from": _FLOATS}, dst="<to>", src="<from>", where=_widening,
    section=SECTION,
)  # fmt: skip
@pure(
    # The assembler takes a direction here, although there is nothing to round.
    f"cvt{_ROUND}{{.ftz}}.<to>.<from>", sets={"to": "f32 f64", "from": "bf16"}, dst="<to>", src="bf16",
    where=_modifiers_fit, section=SECTION,
)  # fmt: skip
def convert_widening(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """The same value."""
    to, source = form["to"], form["from"]
    value = _to_single_or_double(a, source)
    if form.has("ftz"):
        # Flushing is arithmetic, and gives arithmetic's NaN; without it a NaN passes as it is.
        value = rounding.canonical(rounding.flush(value))
    if to == "f64" and source != "f64":
        value = _quiet_double(a, source, value.widen()) if not form.has("ftz") else value.widen()
    if form.has("sat"):
        value = rounding.saturate(value)
    if to in _HALVES:
        return encode(value, _HALVES[to]).trunc("i16") if form.has("sat") else a
    return value


@pure(
    f"cvt{_ROUND_INTEGER}{{.ftz}}{{.sat}}.<to>.<from>", sets={"to": _FLOATS, "from": _FLOATS}, dst="<to>",
    src="<from>", where=lambda form: form["to"] == form["from"] and _modifiers_fit(form), section=SECTION,
)  # fmt: skip
def convert_to_whole(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Whole number as a float of the same type."""
    type = form["to"]
    value = _to_single_or_double(a, type)
    if form.has("ftz"):
        value = rounding.flush(value)
    result = round_to_integer(value, form["round"])
    if form.has("sat"):
        result = rounding.saturate(result)
    if type in _HALVES:
        return encode(result, _HALVES[type]).trunc("i16")
    return rounding.canonical(result) if type == "f32" else rounding.propagate64(result, value)


@pure(
    f"cvt{_ROUND}{{.ftz}}{{.sat}}.<to>.<from>", sets={"to": "f16 bf16 f32", "from": _FLOATS}, dst="<to>",
    src="<from>", where=_narrowing, section=SECTION,
)  # fmt: skip
def convert_narrowing(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Round to fewer bits."""
    to, source, mode = form["to"], form["from"], form["round"]
    value = _to_single_or_double(a, source)
    # .ftz flushes no source here: a direction away from zero shows it.
    if form.has("sat"):
        value = rounding.saturate(value)
    if to == "f32":
        result = rounding.narrow(value, mode)
        return rounding.flush_tiny(result, rounding.narrow(value * 2.0**64, mode)) if form.has("ftz") else result
    format = _HALVES[to]
    if source != "f64":
        return encode(value, format, mode).trunc("i16")
    bits = value.cast("i64")
    shift = 52 - format.mantissa_bits
    payload = (bits >> shift).trunc("i32") & ((1 << format.mantissa_bits) - 1)
    sign = (bits >> 48).trunc("i32") & 0x8000
    quiet = 1 << (format.mantissa_bits - 1)
    assert format.infinity is not None, "f16 and bf16 have one"
    nan = sign | payload | (format.infinity | quiet)
    return value.is_nan().where(nan, encode(rounding.narrow(value, "odd"), format, mode)).trunc("i16")


@pure("cvt.<to>.<from>", sets={"to": "f16 bf16", "from": "f16 bf16"}, dst="<to>", src="<from>", where=_between_halves,
      section=SECTION)  # fmt: skip
def convert_between_halves(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Round to nearest, ties to even: the assembler makes of it what it makes of .rn."""
    return encode(_to_single_or_double(a, form["from"]), _HALVES[form["to"]]).trunc("i16")


def _limited(form: Form) -> bool:
    return form.has("relu") or form.has("satfinite")


@pure(
    "cvt{round:.rn|.rz}{.relu}{.satfinite}.<to>.f32", sets={"to": "f16 bf16"}, dst="<to>", src="f32", where=_limited,
    section=SECTION,
)  # fmt: skip
def convert_limited(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Round to half precision, without negative values or without infinity."""
    code = encode(a, _HALVES[form["to"]], form["round"], satfinite=form.has("satfinite"), relu=form.has("relu"))
    return code.trunc("i16")


@pure("cvt{round:.rn|.rz}{.relu}{.satfinite}.tf32.f32", dst="b32", src="f32", section=SECTION)
def convert_tf32(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Round to the ten mantissa bits of tf32; the rest is zero."""
    return encode(a, TF32, form["round"], satfinite=form.has("satfinite"), relu=form.has("relu")) << 13


@pure("cvt.rna{.satfinite}.tf32.f32", dst="b32", src="f32", section=SECTION)
def convert_tf32_away(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Round to tf32, ties away from zero; a NaN is cut, which may leave an infinity, as on the hardware."""
    bits = a.cast("i32")
    magnitude = bits & 0x7FFFFFFF
    magnitude = is_nan(bits).where(magnitude, magnitude + 0x1000) & 0xFFFFE000
    if form.has("satfinite"):
        magnitude = magnitude.uge(0x7F800000).where(magnitude - 0x2000, magnitude)
    return magnitude | (bits & 0x80000000)
