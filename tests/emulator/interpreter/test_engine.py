"""The numpy engine stops where the native one stops, for the same lanes, having left the same registers and memory."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from megamoe_jit.emulator.interpreter.engine import NumpyEngine
from megamoe_jit.emulator.machine.engine import StopKind
from megamoe_jit.emulator.machine.state import Warp
from megamoe_jit.emulator.memory.spaces import LOCAL_WINDOW, SHARED_WINDOW
from megamoe_jit.emulator.native.context import FaultKind
from megamoe_jit.errors import UnsupportedError
from tests.emulator.native.harness import ENGINE, SHARED_BASE, Bench, fault, kernel_text
from tests.emulator.native.programs import random_program
from tests.emulator.native.test_control import ROW, lanes_program

Array = NDArray[Any]
ENGINES = (ENGINE, NumpyEngine())
MAX_STOPS = 4000


def state(warp: Warp) -> tuple[Any, ...]:
    """What an engine shows of a warp between two runs."""
    ctx = warp.ctx
    pcs = [pc for lane, pc in enumerate(ctx.lane_pc) if ctx.live >> lane & 1]
    return ctx.live, ctx.blocked, ctx.waiting, ctx.arrived, ctx.tired, tuple(pcs), ctx.fuel, ctx.executed, fault(warp)


def trace(
    text: str, engine: Any, memory: Array, *, fuel: int = 1 << 40, block: int = 32, cluster: int = 1
) -> tuple[list[Any], Bench]:
    """Run a kernel whose parameter is the address of `memory`; return all stops with the states there."""
    bench = Bench(
        text, params=struct.pack("<Q", memory.ctypes.data), engine=engine, block=block, cluster=cluster,
        dynamic_shared=256,
    )  # fmt: skip
    bench.allocations.add(memory.ctypes.data, memory.nbytes)
    warp = bench.warp(fuel=fuel)
    stops: list[Any] = []
    while len(stops) < MAX_STOPS:
        stop = bench.run(warp)
        stops.append((stop.kind, stop.mask if stop.kind is StopKind.YIELD else 0, state(warp)))
        if stop.kind is StopKind.YIELD:
            warp.ctx.fuel = fuel
        elif stop.kind is StopKind.FAULT:
            warp.ctx.clear_fault()
        else:
            break
    stops.append(bench.program.instruction_counts())
    return stops, bench


def agree(text: str, memory: Array, **options: Any) -> tuple[list[Any], Array]:
    """Run on both engines; return the stops and the memory that they agree on."""
    seen = []
    for engine in ENGINES:
        copy = memory.copy()
        stops, bench = trace(text, engine, copy, **options)
        shared = bench.cluster.ctas[0].smem[SHARED_BASE:].copy()
        bases = [int(copy.ctypes.data), int(copy.ctypes.data) + (1 << 32), int(bench.params.ctypes.data)]
        moved = [(kind, mask, (*rest[:-1], _relative(rest[-1], bases))) for kind, mask, rest in stops[:-1]]
        seen.append((moved, stops[-1], copy, shared))
    (a, counts_a, memory_a, shared_a), (b, counts_b, memory_b, shared_b) = seen
    assert a == b
    assert counts_a == counts_b
    np.testing.assert_array_equal(memory_a, memory_b)
    np.testing.assert_array_equal(shared_a, shared_b)
    return a, memory_a


def _relative(found: tuple[int, ...], bases: list[int]) -> tuple[int, ...]:
    """Make the address of a fault one that does not depend on where buffers were."""
    kind, pc, lane, address, size = found
    near = [address - base for base in bases if abs(address - base) < 1 << 12]
    return kind, pc, lane, near[0] if near else address, size


@pytest.mark.parametrize("seed", range(12))
def test_random_programs(seed: int) -> None:
    rng = random.Random(1000 + seed)
    program = random_program(rng, num_blocks=rng.randrange(2, 9), length=rng.choice([3, 8, 20]))
    rows = np.random.default_rng(seed).integers(0, 2**32, (32, ROW), np.uint32)
    if seed % 2:
        rows[1:] = rows[0]
        rows[rng.randrange(32), 0] ^= 1
    agree(lanes_program(program), rows, fuel=rng.choice([7, 60, 1 << 40]), block=rng.choice([32, 17, 1]))


def kernel(body: str, declarations: str = "") -> str:
    """Return a kernel with the memory's address in %rd0 and the lane in %r0."""
    registers = ".reg .b32 %r<16>; .reg .b64 %rd<8>; .reg .pred %p<6>; .reg .b16 %h<9>; .reg .b128 %q<3>;"
    return kernel_text(
        f"ld.param.u64 %rd0, [memory]; mov.u32 %r0, %laneid; mad.wide.u32 %rd1, %r0, 64, %rd0;\n{body}",
        ".param .u64 memory",
        f"{registers} .local .align 16 .b8 frame[64]; .shared .align 16 .b8 tile[2048]; {declarations}",
    )


