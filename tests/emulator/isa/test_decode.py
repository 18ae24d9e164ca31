"""Operands of handlers as arrays: widths, signs, constants, vectors, addresses, and writes of some lanes."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from megamoe_jit.emulator.isa.decode import (
    CARRY,
    Decode,
    immediate,
    immediate_bits,
    lanes_of,
    one_lane,
    signature,
)
from megamoe_jit.emulator.isa.table import lookup
from megamoe_jit.emulator.native.context import WarpContext
from megamoe_jit.emulator.native.registers import RegisterLayout
from megamoe_jit.emulator.parser import Imm, parse
from megamoe_jit.errors import UnsupportedError

HEADER = ".version 8.7\n.target sm_100a\n.address_size 64\n"
DECLARATIONS = (
    ".reg .b16 %h<3>; .reg .b32 %r<9>; .reg .s32 %s<3>; .reg .b64 %l<4>; .reg .f32 %f<3>; "
    ".reg .f64 %d<2>; .reg .pred %p<3>; .reg .b128 %q<2>; .shared .align 16 .b8 tile[64];"
)
SYMBOLS = {"tile": 0x400}
RNG = np.random.default_rng(6)


class Rig:
    """One instruction, a warp to run it on."""

    def __init__(self, text: str) -> None:
        module = parse(f"{HEADER}.visible .entry k(.param .u64 a)\n{{\n{DECLARATIONS}\n{text}\nret;\n}}\n")
        (self.function,) = module.entries
        instruction = self.function.instructions[0]
        self.layout = RegisterLayout(self.function)
        warp: Any = types.SimpleNamespace(regs=self.layout.new_file(), ctx=WarpContext())
        warp.regs[:] = RNG.integers(0, 256, len(warp.regs))
        self.warp = warp
        self.decode = Decode(
            instruction, lookup(instruction.opcode), self.function, module, self.layout, lambda _, name: SYMBOLS[name]
        )

    def reg(self, name: str) -> NDArray[Any]:
        (reg,) = [reg for reg in self.function.registers if reg.name == name]
        return self.layout.view(self.warp, reg)

    def value(self, index: int, dtype: Any) -> NDArray[Any]:
        return self.decode.value(index, dtype)(self.warp)


def test_lanes() -> None:
    assert lanes_of(0x80000005).tolist() == [0, 2, 31]
    assert lanes_of(0).tolist() == []
    assert one_lane(0x50) == 4


def test_registers_by_width_and_sign() -> None:
    rig = Rig("mov.b32 %r1, %r2;")
    bits = rig.reg("%r2")
    assert np.array_equal(rig.value(1, np.uint32), bits)
    assert np.array_equal(rig.value(1, np.int32), bits.view(np.int32))
    assert np.array_equal(rig.value(1, np.float32).view(np.uint32), bits)
    assert np.array_equal(rig.value(1, np.uint16), bits.astype(np.uint16))
    assert np.array_equal(rig.value(1, np.int8), bits.astype(np.uint8).view(np.int8))
    assert np.array_equal(rig.value(1, np.uint64), bits.astype(np.uint64))
    assert np.array_equal(rig.value(1, np.int64), bits.astype(np.int64))
    rig = Rig("mov.b32 %r1, %s2;")
    assert np.array_equal(rig.value(1, np.int64), rig.reg("%s2").view(np.int32).astype(np.int64))
    assert np.array_equal(rig.value(1, np.uint64), rig.reg("%s2").view(np.int32).astype(np.int64).view(np.uint64))


def test_constants() -> None:
    rig = Rig("mov.b32 %r1, -3;")
    assert (rig.value(1, np.int32) == -3).all()
    assert (rig.value(1, np.uint32) == 0xFFFFFFFD).all()
    assert (rig.value(1, np.uint64) == 0xFFFFFFFFFFFFFFFD).all()
    assert (rig.value(1, np.uint8) == 0xFD).all()
    assert (rig.value(1, np.float32) == -3).all()
    rig = Rig("mov.f32 %f1, 0f3FC00000;")
    assert (rig.value(1, np.float32) == 1.5).all()
    assert (rig.value(1, np.uint32) == 0x3FC00000).all()
    assert (rig.value(1, np.float64) == 1.5).all()
    assert Rig("mov.b32 %r1, %r2;").value(1, np.uint32).shape == (32,)


@pytest.mark.parametrize(
    ("constant", "type", "bits"),
    [
        (Imm(value=-1), "u16", 0xFFFF),
        (Imm(value=1 << 40 | 5), "u32", 5),
        (Imm(value=2), "pred", 1),
        (Imm(value=0), "pred", 0),
        (Imm(value=2), "f32", 0x40000000),
        (Imm(value=0.1, is_float=True, bits=0x3FB999999999999A, size=8), "f32", 0x3DCCCCCD),
        (Imm(value=0.1, is_float=True, bits=0x3FB999999999999A, size=8), "f64", 0x3FB999999999999A),
        (Imm(value=0.1, is_float=True, bits=0x3FB999999999999A, size=8), "b32", 0x3DCCCCCD),
        (Imm(value=1.0, is_float=True, bits=0x3F800000, size=4), "f64", 0x3FF0000000000000),
        (Imm(value=float("nan"), is_float=True, bits=0x7F800001, size=4), "f32", 0x7F800001),
        (Imm(value=0x3C003C00), "f16x2", 0x3C003C00),
    ],
)
def test_bits_of_constants(constant: Imm, type: str, bits: int) -> None:
    assert immediate_bits(constant, type) == bits


def test_a_constant_has_the_dtype_asked_for() -> None:
    assert immediate(Imm(value=7), np.int16).dtype == np.int16


def test_vectors_symbols_and_predicates() -> None:
    rig = Rig("st.global.v4.b32 [%l1], {%r1, %r2, 5, %f1};")
    expected = np.stack([rig.reg("%r1"), rig.reg("%r2"), np.full(32, 5, np.uint32), rig.reg("%f1")])
    assert np.array_equal(rig.decode.values(1, np.uint32)(rig.warp), expected)
    assert len(rig.decode.items(1)) == 4
    rig = Rig("mov.u32 %r1, tile;")
    assert (rig.value(1, np.uint32) == 0x400).all()
    assert (rig.value(1, np.uint64) == 0x400).all()
    rig = Rig("selp.b32 %r1, %r2, %r3, %p1;")
    rig.reg("%p1")[:] = np.arange(32) % 2
    assert np.array_equal(rig.decode.predicate(3)(rig.warp), np.arange(32) % 2 == 1)
    rig = Rig("and.pred %p0, %p1, !%p2;")
    rig.reg("%p2")[:] = np.arange(32) % 3 == 0
    assert np.array_equal(rig.decode.predicate(2)(rig.warp), np.arange(32) % 3 != 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ld.global.u32 %r1, [%l1];", lambda rig: rig.reg("%l1")),
        ("ld.global.u32 %r1, [%l1+24];", lambda rig: rig.reg("%l1") + np.uint64(24)),
        ("ld.global.u32 %r1, [%l1+-8];", lambda rig: rig.reg("%l1") - np.uint64(8)),
        ("ld.shared.u32 %r1, [%r2+16];", lambda rig: (rig.reg("%r2") + np.uint32(16)).astype(np.uint64)),
        ("ld.shared.u32 %r1, [tile+4];", lambda rig: np.full(32, 0x404, np.uint64)),
        ("ld.shared.u32 %r1, [2048];", lambda rig: np.full(32, 2048, np.uint64)),
    ],
)
def test_addresses(text: str, expected: Any) -> None:
    rig = Rig(text)
    got = rig.decode.address(1)(rig.warp)
    assert got.dtype == np.uint64
    assert np.array_equal(got, expected(rig))


def test_narrow_addresses_wrap_at_32_bits() -> None:
    rig = Rig("ld.shared.u32 %r1, [%r2+16];")
    rig.reg("%r2")[:] = 0xFFFFFFF8
    assert (rig.decode.address(1)(rig.warp) == 8).all()


def test_coordinates() -> None:
    rig = Rig(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%r1], [%l1, {%r2, -7}], [%r3];"
    )
    expected = np.stack([rig.reg("%r2").view(np.int32), np.full(32, -7, np.int32)])
    assert np.array_equal(rig.decode.coords(1)(rig.warp), expected)
    assert np.array_equal(rig.decode.address(1)(rig.warp), rig.reg("%l1"))
    with pytest.raises(UnsupportedError, match="operand 0 has no coordinates"):
        rig.decode.coords(0)


def test_writes_touch_their_lanes_only() -> None:
    rig = Rig("mov.b32 %r1, %r2;")
    before = rig.reg("%r1").copy()
    values = np.arange(32, dtype=np.uint32)
    rig.decode.write(0, np.uint32)(rig.warp, 0xF0, values)
    expected = np.where((0xF0 >> np.arange(32)) & 1 == 1, values, before)
    assert np.array_equal(rig.reg("%r1"), expected)
    rig.decode.write(0, np.float32)(rig.warp, 1, 1.5)
    assert rig.reg("%r1")[0] == 0x3FC00000
    rig.decode.write(0, np.int16)(rig.warp, 2, -2)
    assert rig.reg("%r1")[1] == 0xFFFFFFFE
    rig.decode.write(0, np.uint16)(rig.warp, 2, 0xFFFE)
    assert rig.reg("%r1")[1] == 0xFFFE


def test_vector_writes_skip_sinks() -> None:
    rig = Rig("ld.global.v4.u32 {%r1, _, %r3, %r4}, [%l1];")
    data = np.arange(128, dtype=np.uint32).reshape(4, 32)
    rig.decode.write_many(0, np.uint32)(rig.warp, 0xFFFFFFFF, data)
    for index, name in ((0, "%r1"), (2, "%r3"), (3, "%r4")):
        assert np.array_equal(rig.reg(name), data[index])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        rig.decode.write_many(0, np.uint32)(rig.warp, 1, data[:3])


def test_what_cannot_be_read_or_written_says_so() -> None:
    rig = Rig("mov.b32 %r1, 5;")
    with pytest.raises(UnsupportedError, match=r"has no operand 2"):
        rig.decode.value(2, np.uint32)
    with pytest.raises(UnsupportedError, match="a Imm cannot be written"):
        rig.decode.write(1, np.uint32)
    rig = Rig("mov.b128 %q0, %q1;")
    with pytest.raises(UnsupportedError, match="%q1 is read as uint32 items"):
        rig.value(1, np.uint32)
    with pytest.raises(UnsupportedError, match="128 bits"):
        rig.decode.write(0, np.uint64)


def test_signatures_have_the_carry_last() -> None:
    rig = Rig("addc.cc.u32 %r1, %r2, %r3;")
    form = signature(rig.decode.op, rig.decode.instruction)
    assert [typed.type for typed in form.dst] == ["u32", "pred"]
    assert [typed.type for typed in form.src] == ["u32", "u32", "pred"]
    assert form.dst[-1].operand is CARRY
    assert form.src[-1].operand is CARRY


def test_signatures_flatten_vectors_and_pairs() -> None:
    rig = Rig("mov.b64 %l1, {%r1, %f2};")
    form = signature(rig.decode.op, rig.decode.instruction)
    assert [typed.type for typed in form.src] == ["b32", "b32"]
    rig = Rig("setp.lt.and.s32 %p0|%p1, %r1, 5, !%p2;")
    form = signature(rig.decode.op, rig.decode.instruction)
    assert [typed.type for typed in form.dst] == ["pred", "pred"]
    assert [typed.type for typed in form.src] == ["s32", "s32", "pred"]
    other = Rig("add.u32 %r1, %r2;").decode
    with pytest.raises(UnsupportedError, match=r"add\.u32 has 1 sources, but takes u32 u32"):
        signature(other.op, other.instruction)
