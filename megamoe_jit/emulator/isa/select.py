"""Comparison, selection, and moves."""

# Every form has the same arguments, whether it looks at them or not.
# ruff: noqa: ARG001, ARG005

from __future__ import annotations

from collections.abc import Callable

from megamoe_jit.emulator.isa import rounding
from megamoe_jit.emulator.isa.codecs import decode
from megamoe_jit.emulator.isa.floating import flush_half, half_format
from megamoe_jit.emulator.isa.integer import halves, is_signed, joined
from megamoe_jit.emulator.isa.lanes import Calc, Lanes
from megamoe_jit.emulator.isa.ops import BITS, VALUE_TYPE
from megamoe_jit.emulator.isa.table import Form, pure
from megamoe_jit.errors import UnsupportedError

_SECTION = "Comparison and Selection Instructions: "
_HALF = "Half Precision Comparison Instructions: "
_MOVE = "Data Movement and Conversion Instructions: mov"

_FLOAT_PREDICATES = {
    "eq": "oeq", "ne": "one", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge",
    "equ": "ueq", "neu": "une", "ltu": "ult", "leu": "ule", "gtu": "ugt", "geu": "uge",
    "num": "ord", "nan": "uno",
}  # fmt: skip
_UNSIGNED_PREDICATES = {"lo": "ult", "ls": "ule", "hi": "ugt", "hs": "uge"}
_INTEGERS = "u16 u32 u64 s16 s32 s64"
_NAMES = "|.".join([*_FLOAT_PREDICATES, *_UNSIGNED_PREDICATES])
_COMPARE = f"{{cmp:.{_NAMES}}}{{combine:.and|.or|.xor|}}{{.ftz}}"


def _is_float(type: str) -> bool:
    return "f" in type


def _can_compare(form: Form) -> bool:
    """Whether the operand type has the comparison (and its .ftz)."""
    type, name = form.type, form["cmp"]
    if form.has("ftz") and type not in ("f32", "f16", "f16x2"):
        return False
    if _is_float(type):
        return name in _FLOAT_PREDICATES
    if type[0] == "b":
        return name in ("eq", "ne")
    return name in ("eq", "ne", "lt", "le", "gt", "ge") or (type[0] == "u" and name in _UNSIGNED_PREDICATES)


def _compare(form: Form, a: Lanes, b: Lanes, type: str) -> Lanes:
    """Compare scalars of a PTX type as the form says."""
    name = form["cmp"]
    if type.endswith("f16"):
        format = half_format(type)
        a, b = decode(a.zext("i32"), format), decode(b.zext("i32"), format)
        if form.has("ftz"):
            a, b = flush_half(a), flush_half(b)
    elif form.has("ftz"):
        a, b = rounding.flush(a), rounding.flush(b)
    if _is_float(type):
        return a.compare(_FLOAT_PREDICATES[name], b)
    if name in ("eq", "ne"):
        return a.compare(name, b)
    sign = "s" if is_signed(type) else "u"
    return a.compare(_UNSIGNED_PREDICATES.get(name, sign + name), b)


def _combined(form: Form, value: Lanes, operand: tuple[Lanes, ...]) -> Lanes:
    """Combine a comparison's result with the predicate operand, where there is one."""
    if not operand:
        return value
    (c,) = operand
    return {"and": lambda: value & c, "or": lambda: value | c, "xor": lambda: value ^ c}[form["combine"]]()


def _with_predicate(types: Callable[[Form], tuple[str, ...]]) -> Callable[[Form, int], tuple[str, ...]]:
    """Add the predicate operand of forms that combine."""

    def source(form: Form, count: int) -> tuple[str, ...]:
        names = types(form) + (("pred",) if form["combine"] else ())
        if count != len(names):
            raise UnsupportedError(f"{form.opcode} has {count} sources, but takes {' '.join(names)}.")
        return names

    return source


def _operands(form: Form) -> tuple[str, ...]:
    return (form.type, form.type)


_SETP_TYPES = f"b16 b32 b64 {_INTEGERS} f32 f64 f16 bf16"


@pure(
    f"setp{_COMPARE}.<type>", types=_SETP_TYPES, dst="pred pred?",
    src=_with_predicate(_operands), where=_can_compare, section=_SECTION + "setp",
)  # fmt: skip
def setp(calc: Calc, form: Form, a: Lanes, b: Lanes, *c: Lanes) -> tuple[Lanes, Lanes]:
    """Compare; the second result is that of the opposite comparison. Both are combined with c."""
    result = _compare(form, a, b, form.type)
    return _combined(form, result, c), _combined(form, ~result, c)


@pure(
    f"setp{_COMPARE}.<type>", types="f16x2 bf16x2", dst="pred pred",
    src=_with_predicate(_operands), where=_can_compare, section=_HALF + "setp",
)  # fmt: skip
def setp_pair(calc: Calc, form: Form, a: Lanes, b: Lanes, *c: Lanes) -> tuple[Lanes, Lanes]:
    """Compare low halves, then high halves."""
    type = form.type.removesuffix("x2")
    low = _compare(form, a.trunc("i16"), b.trunc("i16"), type)
    high = _compare(form, (a >> 16).trunc("i16"), (b >> 16).trunc("i16"), type)
    return _combined(form, low, c), _combined(form, high, c)


