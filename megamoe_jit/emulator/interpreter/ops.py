"""`Ops` on numpy arrays: a value is an array with an item a lane, or with one item for all lanes."""

# ruff: noqa: D102

from __future__ import annotations

import ctypes
import ctypes.util
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.isa.lanes import Calc, Lanes
from megamoe_jit.emulator.isa.special_functions import FUNCTIONS, TABLES

Array: TypeAlias = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "i1": np.dtype(np.bool_),
    "i8": np.dtype(np.uint8),
    "i16": np.dtype(np.uint16),
    "i32": np.dtype(np.uint32),
    "i64": np.dtype(np.uint64),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}
_TYPES = {dtype: name for name, dtype in DTYPES.items()}

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
_TABLES = {name: np.array(rows, np.uint64) for name, rows in TABLES.items()}
_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "exp2": np.exp2,
    "log2": np.log2,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
}


def _signed(v: Array) -> Array:
    return v.view(f"i{v.dtype.itemsize}")


def _library_fma() -> Callable[[Array, Array, Array], Array]:
    """Return fma of f64: numpy has none, and C's is rounded once."""
    function = ctypes.CDLL(ctypes.util.find_library("m")).fma
    function.restype = ctypes.c_double
    function.argtypes = [ctypes.c_double] * 3
    return np.frompyfunc(function, 3, 1)


_FMA = _library_fma()


