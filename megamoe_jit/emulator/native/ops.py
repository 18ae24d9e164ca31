"""`isa.ops.Ops` as LLVM IR: a value is a vector of 32 elements. Constants are folded, so that a form written for any
operand is short where an operand is known."""

# ruff: noqa: D102

from __future__ import annotations

import struct
from collections.abc import Callable

from megamoe_jit.emulator.native.ir import Body, Val, vector

ELEMENTS = {
    "i1": "i1", "i8": "i8", "i16": "i16", "i32": "i32", "i64": "i64", "f32": "float", "f64": "double",
}  # fmt: skip
LANES = {name: vector(32, element) for name, element in ELEMENTS.items()}
"""Type of `Ops` -> LLVM type."""
_NAMES = {lanes: name for name, lanes in LANES.items()}
_BITS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "f32": 32, "f64": 64}
_FLOAT_FORMATS = {"f32": ("<f", "<I"), "f64": ("<d", "<Q")}


class LlvmOps:
    """Adds instructions to a function; `active` gives the i1 lanes that execute."""

    __slots__ = ("_active", "f")

    def __init__(self, f: Body, active: Callable[[], Val]) -> None:
        """Add to the end of `f`."""
        self.f = f
        self._active = active

    def type(self, v: Val) -> str:
        return _NAMES[v.type]

    def const(self, type: str, value: int | float) -> Val:
        if type[0] == "i":
            value = int(value) % (1 << _BITS[type])
        return self.f.const(LANES[type], value)

    def from_bits(self, type: str, bits: int) -> Val:
        """Return a constant with the given bits."""
        if type[0] == "i":
            return self.const(type, bits)
        as_float, as_int = _FLOAT_FORMATS[type]
        value = struct.unpack(as_float, struct.pack(as_int, bits))[0]
        if value == value:
            return self.f.const(LANES[type], value)
        integer = self.const(f"i{_BITS[type]}", bits)
        return Val(self.f, LANES[type], f"bitcast ({integer!r} to {LANES[type]})")

    # --- integers ---

    def _fold(self, a: Val, b: Val, function: Callable[[int, int], int]) -> Val | None:
        if a.const is None or b.const is None:
            return None
        return self.const(_NAMES[a.type], function(int(a.const), int(b.const)))

    def add(self, a: Val, b: Val) -> Val:
        if a.const == 0:
            return b
        if b.const == 0:
            return a
        return self._fold(a, b, lambda x, y: x + y) or a + b

    def sub(self, a: Val, b: Val) -> Val:
        return a if b.const == 0 else self._fold(a, b, lambda x, y: x - y) or a - b

    def mul(self, a: Val, b: Val) -> Val:
        if a.const == 1:
            return b
        if b.const == 1:
            return a
        return self._fold(a, b, lambda x, y: x * y) or a * b

    def _ones(self, v: Val) -> bool:
        return v.const is not None and v.const == (1 << _BITS[_NAMES[v.type]]) - 1

    def and_(self, a: Val, b: Val) -> Val:
        if a.const == 0 or self._ones(b):
            return a
        if b.const == 0 or self._ones(a):
            return b
        return self._fold(a, b, lambda x, y: x & y) or a & b

    def or_(self, a: Val, b: Val) -> Val:
        if a.const == 0 or self._ones(b):
            return b
        if b.const == 0 or self._ones(a):
            return a
        return self._fold(a, b, lambda x, y: x | y) or a | b

    def xor(self, a: Val, b: Val) -> Val:
        if a.const == 0:
            return b
        if b.const == 0:
            return a
        return self._fold(a, b, lambda x, y: x ^ y) or a ^ b

    def not_(self, a: Val) -> Val:
        return self.const(_NAMES[a.type], ~int(a.const)) if a.const is not None else ~a

    def _shift(self, name: str, a: Val, b: Val) -> Val:
        bits = _BITS[_NAMES[a.type]]
        if b.const == 0:
            return a
        if b.const is not None:
            # Lanes that matter never shift that far; what the others get does not matter, but must be something.
            return a._op(name, b) if b.const < bits else self.f.const(a.type, 0)
        return a._op(name, b & (bits - 1))

    def shl(self, a: Val, b: Val) -> Val:
        return self._fold_shift(a, b, lambda x, y, _: x << y) or self._shift("shl", a, b)

    def lshr(self, a: Val, b: Val) -> Val:
        return self._fold_shift(a, b, lambda x, y, _: x >> y) or self._shift("lshr", a, b)

    def ashr(self, a: Val, b: Val) -> Val:
        return self._fold_shift(a, b, lambda x, y, bits: _signed(x, bits) >> y) or self._shift("ashr", a, b)

    def _fold_shift(self, a: Val, b: Val, function: Callable[[int, int, int], int]) -> Val | None:
        bits = _BITS[_NAMES[a.type]]
        if a.const is None or b.const is None or b.const >= bits:
            return None
        return self.const(_NAMES[a.type], function(int(a.const), int(b.const), bits))

    def _divide(self, name: str, a: Val, b: Val) -> Val:
        bits = _BITS[_NAMES[a.type]]
        divisor = int(b.const or 0)
        if name[0] == "u" and divisor and divisor & (divisor - 1) == 0:
            if name == "udiv":
                return self.lshr(a, self.const(_NAMES[a.type], divisor.bit_length() - 1))
            return self.and_(a, self.const(_NAMES[a.type], divisor - 1))
        return self.f.call(f"emu_{name}{bits}", a.type, a, b)

    def udiv(self, a: Val, b: Val) -> Val:
        return self._divide("udiv", a, b)

    def urem(self, a: Val, b: Val) -> Val:
        return self._divide("urem", a, b)

    def sdiv(self, a: Val, b: Val) -> Val:
        return self._divide("sdiv", a, b)

    def srem(self, a: Val, b: Val) -> Val:
        return self._divide("srem", a, b)

    def icmp(self, predicate: str, a: Val, b: Val) -> Val:
        if a.const is not None and b.const is not None:
            x, y = int(a.const), int(b.const)
            if predicate[0] == "s":
                bits = _BITS[_NAMES[a.type]]
                x, y = _signed(x, bits), _signed(y, bits)
            holds = {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}
            return self.const("i1", holds[predicate[-2:]])
        return a.cmp(predicate, b)

    def select(self, condition: Val, a: Val, b: Val) -> Val:
        if condition.const is not None:
            return a if condition.const else b
        return a if a is b else condition.select(a, b)

    def trunc(self, v: Val, type: str) -> Val:
        return self.const(type, v.const) if v.const is not None else v.trunc(LANES[type])

    def zext(self, v: Val, type: str) -> Val:
        return self.const(type, v.const) if v.const is not None else v.zext(LANES[type])

    def sext(self, v: Val, type: str) -> Val:
        if v.const is not None:
            return self.const(type, _signed(int(v.const), _BITS[_NAMES[v.type]]))
        return v.cast("sext", LANES[type])

    def bitcast(self, v: Val, type: str) -> Val:
        if v.const is not None:
            name = _NAMES[v.type]
            if name[0] == "f":
                as_float, as_int = _FLOAT_FORMATS[name]
                return self.from_bits(type, struct.unpack(as_int, struct.pack(as_float, v.const))[0])
            return self.from_bits(type, int(v.const))
        return v.bitcast(LANES[type])

    def ctpop(self, v: Val) -> Val:
        if v.const is not None:
            return self.const(_NAMES[v.type], bin(int(v.const)).count("1"))
        return self.f.intrinsic("ctpop", v.type, v)

    def ctlz(self, v: Val) -> Val:
        if v.const is not None:
            return self.const(_NAMES[v.type], _BITS[_NAMES[v.type]] - int(v.const).bit_length())
        return self.f.intrinsic("ctlz", v.type, v, self.f.const("i1", 0))

    def bitreverse(self, v: Val) -> Val:
        return self.f.intrinsic("bitreverse", v.type, v)

    def bswap(self, v: Val) -> Val:
        return self.f.intrinsic("bswap", v.type, v)

    # --- floats ---

    def fadd(self, a: Val, b: Val) -> Val:
        return a._op("fadd", b)

    def fsub(self, a: Val, b: Val) -> Val:
        return a._op("fsub", b)

    def fmul(self, a: Val, b: Val) -> Val:
        return a._op("fmul", b)

    def fdiv(self, a: Val, b: Val) -> Val:
        return a._op("fdiv", b)

    def fsqrt(self, a: Val) -> Val:
        return self.f.intrinsic("sqrt", a.type, a)

    def fma(self, a: Val, b: Val, c: Val) -> Val:
        return self.f.intrinsic("fma", a.type, a, b, c)

    def fcmp(self, predicate: str, a: Val, b: Val) -> Val:
        return self.f.emit(LANES["i1"], f"fcmp {predicate} {a}, {b.text}")

    def fneg(self, a: Val) -> Val:
        if a.const is not None:
            return self.f.const(a.type, -a.const)
        return self.f.emit(a.type, f"fneg {a}")

    def fabs(self, a: Val) -> Val:
        return self.f.intrinsic("fabs", a.type, a)

    def floor(self, a: Val) -> Val:
        return self.f.intrinsic("floor", a.type, a)

    def ceil(self, a: Val) -> Val:
        return self.f.intrinsic("ceil", a.type, a)

    def trunc_f(self, a: Val) -> Val:
        return self.f.intrinsic("trunc", a.type, a)

    def rint(self, a: Val) -> Val:
        return self.f.intrinsic("roundeven", a.type, a)

    def _to_integer(self, name: str, v: Val, type: str) -> Val:
        # The saturating conversion: the plain one is poison for values out of range, which idle lanes may hold.
        source, target = LANES[_NAMES[v.type]], LANES[type]
        mangled = f"llvm.{name}.sat.v32{type}.v32{_NAMES[v.type]}"
        assert v.type == source
        return self.f.call(mangled, target, v)

    def fptosi(self, v: Val, type: str) -> Val:
        return self._to_integer("fptosi", v, type)

    def fptoui(self, v: Val, type: str) -> Val:
        return self._to_integer("fptoui", v, type)

    def sitofp(self, v: Val, type: str) -> Val:
        return v.cast("sitofp", LANES[type])

    def uitofp(self, v: Val, type: str) -> Val:
        return v.cast("uitofp", LANES[type])

    def fpext(self, v: Val) -> Val:
        return v.cast("fpext", LANES["f64"])

    def fptrunc(self, v: Val) -> Val:
        return v.cast("fptrunc", LANES["f32"])

    def call(self, name: str, *values: Val) -> Val:
        return self.f.call(f"emu_{name}", LANES["f64"], *values)

    def special(self, name: str, v: Val) -> Val:
        return self.f.call(f"emu_special_{name}", LANES["f32"], v)

    def table(self, name: str, index: Val) -> Val:
        return self.f.call(f"emu_table_{name}", LANES["i64"], index)

    # --- lanes ---

    def lane_id(self) -> Val:
        return self.f.lanes("i32", range(32))

    def permute(self, v: Val, index: Val) -> Val:
        if v.const is not None:
            return v
        name = _NAMES[v.type]
        if name == "i1":
            return self.trunc(self.permute(v.zext(LANES["i8"]), index), "i1")
        bits = _BITS[name]
        whole = v.bitcast(LANES[f"i{bits}"])
        return self.f.call(f"emu_permute{bits}", whole.type, whole, index).bitcast(v.type)

    def active(self) -> Val:
        return self._active()

    def ballot(self, condition: Val) -> Val:
        return condition.bitcast("i32").splat()


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) & 1 else value
