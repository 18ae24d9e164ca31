"""What a reduction makes of the old value and the operand, for atomics and asynchronous reductions alike.

Values are bit patterns in unsigned arrays of the type's width; packed types are two values of half the width. Sources:
PTX ISA, "atom", "red" and "cp.reduce.async.bulk" (semantics, subnormals); "min" and "max" for floats.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Bits: TypeAlias = npt.NDArray[Any]
Combine: TypeAlias = Callable[[Bits, Bits], Bits]

_WIDTH = {"f16": 2, "bf16": 2, "f16x2": 2, "bf16x2": 2, "b16": 2}
_CANONICAL_NAN = {"f32": 0x7FFFFFFF, "f16": 0x7FFF, "bf16": 0x7FFF}


def item_bytes(type_: str) -> int:
    """Return the bytes of one value of PTX type `type_` (of one half of a packed type)."""
    return _WIDTH.get(type_) or int(type_.lstrip("busf")) // 8


def items_of(type_: str) -> int:
    """Return how many values of `item_bytes` a PTX type has."""
    return 2 if type_.endswith("x2") else 1


def bits_dtype(type_: str) -> np.dtype[Any]:
    """Return the unsigned dtype that holds one value of PTX type `type_`."""
    return np.dtype(f"u{item_bytes(type_)}")


@functools.cache
def combination(operation: str, type_: str, *, flushes: bool = False, keeps_nan: bool = False) -> Combine:
    """Return `(old, operand) -> new` on bit patterns of `bits_dtype(type_)`.

    Args:
        operation: add, min, max, inc, dec, and, or, xor or exch.
        type_: of PTX.
        flushes: f32 subnormals, of inputs and of the result, become zeros of their sign.
        keeps_nan: f64 sums with a NaN are that NaN, a signalling one too. Global memory does that (measured on an
            H200); sums in shared memory are the SM's, which makes NaNs quiet.
    """
    scalar = type_.removesuffix("x2")
    if operation in _BITWISE:
        return _BITWISE[operation]
    if scalar in ("f16", "bf16", "f32", "f64"):
        combine = _float_combination(operation, scalar, flushes)
        return _keeping_nan(combine) if keeps_nan and type_ == "f64" else combine
    if operation in ("inc", "dec"):
        return _increment if operation == "inc" else _decrement
    kind = np.dtype(f"{'i' if scalar[0] == 's' else 'u'}{item_bytes(scalar)}")
    function: np.ufunc = {"add": np.add, "min": np.minimum, "max": np.maximum}[operation]
    unsigned = bits_dtype(scalar)

    def whole(old: Bits, operand: Bits) -> Bits:
        result: Bits = function(old.view(kind), operand.view(kind)).view(unsigned)
        return result

    return whole


def accumulates(operation: str, type_: str) -> np.ufunc | None:
    """Return the ufunc whose `accumulate` applies operands one after the other, where there is one."""
    if type_[0] == "u" or (type_[0] == "s" and operation == "add"):
        return {"add": np.add, "min": np.minimum, "max": np.maximum}.get(operation)
    if type_[0] == "b" and type_ in ("b32", "b64"):
        return {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}.get(operation)
    return None


def _exchange(old: Bits, operand: Bits) -> Bits:  # noqa: ARG001
    return operand


def _and(old: Bits, operand: Bits) -> Bits:
    return old & operand


def _or(old: Bits, operand: Bits) -> Bits:
    return old | operand


def _xor(old: Bits, operand: Bits) -> Bits:
    return old ^ operand


_BITWISE: dict[str, Combine] = {"exch": _exchange, "and": _and, "or": _or, "xor": _xor}


def _increment(old: Bits, limit: Bits) -> Bits:
    return np.where(old >= limit, np.zeros_like(old), old + old.dtype.type(1))


def _decrement(old: Bits, limit: Bits) -> Bits:
    return np.where((old == 0) | (old > limit), limit, old - old.dtype.type(1))


def _float_combination(operation: str, type_: str, flushes: bool) -> Combine:
    widen, narrow = _CODECS[type_]
    functions: dict[str, Callable[..., npt.NDArray[Any]]] = {"add": np.add, "min": _minimum, "max": _maximum}
    function = functions[operation]
    nan = _CANONICAL_NAN.get(type_)

    def combine(old: Bits, operand: Bits) -> Bits:
        a, b = widen(old), widen(operand)
        if flushes:
            a, b = _flush(a), _flush(b)
        with np.errstate(all="ignore"):
            wide = function(a, b)
            if flushes:
                wide = _flush(wide)
            bits = narrow(wide)
        return bits if nan is None else np.where(np.isnan(wide), bits.dtype.type(nan), bits)

    return combine


def _keeping_nan(add: Combine) -> Combine:
    def combine(old: Bits, operand: Bits) -> Bits:
        is_nan = np.isnan(operand.view(np.float64))
        return np.where(np.isnan(old.view(np.float64)), old, np.where(is_nan, operand, add(old, operand)))

    return combine


def _flush(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    tiny = np.finfo(values.dtype).tiny
    return np.where(np.abs(values) < tiny, np.copysign(values.dtype.type(0), values), values)


def _minimum(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Smaller number; a NaN gives way to a number, and -0 is less than +0."""
    lesser = np.where((a < b) | ((a == b) & np.signbit(a)), a, b)
    return np.where(np.isnan(a), b, np.where(np.isnan(b), a, lesser))


def _maximum(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    greater = np.where((a > b) | ((a == b) & ~np.signbit(a)), a, b)
    return np.where(np.isnan(a), b, np.where(np.isnan(b), a, greater))


def _narrow_bf16(values: npt.NDArray[Any]) -> Bits:
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


# f16 and bf16 sums are right when done in f32 and rounded again: 24 bits are twice 11 and two more.
_CODECS: dict[str, tuple[Callable[[Bits], npt.NDArray[Any]], Callable[[npt.NDArray[Any]], Bits]]] = {
    "f64": (lambda bits: bits.view(np.float64), lambda values: values.view(np.uint64)),
    "f32": (lambda bits: bits.view(np.float32), lambda values: values.view(np.uint32)),
    "f16": (
        lambda bits: bits.view(np.float16).astype(np.float32),
        lambda values: values.astype(np.float16).view(np.uint16),
    ),
    "bf16": (lambda bits: (bits.astype(np.uint32) << np.uint32(16)).view(np.float32), _narrow_bf16),
}