KERNELS = {
    "vectors and widths": """
        ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1]; st.global.v2.b32 [%rd1+16], {%r4, %r1};
        ld.global.v2.b64 {%rd2, %rd3}, [%rd1+16]; st.global.v2.u64 [%rd1+32], {%rd3, %rd2};
        ld.global.s8 %r5, [%rd1+3]; st.global.u32 [%rd1+48], %r5; ld.global.u16 %r6, [%rd1+6];
        st.global.b8 [%rd1+52], %r6; ld.global.b128 %q1, [%rd1+16]; st.global.b128 [%rd1], %q1;
        ld.global.v4.s16 {%r7, %h1, _, %h2}, [%rd1+8]; st.global.v2.b16 [%rd1+56], {%h1, %h2};
        st.global.b32 [%rd1+60], %r7; ret;""",
    "shared, local and generic": """
        mov.u32 %r1, tile; mad.lo.u32 %r2, %r0, 16, %r1; ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd1];
        st.shared.v4.u32 [%r2], {%r6, %r5, %r4, %r3}; xor.b32 %r7, %r0, 5; mad.lo.u32 %r7, %r7, 16, %r1;
        ld.shared.v2.u32 {%r8, %r9}, [%r7+8]; cvt.u64.u32 %rd2, %r7; cvta.shared.u64 %rd2, %rd2;
        ld.u32 %r10, [%rd2]; st.local.v2.u32 [frame+8], {%r8, %r10}; mov.u64 %rd3, frame; cvta.local.u64 %rd3, %rd3;
        ld.u64 %rd4, [%rd3+8]; st.global.u64 [%rd1+32], %rd4; ld.local.u8 %r11, [frame+9];
        st.global.u32 [%rd1+40], %r11;
        isspacep.shared %p1, %rd2; selp.u32 %r12, 1, 0, %p1; st.global.u32 [%rd1+44], %r12; ret;""",
    "guards": """
        and.b32 %r1, %r0, 1; setp.eq.u32 %p1, %r1, 0; mov.u32 %r2, 7; @%p1 mov.u32 %r2, 9;
        @!%p1 ld.global.u32 %r2, [%rd1];
        @%p1 st.global.u32 [%rd1+4], %r2; @!%p1 st.global.u32 [%rd1+8], %r2; @%p1 ret;
        st.global.u32 [%rd1+12], %r0; ret;""",
    "carries": """
        ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1]; add.cc.u32 %r5, %r1, %r2; setp.lt.u32 %p1, %r0, 9;
        @%p1 add.cc.u32 %r6, %r3, 0xffffffff; addc.cc.u32 %r7, %r3, %r4; subc.u32 %r8, %r1, %r4;
        st.global.v4.u32 [%rd1+16], {%r5, %r6, %r7, %r8}; ret;""",
    "shuffles from other places": """
        setp.lt.u32 %p1, %r0, 16; @%p1 bra LOW; add.u32 %r1, %r0, 100;
        shfl.sync.bfly.b32 %r2|%p2, %r1, 1, 31, 0xffff0000; bra OUT; LOW: mov.u32 %r3, 0;
        AGAIN: add.u32 %r3, %r3, 1; setp.lt.u32 %p3, %r3, %r0; @%p3 bra AGAIN;
        shfl.sync.up.b32 %r2|%p2, %r3, 1, 0, 0xffff; OUT: vote.sync.ballot.b32 %r4, %p2, -1; activemask.b32 %r5;
        st.global.v2.u32 [%rd1], {%r2, %r4}; st.global.u32 [%rd1+8], %r5; ret;""",
    "barriers of some lanes": """
        and.b32 %r1, %r0, 3; shl.b32 %r2, 0x11111111, %r1; setp.eq.u32 %p1, %r1, 2; mov.u32 %r3, 0; @%p1 bra SLOW;
        bra MEET; SLOW: add.u32 %r3, %r3, 1; setp.lt.u32 %p2, %r3, 40; @%p2 bra SLOW; bar.warp.sync %r2; bra OUT;
        MEET: bar.warp.sync %r2; OUT: bar.warp.sync -1; st.global.v2.u32 [%rd1], {%r3, %r2}; ret;""",
    "branch tables": """
        T: .branchtargets A, B, C; rem.u32 %r1, %r0, 3; @%p0 bra A; brx.idx %r1, T; A: mov.u32 %r2, 10; bra OUT;
        B: mov.u32 %r2, 20; bra OUT; C: mov.u32 %r2, 30; OUT: st.global.u32 [%rd1], %r2; ret;""",
    "clocks": """
        mov.u32 %r1, %clock; mov.u64 %rd2, %clock64; setp.lt.u32 %p1, %r0, 3; @%p1 bra ON; add.u32 %r2, %r1, 1;
        ON: mov.u64 %rd3, %globaltimer; mov.u32 %r3, %globaltimer_lo; st.global.v2.u64 [%rd1], {%rd2, %rd3};
        st.global.v2.u32 [%rd1+16], {%r1, %r3}; ret;""",
    "elected lanes": """
        elect.sync %r1|%p1, -1; mov.u32 %r2, 1; @%p1 mov.u32 %r2, 2; @!%p1 bra OUT; elect.sync _|%p2, 1;
        @%p2 st.global.u32 [%rd1+4], %r1; OUT: st.global.u32 [%rd1], %r2; ret;""",
}  # fmt: skip


