"""Atomic operations and reductions in global and shared memory."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.emulator.vectors.case import Case, Family, InOut, Input, Output
from tests.emulator.vectors.data import FLOATS, Array, Source, packed
from tests.emulator.vectors.ptx import kernel

FAMILY = Family("atomics")
LANES = 32
SECTION = "Parallel Synchronization and Communication Instructions: atom, red"
INTEGER_OPS = ("add", "min", "max")
BIT_OPS = ("and", "or", "xor", "exch")


def operations() -> list[tuple[str, int]]:
    """Return (suffix, bytes) of every operation with one operand."""
    found = [(f"{op}.{kind}", int(kind[1:]) // 8) for kind in ("u32", "s32", "u64", "s64") for op in INTEGER_OPS]
    found.remove(("add.s64", 8))
    found += [(f"{op}.b{bits}", bits // 8) for bits in (32, 64) for op in BIT_OPS]
    found += [("inc.u32", 4), ("dec.u32", 4), ("add.f32", 4), ("add.f64", 8)]
    return [*found, ("add.noftz.f16", 2), ("add.noftz.bf16", 2), ("add.noftz.f16x2", 4), ("add.noftz.bf16x2", 4)]


def values(source: Source, suffix: str, count: int) -> Array:
    """Return operands that suit the type, as unsigned integers."""
    kind = suffix.rsplit(".", 1)[1]
    if kind == "f64":  # which payload a NaN keeps is open
        bits = source.floats(count, kind)
        return np.where(np.isnan(bits.view("float64")), 0x3FF8000000000000, bits).astype("uint64")
    if kind in FLOATS:
        return source.floats(count, kind)
    if kind.endswith("x2"):
        return packed(source.floats(count, kind[:-2]), source.floats(count, kind[:-2]))
    dtype = f"uint{kind[1:]}"
    if suffix.startswith(("inc", "dec")):
        return source.pick(count, (0, 1, 2, 3, 4, 5, 0xFFFFFFFF), dtype)
    return source.integers(count, dtype)


REGISTER = {2: "%h", 4: "%r", 8: "%d"}
SIZE = {2: "b16", 4: "b32", 8: "b64"}


def alone(space: str, modifier: str, name: str) -> Case:
    """Every operation, each lane on its own word: what it returns, and what it leaves."""
    lines = [
        "mov.u32 %r0, %tid.x;",
        "mad.wide.u32 %d0, %r0, 8, %memory;",
        "mad.wide.u32 %d1, %r0, 8, %in;",
        "mad.wide.u32 %d2, %r0, 8, %out;",
    ]
    outside = ".shared .align 8 .b8 words[256];\n" if space in ("shared", "generic_shared") else ""
    at = "%d0"
    if outside:
        lines += ["mov.u32 %r1, words;", "mad.lo.u32 %r1, %r0, 8, %r1;"]
        at = "%r1"
    if space == "generic_shared":
        lines += ["cvt.u64.u32 %d6, %r1;", "cvta.shared.u64 %d6, %d6;"]
    prefix = {"generic": "", "generic_shared": "", "global": ".global", "shared": ".shared"}[space]
    source = Source(f"atomics/{space}{modifier}")
    memory, operands, labels = [], [], []
    for index, (suffix, size) in enumerate(operations()):
        opcode = f"{name}{modifier}{prefix}.{suffix}"
        row = index * LANES * 8
        if name == "red" and suffix.startswith("exch"):
            opcode = f"atom{modifier}{prefix}.{suffix}"
        register, load = REGISTER[size], SIZE[size]
        lines += [f"ld.global.{load} {register}12, [%d1+{row}];"]
        if outside:
            lines += [f"ld.global.b64 %d4, [%d0+{row}];", "st.shared.b64 [%r1], %d4;"]
            where = at if space == "shared" else "%d6"
        else:
            where = f"{at}+{row}"
        if opcode.startswith("atom"):
            lines += [
                f"{opcode} {register}13, [{where}], {register}12;",
                f"st.global.{load} [%d2+{row}], {register}13;",
            ]
        else:
            lines += [f"{opcode} [{where}], {register}12;"]
        if outside:
            lines += ["ld.shared.b64 %d4, [%r1];", f"st.global.b64 [%d0+{row}], %d4;"]
        for target, stream in ((memory, "memory"), (operands, "operands")):
            bits = values(source, suffix, LANES).astype("uint64")
            target.append(
                bits | Source(f"{stream}{index}").bits(LANES, "uint64") << np.uint64(size * 8) if size < 8 else bits
            )
        labels.append(opcode)
    args = (
        InOut(data=np.array(memory, "uint64"), labels=tuple(labels)),
        Input(data=np.array(operands, "uint64")),
        Output(shape=(len(labels), LANES), dtype="uint64", labels=tuple(labels)),
    )
    return Case(
        ptx=kernel("\n".join(lines), (".u64 memory", ".u64 in", ".u64 out"), outside=outside),
        args=args,
        section=SECTION,
    )


for _space, _modifier, _name in (
    ("global", "", "atom"),
    ("global", ".relaxed.gpu", "atom"),
    ("global", ".acq_rel.sys", "atom"),
    ("global", "", "red"),
    ("global", ".release.sys", "red"),
    ("shared", "", "atom"),
    ("shared", ".relaxed.cta", "atom"),
    ("shared", "", "red"),
    ("generic", "", "atom"),
    ("generic_shared", "", "atom"),
):
    FAMILY.add(f"{_name}_{_space}{_modifier.replace('.', '_')}", partial(alone, _space, _modifier, _name))


@FAMILY.case("compare_and_swap")
def compare_and_swap() -> Case:
    """cas of 16, 32, 64 and 128 bits, hitting and missing, and exch of 128."""
    lines = [
        "mov.u32 %r0, %tid.x;",
        "mad.wide.u32 %d0, %r0, 16, %memory;",
        "mad.wide.u32 %d1, %r0, 16, %in;",
        "mad.wide.u32 %d2, %r0, 16, %out;",
    ]
    lines += [".reg .b128 %q<4>;"]
    source = Source("atomics/cas")
    memory, wanted, labels = [], [], ("cas.b16", "cas.b32", "cas.b64", "cas.b128", "exch.b128")
    row = LANES * 16
    for index, label in enumerate(labels):
        bits = int(label.split(".b")[1])
        at = index * row
        if bits == 128:
            lines += [
                f"ld.global.v2.b64 {{%d4, %d5}}, [%d1+{at}];",
                "mov.b128 %q1, {%d4, %d5};",
                "mov.b128 %q2, {%d5, %d5};",
            ]
            operands = "%q1, %q2" if label.startswith("cas") else "%q1"
            lines += [
                f"atom.global.{label} %q0, [%d0+{at}], {operands};",
                "mov.b128 {%d6, %d7}, %q0;",
                f"st.global.v2.b64 [%d2+{at}], {{%d6, %d7}};",
            ]
        else:
            register = REGISTER[bits // 8]
            lines += [
                f"ld.global.b{bits} {register}12, [%d1+{at}];",
                f"ld.global.b{bits} {register}13, [%d1+{at + 8}];",
            ]
            lines += [
                f"atom.global.{label} {register}14, [%d0+{at}], {register}12, {register}13;",
                f"st.global.b{bits} [%d2+{at}], {register}14;",
            ]
        found = source.bits(LANES * 2, "uint64").reshape(LANES, 2)
        expected = found.copy()
        expected[:, 1] = source.bits(LANES, "uint64") if bits < 128 else found[:, 1]
        expected[source.below(LANES, 2) == 0, 0] ^= np.uint64(0x1001)  # these miss
        memory.append(found)
        wanted.append(expected)
    args = (
        InOut(data=np.array(memory), labels=labels),
        Input(data=np.array(wanted)),
        InOut(data=np.zeros((len(labels), LANES, 2), "uint64"), labels=labels),
    )
    return Case(
        ptx=kernel("\n".join(lines), (".u64 memory", ".u64 in", ".u64 out"), version="8.4"), args=args, section=SECTION
    )


# Vectors: (opcode, kind of elements, elements); elements of packed kinds are words.
VECTORS = (
    *(("add", "f32", n) for n in (2, 4)),
    *((f"{op}.noftz", kind, n) for op in ("add", "min", "max") for kind in ("f16", "bf16") for n in (2, 4, 8)),
    *((f"{op}.noftz", kind, n) for op in ("add", "min", "max") for kind in ("f16x2", "bf16x2") for n in (2, 4)),
)


def vectors(name: str) -> Case:
    """Vector reductions: each element by itself."""
    lines = [
        "mov.u32 %r0, %tid.x;",
        "mad.wide.u32 %d0, %r0, 16, %memory;",
        "mad.wide.u32 %d1, %r0, 16, %in;",
        "mad.wide.u32 %d2, %r0, 16, %out;",
    ]
    source = Source(f"atomics/vectors {name}")
    memory, operands, labels = [], [], []
    row = LANES * 16
    for index, (op, kind, count) in enumerate(VECTORS):
        halves, size = kind in ("f16", "bf16"), 2 if kind in ("f16", "bf16") else 4
        letter = "%h" if halves else "%f" if kind == "f32" else "%r"
        opcode = f"{name}.global.{op}.v{count}.{kind}"
        first, second = ([f"{letter}{base + i}" for i in range(count)] for base in (8, 20))
        lines += [f"ld.global.b{size * 8} {reg}, [%d1+{index * row + i * size}];" for i, reg in enumerate(first)]
        if name == "atom":
            lines.append(f"{opcode} {{{', '.join(second)}}}, [%d0+{index * row}], {{{', '.join(first)}}};")
            lines += [f"st.global.b{size * 8} [%d2+{index * row + i * size}], {reg};" for i, reg in enumerate(second)]
        else:
            lines.append(f"{opcode} [%d0+{index * row}], {{{', '.join(first)}}};")
        per_lane = 16 // size
        for target in (memory, operands):
            bits = values(source, f"x.{kind}", LANES * per_lane)
            target.append(bits.view("uint32").reshape(LANES, 4))
        labels.append(opcode)
    args = (
        InOut(data=np.array(memory), labels=tuple(labels)),
        Input(data=np.array(operands)),
        InOut(data=np.zeros((len(labels), LANES, 4), "uint32"), labels=tuple(labels)),
    )
    return Case(
        ptx=kernel("\n".join(lines), (".u64 memory", ".u64 in", ".u64 out"), version="8.1"),
        args=args,
        section=f"{SECTION}: vectors",
    )


for _name in ("atom", "red"):
    FAMILY.add(f"{_name}_vectors", partial(vectors, _name))


@FAMILY.case("contended")
def contended() -> Case:
    """256 threads of two CTAs on eight words: results that no order changes."""
    ops = ("add.u32", "min.s32", "max.u32", "and.b32", "or.b32", "xor.b32", "add.f32", "inc.u32")
    lines = [
        "mov.u32 %r0, %tid.x;",
        "mov.u32 %r1, %ctaid.x;",
        "mad.lo.u32 %r0, %r1, 128, %r0;",
        "mad.wide.u32 %d1, %r0, 4, %in;",
        "ld.global.u32 %r2, [%d1];",
    ]
    lines += ["and.b32 %r3, %r2, 255;", "cvt.rn.f32.u32 %f1, %r3;", "mov.u32 %r4, 100;"]
    for index, op in enumerate(ops):
        operand = {"add.f32": "%f1", "inc.u32": "%r4"}.get(op, "%r2")
        lines.append(f"red.relaxed.gpu.global.{op} [%memory+{4 * index}], {operand};")
    start = np.array([0, 0x7FFFFFFF, 0, 0xFFFFFFFF, 0, 0, 0, 0], "uint32")
    args = (InOut(data=start), Input(data=Source("atomics/contended").bits(256, "uint32") | np.uint32(0x40000000)))
    return Case(
        ptx=kernel("\n".join(lines), (".u64 memory", ".u64 in")),
        args=args,
        grid=(2, 1, 1),
        block=(128, 1, 1),
        section=SECTION,
    )


@FAMILY.case("histogram")
def histogram() -> Case:
    """Shared counters, then tickets: each returned value is taken by exactly one thread."""
    body = """
        .shared .align 4 .b8 counts[64];
        .shared .align 4 .u32 ticket;
        mov.u32 %r0, %tid.x;
        mov.u32 %r1, counts;
        setp.lt.u32 %p1, %r0, 16;
        mad.lo.u32 %r2, %r0, 4, %r1;
        @%p1 st.shared.u32 [%r2], 0;
        setp.eq.u32 %p2, %r0, 0;
        @%p2 st.shared.u32 [ticket], 0;
        bar.sync 0;
        mad.wide.u32 %d1, %r0, 4, %in;
        ld.global.u32 %r3, [%d1];
        and.b32 %r4, %r3, 15;
        mad.lo.u32 %r5, %r4, 4, %r1;
        atom.shared.add.u32 %r6, [%r5], 1;
        atom.shared.inc.u32 %r7, [ticket], 1000;
        mad.wide.u32 %d2, %r7, 4, %tickets;
        red.global.add.u32 [%d2], 1;
        bar.sync 0;
        @%p1 ld.shared.u32 %r8, [%r2];
        mad.wide.u32 %d3, %r0, 4, %out;
        @%p1 st.global.u32 [%d3], %r8;
    """
    args = (
        Input(data=Source("atomics/histogram").bits(256, "uint32")),
        InOut(data=np.zeros(256, "uint32")),
        Output(shape=(16,), dtype="uint32"),
    )
    return Case(
        ptx=kernel(body, (".u64 in", ".u64 tickets", ".u64 out")), args=args, block=(256, 1, 1), section=SECTION
    )


@FAMILY.case("spin_lock")
def spin_lock() -> Case:
    """A lock by cas and exch around an ordinary update, one lane of each of eight warps and two CTAs."""
    body = """
        mov.u32 %r0, %tid.x;
        and.b32 %r1, %r0, 31;
        setp.ne.u32 %p1, %r1, 0;
        @%p1 bra done;
    again:
        atom.acquire.gpu.global.cas.b32 %r2, [%lock], 0, 1;
        setp.ne.u32 %p2, %r2, 0;
        @%p2 bra again;
        ld.relaxed.gpu.global.u32 %r3, [%lock+4];
        mad.lo.u32 %r3, %r3, 1, 17;
        st.relaxed.gpu.global.u32 [%lock+4], %r3;
        atom.release.gpu.global.exch.b32 %r4, [%lock], 0;
    done:
    """
    return Case(
        ptx=kernel(body, (".u64 lock",)),
        args=(InOut(data=np.zeros(2, "uint32")),),
        grid=(2, 1, 1),
        block=(128, 1, 1),
        section=SECTION,
    )
