"""Asynchronous work on another CTA's shared memory: stores, reductions, bulk copies, multicast."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from tests.emulator.vectors.case import Case, Family, Input, Output
from tests.emulator.vectors.cases.cluster import BARRIER, WHO
from tests.emulator.vectors.cases.tma import corners, tensor_bytes, tensor_map, tile_operand, values
from tests.emulator.vectors.data import Source
from tests.emulator.vectors.ptx import MAP_PARAM, kernel, wait

FAMILY = Family("cluster_copies")
RED_ASYNC_OPCODE = "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes"
REDUCE = "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
MULTICAST = "shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"


@FAMILY.case("st_async")
def st_async() -> Case:
    """Asynchronous stores of words, doubles and vectors into the other CTA, and reductions there."""
    body = (
        WHO
        + f"""
        .shared .align 8 .b64 bar;
        .shared .align 16 .b8 cells[1536];
        mov.u32 %r10, cells;
        mov.u32 %r11, bar;
        mad.lo.u32 %r12, %r0, 48, %r10;
        mad.wide.u32 %d1, %r3, 48, %in;
        setp.eq.u32 %p1, %r0, 0;
        st.shared.v4.u32 [%r12], {{%r0, %r1, %r2, %r3}};
        st.shared.v4.u32 [%r12+16], {{%r0, %r1, %r2, %r3}};
        st.shared.v4.u32 [%r12+32], {{%r0, %r1, %r2, %r3}};
        @%p1 mbarrier.init.shared::cta.b64 [bar], 1;
        @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], {32 * (4 + 8 + 16 + 4 + 8)};
        @%p1 fence.mbarrier_init.release.cluster;
        fence.proxy.async;
        {BARRIER}
        xor.b32 %r6, %r1, 1;
        mapa.shared::cluster.u32 %r13, %r12, %r6;
        mapa.shared::cluster.u32 %r14, %r11, %r6;
        ld.global.v4.u32 {{%r20, %r21, %r22, %r23}}, [%d1];
        ld.global.v2.b64 {{%d4, %d5}}, [%d1+16];
        st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r13], %r20, [%r14];
        st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%r13+8], %d4, [%r14];
        st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%r13+16], {{%r20, %r21, %r22, %r23}}, [%r14];
        red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%r13+32], %r21, [%r14];
        red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u64 [%r13+40], %d5, [%r14];
        {wait("bar", "0", "spin")}
        ld.shared.v4.u32 {{%r20, %r21, %r22, %r23}}, [%r12];
        ld.shared.v4.u32 {{%r24, %r25, %r26, %r27}}, [%r12+16];
        ld.shared.v4.u32 {{%r28, %r29, %r30, %r31}}, [%r12+32];
        mad.wide.u32 %d2, %r3, 48, %out;
        st.global.v4.u32 [%d2], {{%r20, %r21, %r22, %r23}};
        st.global.v4.u32 [%d2+16], {{%r24, %r25, %r26, %r27}};
        st.global.v4.u32 [%d2+32], {{%r28, %r29, %r30, %r31}};
        {BARRIER}
    """
    )
    args = (Input(data=Source("cluster/st_async").bits(64 * 12, "uint32")), Output(shape=(64, 12), dtype="uint32"))
    return Case(
        ptx=kernel(body, (".u64 in", ".u64 out"), version="8.1"),
        args=args,
        grid=(2, 1, 1),
        cluster=(2, 1, 1),
        section="st.async, red.async",
    )


RED_ASYNC = (
    *(f"{op}.{kind}" for kind in ("u32", "s32") for op in ("add", "min", "max")),
    *(f"{op}.u32" for op in ("inc", "dec")),
    *(f"{op}.b32" for op in ("and", "or", "xor")),
)


@FAMILY.case("red_async")
def red_async() -> Case:
    """Every asynchronous reduction of words."""
    count = len(RED_ASYNC)
    lines = [
        WHO,
        ".shared .align 8 .b64 bar;",
        f".shared .align 16 .b8 cells[{count * 128}];",
        "mov.u32 %r10, cells;\nmov.u32 %r11, bar;\nmad.lo.u32 %r12, %r0, 4, %r10;",
    ]
    lines += [
        "setp.eq.u32 %p1, %r0, 0;",
        "@%p1 mbarrier.init.shared::cta.b64 [bar], 1;",
        f"@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], {128 * count};",
    ]
    lines += [
        "@%p1 fence.mbarrier_init.release.cluster;",
        "mad.wide.u32 %d1, %r3, 4, %in;",
        "mad.wide.u32 %d2, %r3, 4, %out;",
    ]
    for index in range(count):
        lines += [f"ld.global.u32 %r20, [%d1+{256 * index}];", f"st.shared.u32 [%r12+{128 * index}], %r20;"]
    lines += [
        f"fence.proxy.async;\n{BARRIER}xor.b32 %r6, %r1, 1;\nmapa.shared::cluster.u32 %r13, %r12, %r6;\n"
        f"mapa.shared::cluster.u32 %r14, %r11, %r6;"
    ]
    for index, suffix in enumerate(RED_ASYNC):
        lines += [f"ld.global.u32 %r20, [%d1+{256 * (count + index)}];"]
        lines += [f"{RED_ASYNC_OPCODE}.{suffix} [%r13+{128 * index}], %r20, [%r14];"]
    lines += [wait("bar", "0", "spin")]
    for index in range(count):
        lines += [f"ld.shared.u32 %r20, [%r12+{128 * index}];", f"st.global.u32 [%d2+{256 * index}], %r20;"]
    lines += [BARRIER]
    args = (
        Input(data=Source("cluster/red_async").integers(2 * count * 64, "uint32")),
        Output(shape=(count, 64), dtype="uint32", labels=RED_ASYNC),
    )
    return Case(
        ptx=kernel("\n".join(lines), (".u64 in", ".u64 out"), version="8.1"),
        args=args,
        grid=(2, 1, 1),
        cluster=(2, 1, 1),
        section="red.async",
    )


@FAMILY.case("bulk_to_cluster")
def bulk_to_cluster() -> Case:
    """Shared memory to another CTA's, completing on a barrier there; and reductions of words there."""
    body = (
        WHO
        + f"""
        .shared .align 8 .b64 bar;
        .shared .align 128 .b8 cells[2048];
        mov.u32 %r10, cells;
        mov.u32 %r11, bar;
        mad.lo.u32 %r12, %r0, 16, %r10;
        mad.wide.u32 %d1, %r3, 16, %in;
        ld.global.v4.u32 {{%r20, %r21, %r22, %r23}}, [%d1];
        st.shared.v4.u32 [%r12], {{%r20, %r21, %r22, %r23}};
        setp.eq.u32 %p1, %r0, 0;
        @%p1 mbarrier.init.shared::cta.b64 [bar], 1;
        @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 1024;
        @%p1 fence.mbarrier_init.release.cluster;
        fence.proxy.async;
        {BARRIER}
        @!%p1 bra sent;
        xor.b32 %r6, %r1, 1;
        mapa.shared::cluster.u32 %r13, %r10, %r6;
        mapa.shared::cluster.u32 %r14, %r11, %r6;
        cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r13+1024], [%r10], 512, [%r14];
        {REDUCE}.add.u32 [%r13+1536], [%r10+512], 256, [%r14];
        {REDUCE}.max.s32 [%r13+1792], [%r10+768], 128, [%r14];
        {REDUCE}.xor.b32 [%r13+1920], [%r10+896], 128, [%r14];
    sent:
        {wait("bar", "0", "spin")}
        {BARRIER}
        ld.shared.v4.u32 {{%r20, %r21, %r22, %r23}}, [%r12];
        mad.wide.u32 %d2, %r3, 16, %out;
        st.global.v4.u32 [%d2], {{%r20, %r21, %r22, %r23}};
    """
    )
    args = (Input(data=Source("cluster/bulk").bits(1024, "uint32")), Output(shape=(2, 512), dtype="uint32"))
    return Case(
        ptx=kernel(body, (".u64 in", ".u64 out")),
        args=args,
        grid=(2, 1, 1),
        cluster=(2, 1, 1),
        block=(128, 1, 1),
        section="cp.async.bulk: shared::cluster",
    )


