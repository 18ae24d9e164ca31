"""Loads and stores: types, vectors, qualifiers, state spaces, parameters and variables."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.emulator.vectors.case import Bytes, Case, Family, InOut, Input, Output, Scalar
from tests.emulator.vectors.data import Source
from tests.emulator.vectors.ptx import REGISTERS, kernel

FAMILY = Family("memory")
LANES = 32
RECORD = 64  # bytes that each lane reads
LANE = "mov.u32 %r0, %tid.x;\n"
# (opcode, register that receives, how it becomes 64 bits)
SCALAR_LOADS = (
    *((f"{kind}8", "%h1", f"cvt.{kind if kind != 'b' else 'u'}64.{kind if kind != 'b' else 'u'}16") for kind in "usb"),
    *((f"{kind}8", "%r1", f"cvt.{kind}64.{kind}32") for kind in "us"),
    *((f"{kind}8", "%d1", "") for kind in "us"),
    *((f"{kind}16", "%h1", "cvt.u64.u16") for kind in "usb"),
    *((f"{kind}16", "%r1", f"cvt.{kind}64.{kind}32") for kind in "us"),
    *((f"{kind}16", "%d1", "") for kind in "us"),
    *((f"{kind}32", "%r1", "cvt.u64.u32") for kind in "usbf"),
    *((f"{kind}32", "%d1", "") for kind in "us"),
    *((f"{kind}64", "%d1", "") for kind in "usbf"),
)


def record(seed: str, size: int = RECORD) -> Input:
    """Return random bytes for each lane."""
    return Input(data=Source(f"memory/{seed}").bits(LANES * size, "uint8"))


def scalar_loads(space: str, qualifier: str) -> Case:
    """Every scalar type into registers of its size and wider, at every alignment the record has."""
    lines, labels = [LANE, f"mad.wide.u32 %d2, %r0, {RECORD}, %in;\nmad.wide.u32 %d3, %r0, 8, %out;"], []
    at = "%d2"
    outside = ""
    if space == "shared":
        outside = f".shared .align 16 .b8 buffer[{LANES * RECORD}];\n"
        lines.append(f"mov.u32 %r2, buffer;\nmad.lo.u32 %r2, %r0, {RECORD}, %r2;")
        lines += [f"ld.global.b64 %d4, [%d2+{8 * word}];\nst.shared.b64 [%r2+{8 * word}], %d4;" for word in range(8)]
        at = "%r2"
    elif space == "generic":
        lines.append("cvta.global.u64 %d2, %d2;")
    name = "ld" if space == "generic" else f"ld.{space}"
    for index, (kind, register, widen) in enumerate(SCALAR_LOADS):
        size = int(kind[1:]) // 8
        offset = (index * 5 % (RECORD // size)) * size
        is_first = qualifier in (".volatile", ".relaxed.gpu", ".acquire.sys")  # before the state space
        opcode = f"{name.replace('ld', f'ld{qualifier}') if is_first else name + qualifier}.{kind}"
        lines.append(f"{opcode} {register}, [{at}+{offset}];")
        lines.append(f"{widen} %d1, {register};" if widen else "")
        lines.append(f"st.global.b64 [%d3+{index * LANES * 8}], %d1;")
        labels.append(f"{opcode} {register}")
    args = (record(f"{space}{qualifier}"), Output(shape=(len(labels), LANES), dtype="uint64", labels=tuple(labels)))
    text = kernel("\n".join(lines), (".u64 in", ".u64 out"), outside=outside)
    return Case(ptx=text, args=args, section="Data Movement and Conversion Instructions: ld")


for _space, _qualifier in (
    *(
        ("global", q)
        for q in ("", ".nc", ".ca", ".cg", ".L1::no_allocate", ".volatile", ".relaxed.gpu", ".acquire.sys")
    ),
    *(("shared", q) for q in ("", ".volatile")),
    ("generic", ""),
):
    FAMILY.add(
        f"load_{_space}{_qualifier.replace('.', '_').replace('::', '_')}", partial(scalar_loads, _space, _qualifier)
    )


@FAMILY.case("load_vectors")
def load_vectors() -> Case:
    """Vectors of two and four of every element size, plain and with cache hints."""
    lines, labels = [LANE, f"mad.wide.u32 %d2, %r0, {RECORD}, %in;\nmad.wide.u32 %d3, %r0, 32, %out;"], []
    row = LANES * 32
    registers = {8: "%h", 16: "%h", 32: "%r", 64: "%d"}
    for qualifier in ("", ".nc", ".L1::evict_last", ".nc.L1::no_allocate.L2::128B"):
        for kind in ("u8", "s8", "b16", "u32", "f32", "b64", "f64"):
            for count in (2, 4):
                bits = int(kind[1:])
                if bits * count > 128:
                    continue
                names = [f"{registers[bits]}{10 + i}" for i in range(count)]
                opcode = f"ld.global{qualifier}.v{count}.{kind}"
                lines.append(f"{opcode} {{{', '.join(names)}}}, [%d2+{16 * (len(labels) % 4)}];")
                size = max(bits, 16) // 8
                lines += [
                    f"st.global.b{size * 8} [%d3+{len(labels) * row + i * size}], {name};"
                    for i, name in enumerate(names)
                ]
                labels.append(opcode)
    output = InOut(data=np.zeros((len(labels), row), "uint8"), labels=tuple(labels))
    return Case(ptx=kernel("\n".join(lines), (".u64 in", ".u64 out")), args=(record("vectors"), output), section="ld")


@FAMILY.case("store_vectors")
def store_vectors() -> Case:
    """Stores of every size, from registers of their size and wider, and of vectors."""
    lines, labels = [LANE, "mad.wide.u32 %d2, %r0, 64, %in;\nmad.wide.u32 %d3, %r0, 16, %out;"], []
    lines += [f"ld.global.v2.b64 {{%d{10 + 2 * i}, %d{11 + 2 * i}}}, [%d2+{16 * i}];" for i in range(4)]
    lines += [f"mov.b64 {{%r{10 + 2 * i}, %r{11 + 2 * i}}}, %d{10 + i};" for i in range(8)]
    lines += [f"mov.b32 {{%h{10 + 2 * i}, %h{11 + 2 * i}}}, %r{10 + i};" for i in range(8)]
    stores = [
        (f"st.global.{kind}", f"%{letter}13")
        for kind, letter in (
            *(("u8", c) for c in "hrd"),
            *(("s16", c) for c in "hrd"),
            *(("b32", c) for c in "rd"),
            ("u64", "d"),
            ("f64", "d"),
            ("f32", "r"),
        )
    ]
    stores += [
        (f"st.{q}", "%r14")
        for q in (
            "global.wb.b32",
            "volatile.global.u32",
            "relaxed.gpu.global.u32",
            "release.sys.global.b32",
            "release.cluster.global.s32",
            "global.L1::no_allocate.b32",
            "global.cs.b16",
            "relaxed.cta.global.u8",
        )
    ]
    for kind, letter in (("u8", "h"), ("b16", "h"), ("u32", "r"), ("f32", "r"), ("b64", "d")):
        for count in (2, 4):
            if int(kind[1:]) * count <= 128:
                names = ", ".join(f"%{letter}{13 - i}" for i in range(count))
                stores.append((f"st.global.v{count}.{kind}", f"{{{names}}}"))
    for index, (opcode, value) in enumerate(stores):
        lines.append(f"{opcode} [%d3+{index * LANES * 16}], {value};")
        labels.append(f"{opcode} {value}")
    output = InOut(data=np.full((len(labels), LANES * 16), 0xA5, "uint8"), labels=tuple(labels))
    return Case(ptx=kernel("\n".join(lines), (".u64 in", ".u64 out")), args=(record("stores"), output), section="st")


@FAMILY.case("wide_128")
def wide_128() -> Case:
    """Loads and stores of b128 registers."""
    body = (
        LANE
        + """
        .reg .b128 %q<2>;
        mad.wide.u32 %d2, %r0, 16, %in;
        mad.wide.u32 %d3, %r0, 16, %out;
        ld.global.b128 %q0, [%d2];
        mov.b128 {%d4, %d5}, %q0;
        mov.b128 %q1, {%d5, %d4};
        st.global.b128 [%d3], %q1;
    """
    )
    args = (record("b128", 16), Output(shape=(LANES, 2), dtype="uint64"))
    return Case(ptx=kernel(body, (".u64 in", ".u64 out"), version="8.4"), args=args, section="ld, st: .b128")


@FAMILY.case("shared_subwords")
def shared_subwords() -> Case:
    """Bytes and halves of one word written by different lanes, read back as words and vectors."""
    body = (
        LANE
        + """
        .shared .align 16 .b8 buffer[512];
        .shared .align 4 .u32 word;
        mov.u32 %r1, buffer;
        add.u32 %r2, %r1, %r0;
        mad.wide.u32 %d2, %r0, 4, %in;
        ld.global.u32 %r3, [%d2];
        st.shared.u8 [%r2], %r3;
        st.shared.u8 [%r2+32], %r0;
        shl.b32 %r4, %r0, 1;
        add.u32 %r4, %r4, %r1;
        st.shared.b16 [%r4+64], %r3;
        setp.eq.u32 %p1, %r0, 9;
        @%p1 st.shared.u32 [word], %r3;
        bar.sync 0;
        and.b32 %r5, %r0, 7;
        shl.b32 %r5, %r5, 4;
        add.u32 %r5, %r5, %r1;
        ld.shared.v4.u32 {%r6, %r7, %r8, %r9}, [%r5];
        mad.lo.u32 %r10, %r0, 2, %r1;
        ld.shared.s16 %r11, [%r10+30];
        ld.shared.s8 %r12, [%r2+95];
        ld.shared.u32 %r13, [word];
        mad.wide.u32 %d3, %r0, 32, %out;
        st.global.v4.b32 [%d3], {%r6, %r7, %r8, %r9};
        st.global.v4.b32 [%d3+16], {%r11, %r12, %r13, %r13};
    """
    )
    # Lanes of the group of eight read bytes 0..127: 32 + 32 written as bytes, 64 as halves.
    data = Input(data=Source("memory/subwords").bits(LANES, "uint32"))
    return Case(
        ptx=kernel(body, (".u64 in", ".u64 out")),
        args=(data, Output(shape=(LANES, 8), dtype="uint32")),
        section="st, ld: .shared",
    )


@FAMILY.case("local")
def local() -> Case:
    """An array of each lane, indexed by data, of bytes, words and vectors, also through generic addresses."""
    body = (
        LANE
        + """
        .local .align 16 .b8 mine[128];
        mov.u32 %r1, mine;
        mov.u32 %r2, 0;
    fill:
        mad.lo.u32 %r3, %r2, 7, %r0;
        shl.b32 %r4, %r2, 2;
        add.u32 %r4, %r4, %r1;
        st.local.u32 [%r4], %r3;
        add.u32 %r2, %r2, 1;
        setp.lt.u32 %p1, %r2, 32;
        @%p1 bra fill;
        mad.wide.u32 %d2, %r0, 4, %in;
        ld.global.u32 %r5, [%d2];
        and.b32 %r6, %r5, 31;
        mad.lo.u32 %r6, %r6, 4, %r1;
        ld.local.u32 %r7, [%r6];
        bfe.u32 %r8, %r5, 8, 7;
        add.u32 %r8, %r8, %r1;
        st.local.u8 [%r8], 0x5A;
        bfe.u32 %r9, %r5, 16, 3;
        mad.lo.u32 %r9, %r9, 16, %r1;
        ld.local.v4.u32 {%r10, %r11, %r12, %r13}, [%r9];
        cvt.u64.u32 %d3, %r8;
        cvta.local.u64 %d4, %d3;
        ld.u8 %r14, [%d4];
        mad.wide.u32 %d5, %r0, 32, %out;
        st.global.v4.u32 [%d5], {%r7, %r14, %r10, %r11};
        st.global.v2.u32 [%d5+16], {%r12, %r13};
    """
    )
    data = Input(data=Source("memory/local").bits(LANES, "uint32"))
    output = InOut(data=np.zeros((LANES, 8), "uint32"))
    return Case(ptx=kernel(body, (".u64 in", ".u64 out")), args=(data, output), section="State Spaces: .local; ld, st")


@FAMILY.case("variables")
def variables() -> Case:
    """Constants and module variables with initial values: words, bytes, floats, addresses, zeros, and one written."""
    outside = """
