"""Integer arithmetic, extended precision included. Logic and shifts are in `logic`, comparisons in `select`."""

# Every form has the same arguments, whether it looks at them or not.
# ruff: noqa: ARG001, ARG005

from __future__ import annotations

from megamoe_jit.emulator.isa.lanes import Calc, Lanes
from megamoe_jit.emulator.isa.ops import BITS
from megamoe_jit.emulator.isa.table import Form, pure

INTEGERS = "u16 u32 u64 s16 s32 s64"
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}

_ARITHMETIC = "Integer Arithmetic Instructions: "
_EXTENDED = "Extended-Precision Integer Arithmetic Instructions: "


def is_signed(type: str) -> bool:
    """Whether a PTX type is one of signed integers."""
    return type.startswith("s")


def smaller(a: Lanes, b: Lanes, signed: bool) -> Lanes:
    """Minimum."""
    return (a.slt(b) if signed else a.ult(b)).where(a, b)


def larger(a: Lanes, b: Lanes, signed: bool) -> Lanes:
    """Maximum."""
    return (a.sgt(b) if signed else a.ugt(b)).where(a, b)


def widen(value: Lanes, type: str) -> Lanes:
    """Widen an integer of PTX type `type` to twice its bits."""
    double = f"i{2 * value.bits}"
    return value.sext(double) if is_signed(type) else value.zext(double)


def saturate_signed(value: Lanes, type: str) -> Lanes:
    """Narrow a signed value to `type` (i8, i16, i32), clamped to its range."""
    top = 1 << (BITS[type] - 1)
    clamped = smaller(larger(value, value.const(-top), True), value.const(top - 1), True)
    return clamped.trunc(type)


