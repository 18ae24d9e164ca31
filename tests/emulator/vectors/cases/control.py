"""Branches: loops of different lengths, nests, switches, calls, exits."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.emulator.vectors.case import Case, Family, InOut, Input, Output
from tests.emulator.vectors.data import Array, Source
from tests.emulator.vectors.ptx import kernel

FAMILY = Family("control")
THREADS = 64
PROLOGUE = (
    "mov.u32 %r0, %tid.x;\nmad.wide.u32 %d1, %r0, 4, %in;\nld.global.u32 %r1, [%d1];\nmad.wide.u32 %d2, %r0, 4, %out;\n"
)


def flow(body: str, section: str, *, outside: str = "", data: Array | None = None, rows: int = 1) -> Case:
    """Return a case of two warps: %r1 is the thread's input, [%d2] its result."""
    values = Source(f"control/{section}").bits(THREADS, "uint32") if data is None else data
    args = (Input(data=values), InOut(data=np.full((rows, THREADS), 0xEEEEEEEE, "uint32")))
    text = kernel(PROLOGUE + body, (".u64 in", ".u64 out"), outside=outside)
    return Case(ptx=text, args=args, block=(THREADS, 1, 1), section=f"Control Flow Instructions: {section}")


@FAMILY.case("loop_lengths")
def loop_lengths() -> Case:
    """Each lane runs another number of rounds, some none."""
    body = """
        and.b32 %r2, %r1, 63;
        mov.u32 %r3, %r0;
        setp.eq.u32 %p1, %r2, 0;
        @%p1 bra end;
    top:
        mad.lo.u32 %r3, %r3, 1664525, 1013904223;
        sub.u32 %r2, %r2, 1;
        setp.ne.u32 %p2, %r2, 0;
        @%p2 bra top;
    end:
        st.global.u32 [%d2], %r3;
    """
    return flow(body, "bra (loops)")


@FAMILY.case("nested_loops")
def nested_loops() -> Case:
    """A loop in a loop, with a branch, a continue and a break inside."""
    body = """
        mov.u32 %r9, 0;
        and.b32 %r2, %r1, 7;
        mov.u32 %r3, 0;
    outer:
        setp.ge.u32 %p1, %r3, %r2;
        @%p1 bra done;
        bfe.u32 %r4, %r1, 3, 3;
        add.u32 %r4, %r4, %r3;
        mov.u32 %r5, 0;
    inner:
        setp.ge.u32 %p2, %r5, %r4;
        @%p2 bra next;
        mad.lo.u32 %r9, %r9, 31, %r5;
        xor.b32 %r6, %r5, %r0;
        and.b32 %r6, %r6, 3;
        setp.eq.u32 %p3, %r6, 1;
        @%p3 bra skip;
        add.u32 %r9, %r9, 1000;
        setp.gt.u32 %p4, %r9, 2000000000;
        @%p4 bra next;
    skip:
        add.u32 %r5, %r5, 1;
        bra inner;
    next:
        add.u32 %r3, %r3, 1;
        bra outer;
    done:
        st.global.u32 [%d2], %r9;
    """
    return flow(body, "bra (nested loops)")


@FAMILY.case("collatz")
def collatz() -> Case:
    """Steps until one: branches that depend on data in every round."""
    body = """
        and.b32 %r2, %r1, 0xffff;
        add.u32 %r2, %r2, 1;
        mov.u32 %r3, 0;
    top:
        setp.eq.u32 %p1, %r2, 1;
        @%p1 bra end;
        and.b32 %r4, %r2, 1;
        setp.eq.u32 %p2, %r4, 0;
        @%p2 bra even;
        mad.lo.u32 %r2, %r2, 3, 1;
        bra join;
    even:
        shr.u32 %r2, %r2, 1;
    join:
        add.u32 %r3, %r3, 1;
        bra top;
    end:
        st.global.u32 [%d2], %r3;
    """
    return flow(body, "bra (data)")


@FAMILY.case("switch")
def switch() -> Case:
    """brx.idx over eight targets, some shared, all lanes different."""
    body = """
        and.b32 %r2, %r1, 7;
        mov.u32 %r3, 1;
        targets: .branchtargets one, two, three, two, four, one, five, six;
        brx.idx %r2, targets;
    one:
        add.u32 %r3, %r3, 10;
        bra out_of;
    two:
        mul.lo.u32 %r3, %r0, 7;
    three:
        add.u32 %r3, %r3, 300;
        bra out_of;
    four:
        xor.b32 %r3, %r3, %r1;
        bra out_of;
    five:
        mov.u32 %r3, 5;
    six:
        shl.b32 %r3, %r3, 4;
    out_of:
        st.global.u32 [%d2], %r3;
    """
    return flow(body, "brx.idx")


