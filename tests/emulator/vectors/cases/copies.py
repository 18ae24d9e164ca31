"""Asynchronous copies without a tensor map: cp.async, bulk copies and reductions, in one CTA."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.emulator.vectors.case import Argument, Case, Family, InOut, Input, Output
from tests.emulator.vectors.data import FLOATS, Array, Source
from tests.emulator.vectors.ptx import kernel, wait

FAMILY = Family("copies")
ASYNC = "Data Movement and Conversion Instructions: cp.async"
BULK = "Data Movement and Conversion Instructions: cp.async.bulk"
POISON_CELLS = """
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, cells;
    mad.lo.u32 %r2, %r0, 16, %r1;
    mov.u32 %r3, 0x5A5A5A5A;
    st.shared.v4.u32 [%r2], {%r3, %r3, %r3, %r3};
"""
COPY_OUT = """
    ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r2];
    mad.wide.u32 %d2, %r0, 16, %out;
    st.global.v4.u32 [%d2], {%r10, %r11, %r12, %r13};
"""
COPY = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
CELLS = ".shared .align 128 .b8 cells[2048];\n"


@FAMILY.case("cp_async_sizes")
def cp_async_sizes() -> Case:
    """4, 8 and 16 bytes, through L1 and not, with fewer source bytes, none, and ignored ones; the rest is zero."""
    lines = [
        POISON_CELLS,
        "mad.wide.u32 %d1, %r0, 16, %in;",
        "mad.wide.u32 %d3, %r0, 4, %sizes;",
        "ld.global.u32 %r4, [%d3];",
        "bar.warp.sync -1;",
    ]
    lines += ["and.b32 %r5, %r0, 31;", "setp.gt.u32 %p1, %r4, 8;", "shr.u32 %r6, %r0, 5;"]
    forms = {
        0: "cp.async.ca.shared.global [%r2], [%d1], 16, %r4;",
        1: "cp.async.cg.shared.global.L2::128B [%r2], [%d1], 16, %r4;",
        2: "min.u32 %r4, %r4, 8;\ncp.async.ca.shared.global [%r2], [%d1], 8, %r4;\n"
        "cp.async.ca.shared::cta.global [%r2+8], [%d1+4], 4;",
        3: "cp.async.ca.shared.global [%r2], [%d1], 16, %p1;",
    }
    for warp, text in forms.items():
        lines += [f"setp.ne.u32 %p2, %r6, {warp};", f"@%p2 bra skip{warp};", text, f"skip{warp}:"]
    lines += ["cp.async.commit_group;", "cp.async.wait_group 0;", "bar.sync 0;", COPY_OUT]
    args = (
        Input(data=Source("copies/sizes").bits(512, "uint32")),
        Input(data=Source("copies/lengths").below(128, 17).astype("uint32")),
        Output(shape=(128, 4), dtype="uint32"),
    )
    return Case(
        ptx=kernel("\n".join(lines), (".u64 in", ".u64 sizes", ".u64 out"), outside=CELLS),
        args=args,
        block=(128, 1, 1),
        section=ASYNC,
    )


@FAMILY.case("cp_async_groups")
def cp_async_groups() -> Case:
    """A ring of four stages: each wait leaves two groups under way."""
    body = """
        mov.u32 %r0, %tid.x;
        mov.u32 %r1, cells;
        mad.lo.u32 %r2, %r0, 16, %r1;
        mad.wide.u32 %d1, %r0, 16, %in;
        mov.u32 %r9, 0;
        mov.u32 %r5, 0;
    """
    for stage in range(3):
        body += f"cp.async.cg.shared.global [%r2+{stage * 512}], [%d1+{stage * 512}], 16;\ncp.async.commit_group;\n"
    body += """
    top:
        cp.async.wait_group 2;
        bar.sync 0;
        and.b32 %r6, %r5, 3;
        mad.lo.u32 %r7, %r6, 512, %r2;
        xor.b32 %r7, %r7, 16;
        ld.shared.u32 %r8, [%r7];
        mad.lo.u32 %r9, %r9, 3, %r8;
        add.u32 %r10, %r5, 3;
        setp.ge.u32 %p1, %r10, 10;
        @%p1 bra none;
        and.b32 %r11, %r10, 3;
        mad.lo.u32 %r12, %r11, 512, %r2;
        mad.wide.u32 %d2, %r10, 512, %d1;
        cp.async.cg.shared.global [%r12], [%d2], 16;
    none:
        cp.async.commit_group;
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p2, %r5, 10;
        @%p2 bra top;
        cp.async.wait_all;
        mad.wide.u32 %d3, %r0, 4, %out;
        st.global.u32 [%d3], %r9;
    """
    args = (Input(data=Source("copies/groups").bits(1280, "uint32")), Output(shape=(32,), dtype="uint32"))
    return Case(ptx=kernel(body, (".u64 in", ".u64 out"), outside=CELLS), args=args, section=ASYNC)


@FAMILY.case("bulk_round_trip")
def bulk_round_trip() -> Case:
    """Global to shared memory on a barrier, changed by threads, and back as a group: two sizes and an offset."""
    body = f"""
        {POISON_CELLS}
        setp.eq.u32 %p1, %r0, 0;
        @%p1 mbarrier.init.shared::cta.b64 [bar], 1;
        @%p1 fence.mbarrier_init.release.cluster;
        fence.proxy.async.shared::cta;
        bar.sync 0;
        @!%p1 bra filled;
        mbarrier.arrive.expect_tx.shared::cta.b64 %d4, [bar], 1552;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%in], 1536, [bar];
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1+1792], [%in+2032], 16, [bar];
    filled:
        {wait("bar", "0", "spin")}
        ld.shared.u32 %r5, [%r2+4];
        xor.b32 %r5, %r5, %r0;
        st.shared.u32 [%r2+4], %r5;
        fence.proxy.async.shared::cta;
        bar.sync 0;
        @!%p1 bra end;
        cp.async.bulk.global.shared::cta.bulk_group [%out], [%r1], 1024;
        cp.async.bulk.commit_group;
        cp.async.bulk.global.shared::cta.bulk_group [%out+1040], [%r1+1040], 1008;
        cp.async.bulk.commit_group;
        cp.async.bulk.wait_group.read 1;
        cp.async.bulk.wait_group 0;
    end:
    """
    outside = f"{CELLS}.shared .align 8 .b64 bar;\n"
    args = (Input(data=Source("copies/bulk").bits(512, "uint32")), Output(shape=(512,), dtype="uint32"))
    return Case(ptx=kernel(body, (".u64 in", ".u64 out"), outside=outside), args=args, block=(128, 1, 1), section=BULK)


@FAMILY.case("bulk_ring")
def bulk_ring() -> Case:
    """Twelve chunks through a ring of three stages with full and empty barriers, under an L2 policy, prefetched."""
    outside = ".shared .align 128 .b8 ring[1536];\n.shared .align 8 .b64 full[3];\n.shared .align 8 .b64 empty[3];\n"
    body = f"""
        mov.u32 %r0, %tid.x;
        mov.u32 %r20, full;
        mov.u32 %r21, empty;
        mov.u32 %r22, ring;
        setp.ge.u32 %p1, %r0, 3;
        @%p1 bra ready;
        mad.lo.u32 %r1, %r0, 8, %r20;
        mbarrier.init.shared::cta.b64 [%r1], 1;
        mad.lo.u32 %r1, %r0, 8, %r21;
        mbarrier.init.shared::cta.b64 [%r1], 128;
        fence.mbarrier_init.release.cluster;
    ready:
        bar.sync 0;
        mov.u32 %r3, 0;
        mov.u32 %r4, 0;
        mov.u32 %r5, 0;
        mov.u32 %r9, 0;
        setp.lt.u32 %p2, %r0, 128;
        setp.eq.u32 %p5, %r0, 128;
        createpolicy.fractional.L2::evict_first.b64 %d9, 1.0;
    top:
        mad.lo.u32 %r6, %r4, 8, %r20;
        mad.lo.u32 %r7, %r4, 8, %r21;
        mad.lo.u32 %r8, %r4, 512, %r22;
        @%p2 bra consume;
        @!%p5 bra next;
        xor.b32 %r10, %r5, 1;
        {wait("%r7", "%r10", "wait_empty")}
        mad.wide.u32 %d1, %r3, 512, %in;
        cp.async.bulk.prefetch.L2.global [%d1], 512;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r6], 512;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%r8], [%d1], 512, [%r6], %d9;
        bra next;
    consume:
        {wait("%r6", "%r5", "wait_full")}
        mad.lo.u32 %r8, %r0, 4, %r8;
        ld.shared.u32 %r12, [%r8];
        mad.lo.u32 %r9, %r9, 3, %r12;
        mbarrier.arrive.shared::cta.b64 %d2, [%r7];
    next:
        add.u32 %r3, %r3, 1;
        add.u32 %r4, %r4, 1;
        setp.eq.u32 %p3, %r4, 3;
        @%p3 mov.u32 %r4, 0;
        @%p3 xor.b32 %r5, %r5, 1;
        setp.lt.u32 %p4, %r3, 12;
        @%p4 bra top;
        mad.wide.u32 %d3, %r0, 4, %out;
        @%p2 st.global.u32 [%d3], %r9;
    """
    args = (Input(data=Source("copies/ring").bits(1536, "uint32")), Output(shape=(128,), dtype="uint32"))
    return Case(ptx=kernel(body, (".u64 in", ".u64 out"), outside=outside), args=args, block=(160, 1, 1), section=BULK)


REDUCTIONS = (
    *((op, kind) for kind in ("u32", "s32", "u64") for op in ("add", "min", "max")),
    *((op, "s64") for op in ("min", "max")),
    *((op, "u32") for op in ("inc", "dec")),
    *((op, f"b{bits}") for bits in (32, 64) for op in ("and", "or", "xor")),
    *((op, kind) for kind in ("f16", "bf16") for op in ("add", "min", "max")),
    *(("add", kind) for kind in ("f32", "f64")),
)


def operands(source: Source, op: str, kind: str, size: int) -> Array:
    """Return bytes of values that suit the operation."""
    if kind in FLOATS:
        dtype = FLOATS[kind][0]
        return source.floats(size // np.dtype(dtype).itemsize, kind).view("uint8")
    dtype = f"uint{kind[1:]}"
    count = size // np.dtype(dtype).itemsize
    if op in ("inc", "dec"):
        return source.pick(count, (0, 1, 2, 3, 4, 5, 0xFFFFFFFF), dtype).view("uint8")
    return source.integers(count, dtype).view("uint8")


@FAMILY.case("bulk_reductions")
def bulk_reductions() -> Case:
    """Every operation and type from shared to global memory, 256 bytes each."""
    size = 256
    count = len(REDUCTIONS)
    outside = f".shared .align 128 .b8 cells[{size * count}];\n"
    lines = [
        "mov.u32 %r0, %tid.x;",
        "mov.u32 %r1, cells;",
        "mad.lo.u32 %r2, %r0, 4, %r1;",
        "mad.wide.u32 %d1, %r0, 4, %in;",
    ]
    for index in range(size * count // 512):
        lines += [f"ld.global.u32 %r3, [%d1+{index * 512}];", f"st.shared.u32 [%r2+{index * 512}], %r3;"]
    rest = size * count % 512
    lines += [f"setp.lt.u32 %p2, %r0, {rest // 4};"]
    lines += [
        f"@%p2 ld.global.u32 %r3, [%d1+{size * count - rest}];",
        f"@%p2 st.shared.u32 [%r2+{size * count - rest}], %r3;",
    ]
    lines += ["fence.proxy.async.shared::cta;", "bar.sync 0;", "setp.ne.u32 %p1, %r0, 0;", "@%p1 bra end;"]
    source = Source("copies/reductions")
    memory, given, labels = [], [], []
    for index, (op, kind) in enumerate(REDUCTIONS):
        noftz = ".noftz" if kind in ("f16", "bf16") and op == "add" else ""
        opcode = f"cp.reduce.async.bulk.global.shared::cta.bulk_group.{op}{noftz}.{kind}"
        lines.append(f"{opcode} [%memory+{index * size}], [%r1+{index * size}], {size};")
        memory.append(operands(source, op, kind, size))
        given.append(operands(source, op, kind, size))
        labels.append(opcode)
    lines += ["cp.async.bulk.commit_group;", "cp.async.bulk.wait_group 0;", "end:"]
    args: tuple[Argument, ...] = (InOut(data=np.array(memory), labels=tuple(labels)), Input(data=np.array(given)))
    return Case(
        ptx=kernel("\n".join(lines), (".u64 memory", ".u64 in"), outside=outside),
        args=args,
        block=(128, 1, 1),
        section="cp.reduce.async.bulk",
    )


def bulk_sizes(offset: int) -> Case:
    """Copies of 16 bytes up to 2 KiB, each with its own barrier phase, to and from odd multiples of 16."""
    sizes = (16, 32, 48, 112, 128, 144, 512, 1008, 2048 - offset)
    body = (
        POISON_CELLS
        + "setp.eq.u32 %p1, %r0, 0;\n@%p1 mbarrier.init.shared::cta.b64 [bar], 1;\n"
        + "@%p1 fence.mbarrier_init.release.cluster;\n"
    )
    body += "mad.wide.u32 %d2, %r0, 16, %out;\n"
    for index, size in enumerate(sizes):
        body += f"""
            st.shared.v4.u32 [%r2], {{%r3, %r3, %r3, %r3}};
            fence.proxy.async.shared::cta;
            bar.sync 0;
            @!%p1 bra wait{index};
            mbarrier.arrive.expect_tx.shared::cta.b64 %d4, [bar], {size};
            {COPY} [%r1+{offset}], [%in+{16 * index}], {size}, [bar];
        wait{index}:
            {wait("bar", str(index % 2), f"spin{index}")}
            ld.shared.v4.u32 {{%r10, %r11, %r12, %r13}}, [%r2];
            st.global.v4.u32 [%d2+{index * 2048}], {{%r10, %r11, %r12, %r13}};
            bar.sync 0;
        """
    outside = f"{CELLS}.shared .align 8 .b64 bar;\n"
    args = (
        Input(data=Source("copies/bulk_sizes").bits(640, "uint32")),
        Output(shape=(len(sizes), 512), dtype="uint32"),
    )
    return Case(ptx=kernel(body, (".u64 in", ".u64 out"), outside=outside), args=args, block=(128, 1, 1), section=BULK)


FAMILY.add("bulk_sizes", partial(bulk_sizes, 0))
FAMILY.add("bulk_sizes_offset", partial(bulk_sizes, 48))