.const .align 4 .u32 table[8] = {3, 1, 4, 1, 5, 9, 2, 6};
.const .align 4 .f32 scales[4] = {0f3F800000, 2.5, 0f40490FDB};
.const .align 1 .b8 text[12] = {104, 101, 108, 108, 111, 0};
.global .align 8 .u64 numbers[4] = {0x123456789ABCDEF0, -2, 7};
.global .align 4 .s16 shorts[8] = {-1, 2, -3, 4};
.global .align 8 .u64 pointers[2] = {generic(numbers), numbers+8};
.global .align 4 .u32 counter = 40;
.global .align 16 .b8 empty[64];
"""
    body = (
        LANE
        + """
        and.b32 %r1, %r0, 7;
        mov.u64 %d2, table;
        mad.wide.u32 %d3, %r1, 4, %d2;
        ld.const.u32 %r2, [%d3];
        ld.const.u32 %r3, [table+20];
        and.b32 %r4, %r0, 3;
        mov.u64 %d2, scales;
        mad.wide.u32 %d3, %r4, 4, %d2;
        ld.const.f32 %r5, [%d3];
        mov.u64 %d2, text;
        cvt.u64.u32 %d4, %r1;
        add.u64 %d3, %d2, %d4;
        ld.const.u8 %r6, [%d3];
        mov.u64 %d2, numbers;
        mad.wide.u32 %d3, %r4, 8, %d2;
        ld.global.u64 %d5, [%d3];
        ld.global.u64 %d6, [pointers];
        ld.u64 %d7, [%d6+8];
        ld.global.u64 %d8, [pointers+8];
        ld.global.u64 %d9, [%d8+8];
        ld.global.s16 %r7, [shorts+4];
        cvta.const.u64 %d10, table;
        ld.u32 %r8, [%d10+8];
        ld.global.u32 %r9, [empty+60];
        mad.wide.u32 %d1, %r0, 64, %out;
        st.global.v4.u32 [%d1], {%r2, %r3, %r5, %r6};
        st.global.v2.u64 [%d1+16], {%d5, %d7};
        st.global.u64 [%d1+32], %d9;
        st.global.v2.u32 [%d1+40], {%r7, %r8};
        atom.global.add.u32 %r10, [counter], 1;
        bar.sync 0;
        ld.volatile.global.u32 %r11, [counter];
        st.global.v4.u32 [%d1+48], {%r9, %r11, %r0, %r0};
    """
    )
    return Case(
        ptx=kernel(body, (".u64 out",), outside=outside),
        args=(Output(shape=(LANES, 16), dtype="uint32"),),
        section="Variables: initializers",
    )


@FAMILY.case("parameters")
def parameters() -> Case:
    """Parameters of every size, and a structure read in parts, as vectors and through its address."""
    params = (".u8 a", ".u16 b", ".s32 c", ".f64 e", ".align 16 .b8 s[48]", ".u64 out", ".f32 g", ".s8 i")
    body = (
        LANE
        + """
        ld.param.u8 %r1, [a];
        ld.param.u16 %h1, [b];
        cvt.u32.u16 %r2, %h1;
        ld.param.s32 %r3, [c];
        ld.param.f64 %d1, [e];
        ld.param.v4.u32 {%r4, %r5, %r6, %r7}, [s+16];
        ld.param.s16 %r8, [s+2];
        ld.param.v2.b64 {%d2, %d3}, [s];
        ld.param.f32 %r9, [g];
        ld.param.s8 %r10, [i];
        mov.b64 %d4, s;
        add.u64 %d4, %d4, 36;
        ld.param.u8 %r11, [%d4+1];
        mov.b64 %d5, s;
        cvta.param.u64 %d6, %d5;
        and.b32 %r12, %r0, 15;
        cvt.u64.u32 %d7, %r12;
        add.u64 %d6, %d6, %d7;
        ld.u8 %r13, [%d6+4];
        mad.wide.u32 %d8, %r0, 80, %out;
        st.global.v4.u32 [%d8], {%r1, %r2, %r3, %r4};
        st.global.v4.u32 [%d8+16], {%r5, %r6, %r7, %r8};
        st.global.v2.b64 [%d8+32], {%d1, %d2};
        st.global.b64 [%d8+48], %d3;
        st.global.v2.u32 [%d8+56], {%r9, %r10};
        st.global.v2.u32 [%d8+64], {%r11, %r13};
        st.global.v2.u32 [%d8+72], {%r0, %r0};
    """
    )
    args = (
        Scalar(value=200, dtype="uint8"),
        Scalar(value=51234, dtype="uint16"),
        Scalar(value=-123456, dtype="int32"),
        Scalar(value=-2.5e-300, dtype="float64"),
        Bytes(data=Source("memory/parameters").bits(48, "uint8").tobytes()),
        Output(shape=(LANES, 20), dtype="uint32"),
        Scalar(value=1.25, dtype="float32"),
        Scalar(value=-5, dtype="int8"),
    )
    return Case(ptx=kernel(body, params), args=args, section="Kernel Function Parameters; ld.param")


@FAMILY.case("generic_addresses")
def generic_addresses() -> Case:
    """isspacep and conversions both ways for global, shared and local memory."""
    spaces = ("global", "shared", "shared::cta", "shared::cluster", "local", "const")
    body = (
        LANE
        + """
        .shared .align 8 .b8 ours[256];
        .local .align 8 .b8 mine[16];
        mov.u32 %r1, ours;
        cvt.u64.u32 %d1, %r1;
        cvta.shared.u64 %d1, %d1;
        mov.u32 %r2, mine;
        cvt.u64.u32 %d2, %r2;
        cvta.local.u64 %d2, %d2;
        cvta.global.u64 %d3, %out;
        mad.wide.u32 %d4, %r0, 8, %d1;
        st.u32 [%d4], %r0;
        st.u32 [%d2+4], %r0;
        cvta.to.shared.u64 %d5, %d4;
        cvta.to.local.u64 %d6, %d2;
        ld.shared.u32 %r3, [%d5];
        ld.local.u32 %r4, [%d6+4];
        cvta.to.global.u64 %d7, %d3;
        mov.u32 %r5, 0;
    """
    )
    for base, address in enumerate(("%d1", "%d2", "%d3")):
        for bit, space in enumerate(spaces):
            body += f"isspacep.{space} %p1, {address};\n@%p1 or.b32 %r5, %r5, {1 << (base * 8 + bit)};\n"
    body += """
        mad.wide.u32 %d8, %r0, 16, %d7;
        add.u32 %r6, %r3, %r4;
        st.global.v4.u32 [%d8], {%r3, %r4, %r5, %r6};
    """
    args = (Output(shape=(LANES, 4), dtype="uint32"),)
    return Case(
        ptx=kernel(body, (".u64 out",)), args=args, section="Data Movement and Conversion Instructions: cvta, isspacep"
    )


@FAMILY.case("hints")
def hints() -> Case:
    """Instructions without a visible effect: prefetches, cache policies, fences."""
    body = (
        LANE
        + """
        mad.wide.u32 %d1, %r0, 4, %in;
        prefetch.global.L2 [%d1];
        prefetch.L1 [%d1];
        prefetchu.L1 [%d1];
        prefetch.global.L2::evict_last [%d1];
        createpolicy.fractional.L2::evict_first.b64 %d2, 1.0;
        createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64 %d3, 0.5;
        ld.global.L2::cache_hint.u32 %r1, [%d1], %d2;
        ld.global.nc.L1::no_allocate.L2::cache_hint.u32 %r2, [%d1], %d3;
        ld.global.L2::256B.u32 %r3, [%d1];
        membar.cta;
        membar.gl;
        membar.sys;
        fence.acq_rel.cta;
        fence.acq_rel.cluster;
        fence.acq_rel.gpu;
        fence.sc.sys;
        fence.proxy.async;
        fence.proxy.async.global;
        fence.proxy.async.shared::cta;
        fence.proxy.alias;
        nanosleep.u32 20;
        pmevent 1;
        bar.warp.sync -1;
        add.u32 %r4, %r1, %r2;
        add.u32 %r4, %r4, %r3;
        mad.wide.u32 %d4, %r0, 4, %out;
        st.global.L2::cache_hint.u32 [%d4], %r4, %d2;
    """
    )
    data = Input(data=Source("memory/hints").bits(LANES, "uint32"))
    return Case(
        ptx=kernel(body, (".u64 in", ".u64 out")),
        args=(data, Output(shape=(LANES,), dtype="uint32")),
        section="prefetch, createpolicy, membar, fence",
    )


@FAMILY.case("registers")
def registers() -> Case:
    """Typed registers, scopes that reuse names, several declarations in one, registers without a percent sign."""
    body = """
        .reg .u32 a, b, $c;
        .reg .s32 %s<3>;
        .reg .f32 x, y;
        mov.u32 a, %tid.x;
        mad.wide.u32 %d1, a, 4, %in;
        ld.global.u32 b, [%d1];
        {
            .reg .u32 a;
            mov.u32 a, 77;
            { .reg .pred a; setp.gt.u32 a, b, 1000000000; @a add.u32 b, b, 3; }
            add.u32 $c, a, b;
        }
        cvt.rn.f32.u32 x, a;
        fma.rn.f32 y, x, 0f40000000, 0f3F000000;
        cvt.rzi.s32.f32 %s0, y;
        sub.s32 %s1, %s0, b; xor.b32 %s2, %s1, $c;
        mad.wide.u32 %d2, a, 4, %out;
        st.global.s32 [%d2+0], %s2;
    """
    data = Input(data=Source("memory/registers").bits(LANES, "uint32"))
    return Case(
        ptx=kernel(body, (".u64 in", ".u64 out"), registers=REGISTERS),
        args=(data, Output(shape=(LANES,), dtype="uint32")),
        section="Variables: .reg; scoping",
    )
