"""Bulk copies move the right bytes when they run, complete where they say, and refuse what is illegal."""

from __future__ import annotations

import random
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from megamoe_jit.emulator.engines.copies import POISON
from megamoe_jit.emulator.machine.mbarrier import Mbarrier
from megamoe_jit.errors import EmulatorFault, MemoryFault, UnsupportedError
from tests.emulator.engines.test_reductions import expected
from tests.emulator.isa.rig import ALL, Rig, address_of, parks, shared

COMPLETE = "mbarrier::complete_tx::bytes"
BARRIER = 1024


def noise(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


def armed(rig: Rig, nbytes: int, cta: int = 0) -> Mbarrier:
    """Make a barrier whose phase ends with `nbytes` transactions."""
    barrier = rig.barrier(BARRIER, 1, cta)
    barrier.expect_tx(nbytes, by=rig.ctas[cta].warps[0])
    barrier.arrive(1, by=rig.ctas[cta].warps[0])
    assert barrier.phase == 0
    return barrier


@pytest.mark.parametrize("space", ["shared::cluster", "shared::cta"])
def test_global_to_shared_moves_when_it_runs(space: str) -> None:
    rig = Rig(f"cp.async.bulk.{space}.global.{COMPLETE}.L2::cache_hint [%r0], [%d0], %r1, [%r2], %d1")
    data = rig.memory(noise(4096))
    barrier = armed(rig, 1024)
    before = rig.cta.smem.copy()
    rig.set(r0=2048, d0=address_of(data) + 64, r1=1024, r2=BARRIER)
    assert rig.step(0, 1 << 5) is None
    assert np.array_equal(rig.cta.smem, before)
    data[64] ^= 0xFF  # read when it runs, not when it is issued
    rig.finish()
    assert barrier.phase == 1
    want = before.copy()
    want[2048:3072] = data[64 : 64 + 1024]
    assert np.array_equal(rig.cta.smem, want)


def test_each_lane_copies() -> None:
    rig = Rig(f"cp.async.bulk.shared::cta.global.{COMPLETE} [%r0], [%d0], 16, [%r2]")
    data = rig.memory(noise(32 * 16))
    barrier = armed(rig, 4 * 16)
    order = np.random.default_rng(1).permutation(32)
    rig.set(r0=2048 + 16 * np.arange(32), d0=address_of(data) + 16 * order, r2=BARRIER)
    before = rig.cta.smem.copy()
    rig.step(0, 0b1011 << 4)
    rig.step(0, 1)
    rig.finish()
    assert barrier.phase == 1
    for lane in range(32):
        source = data.reshape(32, 16)[order[lane]] if lane in (0, 4, 5, 7) else before[2048 + 16 * lane :][:16]
        assert np.array_equal(rig.cta.smem[2048 + 16 * lane :][:16], source)


def test_multicast_goes_to_the_same_offsets() -> None:
    rig = Rig(
        f"cp.async.bulk.shared::cluster.global.{COMPLETE}.multicast::cluster [%r0], [%d0], %r1, [%r2], %h0", cluster=4
    )
    data = rig.memory(noise(512))
    barriers = [armed(rig, 512, cta) for cta in range(4)]
    before = [cta.smem.copy() for cta in rig.ctas]
    rig.set(r0=shared(4096, 2), d0=address_of(data), r1=512, r2=shared(BARRIER, 1), h0=0b1011)
    rig.step(0, 1)
    rig.finish()
    assert [barrier.phase for barrier in barriers] == [1, 1, 0, 1]
    for rank, cta in enumerate(rig.ctas):
        if rank != 2:
            before[rank][4096 : 4096 + 512] = data
        assert np.array_equal(cta.smem, before[rank])


def test_shared_to_another_ctas_shared() -> None:
    rig = Rig(f"cp.async.bulk.shared::cluster.shared::cta.{COMPLETE} [%r0], [%r3], %r1, [%r2]", cluster=2)
    rig.cta.smem[2048:4096] = noise(2048)
    barrier = armed(rig, 1008, 1)
    rig.set(r0=shared(8192, 1), r3=2048 + 16, r1=1008, r2=shared(BARRIER, 1))
    rig.step(0, 1)
    assert barrier.phase == 0
    rig.finish()
    assert barrier.phase == 1
    assert np.array_equal(rig.ctas[1].smem[8192 : 8192 + 1008], rig.cta.smem[2064 : 2064 + 1008])


def test_ignored_bytes_are_not_touched_and_not_kept() -> None:
    rig = Rig(f"cp.async.bulk.shared::cta.global.{COMPLETE}.ignore_oob [%r0], [%d0], %r1, %r3, %r4, [%r2]")
    data = rig.memory(noise(64), align=16)
    barrier = armed(rig, 96)
    rig.set(r0=2048, d0=address_of(data) - 16, r1=96, r2=BARRIER, r3=16, r4=15)
    with pytest.raises(EmulatorFault, match="ignoreBytesLeft 16"):
        rig.step(0, 1)
    rig.set(d0=address_of(data), r1=80, r3=3, r4=15)
    with pytest.raises(MemoryFault, match="no allocation"):  # one byte past the end is not among the ignored ones
        rig.step(0, 1)
    rig = Rig(f"cp.async.bulk.shared::cta.global.{COMPLETE}.ignore_oob [%r0], [%d0], %r1, %r3, %r4, [%r2]")
    data = rig.memory(noise(67), align=16)
    barrier = armed(rig, 80)
    rig.set(r0=2048, d0=address_of(data), r1=80, r2=BARRIER, r3=3, r4=13)
    rig.step(0, 1)
    rig.finish()
    assert barrier.phase == 1
    got = rig.cta.smem[2048 : 2048 + 80]
    assert np.array_equal(got[3:67], data[3:])
    assert set(got[:3].tolist()) | set(got[67:].tolist()) == {POISON}


@pytest.mark.parametrize("hint", ["", ".L2::cache_hint"])
@pytest.mark.parametrize("mask", [None, 0x8001, 0, 0xFFFF, 0x0F30])
def test_shared_to_global(hint: str, mask: int | None) -> None:
    masked = "" if mask is None else ".cp_mask"
    operands = ("" if not hint else ", %d1") + ("" if mask is None else ", %h0")
    rig = Rig(
        f"cp.async.bulk.global.shared::cta.bulk_group{hint}{masked} [%d0], [%r0], %r1{operands}",
        "cp.async.bulk.commit_group",
        "cp.async.bulk.wait_group 0",
    )
    rig.cta.smem[2048:4096] = noise(2048)
    target = rig.memory(np.full(4096, 0x5A, np.uint8))
    rig.set(r0=2048, d0=address_of(target) + 256, r1=512, h0=mask or 0)
    rig.step(0, 1)
    rig.step(1, 1)
    assert (target == 0x5A).all()
    assert parks(rig.step(2, 1))
    rig.finish()
    assert rig.step(2, 1) is None
    want = np.full(4096, 0x5A, np.uint8)
    for i in range(512):
        if mask is None or mask >> i % 16 & 1:
            want[256 + i] = rig.cta.smem[2048 + i]
    assert np.array_equal(target, want)


def test_reading_ends_before_writing() -> None:
    """`wait_group.read` lets the source be overwritten, and says nothing about the destination."""
    rig = Rig(
        "cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r0], 64",
        "cp.async.bulk.commit_group",
        "cp.async.bulk.wait_group.read 0",
        "cp.async.bulk.wait_group 0",
    )
    rig.cta.smem[2048:2112] = 7
    target = rig.memory(np.zeros(64, np.uint8))
    rig.set(r0=2048, d0=address_of(target))
    rig.step(0, 1)
    rig.step(1, 1)
    assert parks(rig.step(2, 1))
    assert rig.machine.queues.step()
    assert rig.step(2, 1) is None
    assert (target == 0).all()
    rig.cta.smem[2048:2112] = 9
    assert parks(rig.step(3, 1))
    rig.finish()
    assert rig.step(3, 1) is None
    assert (target == 7).all()


def test_a_leaving_cta_has_its_stores_run() -> None:
    rig = Rig("cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r0], 64")
    rig.cta.smem[2048:2112] = 7
    target = rig.memory(np.zeros(64, np.uint8))
    rig.set(r0=2048, d0=address_of(target))
    rig.step(0, 1)
    operations = rig.machine.queues.operations()
    assert {op.at_exit for op in operations} == {"flush"}
    for op in reversed(operations):  # in any order, ready or not
        rig.machine.queues.run(op)
    assert (target == 7).all()


GROUPS = (
    "cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r0], 16",
    "cp.async.bulk.commit_group",
    *(f"cp.async.bulk.wait_group{read} {allowed}" for read in ("", ".read") for allowed in range(4)),
)


@pytest.mark.parametrize("seed", range(30))
def test_waits_end_when_all_but_the_recent_groups_have(seed: int) -> None:
    """Random copies, commits and waits of several lanes against a model that keeps every group."""
    rng = random.Random(seed)
    rig = Rig(*GROUPS, seed=seed)
    target = rig.memory(np.zeros(16 * 4096, np.uint8))
    rig.cta.smem[2048 : 2048 + 16] = 1
    lanes = [0, 3, 31]
    opened: dict[int, list[int]] = {lane: [] for lane in lanes}
    committed: dict[int, list[list[int]]] = {lane: [] for lane in lanes}
    copies = 0

    def written(copy: int) -> bool:
        return bool(target[16 * copy])

    for _ in range(150):
        action = rng.randrange(4)
        mask = sum(1 << lane for lane in lanes if rng.random() < 0.6) or 1
        chosen = [lane for lane in lanes if mask >> lane & 1]
        if action == 0:
            places = np.zeros(32, np.int64)
            for lane in chosen:
                places[lane] = copies
                opened[lane].append(copies)
                copies += 1
            rig.set(r0=2048, d0=address_of(target) + 16 * places)
            rig.step(0, mask)
        elif action == 1:
            rig.step(1, mask)
            for lane in chosen:
                committed[lane].append(opened[lane])
                opened[lane] = []
        elif action == 2:
            rig.machine.queues.step()
        else:
            allowed = rng.randrange(4)
            waited = [
                copy
                for lane in chosen
                for group in committed[lane][: max(len(committed[lane]) - allowed, 0)]
                for copy in group
            ]
            assert parks(rig.step(2 + allowed, mask)) == (not all(map(written, waited)))
            if all(map(written, waited)):
                assert not parks(rig.step(6 + allowed, mask))


def test_many_groups_that_are_only_read_waited_do_not_pile_up() -> None:
    rig = Rig(*GROUPS)
    target = rig.memory(np.zeros(16, np.uint8))
    rig.set(r0=2048, d0=address_of(target))
    for _ in range(2000):
        rig.step(0, 1)
        rig.step(1, 1)
        rig.finish()
        assert rig.step(6, 1) is None
    assert len(rig.warp.scratch["bulk groups"][0].committed) <= 256


REDUCTIONS = {
    "add": "u32 s32 u64 f32 f64 f16 bf16", "min": "u32 s32 u64 s64 f16 bf16", "max": "u32 s32 u64 s64 f16 bf16",
    "inc": "u32", "dec": "u32", "and": "b32 b64", "or": "b32 b64", "xor": "b32 b64",
}  # fmt: skip
FLOATS: dict[str, Any] = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64}


