"""Exchanges and votes among the lanes of a warp."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.emulator.vectors.case import Argument, Case, Family, Input, Output
from tests.emulator.vectors.data import Array, Source
from tests.emulator.vectors.ptx import kernel

FAMILY = Family("warp")
SECTION = "Parallel Synchronization and Communication Instructions"
PROLOGUE = (
    "mov.u32 %r0, %tid.x;\nmad.wide.u32 %d1, %r0, 4, %in;\nld.global.u32 %r1, [%d1];\nmad.wide.u32 %d2, %r0, 4, %out;\n"
)


def per_lane(
    lines: list[str], labels: list[str], data: Array, section: str, version: str = "8.0", warps: int = 1
) -> Case:
    """Return a case: %r1 is the lane's input, results are stored at [%d2 + row]."""
    args: tuple[Argument, ...] = (
        Input(data=data),
        Output(shape=(len(labels), 32 * warps), dtype="uint32", labels=tuple(labels)),
    )
    text = kernel(PROLOGUE + "\n".join(lines), (".u64 in", ".u64 out"), version=version)
    return Case(ptx=text, args=args, block=(32 * warps, 1, 1), section=f"{SECTION}: {section}")


def store(index: int, value: str, lanes: int = 32) -> str:
    """Return the store of a result."""
    return f"st.global.b32 [%d2+{index * lanes * 4}], {value};"


@FAMILY.case("shfl")
def shfl() -> Case:
    """Every mode, distance, clamp and segment, with the predicate."""
    lines, labels = [], []
    for mode in ("up", "down", "bfly", "idx"):
        for amount in ("0", "1", "5", "16", "31", "33", "%r2"):
            for control in (0x1F, 0, 0x181F, 0x1807, 0x1C03, 0x100F):
                lines.append(f"shfl.sync.{mode}.b32 %r5|%p1, %r1, {amount}, {control}, 0xffffffff;")
                lines.append("selp.b32 %r6, 0x80000000, 0, %p1;\nand.b32 %r5, %r5, 0x7fffffff;\nor.b32 %r5, %r5, %r6;")
                lines.append(store(len(labels), "%r5"))
                labels.append(f"shfl.{mode} {amount}, {control:#x}")
    lines.insert(0, "and.b32 %r2, %r1, 31;")  # each lane asks for another distance
    return per_lane(lines, labels, Source("warp/shfl").bits(32, "uint32"), "shfl.sync")


@FAMILY.case("shfl_masks")
def shfl_masks() -> Case:
    """Halves of the warp exchange in branches of their own, with their own masks."""
    lines = [
        "mov.u32 %r5, 0;\nand.b32 %r3, %r0, 1;\nsetp.eq.u32 %p1, %r3, 0;\n@%p1 bra even;",
        "shfl.sync.bfly.b32 %r5, %r1, 2, 31, 0xaaaaaaaa;\nbra join;",
        "even:",
        "shfl.sync.idx.b32 %r5, %r1, 4, 31, 0x55555555;\nadd.u32 %r5, %r5, 1;",
        "join:",
        store(0, "%r5"),
        "setp.ge.u32 %p2, %r0, 24;\n@%p2 bra last;",
        "shfl.sync.down.b32 %r5, %r1, 1, 31, 0x00ffffff;\n@%p2 bra last;",
        "last:",
        "bar.warp.sync 0xffffffff;",
        # Lane 23 reads lane 24, which does not take part: undefined, so its result is replaced.
        "setp.eq.u32 %p3, %r0, 23;\n@%p3 mov.u32 %r5, 0;",
        store(1, "%r5"),
    ]
    return per_lane(lines, ["halves", "first 24"], Source("warp/shfl_masks").bits(32, "uint32"), "shfl.sync")


@FAMILY.case("vote")
def vote() -> Case:
    """All, any, uniform and ballot, negated and with masks."""
    lines, labels = [], []
    for bit, what in enumerate(("mixed", "all", "none", "one")):
        lines.append(f"and.b32 %r3, %r1, {1 << bit};\nsetp.ne.u32 %p1, %r3, 0;")
        for negated in ("", "!"):
            for mode in ("all", "any", "uni"):
                lines.append(f"vote.sync.{mode}.pred %p2, {negated}%p1, -1;\nselp.u32 %r5, 1, 0, %p2;")
                lines.append(store(len(labels), "%r5"))
                labels.append(f"vote.{mode} {negated}{what}")
            lines.append(f"vote.sync.ballot.b32 %r5, {negated}%p1, 0xffffffff;")
            lines.append(store(len(labels), "%r5"))
            labels.append(f"vote.ballot {negated}{what}")
    lines.append("mov.u32 %r5, 0;\nsetp.lt.u32 %p3, %r0, 11;\n@!%p3 bra rest;")
    lines.append(
        "vote.sync.ballot.b32 %r5, %p1, 0x7ff;\nvote.sync.all.pred %p2, !%p1, 0x7ff;\n"
        "@%p2 or.b32 %r5, %r5, 0x80000000;\nbra met;"
    )
    lines.append("rest:\nvote.sync.ballot.b32 %r5, !%p1, 0xfffff800;\nmet:")
    lines.append(store(len(labels), "%r5"))
    labels.append("vote.ballot in branches")
    bits = Source("warp/vote").below(32, 2) | 2 | (np.arange(32) == 13).astype("int64") << 3
    return per_lane(lines, labels, bits.astype("uint32"), "vote.sync")


