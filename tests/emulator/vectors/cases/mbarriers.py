"""mbarrier objects: phases, counts, transactions, waits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from tests.emulator.vectors.case import Case, Family, InOut, Input, Output
from tests.emulator.vectors.data import Source
from tests.emulator.vectors.ptx import kernel, wait

FAMILY = Family("mbarriers")
SECTION = "Parallel Synchronization and Communication Instructions: mbarrier"
BAR = ".shared .align 8 .b64 bar;\n"


def script(steps: Sequence[str], *, count: int = 1, version: str = "8.0") -> Case:
    """Return a case of one thread that runs steps and after each asks for both parities.

    A step "x -> %r5" also stores %r5.
    """
    lines = ["mov.u32 %r1, bar;", f"mbarrier.init.shared::cta.b64 [bar], {count};", "mov.u32 %r9, 0;"]
    labels = []
    for step in ["", *steps]:
        text, _, result = step.partition(" -> ")
        lines += [text] if text else []
        lines += ["mov.u32 %r4, 0;"]
        for parity in (0, 1):
            lines += [
                f"mbarrier.test_wait.parity.shared::cta.b64 %p1, [bar], {parity};",
                f"@%p1 or.b32 %r4, %r4, {1 << parity};",
            ]
        if result:
            lines += [f"shl.b32 %r6, {result}, 8;", "or.b32 %r4, %r4, %r6;"]
        lines.append(f"st.global.u32 [%out+{4 * len(labels)}], %r4;")
        labels.append(step or "init")
    args = (Output(shape=(len(labels),), dtype="uint32", labels=tuple(labels)),)
    return Case(
        ptx=kernel("\n".join(lines), (".u64 out",), outside=BAR, version=version),
        args=args,
        block=(1, 1, 1),
        section=SECTION,
    )


ARRIVE = "mbarrier.arrive.shared::cta.b64 %d1, [bar];"
SELECT = "selp.u32 %r5, 1, 0, %p2;"


@FAMILY.case("phases")
def phases() -> Case:
    """Arrivals one by one, in bunches, and the parity that flips."""
    bunch = "mbarrier.arrive.shared::cta.b64 %d1, [bar], {};"
    return script(
        [ARRIVE, ARRIVE, bunch.format(2), bunch.format(3), ARRIVE, bunch.format(4), ARRIVE, bunch.format(3)], count=4
    )


@FAMILY.case("pending")
def pending() -> Case:
    """pending_count of the state that each arrival returns, and waits for that state."""
    count = " mbarrier.pending_count.b64 %r5, %d1;"
    tests = [f"mbarrier.test_wait.shared::cta.b64 %p2, [bar], %d1;\n{SELECT} -> %r5"]
    steps = (
        [f"{ARRIVE}{count} -> %r5"] * 3
        + tests
        + [f"{ARRIVE}{count} -> %r5"]
        + tests
        + [f"{ARRIVE}{count} -> %r5"]
        + tests
    )
    return script(steps, count=3)


@FAMILY.case("no_complete")
def no_complete() -> Case:
    """arrive.noComplete counts without ending the phase; arrive_drop lowers the count of later phases."""
    drop = "mbarrier.arrive_drop.shared::cta.b64 %d1, [bar];"
    some = "mbarrier.arrive.noComplete.shared::cta.b64 %d1, [bar], 2;"
    return script([some, ARRIVE, drop, ARRIVE, ARRIVE, ARRIVE, drop, ARRIVE, ARRIVE, ARRIVE, ARRIVE], count=4)


@FAMILY.case("transactions")
def transactions() -> Case:
    """Expected bytes hold the phase open; they may also be delivered before they are expected."""
    expect = "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [bar], {};"
    complete = "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], {};"
    both = "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 %d1, [bar], {};"
    steps = [expect.format(64), ARRIVE, ARRIVE, complete.format(48), complete.format(16)]
    steps += [both.format(32), both.format(100), complete.format(132)]
    steps += [complete.format(8), ARRIVE, expect.format(8), ARRIVE, ARRIVE, ARRIVE]
    return script(steps, count=2)


@FAMILY.case("try_wait")
def try_wait() -> Case:
    """try_wait by state and by parity, with time hints and memory semantics, of phases that are over."""
    steps = [
        f"mbarrier.try_wait.parity.shared::cta.b64 %p2, [bar], 1;\n{SELECT} -> %r5",
        f"mbarrier.try_wait.parity.shared::cta.b64 %p2, [bar], 0, 100;\n{SELECT} -> %r5",
        ARRIVE,
        f"mbarrier.try_wait.shared::cta.b64 %p2, [bar], %d1;\n{SELECT} -> %r5",
        f"mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p2, [bar], 0, 1000;\n{SELECT} -> %r5",
        f"mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [bar], 0;\n{SELECT} -> %r5",
        f"mbarrier.test_wait.parity.acquire.cta.shared::cta.b64 %p2, [bar], 0;\n{SELECT} -> %r5",
        f"mbarrier.try_wait.acquire.cluster.shared::cta.b64 %p2, [bar], %d1, 50;\n{SELECT} -> %r5",
    ]
    return script(steps)


@FAMILY.case("inval")
def inval() -> Case:
    """A barrier that is invalidated and initialised anew starts in phase 0."""
    again = "mbarrier.inval.shared::cta.b64 [bar];\nmbarrier.init.shared::cta.b64 [bar], 2;"
    return script([ARRIVE, again, ARRIVE, ARRIVE])


@FAMILY.case("generic_address")
def generic_address() -> Case:
    """The same through generic addresses."""
    body = """
        mov.u32 %r1, bar;
        cvt.u64.u32 %d1, %r1;
        cvta.shared.u64 %d1, %d1;
        mbarrier.init.b64 [%d1], 2;
        mbarrier.arrive.b64 %d2, [%d1];
        mbarrier.test_wait.b64 %p1, [%d1], %d2;
        mbarrier.arrive.b64 %d3, [%d1];
        mbarrier.test_wait.b64 %p2, [%d1], %d2;
        mbarrier.test_wait.parity.b64 %p3, [%d1], 0;
        selp.u32 %r2, 1, 0, %p1;
        @%p2 or.b32 %r2, %r2, 2;
        @%p3 or.b32 %r2, %r2, 4;
        st.global.u32 [%out], %r2;
    """
    return Case(
        ptx=kernel(body, (".u64 out",), outside=BAR),
        args=(Output(shape=(1,), dtype="uint32"),),
        block=(1, 1, 1),
        section=SECTION,
    )


def pipeline(stages: int, rounds: int) -> Case:
    """One warp fills a ring of stages, three consume it: full and empty barriers, phases that wrap."""
    outside = (
        f".shared .align 8 .b64 full[{stages}];\n.shared .align 8 .b64 empty[{stages}];\n"
        f".shared .align 16 .b8 ring[{stages * 128}];\n"
    )
    body = f"""
        mov.u32 %r0, %tid.x;
        mov.u32 %r20, full;
        mov.u32 %r21, empty;
        mov.u32 %r22, ring;
        setp.ge.u32 %p1, %r0, {stages};
        @%p1 bra ready;
        mad.lo.u32 %r1, %r0, 8, %r20;
        mbarrier.init.shared::cta.b64 [%r1], 32;
        mad.lo.u32 %r1, %r0, 8, %r21;
        mbarrier.init.shared::cta.b64 [%r1], 96;
        fence.mbarrier_init.release.cluster;
    ready:
        bar.sync 0;
        and.b32 %r2, %r0, 31;
        mov.u32 %r3, 0;
        mov.u32 %r4, 0;
        mov.u32 %r5, 0;
        mov.u32 %r9, 0;
        setp.ge.u32 %p2, %r0, 32;
    top:
        mad.lo.u32 %r6, %r4, 8, %r20;
        mad.lo.u32 %r7, %r4, 8, %r21;
        mad.lo.u32 %r8, %r4, 128, %r22;
        mad.lo.u32 %r8, %r2, 4, %r8;
        @%p2 bra consume;
        xor.b32 %r10, %r5, 1;
        {wait("%r7", "%r10", "wait_empty")}
        mad.lo.u32 %r11, %r3, 32, %r2;
        mad.wide.u32 %d1, %r11, 4, %in;
        ld.global.u32 %r12, [%d1];
        st.shared.u32 [%r8], %r12;
        mbarrier.arrive.release.cta.shared::cta.b64 _, [%r6];
        bra next;
    consume:
        {wait("%r6", "%r5", "wait_full")}
        ld.shared.u32 %r12, [%r8];
        mad.lo.u32 %r9, %r9, 3, %r12;
        mbarrier.arrive.shared::cta.b64 %d2, [%r7];
    next:
        add.u32 %r3, %r3, 1;
        add.u32 %r4, %r4, 1;
        setp.eq.u32 %p3, %r4, {stages};
        @%p3 mov.u32 %r4, 0;
        @%p3 xor.b32 %r5, %r5, 1;
        setp.lt.u32 %p4, %r3, {rounds};
        @%p4 bra top;
        mad.wide.u32 %d3, %r0, 4, %out;
        st.global.u32 [%d3], %r9;
    """
    args = (
        Input(data=Source(f"mbarriers/pipeline{stages}").bits(rounds * 32, "uint32")),
        Output(shape=(128,), dtype="uint32"),
    )
    return Case(
        ptx=kernel(body, (".u64 in", ".u64 out"), outside=outside), args=args, block=(128, 1, 1), section=SECTION
    )


for _stages in (1, 3, 4):
    FAMILY.add(f"pipeline_{_stages}", partial(pipeline, _stages, 11))


@FAMILY.case("state_wait")
def state_wait() -> Case:
    """All threads arrive and wait for the state that they got, ten rounds."""
    body = """
        mov.u32 %r0, %tid.x;
        setp.eq.u32 %p1, %r0, 0;
        @%p1 mbarrier.init.shared::cta.b64 [bar], 64;
        mov.u32 %r8, cells;
        mad.lo.u32 %r9, %r0, 4, %r8;
        mov.u32 %r3, %r0;
        mov.u32 %r4, 0;
        bar.sync 0;
    top:
        st.shared.u32 [%r9], %r3;
        mbarrier.arrive.shared::cta.b64 %d1, [bar];
    spin:
        mbarrier.try_wait.shared::cta.b64 %p2, [bar], %d1;
        @!%p2 bra spin;
        xor.b32 %r5, %r0, 33;
        mad.lo.u32 %r5, %r5, 4, %r8;
        ld.shared.u32 %r6, [%r5];
        mad.lo.u32 %r3, %r3, 7, %r6;
        mbarrier.arrive.shared::cta.b64 %d1, [bar];
    spin_again:
        mbarrier.test_wait.shared::cta.b64 %p2, [bar], %d1;
        @!%p2 bra spin_again;
        add.u32 %r4, %r4, 1;
        setp.lt.u32 %p3, %r4, 10;
        @%p3 bra top;
        mad.wide.u32 %d3, %r0, 4, %out;
        st.global.u32 [%d3], %r3;
    """
    outside = f"{BAR}.shared .align 4 .b8 cells[256];\n"
    return Case(
        ptx=kernel(body, (".u64 out",), outside=outside),
        args=(Output(shape=(64,), dtype="uint32"),),
        block=(64, 1, 1),
        section=SECTION,
    )


@FAMILY.case("cp_async_arrive")
def cp_async_arrive() -> Case:
    """cp.async whose completion arrives on a barrier, counted by itself and not."""
    body = f"""
        mov.u32 %r0, %tid.x;
        setp.eq.u32 %p1, %r0, 0;
        @%p1 mbarrier.init.shared::cta.b64 [bar], 32;
        @%p1 mbarrier.init.shared::cta.b64 [bar+8], 32;
        mov.u32 %r8, cells;
        mad.lo.u32 %r9, %r0, 16, %r8;
        mad.wide.u32 %d1, %r0, 16, %in;
        bar.sync 0;
        cp.async.ca.shared.global [%r9], [%d1], 16;
        cp.async.mbarrier.arrive.noinc.shared::cta.b64 [bar];
        cp.async.cg.shared.global [%r9+512], [%d1+512], 16;
        cp.async.mbarrier.arrive.shared::cta.b64 [bar+8];
        mbarrier.arrive.shared::cta.b64 %d4, [bar+8];
        {wait("bar", "0", "first")}
        {wait("bar+8", "0", "second")}
        xor.b32 %r10, %r0, 31;
        mad.lo.u32 %r10, %r10, 16, %r8;
        ld.shared.v4.u32 {{%r11, %r12, %r13, %r14}}, [%r10];
        ld.shared.v4.u32 {{%r15, %r16, %r17, %r18}}, [%r10+512];
        mad.wide.u32 %d3, %r0, 32, %out;
        st.global.v4.u32 [%d3], {{%r11, %r12, %r13, %r14}};
        st.global.v4.u32 [%d3+16], {{%r15, %r16, %r17, %r18}};
    """
    outside = ".shared .align 8 .b64 bar[2];\n.shared .align 16 .b8 cells[1024];\n"
    args = (Input(data=Source("mbarriers/cp_async").bits(256, "uint32")), InOut(data=np.zeros((32, 8), "uint32")))
    return Case(
        ptx=kernel(body, (".u64 in", ".u64 out"), outside=outside), args=args, section="cp.async.mbarrier.arrive"
    )
