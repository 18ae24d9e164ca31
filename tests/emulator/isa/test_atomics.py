"""atom and red, lane by lane, against Python's integers and ml_dtypes."""

from __future__ import annotations

import random
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from megamoe_jit.emulator.machine.outcome import Yield
from megamoe_jit.emulator.memory.spaces import SHARED_WINDOW
from megamoe_jit.errors import EmulatorFault, MemoryFault, UnsupportedError
from tests.emulator.engines.test_reductions import expected
from tests.emulator.isa.rig import ALL, Rig, address_of, shared

INTEGER_FORMS = [
    *((operation, type_) for operation in ("add", "min", "max") for type_ in ("u32", "s32", "u64", "s64")),
    *((operation, "u32") for operation in ("inc", "dec")),
    *((operation, type_) for operation in ("and", "or", "xor") for type_ in ("b32", "b64")),
    *(("exch", type_) for type_ in ("b32", "b64")),
]
PLACES = {
    "one cell": lambda rng: [0] * 32,
    "distinct": lambda rng: rng.sample(range(64), 32),
    "some meet": lambda rng: [rng.randrange(5) for _ in range(32)],
}


@pytest.mark.parametrize(("operation", "type_"), INTEGER_FORMS)
@pytest.mark.parametrize("places", list(PLACES))
@pytest.mark.parametrize("space", ["global", "shared", ""])
def test_integers_lane_by_lane(operation: str, type_: str, places: str, space: str) -> None:
    rng = random.Random(f"{operation} {type_} {places} {space}")
    size = int(type_[1:]) // 8
    letter = "r" if size == 4 else "d"
    qualifier = f".{space}" if space else ""
    rig = Rig(
        f"atom{qualifier}.{operation}.{type_} %{letter}10, [%d0], %{letter}11",
        f"red.relaxed.gpu{qualifier}.{operation}.{type_} [%d0], %{letter}11" if operation != "exch" else "ret",
    )
    values = [
        rng.choice([0, 1, 5, (1 << 8 * size) - 1, 1 << (8 * size - 1), rng.getrandbits(8 * size)]) for _ in range(64)
    ]
    cells = np.array(values, f"u{size}")
    memory = rig.memory(cells)
    if space == "shared" or (space == "" and rng.random() < 0.5):
        memory = rig.cta.smem[2048 : 2048 + cells.nbytes]
        memory[:] = cells.view(np.uint8)
        base = 2048 if space else SHARED_WINDOW + 2048
    else:
        base = address_of(memory)
    for index in (0, 1) if operation != "exch" else (0,):
        for mask in (ALL, 0x80000001, 1 << 7, rng.getrandbits(32) | 1):
            where = PLACES[places](rng)
            operands = [rng.choice([0, 1, 3, (1 << 8 * size) - 1, rng.getrandbits(8 * size)]) for _ in range(32)]
            rig.set(d0=[base + size * place for place in where])
            rig.register(f"%{letter}11")[:] = np.array(operands, f"u{size}")
            before = rig.register(f"%{letter}10").copy()
            want = memory.view(cells.dtype).tolist()
            found = before.tolist()
            for lane in range(32):
                if mask >> lane & 1:
                    found[lane] = want[where[lane]] if index == 0 else found[lane]
                    want[where[lane]] = expected(operation, type_, want[where[lane]], operands[lane])
            assert isinstance(rig.step(index, mask), Yield | None)
            assert memory.view(cells.dtype).tolist() == want
            assert rig.register(f"%{letter}10").tolist() == found


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("mask", [1, 1 << 31, ALL])
def test_compare_and_swap(bits: int, mask: int) -> None:
    letter = {16: "h", 32: "r", 64: "d"}[bits]
    rig = Rig(f"atom.acq_rel.sys.global.cas.b{bits} %{letter}10, [%d0], %{letter}11, %{letter}12")
    memory = rig.memory(np.array([5, 6], f"u{bits // 8}"))
    rig.set(d0=address_of(memory), **{f"{letter}11": np.arange(32) + 5, f"{letter}12": np.arange(32) + 6})
    rig.step(0, mask)
    cell, found = 5, rig.register(f"%{letter}10").tolist()
    for lane in range(32):
        if mask >> lane & 1:
            assert found[lane] == cell
            if cell == lane + 5:
                cell = lane + 6
    assert memory.view(f"u{bits // 8}").tolist() == [cell, 6]