@pytest.mark.parametrize("fuel", [1 << 40, 3])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name: str, fuel: int) -> None:
    memory = np.frombuffer(np.random.default_rng(4).bytes(32 * 64), np.uint8).copy()
    stops, after = agree(kernel(KERNELS[name]), memory, fuel=fuel)
    assert stops[-1][0] is StopKind.EXIT
    assert (after != memory).any()


ACCESSES = {
    "unmapped": ("ld.global.u32 %r2, [%rd1+0x100000000];", FaultKind.UNMAPPED),
    "past the end": ("mov.u64 %rd2, 2040; add.u64 %rd2, %rd2, %rd0; ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd2+8];",
                     FaultKind.UNMAPPED),
    "over the end": ("ld.global.v2.u64 {%rd3, %rd4}, [%rd0+2048];", FaultKind.UNMAPPED),
    "misaligned": ("add.u64 %rd2, %rd1, 2; st.global.u32 [%rd2], %r0;", FaultKind.MISALIGNED),
    "misaligned vector": ("ld.global.v2.u32 {%r1, %r2}, [%rd1+4];", FaultKind.MISALIGNED),
    "read only": ("ld.param.u64 %rd2, [memory]; mov.u64 %rd3, memory; st.global.u32 [%rd3], %r0;", FaultKind.READ_ONLY),
    "shared end": ("mov.u32 %r1, 0x7fffff; st.shared.u8 [%r1], %r0;", FaultKind.SHARED_BOUNDS),
    "reserved shared": ("mov.u32 %r1, 512; ld.shared.u32 %r2, [%r1];", FaultKind.SHARED_BOUNDS),
    "shared rank": (f"mov.u32 %r1, {(5 << 24) | 2048}; ld.shared::cluster.u32 %r2, [%r1];", FaultKind.SHARED_RANK),
    "generic shared": (f"mov.u64 %rd2, {SHARED_WINDOW + 4}; ld.u32 %r2, [%rd2];", FaultKind.SHARED_BOUNDS),
    "generic window": (f"mov.u64 %rd2, {SHARED_WINDOW + (1 << 40)}; ld.u32 %r2, [%rd2];", FaultKind.SHARED_BOUNDS),
    "local frame": ("mov.u32 %r1, 64; ld.local.u32 %r2, [%r1];", FaultKind.LOCAL_BOUNDS),
    "generic local": (f"mov.u64 %rd2, {LOCAL_WINDOW + 62}; ld.u32 %r2, [%rd2];", FaultKind.LOCAL_BOUNDS),
    "local misaligned": ("mov.u32 %r1, 6; ld.local.u32 %r2, [%r1];", FaultKind.MISALIGNED),
    "param": ("ld.param.u64 %rd2, [memory+8];", FaultKind.PARAM_BOUNDS),
    "members": ("setp.lt.u32 %p1, %r0, 4; shfl.sync.idx.b32 %r1, %r0, 0, 31, 0xf0;", FaultKind.MEMBER_MASK),
    "table": ("T: .branchtargets A; brx.idx %r0, T; A: mov.u32 %r1, 1;", FaultKind.BRANCH_INDEX),
    "uniform": ("setp.lt.u32 %p1, %r0, 4; @%p1 bra.uni A; mov.u32 %r1, 1; A: mov.u32 %r2, 1;",
                FaultKind.DIVERGENT_UNIFORM),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCESSES)
