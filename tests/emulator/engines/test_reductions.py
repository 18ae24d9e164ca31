"""Reductions against Python's integers and ml_dtypes' floats: all pairs where the domain is small, edges elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from megamoe_jit.emulator.engines.reductions import accumulates, bits_dtype, combination, items_of

EDGES = {
    32: [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFE, 0xFFFFFFFF, 12345, 0xDEADBEEF],
    64: [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 2, 1 << 32, 0xDEADBEEF12345678],
}


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def expected(operation: str, type_: str, old: int, value: int) -> int:
    """Evaluate an integer reduction as the manual's formulas say."""
    bits = int(type_[1:])
    if operation in ("min", "max"):
        key: Callable[[int], int] = (lambda x: signed(x, bits)) if type_[0] == "s" else (lambda x: x)
        return (min if operation == "min" else max)(old, value, key=key)
    results = {
        "add": old + value,
        "inc": 0 if old >= value else old + 1,
        "dec": value if old == 0 or old > value else old - 1,
        "and": old & value,
        "or": old | value,
        "xor": old ^ value,
        "exch": value,
    }
    return results[operation] % (1 << bits)


@pytest.mark.parametrize(
    ("operation", "type_"),
    [
        *((operation, type_) for operation in ("add", "min", "max") for type_ in ("u32", "s32", "u64", "s64")),
        *((operation, "u32") for operation in ("inc", "dec")),
        *((operation, type_) for operation in ("and", "or", "xor", "exch") for type_ in ("b32", "b64")),
    ],
)
def test_integers(operation: str, type_: str) -> None:
    edges = EDGES[int(type_[1:])]
    pairs = [(old, value) for old in edges for value in edges]
    old, value = (np.array(column, bits_dtype(type_)) for column in zip(*pairs, strict=True))
    got = combination(operation, type_)(old, value)
    assert got.dtype == bits_dtype(type_)
    assert got.tolist() == [expected(operation, type_, *pair) for pair in pairs]
    function = accumulates(operation, type_)
    if function is not None:
        chain = function.accumulate(np.concatenate((old[:1], value)), dtype=old.dtype)
        total = int(old[0])
        for step, operand in zip(chain[1:].tolist(), value.tolist(), strict=True):
            total = expected(operation, type_, total, operand)
            assert step == total


HALVES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("type_", ["f16", "bf16"])
@pytest.mark.parametrize("operation", ["add", "min", "max"])
def test_halves_on_every_pattern(type_: str, operation: str) -> None:
    dtype = HALVES[type_]
    every = np.arange(1 << 16, dtype=np.uint16)
    rng = np.random.default_rng(7)
    others = [rng.permutation(every) for _ in range(3)]
    others += [
        np.full_like(every, edge) for edge in (0, 0x8000, 1, 0x8001, 0x7C00, 0xFC00, 0x7F80, 0xFF80, 0x7FFF, 0x3C01)
    ]
    for other in others:
        got = combination(operation, type_)(every, other)
        a, b = every.view(dtype), other.view(dtype)
        with np.errstate(all="ignore"):
            if operation == "add":
                # Exact in float64, but for bfloat16s so far apart that the smaller one does not count; rounded once.
                want = (a.astype(np.float64) + b.astype(np.float64)).astype(dtype)
            else:
                x, y = a.astype(np.float64), b.astype(np.float64)
                smaller = (x < y) | ((x == y) & np.signbit(x))
                first = smaller if operation == "min" else ~smaller
                first = np.where(np.isnan(x), False, np.where(np.isnan(y), True, first))
                want = np.where(first, a, b)
        bits = want.view(np.uint16).copy()
        bits[np.isnan(want.astype(np.float32))] = 0x7FFF
        assert np.array_equal(got, bits)


def test_subnormals_of_f32_are_flushed_only_where_asked() -> None:
    patterns = np.array(
        [0, 0x80000000, 1, 0x80000001, 0x007FFFFF, 0x00800000, 0x80800000, 0x3F800000, 0x7F800000], np.uint32
    )
    old, value = (column.reshape(-1) for column in np.meshgrid(patterns, patterns))

    def flushed(x: float) -> float:
        return math.copysign(0.0, x) if abs(x) < 2.0**-126 else x

    for flushes in (False, True):
        got = combination("add", "f32", flushes=flushes)(old, value).view(np.float32).tolist()
        a, b = (column.view(np.float32).astype(float).tolist() for column in (old, value))
        for x, y, result in zip(a, b, got, strict=True):
            want = float(np.float32(flushed(flushed(x) + flushed(y)) if flushes else x + y))
            assert (result, math.copysign(1, result)) == (want, math.copysign(1, want))


def test_nan_is_the_canonical_one() -> None:
    inf = np.array([0x7F800000], np.uint32)
    assert combination("add", "f32")(inf, inf | np.uint32(1 << 31)).tolist() == [0x7FFFFFFF]
    nan = np.array([0xFFC01234], np.uint32)
    assert combination("add", "f32")(nan, inf).tolist() == [0x7FFFFFFF]
    assert combination("min", "f16")(np.array([0xFE01], np.uint16), np.array([0x7D00], np.uint16)).tolist() == [0x7FFF]


def test_doubles() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal(1000) * 10.0 ** rng.integers(-300, 300, 1000) for _ in range(2))
    got = combination("add", "f64")(a.view(np.uint64), b.view(np.uint64)).view(np.float64)
    assert np.array_equal(got, a + b)


def test_packed_types_are_two_halves() -> None:
    assert [items_of(type_) for type_ in ("f16x2", "bf16x2", "f16", "u64")] == [2, 2, 1, 1]
    assert [bits_dtype(type_) for type_ in ("f16x2", "bf16", "b16", "s64")] == ["u2", "u2", "u2", "u8"]
    assert combination("add", "f16x2") is not None


def test_global_sums_of_f64_keep_a_nan_as_it_is() -> None:
    one, quiet, signalling = 0x3FF0000000000000, 0xFFF8000000000005, 0x7FF0000000000001
    pairs = [(one, signalling), (signalling, one), (quiet, signalling), (signalling, quiet), (one, one)]
    old, operand = (np.array(column, np.uint64) for column in zip(*pairs, strict=True))
    kept = combination("add", "f64", keeps_nan=True)(old, operand)
    assert kept.tolist() == [signalling, signalling, quiet, signalling, 0x4000000000000000]
    assert combination("add", "f64")(old[:1], operand[:1]).tolist() == [0x7FF8000000000001]