@pytest.mark.parametrize(("operation", "type_"), [(op, t) for op, types in REDUCTIONS.items() for t in types.split()])
def test_reductions_into_global_memory(operation: str, type_: str) -> None:
    noftz = ".noftz" if operation == "add" and type_ in ("f16", "bf16") else ""
    rig = Rig(
        f"cp.reduce.async.bulk.global.shared::cta.bulk_group.{operation}{noftz}.{type_} [%d0], [%r0], 256",
        "cp.async.bulk.commit_group",
        "cp.async.bulk.wait_group 0",
    )
    rng = np.random.default_rng(5)
    if type_ in FLOATS:
        dtype = FLOATS[type_]
        old, values = (rng.standard_normal(256 // np.dtype(dtype).itemsize).astype(dtype) for _ in range(2))
        function: Any = {"add": np.add, "min": np.minimum, "max": np.maximum}[operation]
        want = function(old, values).astype(dtype)
    else:
        dtype = np.dtype(f"u{int(type_[1:]) // 8}")
        old, values = (rng.integers(0, 1 << 8 * dtype.itemsize, 256 // dtype.itemsize, dtype=dtype) for _ in range(2))
        want = np.array([expected(operation, type_, int(a), int(b)) for a, b in zip(old, values, strict=True)], dtype)
    rig.cta.smem[2048 : 2048 + 256] = values.view(np.uint8)
    memory = rig.memory(old)
    rig.set(r0=2048, d0=address_of(memory))
    rig.step(0, 1)
    rig.step(1, 1)
    assert memory.tobytes() == old.tobytes()
    rig.finish()
    assert rig.step(2, 1) is None
    assert memory.tobytes() == want.tobytes()


@pytest.mark.parametrize(("operation", "type_"), [("add", "u64"), ("min", "s32"), ("inc", "u32"), ("xor", "b32")])
def test_reductions_into_another_cta(operation: str, type_: str) -> None:
    rig = Rig(
        f"cp.reduce.async.bulk.shared::cluster.shared::cta.{COMPLETE}.{operation}.{type_} [%r0], [%r3], 128, [%r2]",
        cluster=2,
    )
    dtype = np.dtype(f"u{int(type_[1:]) // 8}")
    rng = np.random.default_rng(6)
    old, values = (rng.integers(0, 1 << 8 * dtype.itemsize, 128 // dtype.itemsize, dtype=dtype) for _ in range(2))
    rig.cta.smem[2048:2176] = values.view(np.uint8)
    rig.ctas[1].smem[4096:4224] = old.view(np.uint8)
    barrier = armed(rig, 128, 1)
    rig.set(r0=shared(4096, 1), r3=2048, r2=shared(BARRIER, 1))
    rig.step(0, 1)
    rig.finish()
    assert barrier.phase == 1
    got = rig.ctas[1].smem[4096:4224].view(dtype).tolist()
    assert got == [expected(operation, type_, int(a), int(b)) for a, b in zip(old, values, strict=True)]


def test_st_bulk_fills_with_zeros() -> None:
    rig = Rig("st.bulk.weak.shared::cta [%r0], %d1, 0", "st.bulk [%d0], 24, 0", "st.bulk.shared::cta [%r0], 12, 0")
    rig.cta.smem[:] = 0xFF
    rig.set(r0=[2048 + 64 * lane for lane in range(32)], d1=40, d0=(1 << 56) + 8192)
    rig.step(0, 0b101)
    rig.step(1, 1)
    zeros = np.flatnonzero(rig.cta.smem == 0).tolist()
    assert zeros == [*range(2048, 2088), *range(2176, 2216), *range(8192, 8216)]
    with pytest.raises(EmulatorFault, match=r"size 12 of st\.bulk"):
        rig.step(2, 1)


LOAD = f"cp.async.bulk.shared::cluster.global.{COMPLETE} [%r0], [%d0], %r1, [%r2]"
STORE = "cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r0], %r1"


@pytest.mark.parametrize(
    ("text", "values", "sentence"),
    [
        (LOAD, {"r1": 24}, "size 24 of a bulk copy is no multiple of 16"),
        (LOAD, {"r0": 2056}, "no multiple of 16"),
        (LOAD, {"d0": 8}, "Source address 0x8"),
        (LOAD, {"d0": 16}, "in no allocation"),
        (LOAD, {"r2": 1032}, "No mbarrier was initialised at 0x408"),
        (LOAD, {"r2": 1028}, "no multiple of 8"),
        (LOAD, {"r0": 512}, "shared address 0x200"),
        (LOAD, {"r0": shared(2048, 1)}, "the data goes to"),
        (LOAD, {"r0": shared(2048, 7)}, "names CTA 7 of the cluster"),
        (STORE, {"r0": 2052}, "no multiple of 16"),
        (STORE, {"r0": shared(2048, 1)}, "may only name its own"),
        (STORE, {"r1": 1 << 20}, "shared address 0x800"),
    ],
)
def test_wrong_operands_are_reported(text: str, values: dict[str, int], sentence: str) -> None:
    rig = Rig(text, cluster=2)
    data = rig.memory(noise(256))
    rig.barrier(BARRIER)
    rig.set(**({"r0": 2048, "d0": address_of(data), "r1": 64, "r2": BARRIER} | values))
    with pytest.raises(EmulatorFault) as caught:
        rig.step(0, ALL & -ALL)
    assert sentence in str(caught.value)
    assert not rig.machine.queues.pending


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cp.async.bulk.shared::cta.global.bulk_group [%r0], [%d0], %r1, [%r2]", "no form copies shared::cta global"),
        ("cp.async.bulk.global.global.bulk_group [%d0], [%d1], %r1", "no form copies global global"),
        (
            f"cp.async.bulk.shared::cta.global.{COMPLETE}.multicast::cluster [%r0], [%d0], 16, [%r2], %h0",
            ".multicast is",
        ),
        (f"cp.async.bulk.shared::cluster.global.{COMPLETE} [%r0], [%d0], %r1", "has 3 operands"),
        ("cp.reduce.async.bulk.global.shared::cta.bulk_group.inc.u64 [%d0], [%r0], 16", ".inc of global shared::cta"),
        ("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f16 [%d0], [%r0], 16", ".noftz belongs"),
        ("cp.async.bulk.wait_group %r0", "must be an integer constant"),
        ("st.bulk.shared::cta [%r0], 16, 1", "only 0 can be stored"),
    ],
)
def test_forms_that_do_not_exist_fail_at_load_time(text: str, sentence: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        Rig(text).step(0)
    assert sentence in str(caught.value)


def test_a_multicast_to_nobody_is_reported() -> None:
    rig = Rig(f"cp.async.bulk.shared::cluster.global.{COMPLETE}.multicast::cluster [%r0], [%d0], 16, [%r2], 0")
    data = rig.memory(noise(256))
    rig.barrier(BARRIER)
    rig.set(r0=2048, d0=address_of(data), r2=BARRIER)
    with pytest.raises(EmulatorFault, match="no CTA gets the data"):
        rig.step(0, 1)


@pytest.mark.parametrize("completion", ["eager", 0.5])
def test_other_policies_move_the_same(completion: Any) -> None:
    rig = Rig(LOAD, STORE, "cp.async.bulk.commit_group", "cp.async.bulk.wait_group 0", completion=completion)
    data = rig.memory(noise(64))
    barrier = armed(rig, 64)
    rig.set(r0=2048, d0=address_of(data), r1=64, r2=BARRIER)
    rig.step(0, 1)
    if completion == "eager":
        assert barrier.phase == 1
    rig.finish()
    target = rig.memory(np.zeros(64, np.uint8))
    rig.set(d0=address_of(target))
    rig.step(1, 1)
    rig.step(2, 1)
    if completion != "eager":
        rig.finish()
    assert rig.step(3, 1) is None
    assert np.array_equal(target, data)