def test_faults(name: str) -> None:
    """The same fault of the same lane; loads give zeros, other lanes go on."""
    body, kind = ACCESSES[name]
    memory = np.frombuffer(np.random.default_rng(5).bytes(32 * 64), np.uint8).copy()
    rest = "st.global.v4.u32 [%rd1+16], {%r1, %r2, %r3, %r4}; ret;"
    stops, _ = agree(kernel(f"mov.u32 %r1, 0; mov.u32 %r2, 0; mov.u32 %r3, 3; mov.u32 %r4, 4; {body} {rest}"), memory)
    assert stops[0][0] is StopKind.FAULT
    assert stops[0][2][-1][0] == kind


def test_a_cluster_sees_its_neighbours_memory() -> None:
    memory = np.arange(32 * 64, dtype=np.uint8)
    body = """mov.u32 %r1, tile; mad.lo.u32 %r1, %r0, 8, %r1; mapa.shared::cluster.u32 %r2, %r1, 1;
              st.shared::cluster.u32 [%r2], %r0; ld.shared::cluster.u32 %r3, [%r2];
              getctarank.shared::cluster.u32 %r4, %r2; st.shared.u32 [%r1+4], %r4;
              st.global.v2.u32 [%rd1], {%r3, %r4}; ret;"""
    _, after = agree(kernel(body), memory, cluster=2)
    assert after.view(np.uint32).reshape(32, 16)[:, :2].tolist() == [[lane, 1] for lane in range(32)]


def test_what_cannot_be_decoded_is_listed_whole() -> None:
    body = "mov.b32 %r1, {%h1, %h2, %h3}; add.u32 %r1, %r2; ld.global.v4.u32 {%r1, %r2}, [%rd1]; ret;"
    for engine in ENGINES:
        with pytest.raises(UnsupportedError) as found:
            Bench(kernel(body), params=bytes(8), engine=engine)
        text = str(found.value)
        assert "3 instructions" in text
        for part in ("mov.b32 cannot take its value apart into 3", "add.u32 has 1 sources", "4 registers are needed"):
            assert part in text
