"""Branches, groups of lanes, fuel, and waits for lanes, against lanes that run alone."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest

from megamoe_jit.emulator.interpreter.engine import NumpyEngine
from megamoe_jit.emulator.machine.engine import StopKind
from megamoe_jit.emulator.native.context import FaultKind
from tests.emulator.native.harness import Bench, fault, finish, kernel_text
from tests.emulator.native.programs import NUM_REGS, Program, random_program

FRAME_WORDS = 8
ROW = NUM_REGS + FRAME_WORDS
BUDGET = 60


def lanes_program(program: Program) -> str:
    """Return a kernel that runs `program` in each lane: registers and frame come from a row of memory and go back."""
    load = [f"ld.global.u32 %r{i}, [%row+{4 * i}];" for i in range(NUM_REGS)]
    load += [
        f"ld.global.u32 %x, [%row+{4 * (NUM_REGS + i)}];\nst.local.u32 [frame+{4 * i}], %x;" for i in range(FRAME_WORDS)
    ]
    save = [f"st.global.u32 [%row+{4 * i}], %r{i};" for i in range(NUM_REGS)]
    save += [
        f"ld.local.u32 %x, [frame+{4 * i}];\nst.global.u32 [%row+{4 * (NUM_REGS + i)}], %x;" for i in range(FRAME_WORDS)
    ]
    body = f"""
        ld.param.u64 %row, [rows];
        mov.u32 %x, %laneid;
        mad.wide.u32 %row, %x, {4 * ROW}, %row;
        {" ".join(load)}
        mov.u32 %left, {BUDGET};
        setp.eq.u32 %p0, %left, 0; setp.eq.u32 %p1, %left, 0; setp.eq.u32 %p2, %left, 0;
        {program.body()}
        DONE:
        {" ".join(save)}
        ret;"""
    declarations = (
        f".reg .b32 %r<{NUM_REGS}>; .reg .b32 %x, %left; .reg .b64 %row; .reg .pred %p<3>; .reg .pred %out; "
        f".reg .b32 %t<{program.num_steps}>; .reg .pred %q<{program.num_steps}>; "
        f".local .align 16 .b8 frame[{4 * FRAME_WORDS}];"
    )
    return kernel_text(body, ".param .u64 rows", declarations)


def run_program(program: Program, rows: np.ndarray, lanes: int, fuel: int, engine: Any = None) -> np.ndarray:
    memory = rows.copy()
    params = struct.pack("<Q", memory.ctypes.data)
    bench = Bench(lanes_program(program), block=lanes, params=params, engine=engine)
    bench.allocations.add(memory.ctypes.data, memory.nbytes)
    warp = bench.warp(fuel=fuel)
    while (stop := bench.run(warp)).kind is StopKind.YIELD:
        warp.ctx.fuel = fuel
    assert stop.kind is StopKind.EXIT, fault(warp)
    return memory


@pytest.mark.parametrize("seed", range(25))
def test_lanes_compute_as_if_alone(seed: int) -> None:
    rng = random.Random(seed)
    program = random_program(rng, num_blocks=rng.randrange(2, 9), length=rng.choice([3, 8, 20]))
    rows = np.random.default_rng(seed).integers(0, 2**32, (32, ROW), np.uint32)
    if seed % 2:
        rows[1:] = rows[0]  # lanes that agree keep to one group
        rows[rng.randrange(32), 0] ^= 1
    lanes = rng.choice([32, 32, 17, 1])
    expected = rows.copy()
    for lane in range(lanes):
        regs, frame = expected[lane, :NUM_REGS].tolist(), expected[lane, NUM_REGS:].tolist()
        program.run_lane(regs, frame, BUDGET)
        expected[lane] = regs + frame
    for fuel in (1 << 40, 7):
        np.testing.assert_array_equal(run_program(program, rows, lanes, fuel), expected)
    if seed < 4:
        np.testing.assert_array_equal(run_program(program, rows, lanes, 100, NumpyEngine()), expected)


def simple(body: str, *, block: int = 32, fuel: int = 1 << 40, regs: str = "") -> tuple[Bench, object]:
    """Run a kernel whose registers are %r0-9, %rd0-9, %p0-5; the values wanted afterwards are stored to [%rd9]."""
    bench = Bench(kernel_text(body, "", f".reg .b32 %r<10>; .reg .b64 %rd<10>; .reg .pred %p<6>; {regs}"), block=block)
    return bench, bench.warp(fuel=fuel)


def result_kernel(body: str) -> str:
    """Return a kernel that stores %r0 of each lane to the parameter's array at the end (label DONE)."""
    return kernel_text(
        f"{body}\nDONE:\nld.param.u64 %rd0, [out];\nmov.u32 %r9, %laneid;\nmad.wide.u32 %rd0, %r9, 4, %rd0;\n"
        "st.global.u32 [%rd0], %r0;\nret;",
        ".param .u64 out",
        ".reg .b32 %r<10>; .reg .b64 %rd<10>; .reg .pred %p<6>; .reg .b16 %rs<4>;",
    )