def test_wide_exchange_and_compare() -> None:
    rig = Rig(
        "atom.global.exch.b128 %q0, [%d0], %q1",
        "atom.relaxed.gpu.shared.cas.b128 %q0, [%r0], %q1, %q2",
        "atom.global.exch.b128 _, [%d0], %q1",
    )
    memory = rig.memory(np.array([1, 2, 3, 4], np.uint64))
    rig.set(d0=address_of(memory) + 16)
    rig.register("%q1")[:] = [[10 + lane, 100 + lane] for lane in range(32)]
    rig.step(0, 0b101)
    assert rig.register("%q0")[[0, 2]].tolist() == [[3, 4], [10, 100]]
    assert memory.view(np.uint64).tolist() == [1, 2, 12, 102]
    rig.set(r0=2048)
    cell = rig.cta.smem[2048:2064].view(np.uint64)
    cell[:] = [11, 101]
    rig.register("%q2")[:] = [[1000 + lane, 2000 + lane] for lane in range(32)]
    rig.step(1, ALL)
    assert cell.tolist() == [1001, 2001]
    assert rig.register("%q0")[[0, 1, 2]].tolist() == [[11, 101], [11, 101], [1001, 2001]]
    rig.step(2, 1 << 4)
    assert memory.view(np.uint64).tolist() == [1, 2, 14, 104]
    rig.set(d0=address_of(memory) + 8)
    with pytest.raises(EmulatorFault, match="is no multiple of 16"):
        rig.step(0, 1)


FLOATS = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64}


@pytest.mark.parametrize("type_", ["f32", "f64", "f16", "bf16", "f16x2", "bf16x2"])
@pytest.mark.parametrize("same", [True, False])
def test_float_sums_round_at_each_lane(type_: str, same: bool) -> None:
    scalar = type_.removesuffix("x2")
    dtype: Any = FLOATS[scalar]
    letter = {"f32": "f", "f64": "g", "f16": "h", "bf16": "h"}.get(type_, "r")
    noftz = "" if scalar in ("f32", "f64") else ".noftz"
    rig = Rig(f"atom.global.add{noftz}.{type_} %{letter}4, [%d0], %{letter}5")
    rng = np.random.default_rng(4)
    per_lane = 2 if type_ != scalar else 1
    cells = (rng.standard_normal(64) * 2.0 ** rng.integers(-6, 6, 64)).astype(dtype)
    operands = (rng.standard_normal(32 * per_lane) * 2.0 ** rng.integers(-6, 6, 32 * per_lane)).astype(dtype)
    memory = rig.memory(cells)
    size = per_lane * cells.itemsize
    rig.set(d0=address_of(memory) + (0 if same else size * np.arange(32)))
    lanes = rig.register(f"%{letter}5")
    lanes.view(np.uint8)[:] = operands.view(np.uint8)
    rig.step(0)
    want = cells.copy()
    for lane in range(32):
        for item in range(per_lane):
            at = item + (0 if same else lane * per_lane)
            want[at] = dtype(float(want[at]) + float(operands[lane * per_lane + item]))
    assert memory.tobytes() == want.tobytes()


