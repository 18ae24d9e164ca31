"""CTA barriers: counts, arrivals without waiting, reductions."""

from __future__ import annotations

import numpy as np

from tests.emulator.vectors.case import Case, Family, InOut, Input, Output
from tests.emulator.vectors.data import Source
from tests.emulator.vectors.ptx import kernel

FAMILY = Family("barriers")
SECTION = "Parallel Synchronization and Communication Instructions: bar, barrier"
PROLOGUE = (
    "mov.u32 %r0, %tid.x;\nmad.wide.u32 %d1, %r0, 4, %in;\nld.global.u32 %r1, [%d1];\n"
    "mad.wide.u32 %d2, %r0, 4, %out;\nmov.u32 %r2, cells;\nmad.lo.u32 %r3, %r0, 4, %r2;\n"
)


def block(body: str, threads: int, rows: int = 1) -> Case:
    """Return a case: %r1 is the thread's input, %r3 its cell of shared memory, [%d2] its result."""
    args = (
        Input(data=Source(f"barriers/{threads}{body[:200]}").bits(threads, "uint32")),
        InOut(data=np.zeros((rows, threads), "uint32")),
    )
    outside = f".shared .align 16 .b8 cells[{threads * 4}];\n"
    return Case(
        ptx=kernel(PROLOGUE + body, (".u64 in", ".u64 out"), outside=outside),
        args=args,
        block=(threads, 1, 1),
        section=SECTION,
    )


@FAMILY.case("transpose")
def transpose() -> Case:
    """Sixteen rounds of shared memory exchange, each between two barriers."""
    body = """
        mov.u32 %r4, 0;
    top:
        st.shared.u32 [%r3], %r1;
        bar.sync 0;
        mad.lo.u32 %r5, %r0, 37, %r4;
        and.b32 %r5, %r5, 255;
        mad.lo.u32 %r5, %r5, 4, %r2;
        ld.shared.u32 %r6, [%r5];
        mad.lo.u32 %r1, %r1, 3, %r6;
        barrier.cta.sync 0;
        add.u32 %r4, %r4, 1;
        setp.lt.u32 %p1, %r4, 16;
        @%p1 bra top;
        st.global.u32 [%d2], %r1;
    """
    return block(body, 256)


@FAMILY.case("named")
def named() -> Case:
    """Two halves of the block synchronise by themselves, with counts, on barriers from a register."""
    body = """
        shr.u32 %r4, %r0, 7;
        add.u32 %r5, %r4, 3;
        st.shared.u32 [%r3], %r1;
        bar.sync %r5, 128;
        xor.b32 %r6, %r0, 127;
        mad.lo.u32 %r6, %r6, 4, %r2;
        ld.shared.u32 %r7, [%r6];
        barrier.sync %r5, 128;
        st.shared.u32 [%r3], %r7;
        barrier.sync.aligned 15;
        xor.b32 %r6, %r0, 255;
        mad.lo.u32 %r6, %r6, 4, %r2;
        ld.shared.u32 %r8, [%r6];
        st.global.u32 [%d2], %r8;
    """
    return block(body, 256)


@FAMILY.case("producer_consumer")
def producer_consumer() -> Case:
    """One warp arrives and goes on, three wait: a ring of four rounds with a full and an empty barrier."""
    body = """
        mov.u32 %r4, 0;
        mov.u32 %r9, 0;
        setp.lt.u32 %p1, %r0, 32;
        @!%p1 bra consumers;
    produce:
        bar.sync 2, 128;
        mad.lo.u32 %r5, %r4, 1000, %r1;
        st.shared.u32 [%r3], %r5;
        bar.arrive 1, 128;
        add.u32 %r4, %r4, 1;
        setp.lt.u32 %p2, %r4, 4;
        @%p2 bra produce;
        bra end;
    consumers:
        barrier.cta.arrive 2, 128;
        bar.sync 1, 128;
        and.b32 %r6, %r0, 31;
        mad.lo.u32 %r6, %r6, 4, %r2;
        ld.shared.u32 %r7, [%r6];
        mad.lo.u32 %r9, %r9, 5, %r7;
        add.u32 %r4, %r4, 1;
        setp.lt.u32 %p2, %r4, 4;
        @%p2 bra consumers;
    end:
        st.global.u32 [%d2], %r9;
    """
    return block(body, 128)


