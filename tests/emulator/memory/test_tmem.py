"""Allocation of tensor memory."""

from __future__ import annotations

import numpy as np
import pytest

from megamoe_jit.emulator.memory.tmem import SHADOW_BYTES, Tmem, describe_cell, shadow_pieces


def test_allocations_do_not_overlap_and_come_back() -> None:
    tmem = Tmem()
    places = []
    for size in (256, 128, 64, 32, 32):
        first = tmem.find(size)
        assert first is not None
        tmem.allocate(first, size)
        places.append((first, size))
    assert sorted(column for first, size in places for column in range(first, first + size)) == list(range(512))
    assert tmem.find(32) is None
    first, size = places[1]
    assert tmem.free(first, size) is None
    assert tmem.find(128) == first
    assert tmem.find(256) is None
    assert tmem.leak() is not None


@pytest.mark.parametrize("columns", [0, 16, 48, 96, 1024])
def test_sizes_that_do_not_exist(columns: int) -> None:
    assert "power of two" in str(Tmem().allocation_problem(columns))


def test_rules_between_allocations() -> None:
    tmem = Tmem()
    assert tmem.allocation_problem(128) is None
    tmem.allocate(0, 128)
    assert "must not be larger" in str(tmem.allocation_problem(256))
    assert tmem.allocation_problem(128) is None
    tmem.relinquished = True
    assert "relinquish" in str(tmem.allocation_problem(32))
    assert "no allocation of 64 columns at 0" in str(tmem.free(0, 64))
    assert "no allocation" in str(tmem.free(128, 128))
    assert tmem.free(0, 128) is None
    assert tmem.leak() is None


def test_a_pair_gets_columns_that_are_free_in_both() -> None:
    even, odd = Tmem(), Tmem()
    even.allocate(0, 64)
    odd.allocate(64, 64)
    assert even.find(64, odd) == 128


def test_accesses_outside_say_where() -> None:
    tmem = Tmem()
    tmem.allocate(32, 64)
    assert tmem.access_problem(0, 128, 32, 64) is None
    assert "column 96 is not allocated; allocated: 32..95" in str(tmem.access_problem(0, 32, 90, 10))
    assert "not all in 128 lanes" in str(tmem.access_problem(112, 32, 40, 1))
    assert "not all in" in str(tmem.access_problem(0, 32, 510, 4))


def test_contents_are_noise_of_nans() -> None:
    a, b = Tmem(1), Tmem(2)
    assert np.isnan(a.words.view(np.float32)).all()
    assert np.isnan(a.words.view(np.float16)).all()
    assert (a.words != b.words).any()
    assert np.array_equal(a.words, Tmem(1).words)


@pytest.mark.parametrize(
    "lanes",
    [np.arange(128), np.arange(32, 64), np.arange(80, 96), np.arange(64) + 16 * (np.arange(64) // 16), np.arange(5)],
)
def test_what_the_checker_is_told_of_cells(lanes: np.ndarray) -> None:
    """Each half of a quarter that is touched has four bytes for each column, and words that name it."""
    starts, length = shadow_pieces(lanes, 7, 3)
    found = sorted(int(start) + i for start in starts for i in range(length))
    assert len(found) == len(set(found))
    assert max(found) < SHADOW_BYTES
    described = {describe_cell(offset) for offset in found}
    halves = sorted({int(lane) // 16 for lane in lanes})
    assert described == {
        f"lanes {16 * half}..{16 * half + 15}, column {column}" for half in halves for column in range(7, 10)
    }
    assert len(found) == 4 * len(described)
