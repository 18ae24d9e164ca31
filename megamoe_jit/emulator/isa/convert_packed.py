"""cvt to and from packed formats: pairs of halves, FP8, FP6, FP4, ue8m0, s2f6; and cvt.pack of integers.

The first source goes to the upper part of the result.
"""

# Every form has the same arguments, whether it looks at them or not.
# ruff: noqa: ARG001

from __future__ import annotations

from megamoe_jit.emulator.isa.codecs import BF16, F16, FORMATS, Format, decode, encode
from megamoe_jit.emulator.isa.convert import SECTION
from megamoe_jit.emulator.isa.integer import larger, smaller
from megamoe_jit.emulator.isa.lanes import Calc, Lanes
from megamoe_jit.emulator.isa.table import Form, pure

_NARROW_PAIRS = "e4m3x2 e5m2x2 e2m3x2 e3m2x2 e2m1x2"
_NARROW_QUADS = "e4m3x4 e5m2x4 e2m3x4 e3m2x4 e2m1x4"
_HALF_PAIRS = "f16x2 bf16x2"


def _format(type: str) -> Format:
    """Return the format of e4m3x2, bf16x2, e2m1x4, ..."""
    return FORMATS[type[:-2]]


def _field(type: str) -> int:
    """Bits that an element takes in its register: FP6 takes a byte."""
    return 4 if type.startswith("e2m1") else 16 if "f16" in type else 8


def _packed(type: str, elements: list[Lanes], to: str) -> Lanes:
    """Pack codes (i32), the first one highest, into a value of integer type `to`."""
    width = _field(type)
    result = elements[0]
    for element in elements[1:]:
        result = (result << width) | element
    return result.resize(to)


def _halves(value: Lanes, type: str) -> tuple[Lanes, Lanes]:
    """Return upper and lower half of f16x2 or bf16x2 as f32."""
    format = _format(type)
    return decode(value >> 16, format), decode(value & 0xFFFF, format)


def _to_half(form: Form, value: Lanes, to: str, mode: str = "rn", random: tuple[Lanes, int] | None = None) -> Lanes:
    """Round an f32 to half precision with the form's limits."""
    limits = form.has("satfinite"), form.has("relu")
    return encode(value, _format(to), mode, satfinite=limits[0], relu=limits[1], random=random)


# Pairs of halves.


