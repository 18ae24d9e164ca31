"""Ranges of host memory: rights, overlaps, the table that native code reads, shadows."""

from __future__ import annotations

import ctypes
import itertools
import random

import numpy as np
import pytest

from megamoe_jit.emulator.memory.allocations import PEER, READ, WRITE, Allocations, Range, RangeTable
from megamoe_jit.emulator.native.shadow_layout import GLOBAL_GRANULE
from megamoe_jit.errors import ArgumentError, MemoryFault


def native_table(allocations: Allocations) -> list[tuple[int, int, int, int]]:
    """Read the table as native code does."""
    table = RangeTable.from_address(allocations.table_address)
    entries = (Range * max(table.count, 1)).from_address(table.entries)
    return [(entry.start, entry.end, entry.flags, entry.rank) for entry in entries[: table.count]]


def test_view_is_the_memory() -> None:
    array = np.arange(100, dtype=np.uint8)
    allocations = Allocations()
    allocations.add(array.ctypes.data, 100, name="x")
    view = allocations.view(array.ctypes.data + 10, 5, write=True)
    np.testing.assert_array_equal(view, [10, 11, 12, 13, 14])
    view[0] = 200
    assert array[10] == 200


@pytest.mark.parametrize(
    ("start", "size", "kwargs", "words"),
    [
        (-1, 4, {}, "in no allocation"),
        (97, 4, {}, "in no allocation"),
        (100, 1, {}, "in no allocation"),
        (0, 4, {"write": True}, "'x' is read-only"),
        (0, 4, {"rank": 2}, "of rank 1, which rank 2 may not touch"),
    ],
)
def test_what_may_not_be_touched_says_why(start: int, size: int, kwargs: dict, words: str) -> None:
    array = np.zeros(100, np.uint8)
    allocations = Allocations()
    allocations.add(array.ctypes.data, 100, name="x", writable=False, rank=1)
    with pytest.raises(MemoryFault, match=words):
        allocations.view(array.ctypes.data + start, size, **kwargs)


def test_nothing_is_there_at_first() -> None:
    with pytest.raises(MemoryFault):
        Allocations().view(0, 1)
    assert Allocations().find(1000) is None
    assert native_table(Allocations()) == []


def test_peers_and_everybody() -> None:
    allocations = Allocations()
    own = allocations.add(1000, 10, rank=1)
    peer = allocations.add(2000, 10, rank=1, peer=True)
    everyone = allocations.add(3000, 10)
    assert [a.allows(0, write=False) for a in (own, peer, everyone)] == [False, True, True]
    assert [a.allows(1, write=True) for a in (own, peer, everyone)] == [True, True, True]
    assert native_table(allocations) == [
        (1000, 1010, READ | WRITE, 1),
        (2000, 2010, READ | WRITE | PEER, 1),
        (3000, 3010, READ | WRITE, -1),
    ]


def test_overlapping_allocations_are_one_range() -> None:
    allocations = Allocations()
    whole = allocations.add(1000, 100, name="whole", writable=False)
    part = allocations.add(1020, 10, name="part", writable=False)
    more = allocations.add(1090, 50, name="more")
    assert native_table(allocations) == [(1000, 1140, READ | WRITE, -1)]
    assert allocations.find(1025) is part
    assert allocations.find(1025, 20) is whole
    assert allocations.find(1095) is more
    assert allocations.find(1080, 30) is None  # no single one holds it
    allocations.remove(more)
    assert native_table(allocations) == [(1000, 1100, READ, -1)]
    assert allocations.nearest(5000) is part


def test_ranks_may_not_overlap() -> None:
    allocations = Allocations()
    allocations.add(1000, 100, name="a", rank=0)
    with pytest.raises(ArgumentError, match="overlaps a"):
        allocations.add(1050, 100, name="b", rank=1)
    allocations.add(1100, 10, name="behind", rank=1)


@pytest.mark.parametrize(("address", "size"), [(-1, 4), (0, -1), ((1 << 56) - 1, 2)])
def test_ranges_are_in_the_host_s_memory(address: int, size: int) -> None:
    with pytest.raises(ArgumentError, match="no range of host memory"):
        Allocations().add(address, size)


def test_empty_allocations_allow_nothing() -> None:
    allocations = Allocations()
    allocations.add(1000, 0)
    assert native_table(allocations) == []
    assert len(allocations) == 1


@pytest.mark.parametrize("seed", range(10))
def test_table_is_the_union_of_what_is_registered(seed: int) -> None:
    rng = random.Random(seed)
    allocations, known = Allocations(), []
    for _ in range(60):
        if known and rng.random() < 0.4:
            allocations.remove(known.pop(rng.randrange(len(known))))
        else:
            start = rng.randrange(1, 400)
            known.append(allocations.add(start, rng.randrange(0, 30), writable=rng.random() < 0.5))
        covered = {byte for a in known for byte in range(a.address, a.end)}
        table = native_table(allocations)
        assert {byte for start, end, _, _ in table for byte in range(start, end)} == covered
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(table))
        for start, end, flags, _ in table:
            inside = [a for a in known if a.size and a.address < end and start < a.end]
            assert bool(flags & WRITE) == any(a.writable for a in inside)
        for address in rng.sample(range(440), 20):
            found = allocations.find(address, 3)
            holding = [a for a in known if a.address <= address and address + 3 <= a.end]
            assert (found is None) == (not holding)
            assert found is None or found.size == min(a.size for a in holding)


def test_table_stays_where_it_is() -> None:
    allocations = Allocations()
    before = allocations.table_address
    for index in range(100):
        allocations.add(1000 * index + 1, 10)
    assert allocations.table_address == before
    assert len(native_table(allocations)) == 100


def test_shadows_cover_ranges_and_stay() -> None:
    allocations = Allocations()
    allocations.add(1003, 10)
    assert allocations.shadow(1003) is None
    allocations.enable_shadow()
    shadow = allocations.shadow(1005)
    assert shadow is not None
    assert len(shadow.granules) == 4  # words 250 to 253
    shadow.slice(1007, 2)["writer"] = 5
    np.testing.assert_array_equal(shadow.granules["writer"], [0, 5, 5, 0])
    allocations.add(5000, 8)
    assert allocations.shadow(1003) is shadow
    assert allocations.shadow(1013) is None
    entries = (Range * 2).from_address(RangeTable.from_address(allocations.table_address).entries)
    assert entries[0].shadow == shadow.address
    granule = ctypes.c_uint64.from_address(entries[0].shadow + GLOBAL_GRANULE.itemsize)
    assert granule.value == 5


def test_memory_that_nobody_writes_has_no_shadow() -> None:
    allocations = Allocations()
    allocations.enable_shadow()
    allocations.add(1000, 10, writable=False)
    assert allocations.shadow(1000) is None
    allocations.add(1004, 2)
    assert allocations.shadow(1000) is not None


def test_shadow_of_much_memory_takes_little() -> None:
    allocations = Allocations()
    allocations.enable_shadow()
    allocations.add(1 << 40, 1 << 34)
    shadow = allocations.shadow(1 << 40)
    assert shadow is not None
    shadow.slice((1 << 40) + (1 << 33), 4)["reader"] = 1
    assert shadow.granules["reader"][1 << 31] == 1