@FAMILY.case("match")
def match() -> Case:
    """Lanes of equal values, of 32 and 64 bits."""
    lines = [
        "and.b32 %r3, %r1, 7;\nmatch.any.sync.b32 %r5, %r3, 0xffffffff;",
        store(0, "%r5"),
        "mov.b64 %d4, {%r3, %r3};\nmatch.any.sync.b64 %r5, %d4, 0xffffffff;",
        store(1, "%r5"),
        "match.all.sync.b32 %r5|%p1, %r3, 0xffffffff;\n@%p1 or.b32 %r5, %r5, 1;",
        store(2, "%r5"),
        "mov.u32 %r6, 5;\nmatch.all.sync.b32 %r5|%p1, %r6, 0xffffffff;\n@!%p1 mov.u32 %r5, 1;",
        store(3, "%r5"),
        "mov.b64 %d4, {%r6, %r6};\nmatch.all.sync.b64 %r5|%p1, %d4, 0xffffffff;\n@!%p1 mov.u32 %r5, 1;",
        store(4, "%r5"),
        "mov.u32 %r5, 0;\nsetp.ge.u32 %p2, %r0, 20;\n@%p2 bra skip;\nmatch.any.sync.b32 %r5, %r3, 0xfffff;\nskip:",
        store(5, "%r5"),
    ]
    labels = ["any.b32", "any.b64", "all.b32 different", "all.b32 same", "all.b64 same", "any.b32 of 20"]
    return per_lane(lines, labels, Source("warp/match").bits(32, "uint32"), "match.sync")


@FAMILY.case("redux")
def redux() -> Case:
    """Reductions over the warp and over two parts of it in branches."""
    names = [f"redux.sync.{op}.{kind}" for kind in ("u32", "s32") for op in ("add", "min", "max")]
    names += [f"redux.sync.{op}.b32" for op in ("and", "or", "xor")]
    lines, labels = ["and.b32 %r3, %r0, 3;\nsetp.eq.u32 %p1, %r3, 1;"], []
    for index, name in enumerate(names):
        lines += [f"{name} %r5, %r1, 0xffffffff;", store(2 * index, "%r5"), f"@%p1 bra part{index};"]
        lines += [
            f"{name} %r5, %r1, 0xdddddddd;\nbra join{index};",
            f"part{index}:\n{name} %r5, %r1, 0x22222222;\njoin{index}:",
        ]
        lines += [store(2 * index + 1, "%r5")]
        labels += [name, f"{name} in branches"]
    data = Source("warp/redux").integers(32, "uint32")
    return per_lane(lines, labels, data, "redux.sync")


@FAMILY.case("elect")
def elect() -> Case:
    """Which lane elect chooses, for whole warps and masks, in straight code and in a branch."""
    lines, labels = [], []
    for mask in (0xFFFFFFFF,):
        lines += [f"elect.sync %r5|%p1, {mask:#x};\n@%p1 or.b32 %r5, %r5, 0x100;", store(len(labels), "%r5", 64)]
        labels.append(f"elect {mask:#x}")
    lines += ["and.b32 %r7, %r0, 31;\nmov.u32 %r5, 999;\nsetp.lt.u32 %p2, %r7, 9;\n@%p2 bra low;"]
    lines += ["elect.sync %r5|%p1, 0xfffffe00;\n@%p1 or.b32 %r5, %r5, 0x100;\nbra join;\nlow:"]
    lines += ["elect.sync %r5|%p1, 0x1ff;\n@%p1 or.b32 %r5, %r5, 0x100;\njoin:", store(len(labels), "%r5", 64)]
    labels.append("elect in branches")
    lines += ["elect.sync _|%p1, 0xffffffff;\nselp.u32 %r5, 1, 0, %p1;", store(len(labels), "%r5", 64)]
    labels.append("elect _|p")
    return per_lane(lines, labels, np.zeros(64, "uint32"), "elect.sync", warps=2)


