"""Slots of registers: disjoint where values are wanted together, aligned, of the width that views give."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from megamoe_jit.emulator.isa.table import find
from megamoe_jit.emulator.machine.specials import special_values
from megamoe_jit.emulator.native.binding import is_stop
from megamoe_jit.emulator.native.lifetimes import lifetimes
from megamoe_jit.emulator.native.registers import SPECIALS, TIMERS, RegisterLayout, special_registers
from megamoe_jit.emulator.parser import WIDTH, parse
from megamoe_jit.emulator.parser.cfg import accesses, blocks, liveness
from megamoe_jit.errors import UnsupportedError
from tests.emulator.native.harness import Bench, kernel_text
from tests.emulator.native.programs import random_program
from tests.emulator.native.test_control import lanes_program

TYPES = ["pred", "b8", "b16", "f16", "b32", "f32", "b64", "f64", "b128"]


def test_slots_have_room_and_views_have_the_type() -> None:
    text = kernel_text("ret;", "", " ".join(f".reg .{type} %{type}<3>;" for type in TYPES))
    (function,) = parse(text).entries
    layout = RegisterLayout(function, ["%cc.cf", "%gridid", "%tid.x"])
    taken = np.zeros(layout.nbytes, bool)
    for reg in function.registers:
        start = layout.offset(reg)
        assert start % 64 == 0
        assert not taken[start : start + 32 * WIDTH[reg.type]].any()
        taken[start : start + 32 * WIDTH[reg.type]] = True

    class Warp:
        regs = layout.new_file()
        ctx = None

    assert Warp.regs.ctypes.data % 64 == 0
    for reg in function.registers:
        view = layout.view(Warp, reg)
        assert view.shape == ((32, 2) if reg.type == "b128" else (32,))
        assert view.dtype == (np.uint64 if reg.width >= 8 else np.dtype(f"u{reg.width}"))
        view[...] = 1
    assert layout.special(Warp, "%cc.cf").dtype == np.uint8
    assert layout.special(Warp, "%gridid").dtype == np.uint64
    assert not layout.special(Warp, "%tid.x").any()


def test_special_registers_are_found_wherever_they_stand() -> None:
    text = kernel_text(
        "mov.u32 %r0, %tid.x;\nmov.b64 %rd0, {%r0, %ctaid.y};\nmov.u64 %rd0, %clock64;\nmov.u32 %r1, %laneid;\nret;",
        "",
        ".reg .b32 %r<3>; .reg .b64 %rd<3>;",
    )
    (function,) = parse(text).entries
    assert special_registers(function) == ("%tid.x", "%ctaid.y", "%clock64", "%laneid")
    assert "%clock64" not in RegisterLayout(function).constants


@pytest.mark.parametrize("seed", range(6))
def test_registers_that_share_a_slot_are_never_wanted_together(seed: int) -> None:
    text = lanes_program(random_program(random.Random(seed), 8, 30))
    (function,) = parse(text).entries
    cut = blocks(function, lambda instruction: is_stop(find(instruction.opcode)))
    live = liveness(function, cut)
    layout = RegisterLayout(function, [], lifetimes(function, cut, live))
    assert layout.nbytes < RegisterLayout(function).nbytes
    slots = {reg.index: (layout.offset(reg), layout.offset(reg) + 32 * reg.width) for reg in function.registers}

    def disjoint(indices: set[int]) -> bool:
        spans = sorted(slots[index] for index in indices)
        return all(first[1] <= second[0] for first, second in itertools.pairwise(spans))

    # Walk each block backwards with its exact live set.
    for block, ends in zip(cut, live, strict=True):
        wanted = set(ends.live_out)
        assert disjoint(wanted)
        for instruction in reversed(function.instructions[block.start : block.end]):
            access = accesses(instruction)
            assert disjoint(wanted | access.writes | access.reads)
            if instruction.guard is None:
                wanted -= access.writes
            wanted |= access.reads


def test_registers_of_asynchronous_instructions_share_nothing() -> None:
    body = """
        tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r0}, [%r9];
        mov.u32 %r1, 5;
        add.u32 %r2, %r1, 1;
        st.shared.u32 [1024], %r2;
        mov.u32 %r3, 5;
        st.shared.u32 [1024], %r3;
        ret;"""
    (function,) = parse(kernel_text(body, "", ".reg .b32 %r<10>; .shared .b8 s[4];")).entries
    cut = blocks(function, lambda instruction: instruction.base == "tcgen05")
    layout = RegisterLayout(function, [], lifetimes(function, cut, liveness(function, cut)))
    by_name = {reg.name: layout.offset(reg) for reg in function.registers}
    assert [by_name[f"%r{i}"] for i in (1, 2, 3, 9)].count(by_name["%r0"]) == 0
    assert by_name["%r3"] in (by_name["%r1"], by_name["%r2"])


def test_a_warp_s_special_registers_are_its_own() -> None:
    text = kernel_text(
        "mov.u32 %r0, %tid.x;\nmov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %cluster_ctarank;\nmov.u32 %r3, %lanemask_lt;\n"
        "st.shared.v4.u32 [1024], {%r0, %r1, %r2, %r3};\nret;",
        "",
        ".reg .b32 %r<5>; .shared .align 16 .b8 s[16];",
    )
    bench = Bench(text, block=96, cluster=2)
    warp = bench.warp(2, cta=1)
    layout = bench.program.layout
    np.testing.assert_array_equal(layout.special(warp, "%tid.x"), np.arange(64, 96))
    np.testing.assert_array_equal(layout.special(warp, "%ctaid.x"), 1)
    np.testing.assert_array_equal(layout.special(warp, "%cluster_ctarank"), 1)
    np.testing.assert_array_equal(layout.special(warp, "%lanemask_lt"), (1 << np.arange(32)) - 1)
    warp.ctx.clock, warp.ctx.executed = 5 << 32, 7
    assert layout.special(warp, "%clock64").tolist() == [(5 << 32) + 7] * 32
    assert layout.special(warp, "%clock_hi").tolist() == [5] * 32
    assert layout.special(warp, "%globaltimer_lo").tolist() == [7] * 32
    assert bench.program.new_warp(warp.cta, 2).regs is not warp.regs
    bench.program.free_warp(warp)
    assert bench.program.new_warp(warp.cta, 1).regs is warp.regs


def test_known_special_registers_are_those_that_have_values() -> None:
    bench = Bench(kernel_text("ret;"))
    warp = bench.warp()
    for name in sorted(SPECIALS - set(TIMERS)):
        assert special_values(warp, name).shape == (32,)
    with pytest.raises(UnsupportedError):
        special_values(warp, "%tid.w")
    text = kernel_text("mov.u32 %r0, %tid.w;\nadd.u32 %r0, %r0, %tid.w;\nret;", "", ".reg .b32 %r<3>;")
    with pytest.raises(UnsupportedError, match=r"2 instructions(?s:.*)special register %tid\.w"):
        Bench(text)
