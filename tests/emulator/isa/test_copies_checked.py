"""What copies tell the checker: too early a use is a report, a use in order is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megamoe_jit.emulator.memory.tensor_map import Element, Swizzle, TensorMap
from megamoe_jit.errors import RaceFault
from tests.emulator.isa.rig import Rig, address_of, parks

COMPLETE = "mbarrier::complete_tx::bytes"
READ = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20, %r21, %r22, %r23}, [%r10]"
WRITE = "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r10], {%r20, %r21, %r22, %r23}"
BARRIER, BASE = 1024, 4096


def observe(rig: Rig) -> None:
    rig.machine.checks.mbarrier_observe(rig.cta.mbarriers[BARRIER], rig.warp)


def arm(rig: Rig, nbytes: int) -> None:
    barrier = rig.barrier(BARRIER)
    barrier.expect_tx(nbytes, by=rig.warp)
    barrier.arrive(1, by=rig.warp)


def bulk_load() -> Rig:
    rig = Rig(READ, WRITE, f"cp.async.bulk.shared::cta.global.{COMPLETE} [%r0], [%d0], 512, [%r2]", checks="error")
    data = rig.memory(np.arange(512, dtype=np.uint8))
    arm(rig, 512)
    rig.set(r0=BASE, d0=address_of(data), r2=BARRIER, r10=BASE + 16 * np.arange(32))
    return rig


def tensor_load() -> Rig:
    text = f"cp.async.bulk.tensor.2d.shared::cta.global.{COMPLETE} [%r0], [%d0, {{%r4, %r5}}], [%r2]"
    rig = Rig(READ, WRITE, text, checks="error")
    data = rig.memory(np.arange(4096, dtype=np.uint32))
    map_ = TensorMap(
        address=address_of(data), element=Element.U8, dims=(128, 64), byte_strides=(128,), box=(32, 4),
        swizzle=Swizzle.B128,
    )  # fmt: skip
    arm(rig, 128)
    places = [BASE + 128 * row + (32 * column ^ 16 * row) % 128 for row in range(4) for column in range(1)]
    rig.set(
        r0=BASE, d0=address_of(rig.memory(np.frombuffer(map_.encode(), np.uint8))), r2=BARRIER, r4=0, r5=0,
        r10=places * 8,
    )  # fmt: skip
    return rig


@pytest.mark.parametrize("make", [bulk_load, tensor_load])
def test_loaded_bytes_are_read_after_the_barrier(make: Any) -> None:
    rig = make()
    rig.step(2, 1)
    rig.finish()
    observe(rig)
    rig.step(0)


@pytest.mark.parametrize("make", [bulk_load, tensor_load])
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("access", [0, 1])
def test_loaded_bytes_without_the_barrier_are_a_report(make: Any, early: bool, access: int) -> None:
    rig = make()
    rig.step(2, 1)
    if not early:
        rig.finish()
    with pytest.raises(RaceFault):
        rig.step(access)


def test_gaps_of_narrow_rows_are_not_part_of_a_load() -> None:
    rig = tensor_load()
    rig.step(2, 1)
    rig.set(r10=BASE + 64 + 16 * np.arange(32) % 32)
    rig.step(1)
    rig.finish()


STORE = (
    READ, WRITE, "cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r0], 512", "cp.async.bulk.commit_group",
    "cp.async.bulk.wait_group.read 0", "cp.async.bulk.wait_group 0",
)  # fmt: skip


def bulk_store(fenced: bool = True) -> Rig:
    rig = Rig(*STORE, checks="error")
    rig.target = rig.memory(np.zeros(512, np.uint8))  # type: ignore[attr-defined]
    rig.set(r0=BASE, d0=address_of(rig.target), r10=BASE + 16 * np.arange(32))  # type: ignore[attr-defined]
    rig.step(1)
    if fenced:
        rig.machine.checks.fence_proxy(rig.warp)
    rig.step(2, 1)
    rig.step(3, 1)
    return rig


def test_a_store_reads_what_was_fenced() -> None:
    rig = bulk_store()
    assert parks(rig.step(4, 1))
    rig.finish()
    assert rig.step(4, 1) is None
    rig.step(1)


def test_a_store_of_unfenced_bytes_is_a_report() -> None:
    rig = bulk_store(fenced=False)
    with pytest.raises(RaceFault, match="proxy"):
        rig.finish()


@pytest.mark.parametrize("ran", [True, False])
def test_overwriting_the_source_before_the_wait_is_a_report(ran: bool) -> None:
    rig = bulk_store()
    if ran:
        rig.finish()
        with pytest.raises(RaceFault):
            rig.step(1)
    else:
        rig.step(1)
        with pytest.raises(RaceFault):
            rig.finish()


def test_reading_the_destination_needs_the_full_wait() -> None:
    load = f"cp.async.bulk.shared::cta.global.{COMPLETE} [%r5], [%d0], 512, [%r2]"
    for waits in (4, 5):
        rig = Rig(*STORE, load, checks="error")
        target = rig.memory(np.zeros(512, np.uint8))
        arm(rig, 512)
        rig.set(r0=BASE, r5=BASE + 2048, d0=address_of(target), r10=BASE + 16 * np.arange(32), r2=BARRIER)
        rig.step(1)
        rig.machine.checks.fence_proxy(rig.warp)
        rig.step(2, 1)
        rig.step(3, 1)
        rig.finish()
        assert rig.step(waits, 1) is None
        rig.step(6, 1)
        if waits == 5:
            rig.finish()
        else:
            with pytest.raises(RaceFault):
                rig.finish()


def cp_async() -> Rig:
    rig = Rig(
        READ, WRITE, "cp.async.cg.shared.global [%r10], [%d0], 16", "cp.async.commit_group", "cp.async.wait_group 0",
        "cp.async.mbarrier.arrive.noinc.shared.b64 [%r2]", checks="error",
    )  # fmt: skip
    data = rig.memory(np.zeros(512, np.uint8))
    rig.set(d0=address_of(data) + 16 * np.arange(32), r10=BASE + 16 * np.arange(32), r2=BARRIER)
    return rig


def test_cp_async_waits_order_its_bytes() -> None:
    rig = cp_async()
    rig.step(2)
    rig.step(3)
    rig.finish()
    assert rig.step(4) is None
    rig.step(0)
    rig.step(1)


@pytest.mark.parametrize("finished", [True, False])
def test_cp_async_without_a_wait_is_a_report(finished: bool) -> None:
    rig = cp_async()
    rig.step(2)
    rig.step(3)
    if finished:
        rig.finish()
    with pytest.raises(RaceFault):
        rig.step(0)


def test_an_arrival_covers_the_copies_before_it_only() -> None:
    rig = cp_async()
    rig.barrier(BARRIER, 32)
    rig.step(2)
    rig.step(5)
    rig.set(r10=BASE + 1024 + 16 * np.arange(32))
    rig.step(2)
    rig.finish()
    observe(rig)
    rig.set(r10=BASE + 16 * np.arange(32))
    rig.step(0)
    rig.set(r10=BASE + 1024 + 16 * np.arange(32))
    with pytest.raises(RaceFault):
        rig.step(0)


def test_unwritten_bytes_are_a_warning() -> None:
    rig = Rig(READ, checks="warn")
    rig.set(r10=BASE + 16 * np.arange(32))
    rig.step(0)
    assert [finding.kind for finding in rig.machine.findings] == ["uninitialised"]


def test_atomics_do_not_race_with_one_another() -> None:
    rig = Rig(
        "red.global.add.u32 [%d0], 1", "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%d0], [%r0], 16",
        WRITE, checks="error",
    )  # fmt: skip
    memory = rig.memory(np.zeros(4, np.uint32))
    rig.set(d0=address_of(memory), r0=BASE, r10=BASE + 16 * np.arange(32))
    rig.step(2)
    rig.machine.checks.fence_proxy(rig.warp)
    rig.step(1, 1)
    rig.step(0)
    rig.finish()