def results(body: str, *, fuel: int = 1 << 40, block: int = 32) -> tuple[np.ndarray, Bench]:
    out = np.full(32, 0xDEAD, np.uint32)
    bench = Bench(result_kernel(body), params=struct.pack("<Q", out.ctypes.data), block=block)
    bench.allocations.add(out.ctypes.data, out.nbytes)
    warp = bench.warp(fuel=fuel)
    while bench.run(warp).kind is StopKind.YIELD:
        warp.ctx.fuel = fuel
    assert warp.ctx.live == 0, fault(warp)
    return out, bench


LANES = np.arange(32)


def test_divergent_halves_meet_again() -> None:
    out, bench = results("""
        mov.u32 %r1, %laneid;
        setp.lt.u32 %p0, %r1, 16;
        @%p0 bra LOW;
        add.u32 %r2, %r1, 100;
        bra MEET;
        LOW:
        add.u32 %r2, %r1, 200;
        MEET:
        activemask.b32 %r3;
        xor.b32 %r0, %r3, %r2;""")
    expected = 0xFFFFFFFF ^ np.where(LANES < 16, LANES + 200, LANES + 100)
    np.testing.assert_array_equal(out, expected.astype(np.uint32))
    # Everything behind the meeting point ran once.
    assert bench.program.instruction_counts()["xor.b32"] == 1


def test_shuffle_waits_for_lanes_that_are_elsewhere() -> None:
    out, bench = results("""
        mov.u32 %r1, %laneid;
        mov.u32 %r4, 0;
        setp.ge.u32 %p0, %r1, 20;
        @%p0 bra SLOW;
        bra SHUFFLE;
        SLOW:
        add.u32 %r4, %r4, 1;
        setp.lt.u32 %p1, %r4, %r1;
        @%p1 bra SLOW;
        bra SHUFFLE;
        SHUFFLE:
        add.u32 %r5, %r4, %r1;
        shfl.sync.bfly.b32 %r0, %r5, 31, 31, -1;""")
    value = np.where(LANES >= 20, 2 * LANES, LANES)
    np.testing.assert_array_equal(out, value[::-1])
    assert bench.program.instruction_counts()["shfl.sync.bfly.b32"] >= 1


def test_member_masks_of_halves_are_independent() -> None:
    """The upper half shuffles a hundred times while the lower half has not begun; both use the same instruction."""
    out, _ = results("""
        mov.u32 %r1, %laneid;
        setp.lt.u32 %p0, %r1, 16;
        selp.b32 %r2, 65535, 4294901760, %p0;
        mov.u32 %r3, %r1;
        mov.u32 %r4, 0;  // 0x100f below: segments of 16 lanes
        selp.b32 %r5, 3, 100, %p0;
        AGAIN:
        shfl.sync.idx.b32 %r6, %r3, %r4, 4111, %r2;
        add.u32 %r3, %r3, %r6;
        add.u32 %r4, %r4, 1;
        setp.lt.u32 %p1, %r4, %r5;
        @%p1 bra AGAIN;
        mov.u32 %r0, %r3;""")
    expected = []
    for half, rounds in ((LANES[:16], 3), (LANES[16:], 100)):
        values = half.astype(np.uint64)
        for step in range(rounds):
            values = (values + values[step % 16]) & 0xFFFFFFFF
        expected += values.tolist()
    np.testing.assert_array_equal(out, expected)


def test_votes_take_members_only() -> None:
    out, _ = results("""
        mov.u32 %r1, %laneid;
        and.b32 %r2, %r1, 1;
        setp.eq.u32 %p0, %r2, 1;
        selp.b32 %r3, 0xaaaaaaaa, 0x55555555, %p0;
        setp.lt.u32 %p1, %r1, 10;
        vote.sync.ballot.b32 %r0, %p1, %r3;""")
    np.testing.assert_array_equal(out, np.where(LANES % 2, 0x3FF & 0xAAAAAAAA, 0x3FF & 0x55555555))


def test_spinning_lanes_let_others_write_the_flag() -> None:
    """Lane 0 spins at a lower PC on a flag that lane 31 sets: only a rotation of groups lets it end."""
    body = """
        mov.u32 %r1, %laneid;
        mov.u32 %r0, 0;
        ld.param.u64 %rd1, [out];
        setp.ne.u32 %p0, %r1, 0;
        @%p0 bra OTHERS;
        SPIN:
        ld.global.u32 %r0, [%rd1+124];
        setp.eq.u32 %p1, %r0, 57005;
        @%p1 bra SPIN;
        bra DONE;
        OTHERS:
        setp.ne.u32 %p2, %r1, 31;
        @%p2 bra DONE;
        mov.u32 %r2, 77;
        st.global.u32 [%rd1+124], %r2;
        mov.u32 %r0, 77;"""
    out, _ = results(body, fuel=50)
    assert out[0] == 77
    assert out[31] == 77


