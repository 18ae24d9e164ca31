"""What the engine refuses, counts, and keeps."""

from __future__ import annotations

import gc
import struct

import numpy as np
import pytest

from megamoe_jit.errors import UnsupportedError
from tests.emulator.native.harness import Bench, finish, kernel_text

REGISTERS = ".reg .b32 %r<5>; .reg .b64 %rd<5>; .reg .pred %p<3>; .reg .b16 %h<3>; .reg .b128 %q<2>;"


def test_every_unknown_instruction_is_listed_with_its_section() -> None:
    body = "frobnicate.u32 %r1, %r2;\nadd.u32 %r1, %r1, 1;\nld.global.v3.u32 {%r1, %r2, %r3}, [%rd1];\nret;"
    with pytest.raises(UnsupportedError) as caught:
        Bench(kernel_text(body, "", REGISTERS))
    message = str(caught.value)
    assert "2 instructions" in message
    assert "frobnicate.u32 %r1, %r2" in message
    assert "ld.global.v3.u32" in message
    assert "PTX line 8" in message
    assert "PTX line 10" in message
    assert "Data Movement" in message


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("ld.global.v2.u32 {%r1, %r2, %r3}, [%rd1];", "2 registers are needed, 3 are given"),
        ("st.global.v4.u32 [%rd1], {%r1, %r2};", "4 registers are needed, 2 are given"),
        ("ld.global.u32 %r1, [%r2];", "addresses of space global have 64 bits"),
        ("ld.u32 %r1, [%r2];", "addresses of space generic have 64 bits"),
        ("st.global.b128 [%rd1], %rd2;", "128 bits are stored from a .b128 register"),
        ("mov.u64 %rd1, somewhere;", "whose address is known|not declared"),
    ],
)
def test_operands_without_a_meaning_are_refused_when_a_kernel_is_loaded(instruction: str, reason: str) -> None:
    from megamoe_jit.errors import ArgumentError

    with pytest.raises((UnsupportedError, ArgumentError), match=reason):
        Bench(kernel_text(f"{instruction}\nret;", "", REGISTERS))


def test_all_bad_operands_are_listed_at_once() -> None:
    body = "ld.global.u32 %r1, [%r2];\nst.global.v4.u32 [%rd1], {%r1, %r2};\n@%p0 ld.u32 %r1, [%r2];\nret;"
    with pytest.raises(UnsupportedError, match="3 instructions"):
        Bench(kernel_text(body, "", REGISTERS))


def test_instructions_are_counted_over_all_warps() -> None:
    body = """
        mov.u32 %r1, 0;
        LOOP:
        add.u32 %r1, %r1, 1;
        setp.lt.u32 %p0, %r1, 10;
        @%p0 bra LOOP;
        prefetch.global.L2 [%rd1];
        ret;"""
    bench = Bench(kernel_text(body, "", REGISTERS), block=64)
    warps = [bench.warp(index) for index in range(2)]
    for warp in warps:
        finish(bench, warp)
    counts = bench.program.instruction_counts()
    assert counts == {
        "mov.u32": 2, "add.u32": 20, "setp.lt.u32": 20, "bra": 20, "prefetch.global.L2": 2, "ret": 2,
    }  # fmt: skip
    assert [warp.ctx.executed for warp in warps] == [33, 33]


def test_a_lane_that_is_sent_nowhere_is_noticed() -> None:
    bench = Bench(kernel_text("add.u32 %r1, %r1, 1;\nadd.u32 %r1, %r1, 1;\nret;", "", REGISTERS))
    warp = bench.warp()
    warp.ctx.lane_pc[3] = 1
    assert warp.ctx.live == 0xFFFFFFFF
    with pytest.raises(RuntimeError, match="PC 1, where no block of k begins"):
        finish(bench, warp)


def test_programs_may_go_while_others_stay() -> None:
    """Object code is unloaded with its program, and only then."""
    out = np.zeros(32, np.uint32)
    benches = []
    for number in range(30):
        body = (
            f"ld.param.u64 %rd1, [out];\nmov.u32 %r1, %laneid;\nmad.wide.u32 %rd1, %r1, 4, %rd1;\n"
            f"add.u32 %r2, %r1, {number};\nst.global.u32 [%rd1], %r2;\nret;"
        )
        bench = Bench(kernel_text(body, ".param .u64 out", REGISTERS), params=struct.pack("<Q", out.ctypes.data))
        bench.allocations.add(out.ctypes.data, out.nbytes)
        if number % 3 == 0:
            benches.append((number, bench))
        else:
            finish(bench, bench.warp())
        del bench
        gc.collect()
        for kept, other in benches:
            finish(other, other.warp())
            np.testing.assert_array_equal(out, np.arange(32) + kept)


def test_kernels_too_long_for_the_stack_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r'k has 50001 instructions(?s:.*)engine="numpy"'):
        Bench(kernel_text("add.u32 %r1, %r1, 1;\n" * 50_000 + "ret;", "", REGISTERS))