@FAMILY.case("switch_uniform")
def switch_uniform() -> Case:
    """brx.idx.uni in a loop: a state machine that every lane walks alike."""
    body = """
        mov.u32 %r2, 0;
        mov.u32 %r3, %r0;
        mov.u32 %r4, 0;
        states: .branchtargets a, b, c, stop;
    next:
        brx.idx.uni %r2, states;
    a:
        add.u32 %r3, %r3, 3;
        mov.u32 %r2, 1;
        bra.uni next;
    b:
        mul.lo.u32 %r3, %r3, 5;
        add.u32 %r4, %r4, 1;
        setp.lt.u32 %p1, %r4, 4;
        selp.u32 %r2, 0, 2, %p1;
        bra.uni next;
    c:
        xor.b32 %r3, %r3, 0x55;
        mov.u32 %r2, 3;
        bra.uni next;
    stop:
        st.global.u32 [%d2], %r3;
    """
    return flow(body, "brx.idx.uni")


@FAMILY.case("early_exit")
def early_exit() -> Case:
    """Lanes leave by ret and exit at several places, the rest go on."""
    body = """
        st.global.u32 [%d2], 1;
        and.b32 %r2, %r1, 3;
        setp.eq.u32 %p1, %r2, 0;
        @%p1 ret;
        st.global.u32 [%d2], 2;
        setp.eq.u32 %p2, %r2, 1;
        @!%p2 bra on;
        st.global.u32 [%d2], 3;
        exit;
    on:
        add.u32 %r3, %r0, 100;
        st.global.u32 [%d2], %r3;
    """
    return flow(body, "ret, exit")


@FAMILY.case("guards")
def guards() -> Case:
    """Guarded instructions of every kind: arithmetic, predicates, loads, stores, branches."""
    body = """
        setp.lt.s32 %p1, %r1, 0;
        setp.gt.u32 %p2, %r0, 20;
        mov.u32 %r3, 7;
        @%p1 add.u32 %r3, %r3, %r0;
        @!%p1 mul.lo.u32 %r3, %r3, 3;
        @%p2 setp.eq.u32 %p1, %r3, %r0;
        @!%p2 ld.global.u32 %r3, [%d1];
        @%p1 xor.b32 %r3, %r3, -1;
        st.global.u32 [%d2], %r3;
        @%p2 st.global.u32 [%d2], %r0;
        @%p1 bra away;
        red.global.add.u32 [%d2], 5;
    away:
        @!%p2 red.global.xor.b32 [%d2], 0xF0;
    """
    return flow(body, "predicated execution")


@FAMILY.case("calls")
def calls() -> Case:
    """Functions with parameters and results, calls of calls, calls in divergent code and in loops."""
    outside = """
.func (.reg .u32 r) twice(.reg .u32 x)
{
    add.u32 r, x, x;
    ret;
}
.func (.param .u32 r) mix(.param .u32 x, .param .b64 y)
{
    .reg .u32 %a<4>;
    .reg .u64 %y;
    .reg .pred %p;
    ld.param.u32 %a0, [x];
    ld.param.b64 %y, [y];
    cvt.u32.u64 %a1, %y;
    setp.gt.u32 %p, %a0, 1000;
    @%p bra big;
    call (%a2), twice, (%a0);
    add.u32 %a2, %a2, %a1;
    st.param.u32 [r], %a2;
    ret;
big:
    sub.u32 %a2, %a0, %a1;
    st.param.u32 [r], %a2;
    ret;
}
"""
    body = """
        mov.u32 %r2, 0;
        and.b32 %r3, %r1, 0xfff;
    again:
        cvt.u64.u32 %d3, %r0;
        {
            .param .u32 first;
            .param .b64 second;
            .param .u32 result;
            st.param.u32 [first], %r3;
            st.param.b64 [second], %d3;
            call (result), mix, (first, second);
            ld.param.u32 %r3, [result];
        }
        and.b32 %r4, %r3, 1;
        setp.eq.u32 %p1, %r4, 0;
        @%p1 bra over;
        call (%r3), twice, (%r3);
        add.u32 %r3, %r3, 1;
    over:
        add.u32 %r2, %r2, 1;
        setp.lt.u32 %p2, %r2, 5;
        @%p2 bra again;
        st.global.u32 [%d2], %r3;
    """
    return flow(body, "call, ret", outside=outside)