def test_two_spinning_groups_do_not_starve_a_third() -> None:
    body = """
        mov.u32 %r1, %laneid;
        ld.param.u64 %rd1, [out];
        setp.eq.u32 %p0, %r1, 0;
        @%p0 bra SPIN0;
        setp.eq.u32 %p0, %r1, 1;
        @%p0 bra SPIN1;
        mov.u32 %r2, 5;
        setp.eq.u32 %p3, %r1, 2;
        @%p3 st.global.u32 [%rd1+120], %r2;
        mov.u32 %r0, 9;
        bra DONE;
        SPIN1:
        ld.global.u32 %r0, [%rd1+120];
        setp.ne.u32 %p1, %r0, 5;
        @%p1 bra SPIN1;
        st.global.u32 [%rd1+116], %r0;
        bra DONE;
        SPIN0:
        ld.global.u32 %r0, [%rd1+116];
        setp.ne.u32 %p1, %r0, 5;
        @%p1 bra SPIN0;"""
    out, _ = results(body.replace("bra DONE", "bra END") + "\nEND:", fuel=40)
    assert out[0] == out[1] == 5
    assert out[3] == 9


def test_warp_barrier_takes_lanes_from_different_places() -> None:
    out, bench = results("""
        mov.u32 %r1, %laneid;
        mov.u32 %r0, 0;
        setp.lt.u32 %p0, %r1, 7;
        @%p0 bra LOW;
        bar.warp.sync -1;
        add.u32 %r0, %r0, 2;
        bra DONE;
        LOW:
        add.u32 %r0, %r1, 1;
        bar.warp.sync 0xffffffff;
        add.u32 %r0, %r0, 100;""")
    np.testing.assert_array_equal(out, np.where(LANES < 7, LANES + 101, 2))
    assert bench.program.instruction_counts()["bar.warp.sync"] == 2


def test_waiting_lanes_go_on_when_the_others_exit() -> None:
    bench = Bench(
        result_kernel("""
        mov.u32 %r1, %laneid;
        mov.u32 %r0, 1;
        mov.u32 %r5, 0;
        setp.lt.u32 %p0, %r1, 4;
        @!%p0 bra LATE;
        bar.warp.sync -1;
        shfl.sync.idx.b32 %r0, %r1, 3, 31, -1;
        bra DONE;
        LATE:
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p1, %r5, 10;
        @%p1 bra LATE;
        exit;"""),
        params=struct.pack("<Q", (out := np.zeros(32, np.uint32)).ctypes.data),
    )
    bench.allocations.add(out.ctypes.data, out.nbytes)
    finish(bench, bench.warp())
    np.testing.assert_array_equal(out[:4], 3)
    np.testing.assert_array_equal(out[4:], 0)


def test_lanes_that_wait_for_each_other_are_blocked() -> None:
    bench, warp = simple("""
        mov.u32 %r1, %laneid;
        setp.lt.u32 %p0, %r1, 4;
        @%p0 bra LOW;
        shfl.sync.idx.b32 %r2, %r1, 0, 31, -1;
        ret;
        LOW:
        shfl.sync.idx.b32 %r2, %r1, 1, 31, -1;
        ret;""")
    stop = bench.run(warp)
    assert stop.kind is StopKind.BLOCKED
    assert warp.ctx.waiting == warp.ctx.blocked == 0xFFFFFFFF
    assert set(warp.ctx.lane_pc[:4]) == {5}
    assert set(warp.ctx.lane_pc[4:]) == {3}


def test_a_lane_outside_of_its_own_member_mask_is_a_fault() -> None:
    bench, warp = simple("""
        mov.u32 %r1, %laneid;
        shfl.sync.idx.b32 %r2, %r1, 0, 31, 0xfffffffd;
        ret;""")
    assert bench.run(warp).kind is StopKind.FAULT
    assert fault(warp)[:4] == (FaultKind.MEMBER_MASK, 1, 1, 0xFFFFFFFD)


def test_parts_of_a_warp_exit_and_the_rest_goes_on() -> None:
    out, _ = results("""
        mov.u32 %r1, %laneid;
        mov.u32 %r0, 3;
        and.b32 %r2, %r1, 3;
        setp.eq.u32 %p0, %r2, 0;
        @%p0 exit;
        setp.eq.u32 %p0, %r2, 1;
        @%p0 ret;
        activemask.b32 %r0;""")
    np.testing.assert_array_equal(out, np.where(LANES % 4 < 2, 0xDEAD, 0xCCCCCCCC))