@pure(
    "cvt{round:.rn|.rz}{.relu}{.satfinite}.<to>.f32",
    sets={"to": _HALF_PAIRS},
    dst="<to>",
    src="f32 f32",
    section=SECTION,
)
def convert_to_pair(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Round two f32 to a pair."""
    return _packed(form["to"], [_to_half(form, value, form["to"], form["round"]) for value in (a, b)], "i32")


@pure("cvt.rs{.relu}{.satfinite}.<to>.f32", sets={"to": _HALF_PAIRS}, dst="<to>", src="f32 f32 b32", section=SECTION)
def convert_to_pair_randomly(calc: Calc, form: Form, a: Lanes, b: Lanes, bits: Lanes) -> Lanes:
    """Round two f32 to a pair, each with half of the random bits (f16 with the low 13 of them)."""
    width = 13 if form["to"] == "f16x2" else 16
    mask = (1 << width) - 1
    codes = [
        _to_half(form, value, form["to"], "rs", (number & mask, width))
        for value, number in ((a, bits >> 16), (b, bits))
    ]
    return _packed(form["to"], codes, "i32")


# To FP8, FP6, FP4.


@pure("cvt.rn.satfinite{.relu}.<to>.f32", sets={"to": _NARROW_PAIRS}, dst="<to>", src="f32 f32", section=SECTION)
def convert_to_narrow(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Round two f32 to a narrow pair."""
    to = form["to"]
    codes = [encode(value, _format(to), satfinite=True, relu=form.has("relu")) for value in (a, b)]
    return _packed(to, codes, "i8" if to == "e2m1x2" else "i16")


@pure(
    "cvt.rn.satfinite{.relu}.<to>.<from>", sets={"to": _NARROW_PAIRS, "from": _HALF_PAIRS}, dst="<to>", src="<from>",
    section=SECTION,
)  # fmt: skip
def convert_pair_to_narrow(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Round a pair of halves to a narrow pair."""
    return convert_to_narrow(calc, form, *_halves(a, form["from"]))


def _randoms(bits: Lanes, to: str) -> list[Lanes]:
    """Return 16 random bits for each of four elements.

    Two elements share a field: the first reads it mirrored, the second as it is. FP4's fields are the odd and the even
    bytes, the others' are the halves.
    """
    if to == "e2m1x4":
        upper = ((bits >> 8) & 0xFF) | ((bits >> 16) & 0xFF00)
        lower = (bits & 0xFF) | ((bits >> 8) & 0xFF00)
    else:
        upper, lower = bits >> 16, bits & 0xFFFF
    return [part for field in (upper, lower) for part in (field.reverse_bits() >> 16, field)]


@pure(
    "cvt.rs{.relu}.satfinite.<to>.f32",
    sets={"to": _NARROW_QUADS},
    dst="<to>",
    src="f32 f32 f32 f32 b32",
    section=SECTION,
)
def convert_to_narrow_randomly(calc: Calc, form: Form, *operands: Lanes) -> Lanes:
    """Round four f32 to a narrow quad, stochastically."""
    to, (*values, bits) = form["to"], operands
    codes = [
        encode(value, _format(to), "rs", satfinite=True, relu=form.has("relu"), random=(number, 16))
        for value, number in zip(values, _randoms(bits, to), strict=True)
    ]
    return _packed(to, codes, "i16" if to == "e2m1x4" else "i32")


# From FP8, FP6, FP4.


def _elements(a: Lanes, type: str) -> tuple[Lanes, Lanes]:
    """Return upper and lower element of a narrow pair as f32."""
    code, width = a.zext("i32"), _field(type)
    return decode(code >> width, _format(type)), decode(code, _format(type))


@pure("cvt.rn{.relu}.f16x2.<from>", sets={"from": _NARROW_PAIRS}, dst="f16x2", src="<from>", section=SECTION)
def convert_narrow_to_f16(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Widen a narrow pair to f16, which holds all its values."""
    codes = [encode(value, F16, relu=form.has("relu")) for value in _elements(a, form["from"])]
    return _packed("f16x2", codes, "i32")


def _scale(code: Lanes) -> Lanes:
    """Return the f32 of a ue8m0 code (i32): 2**(code - 127), NaN for 0xff."""
    value = code.eq(0).where(0x00400000, code << 23)
    return code.eq(0xFF).where(0x7FFFFFFF, value).cast("f32")


def _scaled(values: tuple[Lanes, Lanes], scales: tuple[Lanes, ...]) -> tuple[Lanes, Lanes]:
    """Multiply by the scales of a ue8m0x2 operand, where there is one."""
    if not scales:
        return values
    codes = scales[0].zext("i32")
    return values[0] * _scale(codes >> 8), values[1] * _scale(codes & 0xFF)


@pure(
    "cvt.rn{.relu}{.satfinite}.bf16x2.<from>", sets={"from": _NARROW_PAIRS}, dst="bf16x2", src="<from>", section=SECTION
)
@pure(
    "cvt.rn{.relu}{.satfinite}.scaled::n2::ue8m0.bf16x2.<from>", sets={"from": _NARROW_PAIRS}, dst="bf16x2",
    src="<from> b16", section=SECTION,
)  # fmt: skip
def convert_narrow_to_bf16(calc: Calc, form: Form, a: Lanes, *scales: Lanes) -> Lanes:
    """Widen a narrow pair to bf16, times 2**(scale - 127) of its own scale where there are scales."""
    values = _scaled(_elements(a, form["from"]), scales)
    return _packed("bf16x2", [_to_half(form, value, "bf16x2") for value in values], "i32")


# ue8m0: an exponent alone.


def _exponent(value: Lanes, *, up: bool, satfinite: bool) -> Lanes:
    """Return the ue8m0 code of an f32's magnitude, rounded down or up to a power of two."""
    magnitude = value.cast("i32") & 0x7FFFFFFF
    code = magnitude >> 23
    if up:
        # 2**-127 is a subnormal f32 and the smallest code, so what is below needs no step up.
        step = code.eq(0).where(magnitude.ugt(0x00400000).zext("i32"), (magnitude & 0x7FFFFF).ne(0).zext("i32"))
        code = code + step
    if satfinite:
        code = code.ugt(0xFE).where(0xFE, code)
    return magnitude.ugt(0x7F800000).where(0xFF, code)


@pure("cvt{round:.rz|.rp}{.satfinite}.ue8m0x2.f32", dst="ue8m0x2", src="f32 f32", section=SECTION)
def convert_to_exponents(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Round two f32 to powers of two."""
    codes = [_exponent(value, up=form["round"] == "rp", satfinite=form.has("satfinite")) for value in (a, b)]
    return _packed("ue8m0x2", codes, "i16")


@pure("cvt{round:.rz|.rp}{.satfinite}.ue8m0x2.bf16x2", dst="ue8m0x2", src="bf16x2", section=SECTION)
def convert_pair_to_exponents(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Round two bf16 to powers of two."""
    return convert_to_exponents(calc, form, *_halves(a, "bf16x2"))


@pure("cvt.rn.bf16x2.ue8m0x2", dst="bf16x2", src="ue8m0x2", section=SECTION)
def convert_exponents(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Give powers of two as bf16."""
    codes = a.zext("i32")
    return _packed("bf16x2", [encode(_scale(code), BF16) for code in (codes >> 8, codes & 0xFF)], "i32")


# s2f6: a signed byte of 64ths.


def _fixed(value: Lanes, *, relu: bool) -> Lanes:
    """Round an f32 to 64ths, clamped to a signed byte; NaN is the largest."""
    scaled = (value * 64.0).rint()
    low = 0.0 if relu else -128.0
    clamped = scaled.compare("olt", low).where(low, scaled)
    clamped = clamped.compare("ogt", 127.0).where(127.0, clamped)
    return clamped.is_nan().where(127.0, clamped).to_signed("i32") & 0xFF


def _unscaled(values: tuple[Lanes, Lanes], scales: tuple[Lanes, ...]) -> tuple[Lanes, Lanes]:
    """Divide by the scales of a ue8m0x2 operand, where there is one."""
    if not scales:
        return values
    codes = scales[0].zext("i32")
    return values[0] / _scale(codes >> 8), values[1] / _scale(codes & 0xFF)


@pure("cvt.rn.satfinite{.relu}.s2f6x2.f32", dst="s2f6x2", src="f32 f32", section=SECTION)
@pure("cvt.rn.satfinite{.relu}.scaled::n2::ue8m0.s2f6x2.f32", dst="s2f6x2", src="f32 f32 b16", section=SECTION)
def convert_to_fixed(calc: Calc, form: Form, a: Lanes, b: Lanes, *scales: Lanes) -> Lanes:
    """Round two f32, divided by their scales, to 64ths."""
    codes = [_fixed(value, relu=form.has("relu")) for value in _unscaled((a, b), scales)]
    return _packed("s2f6x2", codes, "i16")


@pure("cvt.rn.satfinite{.relu}.s2f6x2.bf16x2", dst="s2f6x2", src="bf16x2", section=SECTION)
@pure("cvt.rn.satfinite{.relu}.scaled::n2::ue8m0.s2f6x2.bf16x2", dst="s2f6x2", src="bf16x2 b16", section=SECTION)
def convert_pair_to_fixed(calc: Calc, form: Form, a: Lanes, *scales: Lanes) -> Lanes:
    """Round two bf16, divided by their scales, to 64ths."""
    return convert_to_fixed(calc, form, *_halves(a, "bf16x2"), *scales)


@pure("cvt.rn{.satfinite}{.relu}.bf16x2.s2f6x2", dst="bf16x2", src="s2f6x2", section=SECTION)
@pure("cvt.rn{.satfinite}{.relu}.scaled::n2::ue8m0.bf16x2.s2f6x2", dst="bf16x2", src="s2f6x2 b16", section=SECTION)
def convert_fixed(calc: Calc, form: Form, a: Lanes, *scales: Lanes) -> Lanes:
    """Give 64ths, times their scales, as bf16."""
    codes = a.zext("i32")
    values = [(code << 24).ashr(24).from_signed("f32") * (1 / 64) for code in (codes >> 8, codes)]
    results = _scaled((values[0], values[1]), scales)
    return _packed("bf16x2", [_to_half(form, value, "bf16x2") for value in results], "i32")


# Integers.


def _clamped(value: Lanes, type: str) -> Lanes:
    """Clamp an s32 to a small integer type; bits above it are zero."""
    bits = int(type[1:])
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if type[0] == "s" else (0, (1 << bits) - 1)
    return smaller(larger(value, value.const(low), True), value.const(high), True) & ((1 << bits) - 1)


@pure("cvt.pack.sat.<to>.s32", sets={"to": "u16 s16"}, dst="b32", src="s32 s32", section=SECTION + ".pack")
def pack_halves(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Clamp both and put a above b."""
    return (_clamped(a, form["to"]) << 16) | _clamped(b, form["to"])


@pure(
    "cvt.pack.sat.<to>.s32.b32",
    sets={"to": "u8 s8 u4 s4 u2 s2"},
    dst="b32",
    src="s32 s32 b32",
    section=SECTION + ".pack",
)
def pack_small(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Clamp both, put a above b, and c's low bits above both."""
    bits = int(form["to"][1:])
    return (c << (2 * bits)) | (_clamped(a, form["to"]) << bits) | _clamped(b, form["to"])
