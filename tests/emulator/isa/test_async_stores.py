"""st.async and red.async: values arrive later, at the CTA whose barrier hears of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megamoe_jit.emulator.memory.spaces import SHARED_WINDOW
from megamoe_jit.errors import EmulatorFault, UnsupportedError
from tests.emulator.engines.test_reductions import expected
from tests.emulator.isa.rig import Rig, address_of, shared

COMPLETE = "mbarrier::complete_tx::bytes"


def armed(rig: Rig, nbytes: int, cta: int = 1) -> Any:
    barrier = rig.barrier(1024, 1, cta)
    barrier.expect_tx(nbytes, by=rig.warp)
    barrier.arrive(1, by=rig.warp)
    return barrier


@pytest.mark.parametrize(
    ("vector", "type_"),
    [("", "b32"), ("", "u64"), ("", "f32"), (".v2", "s32"), (".v4", "f32"), (".v2", "b64"), ("", "b128")],
)
@pytest.mark.parametrize("space", [".shared::cluster", ""])
@pytest.mark.parametrize("mask", [1, 0b1011])
def test_stores_to_another_cta(vector: str, type_: str, space: str, mask: int) -> None:
    count, size = int(vector[2:] or 1), int(type_[1:]) // 8
    letter = {4: "f" if type_[0] == "f" else "r", 8: "d", 16: "q"}[size]
    values = ", ".join(f"%{letter}{8 + i}" for i in range(count))
    operand = f"{{{values}}}" if vector else values
    to, barrier = ("%r0", "%r1") if space else ("%d0", "%d1")
    rig = Rig(f"st.async.weak{space}.{COMPLETE}{vector}.{type_} [{to}], {operand}, [{barrier}]", cluster=2)
    total = count * size
    targets = np.array([shared(4096 + 64 * lane, 1) for lane in range(32)])
    rig.set(r0=targets, d0=SHARED_WINDOW + targets, r1=shared(1024, 1), d1=SHARED_WINDOW + shared(1024, 1))
    rng = np.random.default_rng(2)
    payload = rng.integers(0, 256, (32, count, size), dtype=np.uint8)
    for i in range(count):
        rig.register(f"%{letter}{8 + i}").view(np.uint8)[:] = payload[:, i].reshape(
            rig.register(f"%{letter}{8 + i}").view(np.uint8).shape
        )
    heard = armed(rig, total * mask.bit_count())
    smem = rig.ctas[1].smem
    before = smem.copy()
    rig.step(0, mask)
    assert np.array_equal(smem, before)
    for name in ("r", "d", "f", "q"):  # values are taken at the issue
        for reg in rig.function.registers:
            if reg.name.startswith(f"%{name}"):
                rig.register(reg.name)[...] = 0
    rig.finish()
    assert heard.phase == 1
    for lane in range(32):
        if mask >> lane & 1:
            before[4096 + 64 * lane :][:total] = payload[lane].reshape(-1)
    assert np.array_equal(smem, before)


@pytest.mark.parametrize(
    ("operation", "type_"),
    [("add", "u32"), ("add", "s32"), ("add", "u64"), ("min", "s32"), ("max", "u32"), ("inc", "u32"), ("dec", "u32"),
     ("and", "b32"), ("or", "b32"), ("xor", "b32")],
)  # fmt: skip
def test_reductions_in_another_cta(operation: str, type_: str) -> None:
    size = int(type_[1:]) // 8
    letter = "r" if size == 4 else "d"
    rig = Rig(
        f"red.async.relaxed.cluster.shared::cluster.{COMPLETE}.{operation}.{type_} [%r0], %{letter}5, [%r1]", cluster=2
    )
    cell = rig.ctas[1].smem[4096 : 4096 + size].view(f"u{size}")
    cell[:] = 3
    values = [(1 << 8 * size) - 1, 2, 3, 7]
    rig.set(r0=shared(4096, 1), r1=shared(1024, 1))
    rig.register(f"%{letter}5")[:4] = np.array(values, f"u{size}")
    heard = armed(rig, 4 * size)
    rig.step(0, 0b1111)
    assert cell.tolist() == [3]
    rig.finish()
    want = 3
    for value in values:
        want = expected(operation, type_, want, value)
    assert cell.tolist() == [want]
    assert heard.phase == 1


def test_releasing_forms_reach_global_memory() -> None:
    rig = Rig("st.async.release.gpu.global.u16 [%d0], %h1", "red.async.mmio.release.sys.global.add.s64 [%d1], %d2")
    data = rig.memory(np.zeros(64, np.uint64))
    rig.set(d0=address_of(data) + 2 * np.arange(32), h1=np.arange(32) + 100, d1=address_of(data) + 256, d2=-5)
    rig.step(0)
    rig.step(1, 0b111)
    assert not data.any()
    rig.finish()
    assert data[:64].view(np.uint16).tolist() == [100 + lane for lane in range(32)]
    assert data[256:264].view(np.int64).tolist() == [-15]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"r1": shared(1024, 0)}, "The data goes to"),
        ({"r0": shared(4098, 1)}, "no multiple of 4"),
        ({"r0": shared(4096, 3)}, "names CTA 3"),
        ({"r0": shared(4096, 0), "r1": shared(1024, 0)}, "goes to another CTA of the cluster"),
    ],
)
def test_wrong_operands_are_reported(values: dict[str, int], sentence: str) -> None:
    rig = Rig(f"red.async.relaxed.cluster.shared::cluster.{COMPLETE}.add.u32 [%r0], 1, [%r1]", cluster=2)
    armed(rig, 4, 0)
    armed(rig, 4, 1)
    rig.set(**({"r0": shared(4096, 1), "r1": shared(1024, 1)} | values))
    with pytest.raises(EmulatorFault) as caught:
        rig.step(0, 1)
    assert sentence in str(caught.value)


def test_a_cluster_is_needed() -> None:
    rig = Rig(f"st.async.shared::cluster.{COMPLETE}.u32 [%r0], 1, [%r1]")
    armed(rig, 4, 0)
    rig.set(r0=4096, r1=1024)
    with pytest.raises(EmulatorFault, match="needs a cluster of two CTAs"):
        rig.step(0, 1)


@pytest.mark.parametrize(
    "text",
    [
        f"st.async.shared::cluster.{COMPLETE}.v4.b64 [%r0], {{%d0, %d1, %d2, %d3}}, [%r1]",
        f"st.async.shared::cluster.{COMPLETE}.u16 [%r0], %h1, [%r1]",
        "st.async.release.gpu.global.v2.u32 [%d0], {%r1, %r2}",
        "st.async.release.cluster.global.u32 [%d0], %r1",
        f"red.async.relaxed.cluster.shared::cluster.{COMPLETE}.add.b32 [%r0], 1, [%r1]",
        "red.async.release.gpu.global.min.u32 [%d0], %r1",
        f"st.async.global.{COMPLETE}.u32 [%d0], %r1, [%r2]",
    ],
)
def test_forms_that_do_not_exist_fail_at_load_time(text: str) -> None:
    with pytest.raises(UnsupportedError):
        Rig(text, cluster=2).step(0)