def test_branch_table() -> None:
    body = """
        mov.u32 %r1, %laneid;
        and.b32 %r2, %r1, 3;
        TABLE: .branchtargets A, B, C, B;
        brx.idx %r2, TABLE;
        A: mov.u32 %r0, 10; bra DONE;
        B: mov.u32 %r0, 20; bra DONE;
        C: mov.u32 %r0, 30;"""
    out, _ = results(body)
    np.testing.assert_array_equal(out, np.array([10, 20, 30, 20] * 8))


def test_branch_table_past_its_end_is_a_fault() -> None:
    bench, warp = simple("""
        mov.u32 %r1, %laneid;
        TABLE: .branchtargets A, B;
        brx.idx %r1, TABLE;
        A: ret;
        B: ret;""")
    assert bench.run(warp).kind is StopKind.FAULT
    assert fault(warp)[:4] == (FaultKind.BRANCH_INDEX, 1, 2, 2)


def test_uniform_branch_that_is_not_uniform_is_a_fault() -> None:
    bench, warp = simple("""
        mov.u32 %r1, %laneid;
        setp.lt.u32 %p0, %r1, 9;
        @%p0 bra.uni END;
        mov.u32 %r2, 1;
        END: ret;""")
    assert bench.run(warp).kind is StopKind.FAULT
    assert fault(warp)[0:2] == (FaultKind.DIVERGENT_UNIFORM, 2)


def test_running_off_the_end_returns() -> None:
    bench, warp = simple("mov.u32 %r1, %laneid;\nsetp.lt.u32 %p0, %r1, 9;\n@%p0 bra END;\nadd.u32 %r1, %r1, 1;\nEND:")
    finish(bench, warp)
    assert warp.ctx.live == 0


def test_fuel_counts_instructions_and_yields() -> None:
    bench, warp = simple("LOOP:\nadd.u32 %r1, %r1, 1;\nadd.u32 %r1, %r1, 1;\nbra LOOP;", fuel=1000)
    for turn in range(1, 4):
        stop = bench.run(warp)
        assert stop.kind is StopKind.YIELD
        assert 1000 * turn <= warp.ctx.executed <= 1010 * turn
        assert warp.ctx.lane_pc[5] == 0
        warp.ctx.fuel = 1000


def test_clock_goes_on_inside_a_block() -> None:
    out, _ = results("""
        mov.u64 %rd1, %clock64;
        add.u64 %rd3, %rd1, 0;
        add.u64 %rd3, %rd3, 0;
        mov.u64 %rd2, %clock64;
        sub.u64 %rd4, %rd2, %rd1;
        cvt.u32.u64 %r0, %rd4;""")
    assert set(out.tolist()) == {3}


def test_handlers_get_the_guarded_lanes_and_the_rest_skips_them() -> None:
    bench, warp = simple("""
        mov.u32 %r1, %laneid;
        setp.lt.u32 %p0, %r1, 9;
        @%p0 nanosleep.u32 20;
        @!%p0 nanosleep.u32 20;
        setp.lt.u32 %p1, %r1, 0;
        @%p1 nanosleep.u32 20;
        ret;""")
    stop = bench.engine.run(warp)
    assert stop == (StopKind.HANDLER, 2, 0x1FF)
    assert list(warp.ctx.lane_pc) == [2] * 9 + [3] * 23
    for lane in range(9):
        warp.ctx.lane_pc[lane] = 3
    assert bench.engine.run(warp) == (StopKind.HANDLER, 3, 0xFFFFFE00)
    for lane in range(9, 32):
        warp.ctx.lane_pc[lane] = 4
    assert bench.engine.run(warp).kind is StopKind.EXIT


def test_parked_lanes_stay_and_join_when_their_place_is_reached() -> None:
    bench, warp = simple("""
        mov.u32 %r1, %laneid;
        setp.eq.u32 %p0, %r1, 3;
        @%p0 bra HERE;
        add.u32 %r1, %r1, 1;
        HERE: nanosleep.u32 1;
        ret;""")
    ctx = warp.ctx
    assert bench.engine.run(warp) == (StopKind.HANDLER, 4, 0xFFFFFFFF)
    ctx.blocked = 0xFFFF0000  # as if parked
    for lane in range(16):
        ctx.lane_pc[lane] = 5
    assert bench.engine.run(warp).kind is StopKind.BLOCKED
    assert ctx.live == 0xFFFF0000
    ctx.blocked = 0x80000000
    assert bench.engine.run(warp) == (StopKind.HANDLER, 4, 0xFFFF0000)
    assert ctx.blocked == 0
