"""Mistakes that stop the machine: wrong alignment, wrong addresses, traps. The emulator must report each of them."""

from __future__ import annotations

from functools import partial

from tests.emulator.vectors.case import Case, Family, Input, Map, Output
from tests.emulator.vectors.data import Source
from tests.emulator.vectors.ptx import MAP_PARAM, kernel, wait

FAMILY = Family("faults")
OUTSIDE = ".shared .align 1024 .b8 cells[1024];\n.shared .align 8 .b64 bar;\n"
PROLOGUE = """
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, cells;
    mov.u32 %r9, bar;
    setp.eq.u32 %p1, %r0, 0;
    mad.lo.u32 %r2, %r0, 16, %r1;
    mad.wide.u32 %d1, %r0, 16, %in;
    st.shared.v4.u32 [%r2], {%r0, %r0, %r0, %r0};
    @%p1 mbarrier.init.shared::cta.b64 [bar], 1;
    fence.proxy.async.shared::cta;
    bar.sync 0;
"""
EPILOGUE = "mad.wide.u32 %d7, %r0, 4, %out;\nst.global.u32 [%d7], %r5;\n"


def faulty(body: str, section: str) -> Case:
    """Return a case of one warp whose body goes wrong."""
    args = (
        Map(of=1, element="UINT8", dims=(64, 8), byte_strides=(64,), box=(32, 4)),
        Input(data=Source("faults").bits(512, "uint8")),
        Output(shape=(32,), dtype="uint32"),
    )
    text = kernel(f"{PROLOGUE}mov.u32 %r5, 7;\n{body}\n{EPILOGUE}", (MAP_PARAM, ".u64 in", ".u64 out"), outside=OUTSIDE)
    return Case(ptx=text, args=args, section=section, faults=True)


def copy(instruction: str, size: int) -> str:
    """Return an asynchronous copy by thread 0 and a wait for its bytes."""
    return f"""
        mov.b64 %d3, map;
        cvta.param.u64 %d3, %d3;
        @!%p1 bra issued;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], {size};
        {instruction}
    issued:
        {wait("bar", "0", "spin")}
    """


SUM = "add.u32 %r5, %r5, %r6;\nadd.u32 %r5, %r5, %r7;\nadd.u32 %r5, %r5, %r8;"


def store(x: int, y: int) -> str:
    """Return a tensor store by thread 0."""
    return f"""
        mov.b64 %d3, map;
        cvta.param.u64 %d3, %d3;
        mov.s32 %r6, {x};
        mov.s32 %r7, {y};
        @%p1 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%d3, {{%r6, %r7}}], [%r1];
        cp.async.bulk.commit_group;
        cp.async.bulk.wait_group 0;
    """


LOAD = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
BULK = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
BODIES = {
    "load_misaligned": "add.u64 %d1, %d1, 2;\nld.global.u32 %r5, [%d1];",
    "load_vector_misaligned": "ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%d1+8];\n" + SUM,
    "store_misaligned": "add.u64 %d2, %out, 2;\nst.global.u32 [%d2], %r5;",
    "shared_misaligned": "ld.shared.u32 %r5, [%r2+2];",
    "shared_vector_misaligned": "ld.shared.v4.u32 {%r5, %r6, %r7, %r8}, [%r2+8];\n" + SUM,
    "atomic_misaligned": "add.u64 %d2, %out, 4;\natom.global.add.u64 %d3, [%d2], 1;",
    "null_pointer": "mov.u64 %d2, 0;\nld.global.u32 %r5, [%d2+16];",
    "shared_beyond": "mov.u32 %r6, 240000;\nld.shared.u32 %r5, [%r6];",
    "trap": "@%p1 trap;",
    "ldmatrix_misaligned": "add.u32 %r6, %r2, 8;\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r5}, [%r6];",
    "cp_async_misaligned": "add.u64 %d2, %d1, 4;\ncp.async.ca.shared.global [%r2], [%d2], 16;\ncp.async.wait_all;",
    "mbarrier_misaligned": "@%p1 mbarrier.init.shared::cta.b64 [%r1+4], 1;",
    "tensor_inner_coordinate": copy(
        f"mov.u32 %r6, 1;\nmov.u32 %r7, 0;\n{LOAD} [%r1], [%d3, {{%r6, %r7}}], [bar];", 128
    ),
    "tensor_destination": copy(f"mov.u32 %r6, 0;\n{LOAD} [%r1+64], [%d3, {{%r6, %r6}}], [bar];", 128),
    "bulk_source": copy(f"{BULK} [%r1], [%in+8], 16, [bar];", 16),
    "bulk_destination": copy(f"{BULK} [%r1+8], [%in], 16, [bar];", 16),
    "tensor_store_coordinate": store(1, 0),
    "tensor_store_negative_inner": store(-16, 0),
    "tensor_store_negative_outer": store(0, -1),
}
for _name, _body in BODIES.items():
    FAMILY.add(_name, partial(faulty, _body, _name.replace("_", " ")))
