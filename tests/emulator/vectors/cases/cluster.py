"""Clusters: ranks, barriers, distributed shared memory."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.emulator.vectors.case import Case, Family, InOut, Input, Output
from tests.emulator.vectors.data import Source
from tests.emulator.vectors.ptx import kernel

FAMILY = Family("cluster")
SECTION = "Thread Block Clusters"
Dim3 = tuple[int, int, int]
BARRIER = "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n"
# %r0 thread, %r1 rank in the cluster, %r2 CTAs in the cluster, %r3 thread of the grid
WHO = """
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, %cluster_ctarank;
    mov.u32 %r2, %cluster_nctarank;
    mov.u32 %r4, %ctaid.x;
    mov.u32 %r5, %ntid.x;
    mad.lo.u32 %r3, %r4, %r5, %r0;
"""


def special(cluster: Dim3, grid: Dim3) -> Case:
    """Registers that say where in its cluster a CTA is, one thread a CTA."""
    names = [
        f"%{name}.{axis}"
        for name in ("ctaid", "clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid")
        for axis in "xyz"
    ]
    names += ["%cluster_ctarank", "%cluster_nctarank"]
    total = int(np.prod(grid))
    lines = [
        "mov.u32 %r1, %ctaid.z;\nmov.u32 %r2, %nctaid.y;\nmov.u32 %r3, %ctaid.y;\nmad.lo.u32 %r1, %r1, %r2, %r3;",
        "mov.u32 %r2, %nctaid.x;\nmov.u32 %r3, %ctaid.x;\nmad.lo.u32 %r1, %r1, %r2, %r3;\n"
        "mad.wide.u32 %d2, %r1, 4, %out;",
    ]
    for index, name in enumerate(names):
        lines += [f"mov.u32 %r5, {name};", f"st.global.u32 [%d2+{index * total * 4}], %r5;"]
    lines += [
        "mov.pred %p1, %is_explicit_cluster;",
        "selp.u32 %r5, 1, 0, %p1;",
        f"st.global.u32 [%d2+{len(names) * total * 4}], %r5;",
    ]
    args = (Output(shape=(len(names) + 1, total), dtype="uint32", labels=(*names, "%is_explicit_cluster")),)
    return Case(
        ptx=kernel("\n".join(lines), (".u64 out",)),
        args=args,
        grid=grid,
        block=(1, 1, 1),
        cluster=cluster,
        section="Special Registers",
    )


for _cluster, _grid in (
    ((2, 1, 1), (6, 1, 1)),
    ((2, 2, 1), (4, 6, 2)),
    ((1, 2, 4), (3, 4, 4)),
    ((8, 1, 1), (16, 1, 1)),
):
    FAMILY.add(f"special_registers_{'x'.join(map(str, _cluster))}", partial(special, _cluster, _grid))


def exchange(size: int, threads: int, how: str) -> Case:
    """Every CTA reads from, or writes to, its neighbour's shared memory."""
    outside = f".shared .align 16 .b8 cells[{threads * 8}];\n"
    body = (
        WHO
        + """
        mov.u32 %r10, cells;
        mad.lo.u32 %r11, %r0, 4, %r10;
        mad.wide.u32 %d1, %r3, 4, %in;
        ld.global.u32 %r12, [%d1];
        add.u32 %r6, %r1, 1;
        setp.eq.u32 %p1, %r6, %r2;
        @%p1 mov.u32 %r6, 0;
    """
    )
    at = threads * 4
    body += f"st.shared.u32 [%r11], %r12;\nst.shared.u32 [%r11+{at}], 7;\n{BARRIER}"
    if how == "load":
        body += "mapa.shared::cluster.u32 %r7, %r11, %r6;\nld.shared::cluster.u32 %r8, [%r7];\n"
    elif how == "generic":
        body += "cvt.u64.u32 %d4, %r11;\ncvta.shared.u64 %d4, %d4;\nmapa.u64 %d5, %d4, %r6;\nld.u32 %r8, [%d5];\n"
        body += (
            f"getctarank.u64 %r9, %d5;\nst.u32 [%d5+{at}], %r9;\n{BARRIER}ld.shared.u32 %r9, [%r11+{at}];\n"
            f"mad.lo.u32 %r8, %r9, 1000, %r8;\n"
        )
    elif how == "store":
        body += (
            f"mapa.shared::cluster.u32 %r7, %r11, %r6;\nst.shared::cluster.u32 [%r7+{at}], %r12;\n"
            f"{BARRIER}ld.shared.u32 %r8, [%r11+{at}];\n"
        )
    elif how == "atomic":
        body += "mapa.shared::cluster.u32 %r7, %r10, %r6;\nand.b32 %r9, %r0, 3;\n"
        body += (
            f"mad.lo.u32 %r7, %r9, 4, %r7;\nred.shared::cluster.add.u32 [%r7+{at}], %r12;\n"
            f"atom.shared::cluster.or.b32 %r8, [%r7], 0;\n"
        )
        body += (
            f"getctarank.shared::cluster.u32 %r9, %r7;\nxor.b32 %r8, %r8, %r9;\n"
            f"{BARRIER}ld.shared.u32 %r9, [%r11+{at}];\nadd.u32 %r8, %r8, %r9;\n"
        )
    else:  # a symbol as the address, and vectors
        body += "mapa.shared::cluster.u32 %r7, cells, %r6;\nand.b32 %r9, %r0, 7;\nmad.lo.u32 %r7, %r9, 16, %r7;\n"
        body += (
            "ld.shared::cluster.v4.u32 {%r20, %r21, %r22, %r23}, [%r7];\nxor.b32 %r8, %r20, %r22;\n"
            "add.u32 %r8, %r8, %r23;\nsub.u32 %r8, %r8, %r21;\n"
        )
    body += f"{BARRIER}mad.wide.u32 %d2, %r3, 4, %out;\nst.global.u32 [%d2], %r8;\n"
    count = threads * size * 2
    args = (Input(data=Source(f"cluster/{how}{size}").bits(count, "uint32")), Output(shape=(count,), dtype="uint32"))
    return Case(
        ptx=kernel(body, (".u64 in", ".u64 out"), outside=outside),
        args=args,
        grid=(2 * size, 1, 1),
        cluster=(size, 1, 1),
        block=(threads, 1, 1),
        section=f"{SECTION}: shared::cluster",
    )