class NumpyOps:
    """Primitives of `isa.ops.Ops` with numpy; `active` says which lanes execute."""

    __slots__ = ("_active", "num_lanes")

    def __init__(self, active: Array | None = None, num_lanes: int = 32) -> None:
        """Work on `num_lanes` lanes, all of them active when nothing else is said."""
        self.num_lanes = num_lanes
        self._active = np.ones(num_lanes, np.bool_) if active is None else active

    def type(self, v: Array) -> str:
        return _TYPES[v.dtype]

    def const(self, type: str, value: int | float) -> Array:
        dtype = DTYPES[type]
        if dtype.kind == "u":
            value = int(value) % (1 << (8 * dtype.itemsize))
        elif dtype.kind == "b":
            value = int(value) & 1
        return np.array([value], dtype)

    def spread(self, v: Array) -> Array:
        """Return `v` with an item for each lane."""
        return np.broadcast_to(v, (self.num_lanes,))

    # Integers: arrays of unsigned items wrap around without a warning.
    def add(self, a: Array, b: Array) -> Array:
        return a + b

    def sub(self, a: Array, b: Array) -> Array:
        return a - b

    def mul(self, a: Array, b: Array) -> Array:
        return a * b

    def and_(self, a: Array, b: Array) -> Array:
        return a & b

    def or_(self, a: Array, b: Array) -> Array:
        return a | b

    def xor(self, a: Array, b: Array) -> Array:
        return a ^ b

    def not_(self, a: Array) -> Array:
        return ~a

    def shl(self, a: Array, b: Array) -> Array:
        return a << b

    def lshr(self, a: Array, b: Array) -> Array:
        return a >> b

    def ashr(self, a: Array, b: Array) -> Array:
        return (_signed(a) >> _signed(b)).view(a.dtype)

    def udiv(self, a: Array, b: Array) -> Array:
        return a // b

    def urem(self, a: Array, b: Array) -> Array:
        return a % b

    def sdiv(self, a: Array, b: Array) -> Array:
        x, y = _signed(a), _signed(b)
        quotient = x // y
        # numpy rounds down; towards zero is one more where the division is not exact and the signs differ.
        quotient += (quotient * y != x) & ((x < 0) != (y < 0))
        return quotient.view(a.dtype)

    def srem(self, a: Array, b: Array) -> Array:
        return np.fmod(_signed(a), _signed(b)).view(a.dtype)

    def icmp(self, predicate: str, a: Array, b: Array) -> Array:
        if predicate[0] == "s":
            a, b = _signed(a), _signed(b)
        result: Array = _COMPARE[predicate[-2:]](a, b)
        return result

    def select(self, condition: Array, a: Array, b: Array) -> Array:
        return np.where(condition, a, b)

    def trunc(self, v: Array, type: str) -> Array:
        return (v & 1).astype(np.bool_) if type == "i1" else v.astype(DTYPES[type])

    def zext(self, v: Array, type: str) -> Array:
        return v.astype(DTYPES[type])

    def sext(self, v: Array, type: str) -> Array:
        dtype = DTYPES[type]
        if v.dtype.kind == "b":
            return np.zeros_like(v, dtype) - v
        wide: Array = _signed(v).astype(f"i{dtype.itemsize}").view(dtype)
        return wide

    def bitcast(self, v: Array, type: str) -> Array:
        return v.view(DTYPES[type])

    def ctpop(self, v: Array) -> Array:
        bits = np.unpackbits(v[..., None].view(np.uint8), axis=-1)
        counts: Array = bits.sum(axis=-1, dtype=v.dtype)
        return counts

    def ctlz(self, v: Array) -> Array:
        width = 8 * v.dtype.itemsize
        filled = v.copy()
        for step in (1, 2, 4, 8, 16, 32):
            if step < width:
                filled |= filled >> np.array(step, v.dtype)
        return np.array(width, v.dtype) - self.ctpop(filled)

    def bitreverse(self, v: Array) -> Array:
        bits = np.unpackbits(v[..., None].view(np.uint8), axis=-1, bitorder="little")
        mirrored: Array = np.packbits(bits[..., ::-1], axis=-1, bitorder="little").view(v.dtype)[..., 0]
        return mirrored

    def bswap(self, v: Array) -> Array:
        return v.byteswap()

    # Floats.
    def fadd(self, a: Array, b: Array) -> Array:
        return a + b

    def fsub(self, a: Array, b: Array) -> Array:
        return a - b

    def fmul(self, a: Array, b: Array) -> Array:
        return a * b

    def fdiv(self, a: Array, b: Array) -> Array:
        return a / b

    def fsqrt(self, a: Array) -> Array:
        return np.sqrt(a)

    def fma(self, a: Array, b: Array, c: Array) -> Array:
        if a.dtype == np.float64:
            return np.asarray(_FMA(a, b, c)).astype(np.float64)
        # The product of two f32 is exact in f64. Their sum is rounded to odd there: then one more rounding is harmless.
        product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
        total = product + addend
        back = total - product
        error = (product - (total - back)) + (addend - back)
        bits: Array = total.view(np.int64)
        inexact = np.isfinite(error) & (error != 0) & ((bits & 1) == 0)
        away = (error > 0) == (total > 0)
        return (bits + np.where(inexact, np.where(away, 1, -1), 0)).view(np.float64).astype(np.float32)

    def fcmp(self, predicate: str, a: Array, b: Array) -> Array:
        unordered = np.isnan(a) | np.isnan(b)
        if predicate == "uno":
            return unordered
        if predicate == "ord":
            return ~unordered
        result: Array = _COMPARE[predicate[1:]](a, b)
        return result | unordered if predicate[0] == "u" else result & ~unordered

    def fneg(self, a: Array) -> Array:
        return -a

    def fabs(self, a: Array) -> Array:
        return np.abs(a)

    def floor(self, a: Array) -> Array:
        return np.floor(a)

    def ceil(self, a: Array) -> Array:
        return np.ceil(a)

    def trunc_f(self, a: Array) -> Array:
        return np.trunc(a)

    def rint(self, a: Array) -> Array:
        return np.rint(a)

    def fptosi(self, v: Array, type: str) -> Array:
        dtype = DTYPES[type]
        return v.astype(f"i{dtype.itemsize}").view(dtype)

    def fptoui(self, v: Array, type: str) -> Array:
        return v.astype(DTYPES[type])

    def sitofp(self, v: Array, type: str) -> Array:
        return _signed(v).astype(DTYPES[type])

    def uitofp(self, v: Array, type: str) -> Array:
        return v.astype(DTYPES[type])

    def fpext(self, v: Array) -> Array:
        return v.astype(np.float64)

    def fptrunc(self, v: Array) -> Array:
        return v.astype(np.float32)

    def call(self, name: str, *values: Array) -> Array:
        return _FUNCTIONS[name](*values)

    def special(self, name: str, v: Array) -> Array:
        found: Array = FUNCTIONS[name](Calc(self), Lanes(self, v)).raw
        return found

    def table(self, name: str, index: Array) -> Array:
        return _TABLES[name][index]

    # Across lanes.
    def lane_id(self) -> Array:
        return np.arange(self.num_lanes, dtype=np.uint32)

    def permute(self, v: Array, index: Array) -> Array:
        return self.spread(v)[self.spread(index)]

    def active(self) -> Array:
        return self._active

    def ballot(self, condition: Array) -> Array:
        bits = np.packbits(self.spread(condition), bitorder="little")
        return bits.view(np.uint32)
