"""wgmma: kinds, shapes, operands in shared memory and in registers, layouts, and what the adder keeps.

Operands in shared memory are images of elements drawn independently of each other: whatever a descriptor says, the
machine multiplies what it finds, so that no layout code of ours takes part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from tests.emulator.vectors.case import Argument, Case, Family, Input, Output, Scalar
from tests.emulator.vectors.data import Source
from tests.emulator.vectors.numbers import elements
from tests.emulator.vectors.ptx import kernel

FAMILY = Family("wgmma")
SECTION = "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions: wgmma"
THREADS = 128
SWIZZLE_CODES = {0: 0, 128: 1, 64: 2, 32: 3}
K_OF = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "s8": 32, "u8": 32}
BYTES_OF = {"f16": 2, "bf16": 2, "tf32": 4, "e4m3": 1, "e5m2": 1, "s8": 1, "u8": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Operand:
    """Where an operand lies: swizzle width (0 for none), byte offsets, and the bytes from one K step to the next."""

    swizzle: int = 128
    leading: int = 0
    stride: int = 1024
    step: int = 32
    start: int = 0
    is_transposed: bool = False

    @property
    def descriptor(self) -> int:
        """The 64-bit descriptor without the address."""
        return SWIZZLE_CODES[self.swizzle] << 62 | (self.stride >> 4) << 32 | (self.leading >> 4) << 16


def k_major(swizzle: int) -> Operand:
    """Return packed rows of one swizzle width; without a swizzle, core matrices along K, then along rows."""
    if swizzle:
        return Operand(swizzle=swizzle, stride=8 * swizzle)
    return Operand(swizzle=0, leading=128, stride=256, step=4096)


def mn_major(swizzle: int, extent: int) -> Operand:
    """Return packed 16-bit columns: groups of a swizzle width along M or N, eight K rows each."""
    if swizzle:
        groups = -(-extent * 2 // swizzle)
        return Operand(
            swizzle=swizzle,
            leading=8 * swizzle,
            stride=8 * swizzle * groups,
            step=16 * swizzle * groups,
            is_transposed=True,
        )
    chunks = extent // 8
    return Operand(swizzle=0, leading=128 * chunks, stride=128, step=256 * chunks, is_transposed=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Multiply:
    """One chain of MMAs."""

    n: int
    a_kind: str
    b_kind: str
    d_kind: str = "f32"
    a: Operand | None = Operand()  # None: in registers
    b: Operand = Operand()
    steps: int = 2
    style: str = "normal"
    c_style: str = "normal"
    negate_a: bool = False
    negate_b: bool = False
    is_saturating: bool = False
    keeps_d: bool = True  # whether the first MMA adds to D
    groups: bool = False  # one group for each MMA

    @property
    def registers(self) -> int:
        """Registers of D in each thread."""
        return self.n // (4 if self.d_kind == "f16" else 2)

    @property
    def instruction(self) -> str:
        """The opcode."""
        sat = ".satfinite" if self.is_saturating else ""
        shape = f"m64n{self.n}k{K_OF[self.a_kind]}"
        return f"wgmma.mma_async.sync.aligned.{shape}.{self.d_kind}.{self.a_kind}.{self.b_kind}{sat}"

    @property
    def immediates(self) -> str:
        """Negations and transposes, as far as the kinds have them."""
        if self.d_kind == "s32":
            return ""
        text = f", {-1 if self.negate_a else 1}, {-1 if self.negate_b else 1}"
        if self.a_kind in ("f16", "bf16"):
            text += f", {int(self.a.is_transposed)}" if self.a else ""
            text += f", {int(self.b.is_transposed)}"
        return text

    def image_bytes(self, operand: Operand, extent: int) -> int:
        """Return enough bytes for every address that a descriptor reaches."""
        if operand.is_transposed:
            size = operand.step * self.steps
        elif operand.swizzle:
            size = operand.stride * -(-extent // 8)
        else:
            size = max(operand.step * (self.steps - 1) + operand.leading + operand.stride * -(-extent // 8), 4096)
        return -(-(size + operand.start) // 2048) * 2048


def build(multiply: Multiply, seed: str) -> Case:
    """Return the case of one chain."""
    source = Source(f"wgmma/{seed}")
    count, n = multiply.registers, multiply.n
    accumulator = ".f32" if multiply.d_kind == "f32" else ".b32"
    a_bytes = multiply.image_bytes(multiply.a, 64) if multiply.a else 0
    b_bytes = multiply.image_bytes(multiply.b, n)
    lines = [
        f".reg {accumulator} %acc<{count}>;\n.reg .b32 %a<{4 * multiply.steps}>;",
        "mov.u32 %r0, %tid.x;\nmov.u32 %r1, cells;\nadd.u32 %r1, %r1, 1023;\nand.b32 %r1, %r1, 0xfffffc00;",
        "mad.lo.u32 %r2, %r0, 16, %r1;\nmad.wide.u32 %d1, %r0, 16, %images;\nmad.wide.u32 %d2, %r0, 4, %c;\n"
        "mad.wide.u32 %d3, %r0, 4, %out;",
    ]
    for offset in range(0, a_bytes + b_bytes, 2048):
        lines += [
            f"ld.global.v4.u32 {{%r10, %r11, %r12, %r13}}, [%d1+{offset}];",
            f"st.shared.v4.u32 [%r2+{offset}], {{%r10, %r11, %r12, %r13}};",
        ]
    lines += ["fence.proxy.async.shared::cta;\nbar.sync 0;"]
    lines += ["ld.param.u32 %r5, [first];\nsetp.ne.u32 %p1, %r5, 0;"]
    lines += [f"ld.global{accumulator} %acc{i}, [%d2+{512 * i}];" for i in range(count)]
    if multiply.a is None:
        lines += ["mad.wide.u32 %d4, %r0, 4, %fragments;"]
        lines += [f"ld.global.b32 %a{i}, [%d4+{512 * i}];" for i in range(4 * multiply.steps)]
    for name, operand, base in (("6", multiply.a, 0), ("7", multiply.b, a_bytes)):
        if operand:
            lines += [
                f"add.u32 %r20, %r1, {base + operand.start};\nand.b32 %r20, %r20, 0x3ffff;\nshr.u32 %r20, %r20, 4;"
            ]
            lines += [f"cvt.u64.u32 %d{name}, %r20;\nor.b64 %d{name}, %d{name}, {operand.descriptor};"]
    lines += ["wgmma.fence.sync.aligned;"]
    registers = ", ".join(f"%acc{i}" for i in range(count))
    for step in range(multiply.steps):
        b = f"%d{12 + step}"
        lines += [f"add.u64 {b}, %d7, {multiply.b.step * step >> 4};"]
        if multiply.a:
            a = f"%d{20 + step}"
            lines += [f"add.u64 {a}, %d6, {multiply.a.step * step >> 4};"]
        else:
            a = "{" + ", ".join(f"%a{4 * step + i}" for i in range(4)) + "}"
        adds = "%p1" if step == 0 else "1"
        lines += [f"{multiply.instruction} {{{registers}}}, {a}, {b}, {adds}{multiply.immediates};"]
        if multiply.groups:
            lines += ["wgmma.commit_group.sync.aligned;"] + (["wgmma.wait_group.sync.aligned 1;"] if step else [])
    lines += ["wgmma.commit_group.sync.aligned;"] if not multiply.groups else []
    lines += ["wgmma.wait_group.sync.aligned 0;"]
    lines += [f"st.global{accumulator} [%d3+{512 * i}], %acc{i};" for i in range(count)]
    image = []
    for kind, size in ((multiply.a_kind, a_bytes), (multiply.b_kind, b_bytes)):
        image.append(elements(source, size // BYTES_OF[kind], kind, multiply.style).view("uint8"))
    fragments = elements(
        source, 16 * multiply.steps * THREADS // BYTES_OF[multiply.a_kind], multiply.a_kind, multiply.style
    ).view("uint32")
    if multiply.d_kind == "s32":
        start = source.integers(count * THREADS, "uint32")
    elif multiply.d_kind == "f16":
        start = elements(source, 2 * count * THREADS, "f16", multiply.c_style).view("uint32")
    else:
        start = elements(source, count * THREADS, "f32", multiply.c_style)
    args: tuple[Argument, ...] = (
        Input(data=np.concatenate(image)),
        Input(data=fragments),
        Input(data=start),
        Scalar(value=int(multiply.keeps_d)),
        Output(shape=(count, THREADS), dtype="uint32"),
    )
    text = kernel(
        "\n".join(lines),
        (".u64 images", ".u64 fragments", ".u64 c", ".u32 first", ".u64 out"),
        outside=".extern .shared .align 1024 .b8 cells[];\n",
        version="8.4",
    )
    return Case(ptx=text, args=args, block=(THREADS, 1, 1), shared_bytes=a_bytes + b_bytes + 1024, section=SECTION)


def add(name: str, **fields: object) -> None:
    """Add a chain."""
    FAMILY.add(name, partial(build, Multiply(**fields), name))  # type: ignore[arg-type]


FP8 = tuple((a, b) for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2"))
for _n in (8, 16, 24, 64, 128, 256):
    add(f"bf16_n{_n}", n=_n, a_kind="bf16", b_kind="bf16")
    add(f"e4m3_n{_n}", n=_n, a_kind="e4m3", b_kind="e4m3")
for _n in (8, 40, 96):
    add(f"f16_n{_n}", n=_n, a_kind="f16", b_kind="f16")
    add(f"f16_to_f16_n{_n}", n=_n, a_kind="f16", b_kind="f16", d_kind="f16")
    add(f"tf32_n{_n}", n=_n, a_kind="tf32", b_kind="tf32")
for _n in (8, 24, 64):
    add(f"s8_n{_n}", n=_n, a_kind="s8", b_kind="s8", d_kind="s32")
for _a, _b in (("s8", "u8"), ("u8", "s8"), ("u8", "u8")):
    add(f"{_a}_{_b}", n=16, a_kind=_a, b_kind=_b, d_kind="s32")
add("s8_satfinite", n=16, a_kind="s8", b_kind="s8", d_kind="s32", is_saturating=True)
add("u8_satfinite_registers", n=16, a_kind="u8", b_kind="u8", d_kind="s32", is_saturating=True, a=None)
for _a, _b in FP8:
    add(f"{_a}_{_b}", n=16, a_kind=_a, b_kind=_b, steps=4)
    add(f"{_a}_{_b}_to_f16", n=16, a_kind=_a, b_kind=_b, d_kind="f16")
    add(f"{_a}_{_b}_registers", n=24, a_kind=_a, b_kind=_b, a=None, b=k_major(64))
    # What the adder keeps: exponents that differ, C among them, one MMA and a chain.
    add(f"adder_{_a}_{_b}", n=32, a_kind=_a, b_kind=_b, steps=1, style="wide", c_style="wide")
    add(f"special_{_a}_{_b}", n=16, a_kind=_a, b_kind=_b, steps=1, style="special", c_style="special")
    add(
        f"special_{_a}_{_b}_to_f16",
        n=8,
        a_kind=_a,
        b_kind=_b,
        d_kind="f16",
        steps=1,
        style="special",
        c_style="special",
    )
for _kind in ("f16", "bf16", "tf32"):
    add(f"{_kind}_registers", n=24, a_kind=_kind, b_kind=_kind, a=None)
    add(f"adder_{_kind}", n=32, a_kind=_kind, b_kind=_kind, steps=1, style="wide", c_style="wide")
    add(f"adder_{_kind}_chain", n=16, a_kind=_kind, b_kind=_kind, steps=4, style="wide", c_style="wide")
    add(f"special_{_kind}", n=16, a_kind=_kind, b_kind=_kind, steps=1, style="special", c_style="special")
    add(f"negate_{_kind}", n=16, a_kind=_kind, b_kind=_kind, negate_a=True)
    add(f"no_input_d_{_kind}", n=16, a_kind=_kind, b_kind=_kind, keeps_d=False, c_style="special")
    for _swizzle in (0, 32, 64):
        add(
            f"{_kind}_swizzle_{_swizzle}",
            n=24,
            a_kind=_kind,
            b_kind=_kind,
            a=k_major(_swizzle),
            b=k_major(_swizzle),
            steps=1 if _swizzle == 32 else 2,
        )
add("adder_e4m3_chain", n=16, a_kind="e4m3", b_kind="e4m3", steps=4, style="wide", c_style="wide")
add("adder_f16_to_f16", n=32, a_kind="f16", b_kind="f16", d_kind="f16", steps=1, style="wide", c_style="wide")
add("adder_e4m3_to_f16", n=32, a_kind="e4m3", b_kind="e4m3", d_kind="f16", steps=1, style="normal", c_style="wide")
add("special_f16_to_f16", n=16, a_kind="f16", b_kind="f16", d_kind="f16", steps=1, style="special", c_style="special")
add("f16_to_f16_registers", n=24, a_kind="f16", b_kind="f16", d_kind="f16", a=None)
add("negate_e4m3", n=16, a_kind="e4m3", b_kind="e4m3", negate_b=True)
add("negate_f16_registers", n=16, a_kind="f16", b_kind="f16", a=None, negate_a=True, negate_b=True)
add("no_input_d_e4m3", n=16, a_kind="e4m3", b_kind="e4m3", keeps_d=False, c_style="special")
add("s8_registers", n=24, a_kind="s8", b_kind="s8", d_kind="s32", a=None)
add("groups_bf16", n=32, a_kind="bf16", b_kind="bf16", steps=4, groups=True)
add("groups_e4m3", n=32, a_kind="e4m3", b_kind="e4m3", steps=4, groups=True)
for _swizzle in (0, 32, 64):
    add(
        f"e4m3_swizzle_{_swizzle}",
        n=24,
        a_kind="e4m3",
        b_kind="e5m2",
        a=k_major(_swizzle),
        b=k_major(_swizzle),
        steps=1 if _swizzle == 32 else 2,
    )
    add(
        f"s8_swizzle_{_swizzle}",
        n=8,
        a_kind="s8",
        b_kind="u8",
        d_kind="s32",
        a=k_major(_swizzle),
        b=k_major(_swizzle),
        steps=1 if _swizzle == 32 else 2,
    )
for _swizzle in (0, 32, 64, 128):
    for _n in (64, 128) if _swizzle else (24, 64):
        add(f"transposed_b_{_swizzle}_n{_n}", n=_n, a_kind="bf16", b_kind="bf16", b=mn_major(_swizzle, _n))
    add(f"transposed_a_{_swizzle}", n=16, a_kind="f16", b_kind="f16", a=mn_major(_swizzle, 64))
    add(
        f"transposed_both_{_swizzle}",
        n=64,
        a_kind="f16",
        b_kind="f16",
        d_kind="f16",
        a=mn_major(_swizzle, 64),
        b=mn_major(_swizzle, 64),
    )
add("transposed_b_registers", n=64, a_kind="bf16", b_kind="bf16", a=None, b=mn_major(128, 64))
add("transposed_b_128_n24", n=24, a_kind="bf16", b_kind="bf16", b=mn_major(128, 64))
# Rows that are not packed, and core matrices in another order.
add("loose_strides", n=16, a_kind="bf16", b_kind="bf16", a=Operand(stride=2048), b=Operand(stride=3072))
add(
    "loose_cores",
    n=32,
    a_kind="bf16",
    b_kind="bf16",
    a=Operand(swizzle=0, leading=1024, stride=128, step=2048),
    b=Operand(swizzle=0, leading=640, stride=144, step=1280),
)
add("loose_leading", n=16, a_kind="bf16", b_kind="bf16", a=Operand(leading=512), b=Operand(leading=16))