def halves(value: Lanes) -> tuple[Lanes, Lanes]:
    """Split into the low and the high half."""
    half = f"i{value.bits // 2}"
    return value.trunc(half), (value >> (value.bits // 2)).trunc(half)


def joined(low: Lanes, high: Lanes) -> Lanes:
    """Join two halves."""
    whole = f"i{2 * low.bits}"
    return low.zext(whole) | (high.zext(whole) << low.bits)


def product(a: Lanes, b: Lanes, signed: bool) -> tuple[Lanes, Lanes]:
    """Multiply exactly: low and high half of the product, each of the operands' width."""
    if a.bits < 64:
        type = "s" if signed else "u"
        return halves(widen(a, type) * widen(b, type))
    a0, a1 = (half.zext("i64") for half in halves(a))
    b0, b1 = (half.zext("i64") for half in halves(b))
    middle = a1 * b0 + ((a0 * b0) >> 32)
    cross = a0 * b1 + (middle & 0xFFFFFFFF)
    high = a1 * b1 + (middle >> 32) + (cross >> 32)
    if signed:
        # Reading a as unsigned adds 2**64 where it is negative, so b to the high half; the same for b.
        high = high - (a.ashr(63) & b) - (b.ashr(63) & a)
    return a * b, high


def _part(form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Return the part of a * b that .lo, .hi or .wide asks for."""
    if form["part"] == "wide":
        return widen(a, form.type) * widen(b, form.type)
    return a * b if form["part"] == "lo" else product(a, b, is_signed(form.type))[1]


def _part_type(form: Form) -> str:
    return WIDER[form.type] if form["part"] == "wide" else form.type


def _has_part(form: Form) -> bool:
    return form["part"] != "wide" or form.type in WIDER


@pure("add.<type>", types=INTEGERS, dst="<type>", src="<type> <type>", section=_ARITHMETIC + "add")
def add(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Sum modulo 2**bits."""
    return a + b


@pure("sub.<type>", types=INTEGERS, dst="<type>", src="<type> <type>", section=_ARITHMETIC + "sub")
def sub(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Difference modulo 2**bits."""
    return a - b


@pure("add.<type>", types="u16x2 s16x2", dst="b32", src="b32 b32", section=_ARITHMETIC + "add")
def add_pair(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Sum of both halves."""
    (a0, a1), (b0, b1) = halves(a), halves(b)
    return joined(a0 + b0, a1 + b1)


@pure("add.sat.s32", dst="s32", src="s32 s32", section=_ARITHMETIC + "add")
def add_saturated(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Sum, clamped."""
    return saturate_signed(a.sext("i64") + b.sext("i64"), "i32")


@pure("sub.sat.s32", dst="s32", src="s32 s32", section=_ARITHMETIC + "sub")
def sub_saturated(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Difference, clamped."""
    return saturate_signed(a.sext("i64") - b.sext("i64"), "i32")


@pure(
    "mul{part:.lo|.hi|.wide}.<type>", types=INTEGERS, dst=lambda form, count: (_part_type(form),) * count,
    src="<type> <type>", where=_has_part, section=_ARITHMETIC + "mul",
)  # fmt: skip
def mul(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Low half, high half, or the whole product."""
    return _part(form, a, b)


@pure(
    "mad{part:.lo|.hi|.wide}.<type>", types=INTEGERS, dst=lambda form, count: (_part_type(form),) * count,
    src=lambda form, count: (form.type, form.type, _part_type(form)), where=_has_part, section=_ARITHMETIC + "mad",
)  # fmt: skip
def mad(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Part of the product, plus c."""
    return _part(form, a, b) + c


@pure("mad.hi.sat.s32", dst="s32", src="s32 s32 s32", section=_ARITHMETIC + "mad")
def mad_saturated(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """High half of the product plus c, clamped."""
    return saturate_signed((a.sext("i64") * b.sext("i64")).ashr(32) + c.sext("i64"), "i32")


def _product24(form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Multiply 24-bit integers; .lo and .hi are the low and high 32 of the 48 bits, as i64 with sign."""
    a, b = (
        (value << 8).ashr(8).sext("i64") if is_signed(form.type) else (value & 0xFFFFFF).zext("i64") for value in (a, b)
    )
    whole = a * b
    return whole if form["part"] == "lo" else whole.ashr(16)


@pure("mul24{part:.lo|.hi}.<type>", types="u32 s32", dst="<type>", src="<type> <type>", section=_ARITHMETIC + "mul24")
def mul24(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Low or high 32 bits of a product of 24-bit integers."""
    return _product24(form, a, b).trunc("i32")


@pure(
    "mad24{part:.lo|.hi}.<type>", types="u32 s32", dst="<type>", src="<type> <type> <type>",
    section=_ARITHMETIC + "mad24",
)  # fmt: skip
def mad24(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """`mul24` plus c."""
    return _product24(form, a, b).trunc("i32") + c


@pure("mad24{part:.hi}.sat.<type>", types="s32", dst="s32", src="s32 s32 s32", section=_ARITHMETIC + "mad24")
def mad24_saturated(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """High bits of `mul24` plus c, clamped."""
    return saturate_signed(_product24(form, a, b) + c.sext("i64"), "i32")


@pure("sad.<type>", types=INTEGERS, dst="<type>", src="<type> <type> <type>", section=_ARITHMETIC + "sad")
def sad(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Add |a - b| to c."""
    less = a.slt(b) if is_signed(form.type) else a.ult(b)
    return c + less.where(b - a, a - b)


@pure("div.<type>", types=INTEGERS, dst="<type>", src="<type> <type>", section=_ARITHMETIC + "div")
def div(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Quotient towards zero. All ones for a zero divisor, which the manual leaves open."""
    zero = b.eq(0)
    if not is_signed(form.type):
        return zero.where(-1, a.udiv(zero.where(1, b)))
    # The one overflow, INT_MIN / -1, is INT_MIN, as is the negation that stands for it.
    minus = b.eq(-1)
    return zero.where(-1, minus.where(-a, a.sdiv((zero | minus).where(1, b))))


@pure("rem.<type>", types=INTEGERS, dst="<type>", src="<type> <type>", section=_ARITHMETIC + "rem")
def rem(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Remainder with the dividend's sign. All ones for a zero divisor, which the manual leaves open."""
    zero = b.eq(0)
    if not is_signed(form.type):
        return zero.where(-1, a.urem(zero.where(1, b)))
    return zero.where(-1, a.srem((zero | b.eq(-1)).where(1, b)))


@pure("abs.<type>", types="s16 s32 s64", dst="<type>", src="<type>", section=_ARITHMETIC + "abs")
def absolute(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Magnitude; INT_MIN stays."""
    return a.slt(0).where(-a, a)


@pure("neg.<type>", types="s16 s32 s64", dst="<type>", src="<type>", section=_ARITHMETIC + "neg")
def neg(calc: Calc, form: Form, a: Lanes) -> Lanes:
    """Two's complement; INT_MIN stays."""
    return -a


@pure("min.<type>", types=INTEGERS, dst="<type>", src="<type> <type>", section=_ARITHMETIC + "min")
def minimum(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Smaller one."""
    return smaller(a, b, is_signed(form.type))


@pure("max.<type>", types=INTEGERS, dst="<type>", src="<type> <type>", section=_ARITHMETIC + "max")
def maximum(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Larger one."""
    return larger(a, b, is_signed(form.type))


@pure("min.relu.s32", dst="s32", src="s32 s32", section=_ARITHMETIC + "min")
def minimum_relu(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Smaller one, 0 when negative."""
    return larger(smaller(a, b, True), a.const(0), True)


@pure("max.relu.s32", dst="s32", src="s32 s32", section=_ARITHMETIC + "max")
def maximum_relu(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Larger one, 0 when negative."""
    return larger(larger(a, b, True), a.const(0), True)


def _pairs(a: Lanes, b: Lanes, form: Form, *, pick_larger: bool) -> Lanes:
    """Choose in both 16-bit halves."""
    signed, choose = form.has("s16x2"), larger if pick_larger else smaller
    results = [choose(x, y, signed) for x, y in zip(halves(a), halves(b), strict=True)]
    if form.has("relu"):
        results = [larger(result, result.const(0), True) for result in results]
    return joined(*results)


@pure("min.u16x2", dst="b32", src="b32 b32", section=_ARITHMETIC + "min")
@pure("min{.relu}.s16x2", dst="b32", src="b32 b32", section=_ARITHMETIC + "min")
def minimum_pair(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Smaller one of both halves."""
    return _pairs(a, b, form, pick_larger=False)


@pure("max.u16x2", dst="b32", src="b32 b32", section=_ARITHMETIC + "max")
@pure("max{.relu}.s16x2", dst="b32", src="b32 b32", section=_ARITHMETIC + "max")
def maximum_pair(calc: Calc, form: Form, a: Lanes, b: Lanes) -> Lanes:
    """Larger one of both halves."""
    return _pairs(a, b, form, pick_larger=True)


def _dot(a: Lanes, b: Lanes, a_fields: list[int], a_bits: int, b_fields: list[int], form: Form) -> Lanes:
    """Sum products of fields at bit positions of `a` (`a_bits` wide) and bytes at positions of `b`."""

    def field(value: Lanes, at: int, bits: int, type: str) -> Lanes:
        top = value << (32 - at - bits)
        return top.ashr(32 - bits) if is_signed(type) else top >> (32 - bits)

    total = a.const(0)
    for i, j in zip(a_fields, b_fields, strict=True):
        total = total + field(a, i, a_bits, form["a"]) * field(b, j, 8, form["b"])
    return total


@pure("dp4a.<a>.<b>", sets={"a": "u32 s32", "b": "u32 s32"}, dst="b32", src="b32 b32 b32", section=_ARITHMETIC + "dp4a")
def dp4a(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Add the dot product of four bytes to c."""
    return c + _dot(a, b, [0, 8, 16, 24], 8, [0, 8, 16, 24], form)


@pure(
    "dp2a{half:.lo|.hi}.<a>.<b>", sets={"a": "u32 s32", "b": "u32 s32"}, dst="b32", src="b32 b32 b32",
    section=_ARITHMETIC + "dp2a",
)  # fmt: skip
def dp2a(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Add the dot product of two 16-bit integers and the low or high two bytes of b to c."""
    return c + _dot(a, b, [0, 16], 16, [0, 8] if form["half"] == "lo" else [16, 24], form)


CARRYING = "u32 s32 u64 s64"


def _sum(a: Lanes, b: Lanes, carry: Lanes | None) -> tuple[Lanes, Lanes]:
    """Add with carry: sum and carry out."""
    total = a + b
    out = total.ult(a)
    if carry is not None:
        before, total = total, total + carry.zext(a.type)
        out = out | total.ult(before)
    return total, out


def _difference(a: Lanes, b: Lanes, borrow: Lanes | None) -> tuple[Lanes, Lanes]:
    """Subtract with borrow: difference and borrow out."""
    total = a - b
    out = a.ult(b)
    if borrow is not None:
        before, total = total, total - borrow.zext(a.type)
        out = out | before.ult(total)
    return total, out


@pure("add.cc.<type>", types=CARRYING, dst="<type>", src="<type> <type>", carry_out=True, section=_EXTENDED + "add.cc")
def add_cc(calc: Calc, form: Form, a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """Sum and its carry."""
    return _sum(a, b, None)


@pure("addc.<type>", types=CARRYING, dst="<type>", src="<type> <type>", carry_in=True, section=_EXTENDED + "addc")
def addc(calc: Calc, form: Form, a: Lanes, b: Lanes, carry: Lanes) -> Lanes:
    """Sum with carry."""
    return _sum(a, b, carry)[0]


@pure(
    "addc.cc.<type>", types=CARRYING, dst="<type>", src="<type> <type>", carry_in=True, carry_out=True,
    section=_EXTENDED + "addc",
)  # fmt: skip
def addc_cc(calc: Calc, form: Form, a: Lanes, b: Lanes, carry: Lanes) -> tuple[Lanes, Lanes]:
    """Sum with carry, and its carry."""
    return _sum(a, b, carry)


@pure("sub.cc.<type>", types=CARRYING, dst="<type>", src="<type> <type>", carry_out=True, section=_EXTENDED + "sub.cc")
def sub_cc(calc: Calc, form: Form, a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """Difference and its borrow."""
    return _difference(a, b, None)


@pure("subc.<type>", types=CARRYING, dst="<type>", src="<type> <type>", carry_in=True, section=_EXTENDED + "subc")
def subc(calc: Calc, form: Form, a: Lanes, b: Lanes, borrow: Lanes) -> Lanes:
    """Difference with borrow."""
    return _difference(a, b, borrow)[0]


@pure(
    "subc.cc.<type>", types=CARRYING, dst="<type>", src="<type> <type>", carry_in=True, carry_out=True,
    section=_EXTENDED + "subc",
)  # fmt: skip
def subc_cc(calc: Calc, form: Form, a: Lanes, b: Lanes, borrow: Lanes) -> tuple[Lanes, Lanes]:
    """Difference with borrow, and its borrow."""
    return _difference(a, b, borrow)


@pure(
    "mad{part:.lo|.hi}.cc.<type>", types=CARRYING, dst="<type>", src="<type> <type> <type>", carry_out=True,
    section=_EXTENDED + "mad.cc",
)  # fmt: skip
def mad_cc(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> tuple[Lanes, Lanes]:
    """Part of the product plus c, and its carry."""
    return _sum(_part(form, a, b), c, None)


@pure(
    "madc{part:.lo|.hi}.<type>", types=CARRYING, dst="<type>", src="<type> <type> <type>", carry_in=True,
    section=_EXTENDED + "madc",
)  # fmt: skip
def madc(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes, carry: Lanes) -> Lanes:
    """Part of the product plus c plus carry."""
    return _sum(_part(form, a, b), c, carry)[0]


@pure(
    "madc{part:.lo|.hi}.cc.<type>", types=CARRYING, dst="<type>", src="<type> <type> <type>", carry_in=True,
    carry_out=True, section=_EXTENDED + "madc",
)  # fmt: skip
def madc_cc(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes, carry: Lanes) -> tuple[Lanes, Lanes]:
    """Part of the product plus c plus carry, and its carry."""
    return _sum(_part(form, a, b), c, carry)
