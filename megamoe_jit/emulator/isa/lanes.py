"""Semantics' own notation: lane values with Python's operators, so that a formula reads like the manual's.

`Lanes` wraps an engine's value; Python numbers beside it become constants of its type. Integers have no sign: `>>` is
the logical shift, comparisons are named (`a.ult(b)`, `a.slt(b)`). All is built on `Ops`, so engines get it for nothing.
"""

# ruff: noqa: D105

from __future__ import annotations

from typing import Any, TypeAlias

from megamoe_jit.emulator.isa.ops import BITS, Ops, V

Number: TypeAlias = "Lanes | int | float"


class Lanes:
    """A value in each lane of an engine `ops`; see the module's docstring.

    `known` is the value's bits when they are an immediate of the instruction, else None: a shorter formula may use it.
    """

    __slots__ = ("known", "ops", "raw")

    def __init__(self, ops: Ops, raw: V, known: int | None = None) -> None:
        """Wrap the engine's value `raw`."""
        self.ops = ops
        self.raw = raw
        self.known = known

    @property
    def type(self) -> str:
        """Type of the value, one of `ops.BITS`."""
        return self.ops.type(self.raw)

    @property
    def bits(self) -> int:
        """Width in bits."""
        return BITS[self.type]

    def const(self, value: int | float) -> Lanes:
        """Make a constant of this value's type."""
        return Lanes(self.ops, self.ops.const(self.type, value))

    def _raw(self, other: Number) -> V:
        return other.raw if isinstance(other, Lanes) else self.ops.const(self.type, other)

    def _two(self, name: str, other: Number) -> Lanes:
        return Lanes(self.ops, getattr(self.ops, name)(self.raw, self._raw(other)))

    def _one(self, name: str, *args: Any) -> Lanes:
        return Lanes(self.ops, getattr(self.ops, name)(self.raw, *args))

    def _is_float(self) -> bool:
        return self.type in ("f32", "f64")

    def __add__(self, other: Number) -> Lanes:
        return self._two("fadd" if self._is_float() else "add", other)

    def __sub__(self, other: Number) -> Lanes:
        return self._two("fsub" if self._is_float() else "sub", other)

    def __mul__(self, other: Number) -> Lanes:
        return self._two("fmul" if self._is_float() else "mul", other)

    def __truediv__(self, other: Number) -> Lanes:
        return self._two("fdiv", other)

    def __rsub__(self, other: int | float) -> Lanes:
        return self.const(other) - self

    def __rtruediv__(self, other: float) -> Lanes:
        return self.const(other) / self

    def __and__(self, other: Number) -> Lanes:
        return self._two("and_", other)

    def __or__(self, other: Number) -> Lanes:
        return self._two("or_", other)

    def __xor__(self, other: Number) -> Lanes:
        return self._two("xor", other)

    def __lshift__(self, other: Number) -> Lanes:
        return self._two("shl", other)

    def __rshift__(self, other: Number) -> Lanes:
        """Shift right, zeros from the left."""
        return self._two("lshr", other)

    def __rlshift__(self, other: int) -> Lanes:
        return self.const(other) << self

    def __rrshift__(self, other: int) -> Lanes:
        return self.const(other) >> self

    __radd__ = __add__
    __rmul__ = __mul__
    __rand__ = __and__
    __ror__ = __or__
    __rxor__ = __xor__

    def __invert__(self) -> Lanes:
        return self._one("not_")

    def __neg__(self) -> Lanes:
        return self._one("fneg") if self._is_float() else self.const(0) - self

    def ashr(self, other: Number) -> Lanes:
        """Shift right, copies of the sign from the left."""
        return self._two("ashr", other)

    def udiv(self, other: Number) -> Lanes:
        """Divide without sign; the divisor is not zero."""
        return self._two("udiv", other)

    def urem(self, other: Number) -> Lanes:
        """Remainder without sign."""
        return self._two("urem", other)

    def sdiv(self, other: Number) -> Lanes:
        """Divide with sign, towards zero."""
        return self._two("sdiv", other)

    def srem(self, other: Number) -> Lanes:
        """Remainder with the dividend's sign."""
        return self._two("srem", other)

    def compare(self, predicate: str, other: Number) -> Lanes:
        """Compare by an `icmp` or `fcmp` predicate, as the type asks."""
        raw = self._raw(other)
        compare = self.ops.fcmp if self._is_float() else self.ops.icmp
        return Lanes(self.ops, compare(predicate, self.raw, raw))

    def eq(self, other: Number) -> Lanes:
        """Equal (floats: ordered)."""
        return self.compare("oeq" if self._is_float() else "eq", other)

    def ne(self, other: Number) -> Lanes:
        """Not equal (floats: or unordered)."""
        return self.compare("une" if self._is_float() else "ne", other)

    def ult(self, other: Number) -> Lanes:
        """Less, without sign."""
        return self.compare("ult", other)

    def ule(self, other: Number) -> Lanes:
        """Less or equal, without sign."""
        return self.compare("ule", other)

    def ugt(self, other: Number) -> Lanes:
        """Greater, without sign."""
        return self.compare("ugt", other)

    def uge(self, other: Number) -> Lanes:
        """Greater or equal, without sign."""
        return self.compare("uge", other)

    def slt(self, other: Number) -> Lanes:
        """Less, with sign."""
        return self.compare("slt", other)

    def sle(self, other: Number) -> Lanes:
        """Less or equal, with sign."""
        return self.compare("sle", other)

    def sgt(self, other: Number) -> Lanes:
        """Greater, with sign."""
        return self.compare("sgt", other)

    def sge(self, other: Number) -> Lanes:
        """Greater or equal, with sign."""
        return self.compare("sge", other)

    def is_nan(self) -> Lanes:
        """Whether a float is NaN."""
        return self.compare("uno", self)

    def where(self, a: Number, b: Number) -> Lanes:
        """Take `a` where this condition is set, else `b`; one of them is a lane value."""
        one = a if isinstance(a, Lanes) else b
        assert isinstance(one, Lanes), "a select of two Python numbers has no type: use Calc.const"
        return Lanes(self.ops, self.ops.select(self.raw, one._raw(a), one._raw(b)))

    def trunc(self, type: str) -> Lanes:
        """Keep the low bits."""
        return self if type == self.type else self._one("trunc", type)

    def zext(self, type: str) -> Lanes:
        """Widen with zeros."""
        return self if type == self.type else self._one("zext", type)

    def sext(self, type: str) -> Lanes:
        """Widen with copies of the sign."""
        return self if type == self.type else self._one("sext", type)

    def resize(self, type: str, *, signed: bool = False) -> Lanes:
        """Truncate or widen to an integer type."""
        if BITS[type] <= self.bits:
            return self.trunc(type)
        return self.sext(type) if signed else self.zext(type)

    def cast(self, type: str) -> Lanes:
        """Read the bits as another type of the same width."""
        return self if type == self.type else self._one("bitcast", type)

    def popcount(self) -> Lanes:
        """Count the set bits."""
        return self._one("ctpop")

    def leading_zeros(self) -> Lanes:
        """Count zeros above the highest set bit; the width for zero."""
        return self._one("ctlz")

    def reverse_bits(self) -> Lanes:
        """Mirror the bits."""
        return self._one("bitreverse")

    def abs(self) -> Lanes:
        """Clear a float's sign."""
        return self._one("fabs")

    def sqrt(self) -> Lanes:
        """Square root, rounded to nearest."""
        return self._one("fsqrt")

    def floor(self) -> Lanes:
        """Round a float down."""
        return self._one("floor")

    def ceil(self) -> Lanes:
        """Round a float up."""
        return self._one("ceil")

    def truncate(self) -> Lanes:
        """Round a float towards zero."""
        return self._one("trunc_f")

    def rint(self) -> Lanes:
        """Round a float to the nearest integer, ties to even."""
        return self._one("rint")

    def fma(self, b: Lanes, c: Lanes) -> Lanes:
        """Return self * b + c, rounded once."""
        return Lanes(self.ops, self.ops.fma(self.raw, b.raw, c.raw))

    def widen(self) -> Lanes:
        """F32 to f64."""
        return self._one("fpext")

    def narrow(self) -> Lanes:
        """F64 to f32."""
        return self._one("fptrunc")

    def to_signed(self, type: str) -> Lanes:
        """Float to signed integer; the value is in range."""
        return self._one("fptosi", type)

    def to_unsigned(self, type: str) -> Lanes:
        """Float to unsigned integer; the value is in range."""
        return self._one("fptoui", type)

    def from_signed(self, type: str) -> Lanes:
        """Signed integer to float."""
        return self._one("sitofp", type)

    def from_unsigned(self, type: str) -> Lanes:
        """Unsigned integer to float."""
        return self._one("uitofp", type)