@FAMILY.case("reductions")
def reductions() -> Case:
    """bar.red: and, or, popc over the block, over a part, negated."""
    body = """
        and.b32 %r4, %r1, 1;
        setp.ne.u32 %p1, %r4, 0;
        bar.red.popc.u32 %r5, 0, %p1;
        bar.red.popc.u32 %r6, 0, !%p1;
        bar.red.and.pred %p2, 1, %p1;
        bar.red.or.pred %p3, 1, %p1;
        setp.ge.u32 %p4, %r0, 0;
        barrier.cta.red.and.aligned.pred %p5, 2, %p4;
        barrier.cta.red.or.pred %p6, 3, !%p4;
        shr.u32 %r7, %r0, 6;
        add.u32 %r7, %r7, 8;
        barrier.cta.red.popc.aligned.u32 %r8, %r7, 64, %p1;
        selp.u32 %r9, 1, 0, %p2;
        @%p3 or.b32 %r9, %r9, 2;
        @%p5 or.b32 %r9, %r9, 4;
        @%p6 or.b32 %r9, %r9, 8;
        st.global.u32 [%d2], %r5;
        st.global.u32 [%d2+512], %r6;
        st.global.u32 [%d2+1024], %r8;
        st.global.u32 [%d2+1536], %r9;
    """
    return block(body, 128, rows=4)


@FAMILY.case("divergent")
def divergent() -> Case:
    """barrier.sync without .aligned from two branches of one warp."""
    body = """
        st.shared.u32 [%r3], %r1;
        and.b32 %r4, %r0, 1;
        setp.eq.u32 %p1, %r4, 0;
        @%p1 bra even;
        barrier.sync 1;
        ld.shared.u32 %r5, [%r3+-4];
        bra join;
    even:
        barrier.sync 1;
        ld.shared.u32 %r5, [%r3+4];
        add.u32 %r5, %r5, 1;
    join:
        st.global.u32 [%d2], %r5;
    """
    return block(body, 64)


@FAMILY.case("exited_warps")
def exited_warps() -> Case:
    """Warps that have exited are not waited for."""
    body = """
        setp.ge.u32 %p1, %r0, 96;
        @%p1 exit;
        st.shared.u32 [%r3], %r1;
        bar.sync 0, 96;
        sub.u32 %r4, 95, %r0;
        mad.lo.u32 %r4, %r4, 4, %r2;
        ld.shared.u32 %r5, [%r4];
        st.global.u32 [%d2], %r5;
    """
    return block(body, 128)


@FAMILY.case("grid_counter")
def grid_counter() -> Case:
    """Eight CTAs meet at a counter in global memory: release by one thread, acquire by a polling one."""
    body = """
        mov.u32 %r0, %tid.x;
        mov.u32 %r1, %ctaid.x;
        mad.lo.u32 %r2, %r1, 64, %r0;
        mad.wide.u32 %d1, %r2, 4, %cells;
        mad.lo.u32 %r3, %r2, 3, 11;
        st.global.u32 [%d1], %r3;
        bar.sync 0;
        setp.ne.u32 %p1, %r0, 0;
        @%p1 bra met;
        red.release.gpu.global.add.u32 [%count], 1;
    poll:
        ld.acquire.gpu.global.u32 %r4, [%count];
        setp.lt.u32 %p2, %r4, 8;
        @%p2 bra poll;
    met:
        bar.sync 0;
        xor.b32 %r5, %r2, 0x1c3;
        mad.wide.u32 %d2, %r5, 4, %cells;
        ld.global.u32 %r6, [%d2];
        mad.wide.u32 %d3, %r2, 4, %out;
        st.global.u32 [%d3], %r6;
    """
    args = (
        Output(shape=(512,), dtype="uint32"),
        InOut(data=np.zeros(1, "uint32")),
        Output(shape=(512,), dtype="uint32"),
    )
    return Case(
        ptx=kernel(body, (".u64 cells", ".u64 count", ".u64 out")),
        args=args,
        grid=(8, 1, 1),
        block=(64, 1, 1),
        section="red.release, ld.acquire",
    )
