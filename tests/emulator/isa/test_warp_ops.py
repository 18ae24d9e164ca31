"""Exchanges between lanes, lane by lane in Python."""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.emulator.isa.evaluate import evaluate, one

Array = NDArray[Any]
RNG = np.random.default_rng(100)
LANES = np.arange(32, dtype=np.uint32)
ALL = np.full(32, 0xFFFFFFFF, np.uint32)


def words(count: int = 32) -> Array:
    return RNG.integers(0, 1 << 32, count, np.uint64).astype(np.uint32)


def spread(value: int) -> Array:
    return np.full(32, value % (1 << 32), np.uint32)


def member_cases() -> list[tuple[int, Array]]:
    """Member masks, with the lanes that execute (in a correct program: exactly the members)."""
    masks = [0xFFFFFFFF, 1, 0x80000000, 0x0000FFFF, 0xAAAAAAAA, 0x00010001, *[int(x) | 2 for x in words(8)]]
    return [(mask, ((mask >> LANES) & 1).astype(np.bool_)) for mask in masks]


def shuffled(mode: str, lane: int, by: int, c: int) -> tuple[int, bool]:
    """Source lane and predicate: the manual's pseudo code."""
    by, clamp, segment = by & 31, c & 31, c >> 8 & 31
    highest, lowest = (lane & segment) | (clamp & ~segment), lane & segment
    if mode == "up":
        source = lane - by
        inside = source >= highest
    elif mode == "down":
        source = lane + by
        inside = source <= highest
    elif mode == "bfly":
        source = lane ^ by
        inside = source <= highest
    else:
        source = lowest | (by & ~segment)
        inside = source <= highest
    return (source if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(mode: str) -> None:
    value = words()
    # Widths 32, 16, ..., 1 as CUDA makes them; other bits are set where they mean nothing.
    controls = [((32 - width) << 8) | (0 if mode == "up" else 31) for width in (32, 16, 8, 4, 2, 1)]
    controls += [control | 0xFFFFE0E0 & ~0x1F1F for control in controls] + [
        int(x) for x in RNG.integers(0, 1 << 16, 20)
    ]
    for control in controls:
        for by in [*range(34), int(RNG.integers(0, 1 << 32))]:
            got, inside = evaluate(f"shfl.sync.{mode}.b32", value, spread(by), spread(control), ALL, num_dst=2)
            expected = [shuffled(mode, lane, by, control) for lane in range(32)]
            assert got.tolist() == [int(value[source]) for source, _ in expected], (by, control)
            assert inside.tolist() == [ok for _, ok in expected]


def test_shuffle_with_a_source_for_each_lane() -> None:
    value, index = words(), words()
    got = one("shfl.sync.idx.b32", value, index, spread(31), ALL)
    assert np.array_equal(got, value[index & np.uint32(31)])


@pytest.mark.parametrize(("mask", "active"), member_cases())
def test_votes(mask: int, active: Array) -> None:
    for density in (0, 0.1, 0.5, 0.9, 1):
        p = RNG.random(32) < density
        of_members = p[active]
        for mode, expected in (
            ("all", of_members.all()), ("any", of_members.any()), ("uni", of_members.all() or not of_members.any()),
        ):  # fmt: skip
            assert (one(f"vote.sync.{mode}.pred", p, spread(mask), active=active)[active] == expected).all()
        ballot = sum(1 << lane for lane in range(32) if p[lane] and active[lane])
        assert (one("vote.sync.ballot.b32", p, spread(mask), active=active) == ballot).all()
    assert (evaluate("activemask.b32", active=active)[0] == mask).all()


@pytest.mark.parametrize(("mask", "active"), member_cases())
def test_election_is_of_the_lowest_member(mask: int, active: Array) -> None:
    leader, elected = evaluate("elect.sync", spread(mask), num_dst=2, active=active)
    lowest = (mask & -mask).bit_length() - 1
    assert (leader == lowest).all()
    assert elected.tolist() == [lane == lowest for lane in range(32)]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(("mask", "active"), member_cases())
def test_matches(mask: int, active: Array, bits: int) -> None:
    dtype = f"u{bits // 8}"
    high = np.array(1 << (bits - 4), dtype)
    for kinds in (1, 2, 5, 32):
        value = RNG.integers(0, kinds, 32).astype(dtype) * high + np.array(7, dtype)
        got = one(f"match.any.sync.b{bits}", value, spread(mask), active=active)
        members = [lane for lane in range(32) if active[lane]]
        for lane in members:
            assert got[lane] == sum(1 << other for other in members if value[other] == value[lane])
        found, same = evaluate(f"match.all.sync.b{bits}", value, spread(mask), num_dst=2, active=active)
        expected = len({int(value[lane]) for lane in members}) == 1
        assert (same[active] == expected).all()
        assert (found[active] == (mask if expected else 0)).all()


REDUCTIONS: dict[str, Any] = {
    "add.u32": lambda x: sum(x), "add.s32": lambda x: sum(x), "min.u32": min, "max.u32": max, "min.s32": min,
    "max.s32": max, "and.b32": lambda x: reduce(operator.and_, x), "or.b32": lambda x: reduce(operator.or_, x),
    "xor.b32": lambda x: reduce(operator.xor, x),
}  # fmt: skip


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize(("mask", "active"), member_cases())
def test_reductions(mask: int, active: Array, op: str) -> None:
    for value in (
        words(),
        words() >> np.uint32(20),
        spread(-1) - words() >> np.uint32(25),
        words() | np.uint32(0xFFFF0000),
    ):
        members = value[active].view(np.int32 if op.endswith("s32") else np.uint32).tolist()
        got = one(f"redux.sync.{op}", value, spread(mask), active=active)
        assert (got[active] == REDUCTIONS[op](members) % (1 << 32)).all()


@pytest.mark.parametrize("modifiers", ["", ".abs", ".NaN", ".abs.NaN"])
@pytest.mark.parametrize("op", ["min", "max"])
@pytest.mark.parametrize(("mask", "active"), member_cases())
def test_float_reductions(mask: int, active: Array, op: str, modifiers: str) -> None:
    for nans in (0, 0.3, 1):
        value = RNG.standard_normal(32).astype(np.float32)
        value[RNG.random(32) < 0.3] *= 0
        value[RNG.random(32) < nans] = np.nan
        members = np.abs(value[active]) if "abs" in modifiers else value[active]
        result = one(f"redux.sync.{op}{modifiers}.f32", value.view(np.uint32), spread(mask), active=active)[active]
        numbers = members[~np.isnan(members)]
        if not len(numbers) or ("NaN" in modifiers and len(numbers) < len(members)):
            assert (result == 0x7FFFFFFF).all()
            continue
        # Zeros differ in their sign: the negative one is the smaller.
        order = sorted(numbers.tolist(), key=lambda x: (x, not np.signbit(x)))
        expected = np.array(order[0 if op == "min" else -1], np.float32).view(np.uint32)
        assert (result == expected).all()


def test_matrix_transpose() -> None:
    matrix = RNG.integers(0, 1 << 16, (8, 8)).astype(np.uint16)

    def fragment(rows: Array) -> Array:
        return np.ascontiguousarray(rows).view(np.uint32).reshape(32)

    got = one("movmatrix.sync.aligned.m8n8.trans.b16", fragment(matrix))
    assert np.array_equal(got, fragment(matrix.T))
