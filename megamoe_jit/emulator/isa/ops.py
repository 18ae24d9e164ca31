"""What an engine must be able to do with one value per lane, so that semantics can be written once for all engines."""

# ruff: noqa: D102

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

V: TypeAlias = Any
"""A value in each of the 32 lanes, in whatever shape the engine keeps it."""

INTEGER_TYPES = ("i1", "i8", "i16", "i32", "i64")
FLOAT_TYPES = ("f32", "f64")
BITS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "f32": 32, "f64": 64}

VALUE_TYPE = {
    "pred": "i1",
    **{f"{kind}{bits}": f"i{bits}" for kind in "bsu" for bits in (8, 16, 32, 64)},
    "f32": "f32",
    "f64": "f64",
    # Half precision is arithmetic on bit patterns: not every CPU has instructions for it, and bits are the same on all.
    "f16": "i16",
    "bf16": "i16",
    "f16x2": "i32",
    "bf16x2": "i32",
    "f32x2": "i64",
    "tf32": "i32",
    "e4m3x2": "i16",
    "e5m2x2": "i16",
    "e2m3x2": "i16",
    "e3m2x2": "i16",
    "ue8m0x2": "i16",
    "s2f6x2": "i16",
    "e2m1x2": "i8",
    "e2m1x4": "i16",
    "e4m3x4": "i32",
    "e5m2x4": "i32",
    "e2m3x4": "i32",
    "e3m2x4": "i32",
}
"""PTX operand type -> type of the lane value. "b128" is not here: it stands for two "i64" values, low half first."""


class Ops(Protocol):
    """Primitives on lane values, all element-wise, IEEE round to nearest even, no flags and no traps.

    Types are those of `BITS`. Both operands of a binary operation have one type. An implementation may fold constants.
    Whatever the registers hold, no lane gives a shift count at or past the width, a zero divisor or INT_MIN / -1, a
    permute index outside 0..31, or a value outside the integer range (NaN included) to a float-to-integer conversion.
    """

    def type(self, v: V) -> str:
        """Name of the value's type."""

    def const(self, type: str, value: int | float) -> V:
        """The same value in each lane; integers are taken modulo 2**bits."""

    # Integers, without sign where two's complement makes no difference; "i1" takes and_, or_, xor, not_ and select.
    def add(self, a: V, b: V) -> V: ...
    def sub(self, a: V, b: V) -> V: ...
    def mul(self, a: V, b: V) -> V: ...
    def and_(self, a: V, b: V) -> V: ...
    def or_(self, a: V, b: V) -> V: ...
    def xor(self, a: V, b: V) -> V: ...
    def not_(self, a: V) -> V: ...
    def shl(self, a: V, b: V) -> V: ...
    def lshr(self, a: V, b: V) -> V: ...
    def ashr(self, a: V, b: V) -> V: ...
    def udiv(self, a: V, b: V) -> V: ...
    def urem(self, a: V, b: V) -> V: ...
    def sdiv(self, a: V, b: V) -> V: ...
    def srem(self, a: V, b: V) -> V: ...
    def icmp(self, predicate: str, a: V, b: V) -> V:
        """Compare as eq ne slt sle sgt sge ult ule ugt uge; the result is i1."""

    def select(self, condition: V, a: V, b: V) -> V:
        """Take `a` where the i1 condition is set, else `b`; any type."""

    def trunc(self, v: V, type: str) -> V: ...
    def zext(self, v: V, type: str) -> V: ...
    def sext(self, v: V, type: str) -> V: ...
    def bitcast(self, v: V, type: str) -> V: ...
    def ctpop(self, v: V) -> V: ...
    def ctlz(self, v: V) -> V:
        """Leading zeros; the width for zero."""

    def bitreverse(self, v: V) -> V: ...
    def bswap(self, v: V) -> V: ...

    # Floats: f32 and f64.
    def fadd(self, a: V, b: V) -> V: ...
    def fsub(self, a: V, b: V) -> V: ...
    def fmul(self, a: V, b: V) -> V: ...
    def fdiv(self, a: V, b: V) -> V: ...
    def fsqrt(self, a: V) -> V: ...
    def fma(self, a: V, b: V, c: V) -> V: ...
    def fcmp(self, predicate: str, a: V, b: V) -> V:
        """Compare as oeq one olt ole ogt oge ord, ueq une ult ule ugt uge uno; the result is i1."""

    def fneg(self, a: V) -> V: ...
    def fabs(self, a: V) -> V: ...
    def floor(self, a: V) -> V: ...
    def ceil(self, a: V) -> V: ...
    def trunc_f(self, a: V) -> V: ...
    def rint(self, a: V) -> V: ...
    def fptosi(self, v: V, type: str) -> V: ...
    def fptoui(self, v: V, type: str) -> V: ...
    def sitofp(self, v: V, type: str) -> V: ...
    def uitofp(self, v: V, type: str) -> V: ...
    def fpext(self, v: V) -> V:
        """f32 to f64."""

    def fptrunc(self, v: V) -> V:
        """f64 to f32."""

    def call(self, name: str, *values: V) -> V:
        """Evaluate exp2, log2, tanh, sin or cos of an f64 value with the C library's accuracy."""

    def special(self, name: str, v: V) -> V:
        """Evaluate one of `special_functions.FUNCTIONS` on an f32 value."""

    def table(self, name: str, index: V) -> V:
        """Take the row of `special_functions.TABLES` (i64) with a number (i32) that the table has."""

    # Across lanes.
    def lane_id(self) -> V:
        """The lane's number as i32."""

    def permute(self, v: V, index: V) -> V:
        """Lane i gets the value of lane index[i] (i32), executing or not."""

    def active(self) -> V:
        """Tell as i1 which lanes execute the instruction."""

    def ballot(self, condition: V) -> V:
        """Bit i of the i32 result, the same in all lanes, is the condition in lane i; lanes not executing count too."""