for _how in ("load", "generic", "store", "atomic", "vector"):
    for _size in (2, 4):
        FAMILY.add(f"{_how}_{_size}", partial(exchange, _size, 64, _how))


@FAMILY.case("barrier_rounds")
def barrier_rounds() -> Case:
    """Ten rounds of a ring of four CTAs: relaxed arrivals with fences, and release and acquire, in turn."""
    body = (
        WHO
        + """
        .shared .align 4 .b8 cells[512];
        mov.u32 %r10, cells;
        mad.lo.u32 %r11, %r0, 4, %r10;
        add.u32 %r6, %r1, 1;
        and.b32 %r6, %r6, 3;
        mapa.shared::cluster.u32 %r7, %r11, %r6;
        mov.u32 %r8, %r3;
        mov.u32 %r9, 0;
        barrier.cluster.arrive.aligned;
        barrier.cluster.wait.aligned;
    top:
        st.shared::cluster.u32 [%r7], %r8;
        fence.acq_rel.cluster;
        barrier.cluster.arrive.relaxed.aligned;
        barrier.cluster.wait.aligned;
        ld.shared.u32 %r12, [%r11];
        mad.lo.u32 %r8, %r8, 3, %r12;
        barrier.cluster.arrive.aligned;
        add.u32 %r9, %r9, 1;
        barrier.cluster.wait.aligned;
        setp.lt.u32 %p1, %r9, 10;
        @%p1 bra top;
        mad.wide.u32 %d2, %r3, 4, %out;
        st.global.u32 [%d2], %r8;
        barrier.cluster.arrive;
        barrier.cluster.wait;
    """
    )
    return Case(
        ptx=kernel(body, (".u64 out",)),
        args=(Output(shape=(512,), dtype="uint32"),),
        grid=(4, 1, 1),
        cluster=(4, 1, 1),
        block=(128, 1, 1),
        section="barrier.cluster",
    )


@FAMILY.case("required_size")
def required_size() -> Case:
    """A cluster size that the kernel itself demands."""
    body = WHO + "mad.lo.u32 %r6, %r1, 100, %r2;\nmad.wide.u32 %d2, %r3, 4, %out;\nst.global.u32 [%d2], %r6;\n"
    text = kernel(
        body, (".u64 out",), directives=".explicitcluster\n.reqnctapercluster 2, 1, 1\n.reqntid 32, 1, 1\n.maxnreg 64\n"
    )
    return Case(
        ptx=text,
        args=(Output(shape=(128,), dtype="uint32"),),
        grid=(4, 1, 1),
        cluster=(2, 1, 1),
        section="Cluster Dimension Directives",
    )


