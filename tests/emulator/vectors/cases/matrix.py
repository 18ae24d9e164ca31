"""ldmatrix, stmatrix and movmatrix."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.emulator.vectors.case import Case, Family, InOut, Input, Output
from tests.emulator.vectors.data import Source
from tests.emulator.vectors.ptx import kernel

FAMILY = Family("matrix")
ROWS = 64  # of 16 bytes, that lanes address in any order
SECTION = "Warp-Level Matrix Instructions"
COPY_IN = """
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, tiles;
    mad.lo.u32 %r2, %r0, 32, %r1;
    mad.wide.u32 %d1, %r0, 32, %memory;
    ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%d1];
    ld.global.v4.u32 {%r14, %r15, %r16, %r17}, [%d1+16];
    st.shared.v4.u32 [%r2], {%r10, %r11, %r12, %r13};
    st.shared.v4.u32 [%r2+16], {%r14, %r15, %r16, %r17};
    bar.sync 0;
    mad.wide.u32 %d2, %r0, 4, %rows;
    ld.global.u32 %r3, [%d2];
    mad.lo.u32 %r3, %r3, 16, %r1;
"""
OUTSIDE = f".shared .align 16 .b8 tiles[{ROWS * 16}];\n"


def some_rows(seed: str, count: int, *, distinct: bool) -> Input:
    """Return the row that each lane addresses."""
    source = Source(f"matrix/{seed}")
    order = np.argsort(source.raw(ROWS), kind="stable")[:count] if distinct else source.below(count, ROWS)
    return Input(data=order.astype("uint32"))


def load(count: int, transposed: bool, generic: bool = False) -> Case:
    """ldmatrix of 1, 2 or 4 tiles."""
    modifiers = f"x{count}{'.trans' if transposed else ''}{'' if generic else '.shared'}"
    registers = ", ".join(f"%r{20 + i}" for i in range(count))
    address = "%d5" if generic else "%r3"
    body = COPY_IN + "cvt.u64.u32 %d4, %r3;\ncvta.shared.u64 %d5, %d4;\n"
    body += f"ldmatrix.sync.aligned.m8n8.{modifiers}.b16 {{{registers}}}, [{address}];\n"
    body += f"mad.wide.u32 %d3, %r0, {4 * count}, %out;\n"
    body += "".join(f"st.global.u32 [%d3+{4 * i}], %r{20 + i};\n" for i in range(count))
    memory = Input(data=Source(f"matrix/load{count}{transposed}").bits(ROWS * 8, "uint16"))
    args = (
        memory,
        some_rows(f"load{count}{transposed}", 32, distinct=False),
        Output(shape=(32, count), dtype="uint32"),
    )
    return Case(
        ptx=kernel(body, (".u64 memory", ".u64 rows", ".u64 out"), outside=OUTSIDE),
        args=args,
        section=f"{SECTION}: ldmatrix",
    )


def store(count: int, transposed: bool) -> Case:
    """stmatrix of 1, 2 or 4 tiles into rows in any order."""
    modifiers = f"x{count}{'.trans' if transposed else ''}.shared"
    registers = ", ".join(f"%r{20 + i}" for i in range(count))
    body = COPY_IN + f"mad.wide.u32 %d3, %r0, {4 * count}, %values;\n"
    body += "".join(f"ld.global.u32 %r{20 + i}, [%d3+{4 * i}];\n" for i in range(count))
    body += f"""
        stmatrix.sync.aligned.m8n8.{modifiers}.b16 [%r3], {{{registers}}};
        bar.sync 0;
        ld.shared.v4.u32 {{%r10, %r11, %r12, %r13}}, [%r2];
        ld.shared.v4.u32 {{%r14, %r15, %r16, %r17}}, [%r2+16];
        st.global.v4.u32 [%d1], {{%r10, %r11, %r12, %r13}};
        st.global.v4.u32 [%d1+16], {{%r14, %r15, %r16, %r17}};
    """
    source = Source(f"matrix/store{count}{transposed}")
    args = (
        InOut(data=source.bits(ROWS * 8, "uint16")),
        some_rows(f"store{count}{transposed}", 32, distinct=True),
        Input(data=source.bits(32 * count, "uint32")),
    )
    return Case(
        ptx=kernel(body, (".u64 memory", ".u64 rows", ".u64 values"), outside=OUTSIDE),
        args=args,
        section=f"{SECTION}: stmatrix",
    )


for _count in (1, 2, 4):
    for _transposed in (False, True):
        _name = f"x{_count}{'_trans' if _transposed else ''}"
        FAMILY.add(f"ldmatrix_{_name}", partial(load, _count, _transposed))
        FAMILY.add(f"stmatrix_{_name}", partial(store, _count, _transposed))
FAMILY.add("ldmatrix_generic", partial(load, 4, False, True))


@FAMILY.case("movmatrix")
def movmatrix() -> Case:
    """A transpose in registers."""
    body = """
        mov.u32 %r0, %tid.x;
        mad.wide.u32 %d1, %r0, 4, %in;
        ld.global.u32 %r1, [%d1];
        movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r1;
        mad.wide.u32 %d2, %r0, 4, %out;
        st.global.u32 [%d2], %r2;
    """
    args = (Input(data=Source("matrix/movmatrix").bits(32, "uint32")), Output(shape=(32,), dtype="uint32"))
    return Case(ptx=kernel(body, (".u64 in", ".u64 out")), args=args, section=f"{SECTION}: movmatrix")


@FAMILY.case("round_trip")
def round_trip() -> Case:
    """ldmatrix, arithmetic on the halves, stmatrix transposed, in four warps with tiles of their own."""
    body = """
        mov.u32 %r0, %tid.x;
        mov.u32 %r1, tiles;
        mad.lo.u32 %r2, %r0, 16, %r1;
        mad.wide.u32 %d1, %r0, 16, %in;
        ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%d1];
        st.shared.v4.u32 [%r2], {%r10, %r11, %r12, %r13};
        bar.warp.sync -1;
        ldmatrix.sync.aligned.m8n8.x4.shared::cta.b16 {%r20, %r21, %r22, %r23}, [%r2];
        add.rn.f16x2 %r20, %r20, %r21;
        xor.b32 %r22, %r22, %r23;
        bar.warp.sync -1;
        stmatrix.sync.aligned.m8n8.x4.trans.shared::cta.b16 [%r2], {%r22, %r20, %r23, %r21};
        bar.sync 0;
        xor.b32 %r3, %r0, 127;
        mad.lo.u32 %r3, %r3, 16, %r1;
        ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r3];
        mad.wide.u32 %d2, %r0, 16, %out;
        st.global.v4.u32 [%d2], {%r10, %r11, %r12, %r13};
    """
    args = (Input(data=Source("matrix/round_trip").floats(1024, "f16")), Output(shape=(128, 4), dtype="uint32"))
    outside = ".shared .align 16 .b8 tiles[2048];\n"
    return Case(
        ptx=kernel(body, (".u64 in", ".u64 out"), outside=outside),
        args=args,
        block=(128, 1, 1),
        section=f"{SECTION}: ldmatrix, stmatrix",
    )