class Calc:
    """What semantics need beside their operands: constants, lanes, and the few functions that are not a value's own."""

    __slots__ = ("ops",)

    def __init__(self, ops: Ops) -> None:
        """Work on the engine `ops`."""
        self.ops = ops

    def const(self, type: str, value: int | float) -> Lanes:
        """Make a constant."""
        return Lanes(self.ops, self.ops.const(type, value))

    def call(self, name: str, value: Lanes) -> Lanes:
        """Evaluate exp2, log2, tanh, sin or cos in f64."""
        return Lanes(self.ops, self.ops.call(name, value.raw))

    def special(self, name: str, value: Lanes) -> Lanes:
        """Approximate ex2, rcp, rsqrt or sqrt of an f32 as the hardware does."""
        return Lanes(self.ops, self.ops.special(name, value.raw))

    def table(self, name: str, index: Lanes) -> Lanes:
        """Take a row (i64) of a table by its number (i32)."""
        return Lanes(self.ops, self.ops.table(name, index.raw))

    def lane_id(self) -> Lanes:
        """The lane's number (i32)."""
        return Lanes(self.ops, self.ops.lane_id())

    def active(self) -> Lanes:
        """Which lanes execute (i1)."""
        return Lanes(self.ops, self.ops.active())

    def ballot(self, condition: Lanes) -> Lanes:
        """Bit i is the condition in lane i (i32)."""
        return Lanes(self.ops, self.ops.ballot(condition.raw))

    def permute(self, value: Lanes, index: Lanes) -> Lanes:
        """Take the value of lane `index` (i32, 0..31)."""
        return Lanes(self.ops, self.ops.permute(value.raw, index.raw))