_ONE = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}


def _can_set(form: Form) -> bool:
    """Whether the result type goes with the operand type: 16-bit integers and f32 are not for all."""
    of_half = form.type in ("f16", "bf16")
    to = form["dst"]
    if (of_half and to == "f32") or (not of_half and to in ("u16", "s16")):
        return False
    return _can_compare(form) and not (form.type == "bf16" and to == "f16") and not (form.has("ftz") and to == "bf16")


def _set_value(calc: Calc, condition: Lanes, type: str) -> Lanes:
    """Give all ones, or 1.0 of a float type."""
    value = VALUE_TYPE[type]
    integer = f"i{BITS[value]}"
    return condition.where(calc.const(integer, _ONE.get(type, -1)), 0).cast(value)


@pure(
    f"set{_COMPARE}.<dst>.<type>",
    types=_SETP_TYPES, sets={"dst": "u32 s32 f32 u16 s16 f16 bf16"}, dst="<dst>", src=_with_predicate(_operands),
    where=_can_set, section=_SECTION + "set",
)  # fmt: skip
def set_(calc: Calc, form: Form, a: Lanes, b: Lanes, *c: Lanes) -> Lanes:
    """Compare; all ones or 1.0 when true, 0 when false."""
    return _set_value(calc, _combined(form, _compare(form, a, b, form.type), c), form["dst"])


def _can_set_pair(form: Form) -> bool:
    return _can_compare(form) and form["dst"] in (form.type, "u32", "s32")


@pure(
    f"set{_COMPARE}.<dst>.<type>",
    types="f16x2 bf16x2", sets={"dst": "f16x2 bf16x2 u32 s32"}, dst="<dst>", src=_with_predicate(_operands),
    where=_can_set_pair, section=_HALF + "set",
)  # fmt: skip
def set_pair(calc: Calc, form: Form, a: Lanes, b: Lanes, *c: Lanes) -> Lanes:
    """Compare halves; each half of the result is all ones (for integer results), 1.0, or 0."""
    low, high = setp_pair(calc, form, a, b, *c)
    one = _ONE.get(form["dst"].removesuffix("x2"), 0xFFFF)
    return low.where(calc.const("i32", one), 0) | high.where(calc.const("i32", one << 16), 0)


_SELECTED = f"b16 b32 b64 {_INTEGERS} f32 f64"


def _as_bits(types: str) -> str:
    """Selection moves bits: a float is not touched."""
    return " ".join(f"b{BITS[VALUE_TYPE[type]]}" for type in types.split())


def _bits_type(form: Form, count: int) -> tuple[str, ...]:
    return (_as_bits(form.type),) * count


@pure(
    "selp.<type>", types=_SELECTED, dst=_bits_type, src=lambda form, count: (_as_bits(form.type),) * 2 + ("pred",),
    section=_SECTION + "selp",
)  # fmt: skip
def selp(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Take a where c, else b."""
    return c.where(a, b)


@pure(
    "slct.<type>.s32", types=_SELECTED, dst=_bits_type, src=lambda form, count: (_as_bits(form.type),) * 2 + ("s32",),
    section=_SECTION + "slct",
)  # fmt: skip
def slct(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Take a where c >= 0, else b."""
    return c.sge(0).where(a, b)


@pure(
    "slct{.ftz}.<type>.f32", types=_SELECTED, dst=_bits_type,
    src=lambda form, count: (_as_bits(form.type),) * 2 + ("f32",), section=_SECTION + "slct",
)  # fmt: skip
def slct_float(calc: Calc, form: Form, a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Take a where c >= 0 (-0 is), else b, for NaN too."""
    if form.has("ftz"):
        c = rounding.flush(c)
    return c.compare("oge", 0.0).where(a, b)


def _mov_types(form: Form, count: int) -> tuple[str, ...]:
    """Types of destinations or sources: one of the whole type, or equal parts of a b type."""
    if count == 1:
        return (form.type,)
    if form.type not in ("b16", "b32", "b64", "b128") or count not in (2, 4):
        raise UnsupportedError(f"{form.opcode} cannot take its value apart into {count}, or put it together.")
    return (f"b{int(form.type[1:]) // count}",) * count


@pure("mov.<type>", types=f"pred b128 {_SELECTED}", dst=_mov_types, src=_mov_types, section=_MOVE)
def mov(calc: Calc, form: Form, *parts: Lanes) -> tuple[Lanes, ...]:
    """Copy bits; several sources are put together, several destinations get parts, the first the lowest bits."""
    whole = int(form.type[1:]) if form.type != "pred" else 1
    if form.outputs == 1 and len(parts) == 1:
        return parts
    while sum(part.bits for part in parts[:1]) < min(whole, 64) and len(parts) > 1:
        parts = tuple(joined(low, high) for low, high in zip(parts[::2], parts[1::2], strict=True))
    if form.outputs > 1:
        while len(parts) < form.outputs:
            parts = tuple(half for part in parts for half in halves(part))
    return parts