@FAMILY.case("reconvergence")
def reconvergence() -> Case:
    """Branches that meet at bar.warp.sync, reached at two places, and exchange there through shared memory."""
    body = """
        .shared .align 4 .b8 cells[256];
        mov.u32 %r2, cells;
        mad.lo.u32 %r3, %r0, 4, %r2;
        and.b32 %r4, %r0, 1;
        setp.eq.u32 %p1, %r4, 0;
        @%p1 bra even;
        st.shared.u32 [%r3], %r1;
        bar.warp.sync 0xffffffff;
        ld.shared.u32 %r5, [%r3+-4];
        bra join;
    even:
        not.b32 %r6, %r1;
        st.shared.u32 [%r3], %r6;
        bar.warp.sync 0xffffffff;
        ld.shared.u32 %r5, [%r3+4];
    join:
        st.global.u32 [%d2], %r5;
    """
    return flow(body, "bar.warp.sync")


@FAMILY.case("spin_in_warp")
def spin_in_warp() -> Case:
    """Lane 0 waits for what lane 31 of the same warp writes: both must make progress."""
    body = """
        .shared .align 4 .u32 flag;
        setp.eq.u32 %p1, %r0, 0;
        @%p1 st.shared.u32 [flag], 0;
        bar.sync 0;
        setp.eq.u32 %p2, %r0, 31;
        @%p2 bra writer;
        @!%p1 bra join;
    spin:
        ld.volatile.shared.u32 %r3, [flag];
        setp.eq.u32 %p3, %r3, 0;
        @%p3 bra spin;
        mov.u32 %r1, %r3;
        bra join;
    writer:
        st.volatile.shared.u32 [flag], 4242;
    join:
        st.global.u32 [%d2], %r1;
    """
    return flow(body, "bra (independent thread scheduling)")


def tree(depth: int) -> Case:
    """A binary tree of branches: every lane takes its own path, and the paths meet level by level."""
    lines = ["mov.u32 %r3, 1;"]

    def emit(level: int, path: str) -> None:
        if level == depth:
            lines.append(f"mad.lo.u32 %r3, %r3, 33, {int(path, 2) + 1};")
            return
        lines.append(f"bfe.u32 %r4, %r1, {level * 3}, 1;\nsetp.ne.u32 %p1, %r4, 0;\n@%p1 bra R{path};")
        emit(level + 1, path + "0")
        lines.append(f"bra J{path};\nR{path}:")
        emit(level + 1, path + "1")
        lines.append(f"J{path}:\nadd.u32 %r3, %r3, {level};")

    emit(0, "1")
    lines.append("st.global.u32 [%d2], %r3;")
    return flow("\n".join(lines), f"bra (tree of depth {depth})")


for _depth in (2, 5):
    FAMILY.add(f"tree_{_depth}", partial(tree, _depth))


@FAMILY.case("clocks")
def clocks() -> Case:
    """Clocks and timers do not go backwards, and advance across a pause."""
    body = """
        mov.u64 %d3, %clock64;
        mov.u64 %d4, %globaltimer;
        mov.u32 %r2, %clock;
        nanosleep.u32 5000;
        mov.u64 %d5, %clock64;
        mov.u64 %d6, %globaltimer;
        setp.gt.u64 %p1, %d5, %d3;
        setp.ge.u64 %p2, %d6, %d4;
        selp.u32 %r3, 1, 0, %p1;
        @%p2 or.b32 %r3, %r3, 2;
        st.global.u32 [%d2], %r3;
    """
    return flow(body, "%clock64, %globaltimer, nanosleep")


@FAMILY.case("register_budget")
def register_budget() -> Case:
    """setmaxnreg up and down in two warpgroups, and launch control without a dependent launch."""
    body = """
        griddepcontrol.wait;
        mov.u32 %r0, %tid.x;
        shr.u32 %r1, %r0, 7;
        setp.eq.u32 %p1, %r1, 0;
        @%p1 bra producers;
        setmaxnreg.inc.sync.aligned.u32 200;
        mad.lo.u32 %r2, %r0, 3, 1;
        bra join;
    producers:
        setmaxnreg.dec.sync.aligned.u32 40;
        mad.lo.u32 %r2, %r0, 5, 2;
    join:
        griddepcontrol.launch_dependents;
        mad.wide.u32 %d1, %r0, 4, %out;
        st.global.u32 [%d1], %r2;
    """
    text = kernel(body, (".u64 out",), directives=".maxntid 256, 1, 1\n.minnctapersm 1\n")
    args = (Output(shape=(256,), dtype="uint32"),)
    return Case(ptx=text, args=args, block=(256, 1, 1), section="setmaxnreg; griddepcontrol")