@FAMILY.case("activemask")
def activemask() -> Case:
    """The active lanes at the top, inside a branch, and after lanes have left."""
    lines = [
        "activemask.b32 %r5;",
        store(0, "%r5"),
        "setp.ge.u32 %p1, %r0, 20;\n@%p1 bra leave;",
        "bar.warp.sync 0x000fffff;\nactivemask.b32 %r5;",
        store(1, "%r5"),
        "bra end;\nleave:",
        store(1, "%r0"),
        "end:",
    ]
    return per_lane(lines, ["whole", "20 lanes"], np.zeros(32, "uint32"), "activemask")


@FAMILY.case("exited_lanes")
def exited_lanes() -> Case:
    """Lanes that have exited take no part: the others vote and exchange among themselves."""
    lines = [
        store(0, "%r1"),
        store(1, "%r0"),
        "and.b32 %r3, %r0, 3;\nsetp.eq.u32 %p1, %r3, 3;\n@%p1 exit;",
        "setp.gt.s32 %p2, %r1, 0;\nvote.sync.ballot.b32 %r5, %p2, 0x77777777;",
        store(0, "%r5"),
        "shfl.sync.bfly.b32 %r5, %r1, 4, 31, 0x77777777;",
        store(1, "%r5"),
    ]
    return per_lane(lines, ["ballot", "shfl"], Source("warp/exited").bits(32, "uint32"), "vote.sync, shfl.sync")


@FAMILY.case("scan")
def scan() -> Case:
    """An inclusive sum over each warp by shfl.up with its predicate, and a reduction by butterflies."""
    lines = ["mov.u32 %r5, %r1;"]
    lines += [
        f"shfl.sync.up.b32 %r6|%p1, %r5, {step}, 0, 0xffffffff;\n@%p1 add.u32 %r5, %r5, %r6;"
        for step in (1, 2, 4, 8, 16)
    ]
    lines += [store(0, "%r5", 128), "mov.u32 %r5, %r1;"]
    for step in (16, 8, 4, 2, 1):
        lines.append(f"shfl.sync.bfly.b32 %r6, %r5, {step}, 31, 0xffffffff;\nmax.s32 %r5, %r5, %r6;")
    lines.append(store(1, "%r5", 128))
    return per_lane(lines, ["sum", "max"], Source("warp/scan").bits(128, "uint32"), "shfl.sync", warps=4)


def special(block: tuple[int, int, int], grid: tuple[int, int, int]) -> Case:
    """Registers that say which thread of which block this is."""
    names = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
    names += [
        "%laneid",
        "%lanemask_eq",
        "%lanemask_le",
        "%lanemask_lt",
        "%lanemask_ge",
        "%lanemask_gt",
        "%dynamic_smem_size",
    ]
    names += ["%clusterid.x", "%nclusterid.x", "%cluster_ctarank", "%cluster_nctarank"]  # %warpid is not repeatable
    threads = int(np.prod(block))
    total = threads * int(np.prod(grid))
    lines = [
        "mov.u32 %r1, %ctaid.z;\nmov.u32 %r2, %nctaid.y;\nmov.u32 %r3, %ctaid.y;\nmad.lo.u32 %r1, %r1, %r2, %r3;",
        "mov.u32 %r2, %nctaid.x;\nmov.u32 %r3, %ctaid.x;\nmad.lo.u32 %r1, %r1, %r2, %r3;",
        "mov.u32 %r4, %tid.z;\nmov.u32 %r2, %ntid.y;\nmov.u32 %r3, %tid.y;\nmad.lo.u32 %r4, %r4, %r2, %r3;",
        f"mov.u32 %r2, %ntid.x;\nmov.u32 %r3, %tid.x;\nmad.lo.u32 %r4, %r4, %r2, %r3;\n"
        f"mad.lo.u32 %r1, %r1, {threads}, %r4;",
        "mad.wide.u32 %d2, %r1, 4, %out;",
    ]
    for index, name in enumerate(names):
        lines += [f"mov.u32 %r5, {name};", f"st.global.u32 [%d2+{index * total * 4}], %r5;"]
    args = (Output(shape=(len(names), total), dtype="uint32", labels=tuple(names)),)
    text = kernel("\n".join(lines), (".u64 out",))
    return Case(ptx=text, args=args, block=block, grid=grid, section="Special Registers", shared_bytes=192)


FAMILY.add("special_registers_1d", partial(special, (96, 1, 1), (3, 1, 1)))
FAMILY.add("special_registers_3d", partial(special, (5, 4, 3), (2, 3, 2)))