def remote_arrive(size: int) -> Case:
    """All CTAs arrive on a barrier of CTA 0, which then reads what they stored there; it answers on theirs."""
    body = (
        WHO
        + f"""
        .shared .align 8 .b64 bar;
        .shared .align 16 .b8 cells[{size * 128}];
        mov.u32 %r10, cells;
        mov.u32 %r11, bar;
        setp.eq.u32 %p1, %r0, 0;
        setp.ne.u32 %p4, %r1, 0;
        selp.u32 %r20, 32, {32 * size}, %p4;
        @%p1 mbarrier.init.shared::cta.b64 [bar], %r20;
        @%p1 fence.mbarrier_init.release.cluster;
        {BARRIER}
        mad.lo.u32 %r12, %r1, 32, %r0;
        mad.lo.u32 %r12, %r12, 4, %r10;
        mapa.shared::cluster.u32 %r13, %r12, 0;
        mapa.shared::cluster.u32 %r14, %r11, 0;
        mad.lo.u32 %r15, %r3, 77, 5;
        st.shared::cluster.u32 [%r13], %r15;
        mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r14];
        mov.u32 %r17, 0;
        @%p4 bra others;
    collect:
        mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [bar], 0;
        @!%p2 bra collect;
        mov.u32 %r16, 0;
    add:
        mad.lo.u32 %r18, %r16, 128, %r10;
        mad.lo.u32 %r18, %r0, 4, %r18;
        ld.shared.u32 %r19, [%r18];
        mad.lo.u32 %r17, %r17, 3, %r19;
        add.u32 %r16, %r16, 1;
        setp.lt.u32 %p3, %r16, {size};
        @%p3 bra add;
        mov.u32 %r16, 1;
    answer:
        mapa.shared::cluster.u32 %r18, %r10, %r16;
        mad.lo.u32 %r18, %r0, 4, %r18;
        mapa.shared::cluster.u32 %r14, %r11, %r16;
        add.u32 %r19, %r17, %r16;
        st.shared::cluster.u32 [%r18], %r19;
        mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r14], 1;
        add.u32 %r16, %r16, 1;
        setp.lt.u32 %p3, %r16, {size};
        @%p3 bra answer;
        bra join;
    others:
        mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [bar], 0;
        @!%p2 bra others;
        mad.lo.u32 %r18, %r0, 4, %r10;
        ld.shared.u32 %r17, [%r18];
    join:
        mad.wide.u32 %d2, %r3, 4, %out;
        st.global.u32 [%d2], %r17;
        {BARRIER}
    """
    )
    return Case(
        ptx=kernel(body, (".u64 out",)),
        args=(Output(shape=(32 * size,), dtype="uint32"),),
        grid=(size, 1, 1),
        cluster=(size, 1, 1),
        section="mbarrier.arrive: shared::cluster",
    )


for _size in (2, 4):
    FAMILY.add(f"remote_arrive_{_size}", partial(remote_arrive, _size))


@FAMILY.case("remote_expect")
def remote_expect() -> Case:
    """CTA 0 expects bytes on a barrier of CTA 1 and CTA 1 delivers them there."""
    body = (
        WHO
        + f"""
        .shared .align 8 .b64 bar;
        mov.u32 %r11, bar;
        setp.eq.u32 %p1, %r0, 0;
        @%p1 mbarrier.init.shared::cta.b64 [bar], 1;
        @%p1 fence.mbarrier_init.release.cluster;
        {BARRIER}
        setp.eq.and.u32 %p2, %r1, 0, %p1;
        mapa.shared::cluster.u32 %r12, %r11, 1;
        @%p2 mbarrier.expect_tx.relaxed.cluster.shared::cluster.b64 [%r12], 96;
        @%p2 mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%r12], 32;
        {BARRIER}
        setp.eq.and.u32 %p3, %r1, 1, %p1;
        mov.u32 %r15, 0;
        mbarrier.test_wait.parity.shared::cta.b64 %p4, [bar], 0;
        @%p4 or.b32 %r15, %r15, 1;
        bar.sync 0;
        @%p3 mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 128;
        bar.sync 0;
        mbarrier.test_wait.parity.shared::cta.b64 %p4, [bar], 0;
        @%p4 or.b32 %r15, %r15, 2;
        mad.wide.u32 %d2, %r3, 4, %out;
        st.global.u32 [%d2], %r15;
        {BARRIER}
    """
    )
    return Case(
        ptx=kernel(body, (".u64 out",)),
        args=(Output(shape=(64,), dtype="uint32"),),
        grid=(2, 1, 1),
        cluster=(2, 1, 1),
        section="mbarrier.expect_tx: shared::cluster",
    )


@FAMILY.case("addresses")
def addresses() -> Case:
    """What mapa and getctarank say, relative to the own address: ranks, not windows, are compared."""
    body = (
        WHO
        + f"""
        .shared .align 16 .b8 cells[64];
        mov.u32 %r10, cells;
        mov.u32 %r20, 0;
        mov.u32 %r21, 0;
    again:
        mapa.shared::cluster.u32 %r11, %r10, %r20;
        getctarank.shared::cluster.u32 %r12, %r11;
        sub.u32 %r13, %r11, %r10;
        and.b32 %r13, %r13, 0xffffff;
        mad.lo.u32 %r21, %r21, 10, %r12;
        add.u32 %r21, %r21, %r13;
        add.u32 %r20, %r20, 1;
        setp.lt.u32 %p1, %r20, %r2;
        @%p1 bra again;
        getctarank.shared::cluster.u32 %r14, %r10;
        mad.lo.u32 %r21, %r14, 100000, %r21;
        mad.wide.u32 %d2, %r3, 4, %out;
        st.global.u32 [%d2], %r21;
        {BARRIER}
    """
    )
    return Case(
        ptx=kernel(body, (".u64 out",)),
        args=(InOut(data=np.zeros(128, "uint32")),),
        grid=(4, 1, 1),
        cluster=(4, 1, 1),
        section="mapa, getctarank",
    )
