"""Operands of one lane are those that arrays of all lanes have."""

from __future__ import annotations

import numpy as np
import pytest

from megamoe_jit.emulator.isa import scalars
from megamoe_jit.emulator.isa.decode import Decode, lanes_of
from megamoe_jit.emulator.isa.table import lookup
from tests.emulator.isa.rig import Rig

TEXT = "red.global.add.u32 [%d0+8], {0}"


def decoded(rig: Rig, index: int = 0) -> Decode:
    instruction = rig.function.instructions[index]
    return Decode(
        instruction, lookup(instruction.opcode), rig.function, rig.module, rig.program.layout,
        lambda _, name: rig.fail(name),
    )  # fmt: skip


@pytest.mark.parametrize("register", ["%h1", "%r1", "%d1", "%f1", "%p1", "-7", "0f3F800000", "4294967295"])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_every_width(register: str, size: int, signed: bool) -> None:
    rig = Rig(TEXT.format(register))
    if register[0] == "%":
        lanes = rig.register(register)
        lanes.view(np.uint8)[:] = np.random.default_rng(size).integers(0, 256, lanes.nbytes, dtype=np.uint8)
    d = decoded(rig)
    dtype = f"{'i' if signed else 'u'}{size}"
    if register[:2] == "0f" and size not in (4,):
        return  # a float constant has bits of its own width only
    want = d.value(1, dtype)(rig.warp)
    read = scalars.scalar(d, d.operand(1), size, signed=signed)
    assert [read(rig.warp, lane) for lane in range(32)] == want.tolist()


@pytest.mark.parametrize("text", ["[%d0]", "[%d0+8]", "[%d0-8]", "[%r0+16]", "[%r0-4]", "[64]"])
def test_addresses_wrap_at_the_width_of_their_base(text: str) -> None:
    rig = Rig(f"red.global.add.u32 {text}, 1")
    rig.set(d0=[0, 1, 7, 1 << 40] * 8, r0=[0, 1, 0x7FFFFFFF, 0xFFFFFFFF] * 8)
    d = decoded(rig)
    read = scalars.address_of(d, 0)
    assert [read(rig.warp, lane) for lane in range(32)] == d.address(0)(rig.warp).tolist()


def test_lanes_of_a_mask() -> None:
    for mask in (1, 1 << 31, 0xFFFFFFFF, 0x80000001, 0b1010):
        assert list(scalars.lane_list(mask)) == lanes_of(mask).tolist()