def multicast(size: int, masks: tuple[int, ...], swizzle: str, kind: str) -> Case:
    """Each CTA copies its part to the CTAs of its mask: the same place in each, and each one's barrier."""
    inner = {"NONE": 32, "64B": 64, "128B": 128}[swizzle]
    spec = replace(tensor_map("UINT8", (inner + 20, 6 * size), (inner, 8), swizzle=swizzle), of=1)
    part = spec.box_bytes
    received = [part * sum(mask >> rank & 1 for mask in masks) for rank in range(size)]
    body = (
        WHO
        + f"""
        .reg .b32 %c<2>;
        .shared .align 1024 .b8 cells[{max(part, 1024) * size}];
        .shared .align 8 .b64 bar;
        mov.b64 %d1, map;
        cvta.param.u64 %d1, %d1;
        mov.u32 %r10, cells;
        setp.eq.u32 %p1, %r0, 0;
        mad.lo.u32 %r12, %r0, 16, %r10;
        mov.u32 %r13, 0x5A5A5A5A;
    """
    )
    stride = max(part, 1024)
    for offset in range(0, stride * size, 2048):
        body += f"st.shared.v4.u32 [%r12+{offset}], {{%r13, %r13, %r13, %r13}};\n"
    body += f"""
        @%p1 mbarrier.init.shared::cta.b64 [bar], 1;
        mad.wide.u32 %d4, %r1, 4, %expected;
        ld.global.u32 %r14, [%d4];
        @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], %r14;
        @%p1 fence.mbarrier_init.release.cluster;
        fence.proxy.async;
        {BARRIER}
        @!%p1 bra issued;
        mad.wide.u32 %d4, %r1, 4, %masks;
        ld.global.u16 %h1, [%d4];
        mad.wide.u32 %d5, %r1, 8, %coords;
        ld.global.v2.u32 {{%c0, %c1}}, [%d5];
        mad.lo.u32 %r15, %r1, {stride}, %r10;
    """
    if kind == "tensor":
        body += f"cp.async.bulk.tensor.2d.{MULTICAST} [%r15], [%d1, {tile_operand(2)}], [bar], %h1;\n"
    else:
        body += (
            f"mad.wide.u32 %d6, %r1, {part}, %tensor;\ncp.async.bulk.{MULTICAST} [%r15], [%d6], {part}, [bar], %h1;\n"
        )
    body += (
        f"issued:\n{wait('bar', '0', 'spin')}\nmad.lo.u32 %r16, %r4, {stride * size}, 0;\n"
        f"mad.wide.u32 %d7, %r0, 16, %out;\ncvt.u64.u32 %d8, %r16;\nadd.u64 %d7, %d7, %d8;\n"
    )
    for offset in range(0, stride * size, 2048):
        body += (
            f"ld.shared.v4.u32 {{%r20, %r21, %r22, %r23}}, [%r12+{offset}];\n"
            f"st.global.v4.u32 [%d7+{offset}], {{%r20, %r21, %r22, %r23}};\n"
        )
    body += BARRIER
    source = Source(f"cluster/multicast{size}{swizzle}{kind}")
    args = (
        spec,
        Input(data=values(source, "UINT8", max(tensor_bytes(spec), part * size))),
        Input(data=np.array(received, "uint32")),
        Input(data=np.array(masks, "uint32")),
        Input(data=corners(source, spec, size)),
        Output(shape=(size, stride * size), dtype="uint8"),
    )
    text = kernel(body, (MAP_PARAM, ".u64 tensor", ".u64 expected", ".u64 masks", ".u64 coords", ".u64 out"))
    return Case(
        ptx=text,
        args=args,
        grid=(size, 1, 1),
        cluster=(size, 1, 1),
        block=(128, 1, 1),
        section="cp.async.bulk.tensor: .multicast::cluster",
    )


for _name, _size, _masks, _swizzle, _kind in (
    ("tensor_2", 2, (3, 3), "128B", "tensor"),
    ("tensor_2_other", 2, (2, 1), "64B", "tensor"),
    ("tensor_4", 4, (15, 15, 15, 15), "NONE", "tensor"),
    ("tensor_4_some", 4, (5, 10, 12, 9), "128B", "tensor"),
    ("bulk_2", 2, (3, 2), "NONE", "bulk"),
    ("bulk_4", 4, (15, 6, 8, 1), "NONE", "bulk"),
):
    FAMILY.add(f"multicast_{_name}", partial(multicast, _size, _masks, _swizzle, _kind))
