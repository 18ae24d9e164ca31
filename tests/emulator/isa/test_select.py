"""Comparisons, selections and moves."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from megamoe_jit.emulator.isa.table import find
from megamoe_jit.errors import UnsupportedError
from tests.emulator.isa.evaluate import evaluate, integers, one, signed, unsigned
from tests.emulator.isa.numbers import DTYPES, operands

Array = NDArray[Any]
RNG = np.random.default_rng(80)
ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
INTEGERS = {"u16": 16, "s16": 16, "u32": 32, "s32": 32, "u64": 64, "s64": 64, "b16": 16, "b32": 32, "b64": 64}
COMBINE: dict[str, Callable[[Any, Any], Any]] = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


def float_answer(name: str, a: Array, b: Array) -> Array:
    """Compare floats: plain names are false beside a NaN, those that end in u true."""
    unordered = np.isnan(a) | np.isnan(b)
    if name in ("num", "nan"):
        return unordered if name == "nan" else ~unordered
    base = name[:-1] if name.endswith("u") else name
    answer: Array = ORDER[base](a, b)
    return answer | unordered if name.endswith("u") else answer & ~unordered


def integer_answer(name: str, type: str, a: Array, b: Array) -> Array:
    read = signed if type[0] == "s" else unsigned
    compare = ORDER[UNSIGNED.get(name, name)]
    return np.array([compare(x, y) for x, y in zip(read(a), read(b), strict=True)])


@pytest.mark.parametrize("type", INTEGERS)
def test_integers(type: str) -> None:
    a, b = integers(INTEGERS[type], 500, RNG)
    b[-100:] = a[-100:]
    c = RNG.integers(0, 2, len(a)).astype(np.bool_)
    for name in [*ORDER, *UNSIGNED]:
        has_order = name in ("eq", "ne") or (type[0] == "u") or (type[0] == "s" and name in ORDER)
        assert (find(f"setp.{name}.{type}") is not None) == has_order
        if not has_order:
            continue
        expected = integer_answer(name, type, a, b)
        assert np.array_equal(one(f"setp.{name}.{type}", a, b), expected)
        both = evaluate(f"setp.{name}.{type}", a, b, num_dst=2)
        assert np.array_equal(both[0], expected)
        assert np.array_equal(both[1], ~expected)
        for word, combine in COMBINE.items():
            p, q = evaluate(f"setp.{name}.{word}.{type}", a, b, c, num_dst=2)
            assert np.array_equal(p, combine(expected, c))
            assert np.array_equal(q, combine(~expected, c))


FLOAT_NAMES = ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]


def flushed(x: Array) -> Array:
    tiny = {2: 2.0**-14, 4: 2.0**-126}[x.dtype.itemsize]
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(x) < tiny, x.dtype.type(0), x)


@pytest.mark.parametrize("name", FLOAT_NAMES)
@pytest.mark.parametrize("type", ["f32", "f64", "f16", "bf16"])
def test_floats(type: str, name: str) -> None:
    a, b = operands(type, 2000, 2, 81)
    b[-500:] = a[-500:]
    x, y = a.view(DTYPES[type]), b.view(DTYPES[type])
    if type == "bf16":
        with np.errstate(invalid="ignore"):
            x, y = x.astype(np.float32), y.astype(np.float32)
    with np.errstate(invalid="ignore"):
        expected = float_answer(name, x, y)
    assert np.array_equal(one(f"setp.{name}.{type}", a, b), expected)
    c = RNG.integers(0, 2, len(a)).astype(np.bool_)
    assert np.array_equal(one(f"setp.{name}.xor.{type}", a, b, c), expected ^ c)
    if type in ("f32", "f16"):
        assert np.array_equal(one(f"setp.{name}.ftz.{type}", a, b), float_answer(name, flushed(x), flushed(y)))
    for to, value in (("u32", 0xFFFFFFFF), ("s32", 0xFFFFFFFF), ("f32", 0x3F800000)):
        if find(f"set.{name}.{to}.{type}"):
            assert np.array_equal(one(f"set.{name}.{to}.{type}", a, b), np.where(expected, value, 0))
    if type in ("f16", "bf16"):
        one_code = 0x3C00 if type == "f16" else 0x3F80
        assert np.array_equal(one(f"set.{name}.{type}.{type}", a, b), np.where(expected, one_code, 0))
        assert np.array_equal(one(f"set.{name}.u16.{type}", a, b), np.where(expected, 0xFFFF, 0))


@pytest.mark.parametrize("name", FLOAT_NAMES)
@pytest.mark.parametrize("type", ["f16", "bf16"])
def test_pairs(type: str, name: str) -> None:
    parts = operands(type, 1000, 2, 82)
    others = [RNG.permutation(x) for x in parts]
    a, b = (x.astype(np.uint32) | y.astype(np.uint32) << np.uint32(16) for x, y in zip(parts, others, strict=True))
    low, high = one(f"setp.{name}.{type}", *parts), one(f"setp.{name}.{type}", *others)
    p, q = evaluate(f"setp.{name}.{type}x2", a, b, num_dst=2)
    assert np.array_equal(p, low)
    assert np.array_equal(q, high)
    one_code = 0x3C00 if type == "f16" else 0x3F80
    expected = low * np.uint32(one_code) | high * np.uint32(one_code) << np.uint32(16)
    assert np.array_equal(one(f"set.{name}.{type}x2.{type}x2", a, b), expected)
    expected = low * np.uint32(0xFFFF) | high * np.uint32(0xFFFF) << np.uint32(16)
    assert np.array_equal(one(f"set.{name}.u32.{type}x2", a, b), expected)


def test_a_combination_needs_its_predicate() -> None:
    a = np.zeros(32, np.uint32)
    with pytest.raises(UnsupportedError, match=r"setp\.lt\.and\.s32 has 2 sources, but takes s32 s32 pred"):
        one("setp.lt.and.s32", a, a)
    with pytest.raises(UnsupportedError, match=r"setp\.lt\.s32 has 3 sources"):
        one("setp.lt.s32", a, a, a.astype(np.bool_))


@pytest.mark.parametrize("type", ["b16", "u16", "s32", "b32", "f32", "u64", "f64"])
def test_selection_moves_bits(type: str) -> None:
    bits = {"16": 16, "32": 32, "64": 64}[type[1:]]
    a, b = integers(bits, 300, RNG)
    c = RNG.integers(0, 2, len(a)).astype(np.bool_)
    assert np.array_equal(one(f"selp.{type}", a, b, c), np.where(c, a, b))
    number = np.resize(np.array([0, 1, -1, 5, -(1 << 31), (1 << 31) - 1], np.int32), len(a))
    assert np.array_equal(one(f"slct.{type}.s32", a, b, number), np.where(number >= 0, a, b))
    number = np.resize(np.array([0, -0.0, 1, -1, np.nan, np.inf, -np.inf, -1e-40], np.float32), len(a))
    assert np.array_equal(one(f"slct.{type}.f32", a, b, number), np.where(number >= 0, a, b))
    flush = np.where(np.abs(number) < 1e-38, np.float32(0), number)
    assert np.array_equal(one(f"slct.ftz.{type}.f32", a, b, number), np.where(flush >= 0, a, b))


@pytest.mark.parametrize("type", ["b16", "u32", "f32", "b64", "f64", "s16", "u64"])
def test_moves_keep_bits(type: str) -> None:
    (a,) = integers(int(type[1:]), 300, RNG, crossed=1)
    assert np.array_equal(one(f"mov.{type}", a), a)


@pytest.mark.parametrize(("whole", "count"), [(16, 2), (32, 2), (32, 4), (64, 2), (64, 4), (128, 2), (128, 4)])
def test_packing_and_unpacking(whole: int, count: int) -> None:
    part = whole // count
    parts = [RNG.integers(0, 1 << part, 200, np.uint64).astype(f"u{part // 8}") for _ in range(count)]
    value = sum(x.astype(object) << part * i for i, x in enumerate(parts))
    if whole == 128:
        packed = list(evaluate("mov.b128", *parts))
        assert [low | high << 64 for low, high in zip(*map(unsigned, packed), strict=True)] == list(value)
        assert all(np.array_equal(x, y) for x, y in zip(evaluate("mov.b128", *packed), packed, strict=True))
    else:
        packed = [one(f"mov.b{whole}", *parts)]
        assert unsigned(packed[0]) == list(value)
    assert all(
        np.array_equal(x, y) for x, y in zip(evaluate(f"mov.b{whole}", *packed, num_dst=count), parts, strict=True)
    )


def test_moves_of_odd_parts_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="cannot take its value apart into 3"):
        evaluate("mov.b32", np.zeros(32, np.uint32), num_dst=3)
    with pytest.raises(UnsupportedError, match="cannot take its value apart into 2"):
        evaluate("mov.u32", np.zeros(32, np.uint32), num_dst=2)