@pytest.mark.parametrize(
    ("vector", "type_", "operation"),
    [
        ("v2", "f32", "add"), ("v4", "f32", "add"), ("v2", "f16", "add"), ("v8", "f16", "max"), ("v4", "bf16", "min"),
        ("v8", "bf16", "add"), ("v2", "f16x2", "min"), ("v4", "bf16x2", "add"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("same", [True, False])
def test_vectors(vector: str, type_: str, operation: str, same: bool) -> None:
    count, scalar = int(vector[1:]), type_.removesuffix("x2")
    letter = {"f32": "f", "f16": "h", "bf16": "h"}.get(type_, "r")
    noftz = "" if scalar == "f32" else ".noftz"
    new, old = (", ".join(f"%{letter}{first + i}" for i in range(count)) for first in (8, 16))
    rig = Rig(f"atom.global.{operation}{noftz}.{vector}.{type_} {{{old}}}, [%d0], {{{new}}}")
    dtype: Any = FLOATS[scalar]
    items = count * (2 if type_ != scalar else 1)
    rng = np.random.default_rng(8)
    cells = rng.standard_normal(32 * items).astype(dtype)
    operands = rng.standard_normal((32, items)).astype(dtype)
    memory = rig.memory(cells)
    size = items * cells.itemsize
    rig.set(d0=address_of(memory) + (0 if same else size * np.arange(32)))
    per_register = operands.reshape(32, count, -1)
    for i in range(count):
        register = rig.register(f"%{letter}{8 + i}")
        register[:] = np.ascontiguousarray(per_register[:, i]).view(register.dtype).reshape(32)
    rig.step(0)
    want, found = cells.copy(), np.zeros((32, items), dtype)
    combine = {"add": lambda a, b: a + b, "min": min, "max": max}[operation]
    for lane in range(32):
        for item in range(items):
            at = item + (0 if same else lane * items)
            found[lane, item] = want[at]
            want[at] = dtype(combine(float(want[at]), float(operands[lane, item])))
    assert memory.tobytes() == want.tobytes()
    for i in range(count):
        register = rig.register(f"%{letter}{16 + i}")
        assert register.tobytes() == np.ascontiguousarray(found.reshape(32, count, -1)[:, i]).tobytes()


def test_f32_sums_flush_in_global_memory_only() -> None:
    rig = Rig("atom.global.add.f32 %f0, [%d0], %f1", "atom.shared.add.f32 %f0, [%r0], %f1")
    tiny = np.array([0x00000003], np.uint32)
    memory = rig.memory(tiny)
    rig.set(d0=address_of(memory), r0=2048)
    rig.cta.smem[2048:2052] = tiny.view(np.uint8)
    rig.register("%f1")[:] = 0x00000005
    rig.step(0, 1)
    rig.step(1, 1)
    assert memory.view(np.uint32).tolist() == [0]
    assert rig.cta.smem[2048:2052].view(np.uint32).tolist() == [8]


def test_another_ctas_shared_memory() -> None:
    rig = Rig(
        "atom.shared::cluster.add.u32 %r1, [%r0], 5", "red.add.u32 [%d0], 7", "red.shared.add.u32 [%r0], 1", cluster=2
    )
    cell = rig.ctas[1].smem[4096:4100].view(np.uint32)
    cell[:] = 100
    rig.set(r0=shared(4096, 1), d0=SHARED_WINDOW + shared(4096, 1))
    rig.step(0, 0b11)
    rig.step(1, 0b1)
    assert cell.tolist() == [117]
    assert rig.register("%r1")[:2].tolist() == [100, 105]
    with pytest.raises(MemoryFault, match=r"use \.shared::cluster"):
        rig.step(2, 1)


def test_lanes_in_several_allocations() -> None:
    rig = Rig("atom.global.add.u64 %d1, [%d0], %d2")
    parts = [rig.memory(np.arange(4, dtype=np.uint64)) for _ in range(3)]
    rig.set(d0=[address_of(parts[lane % 3]) + 8 * (lane // 3 % 4) for lane in range(32)], d2=1)
    rig.step(0)
    added = [
        sum(1 for lane in range(32) if lane % 3 == part and lane // 3 % 4 == cell)
        for part in range(3)
        for cell in range(4)
    ]
    got = [int(value) for part in parts for value in part.view(np.uint64)]
    assert got == [cell % 4 + extra for cell, extra in zip(range(12), added, strict=True)]


@pytest.mark.parametrize(
    ("opcode", "reason"),
    [
        ("atom.global.inc.u64 %d0, [%d1], %d2", ".inc takes no .u64"),
        ("atom.global.add.f16 %h0, [%d1], %h2", ".noftz belongs to f16 and bf16 types"),
        ("atom.global.add.noftz.f32 %f0, [%d1], %f2", ".noftz belongs to"),
        ("atom.shared.add.v2.f32 {%f0, %f1}, [%r1], {%f2, %f3}", "vectors are in global memory"),
        ("atom.global.max.v2.f32 {%f0, %f1}, [%d1], {%f2, %f3}", ".max has no .v2.f32 form"),
        ("red.acquire.gpu.global.add.u32 [%d1], %r2", "red has no .add with .acquire"),
        ("red.global.exch.b32 [%d1], %r2", "red has no .exch"),
        ("atom.global.u32 %r0, [%d1], %r2", "an operation and a type are missing"),
        ("atom.global.min.f16 %h0, [%d1], %h2", ".min takes no .f16"),
        ("atom.global.add.u32 %r0, [%d1], %r2, %d3", "has 4 operands"),
    ],
)
def test_forms_that_do_not_exist_fail_at_load_time(opcode: str, reason: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        Rig(opcode).step(0)
    assert reason in str(caught.value)


def test_wrong_addresses_are_reported() -> None:
    rig = Rig("atom.global.add.u32 %r0, [%d0], 1", "atom.global.add.u32 %r0, [%d0+2], 1")
    memory = rig.memory(np.zeros(8, np.uint32))
    read_only = rig.memory(np.zeros(8, np.uint32), writable=False)
    for mask in (1, ALL):
        rig.set(d0=address_of(memory))
        with pytest.raises(MemoryFault, match="is no multiple of 4"):
            rig.step(1, mask)
        rig.set(d0=address_of(read_only))
        with pytest.raises(MemoryFault, match="read-only"):
            rig.step(0, mask)
        rig.set(d0=8)
        with pytest.raises(MemoryFault, match="no allocation"):
            rig.step(0, mask)
    assert memory.view(np.uint32).tolist() == [0] * 8


def test_polling_atomics_let_others_run() -> None:
    rig = Rig("atom.acquire.gpu.global.cas.b32 %r0, [%d0], 0, 1", "atom.global.or.b32 %r0, [%d0], 0")
    memory = rig.memory(np.ones(1, np.uint32))
    rig.set(d0=address_of(memory))
    for index in (0, 1):
        for mask in (1, 0b110):
            assert rig.step(index, mask) is None
            assert rig.step(index, mask) == Yield(spin=True)
            memory.view(np.uint32)[0] += 1
            assert rig.step(index, mask) is None
    memory.view(np.uint32)[0] = 0
    assert rig.step(0, 1) is None
    assert memory.view(np.uint32)[0] == 1


def test_single_lanes_and_full_warps_are_fast() -> None:
    rig = Rig("atom.acq_rel.gpu.global.add.u32 %r0, [%d0], 1", "red.global.add.u32 [%d0], 1")
    memory = rig.memory(np.zeros(64, np.uint32))
    for places, mask, limit in ((0, 1, 200e-6), (0, ALL, 1e-3), (4 * np.arange(32), ALL, 1e-3)):
        rig.set(d0=address_of(memory) + places)
        times = []
        for _ in range(200):
            start = time.perf_counter()
            rig.step(0, mask)
            rig.step(1, mask)
            times.append(time.perf_counter() - start)
        assert min(times) < limit
