"""mma.sync: the warp-level multiplications, thirty-two fragments each."""

from __future__ import annotations

from functools import partial

from tests.emulator.vectors.case import Case, Family, Input, Output
from tests.emulator.vectors.data import Source
from tests.emulator.vectors.numbers import elements
from tests.emulator.vectors.ptx import kernel

FAMILY = Family("mma_sync")
SECTION = "Warp-Level Matrix Instructions: mma"
SETS = 16


def build(shape: str, d: str, a: str, b: str, registers: tuple[int, int, int], style: str, suffix: str = "") -> Case:
    """Return the case: `registers` are those of A, B and C or D in each lane."""
    counts = dict(zip("abc", registers, strict=True))
    letter = {"f32": "%f", "s32": "%r", "f16": "%r"}[d]
    kind = {"f32": "f32", "s32": "b32", "f16": "b32"}[d]
    names = {"a": [f"%r{10 + i}" for i in range(counts["a"])], "b": [f"%r{20 + i}" for i in range(counts["b"])]}
    names["c"] = [f"{letter}{30 + i - (20 if letter == '%f' else 0)}" for i in range(counts["c"])]
    names["d"] = [f"{letter}{40 + i - (20 if letter == '%f' else 0)}" for i in range(counts["c"])]
    lines = ["mov.u32 %r0, %tid.x;\nmov.u32 %r1, %ctaid.x;\nmad.lo.u32 %r2, %r1, 32, %r0;"]
    for operand, count in counts.items():
        lines += [f"mad.wide.u32 %d1, %r2, {4 * count}, %{operand};"]
        lines += [
            f"ld.global.{kind if operand == 'c' else 'b32'} {name}, [%d1+{4 * i}];"
            for i, name in enumerate(names[operand])
        ]
    vectors = {operand: "{" + ", ".join(found) + "}" for operand, found in names.items()}
    operands = ", ".join(vectors[name] for name in "dabc")
    lines += [f"mma.sync.aligned.{shape}.row.col{suffix}.{d}.{a}.{b}.{d} {operands};"]
    lines += [f"mad.wide.u32 %d1, %r2, {4 * counts['c']}, %out;"]
    lines += [f"st.global.{kind} [%d1+{4 * i}], {name};" for i, name in enumerate(names["d"])]
    source = Source(f"mma_sync/{shape}{d}{a}{b}{style}{suffix}")
    inputs = []
    for operand, element in (("a", a), ("b", b), ("c", d)):
        size = SETS * 32 * counts[operand] * 4
        width = {"f16": 2, "bf16": 2}.get(element, 1 if element in ("e4m3", "e5m2", "s8", "u8", "s4", "u4") else 4)
        data = (
            source.integers(size // 4, "uint32")
            if element == "s32"
            else elements(source, size // width, element, style)
        )
        inputs.append(Input(data=data.view("uint32")))
    args = (*inputs, Output(shape=(SETS, 32, counts["c"]), dtype="uint32"))
    version = "8.7" if a in ("e4m3", "e5m2") and (shape, d) != ("m16n8k32", "f32") else "8.4"
    text = kernel("\n".join(lines), (".u64 a", ".u64 b", ".u64 c", ".u64 out"), version=version)
    return Case(ptx=text, args=args, grid=(SETS, 1, 1), section=SECTION)


FLOAT_SHAPES = (
    ("m16n8k16", "f32", "f16", "f16", (4, 2, 4)),
    ("m16n8k16", "f16", "f16", "f16", (4, 2, 2)),
    ("m16n8k16", "f32", "bf16", "bf16", (4, 2, 4)),
    ("m16n8k8", "f32", "f16", "f16", (2, 1, 4)),
    ("m16n8k8", "f16", "f16", "f16", (2, 1, 2)),
    ("m16n8k8", "f32", "bf16", "bf16", (2, 1, 4)),
    ("m16n8k8", "f32", "tf32", "tf32", (4, 2, 4)),
    ("m16n8k4", "f32", "tf32", "tf32", (2, 1, 4)),
    *(("m16n8k32", "f32", a, b, (4, 2, 4)) for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2")),
    *(("m16n8k16", "f32", a, "e4m3", (2, 1, 4)) for a in ("e4m3", "e5m2")),
    *(("m16n8k32", "f16", "e4m3", b, (4, 2, 2)) for b in ("e4m3", "e5m2")),
    ("m16n8k16", "f16", "e5m2", "e4m3", (2, 1, 2)),
)
for _shape, _d, _a, _b, _registers in FLOAT_SHAPES:
    for _style in ("normal", "wide", "special"):
        FAMILY.add(f"{_shape}_{_d}_{_a}_{_b}_{_style}", partial(build, _shape, _d, _a, _b, _registers, _style))

for _shape, _a, _b, _registers, _suffix in (
    *(("m16n8k32", a, b, (4, 2, 4), "") for a in ("s8", "u8") for b in ("s8", "u8")),
    ("m16n8k16", "s8", "s8", (2, 1, 4), ""),
    ("m16n8k16", "u8", "s8", (2, 1, 4), ".satfinite"),
    ("m16n8k32", "s8", "s8", (4, 2, 4), ".satfinite"),
    ("m8n8k16", "s8", "u8", (1, 1, 2), ""),
):
    FAMILY.add(
        f"{_shape}_{_a}_{_b}{_suffix.replace('.', '_')}",
        partial(build, _shape, "s32", _a, _b, _registers, "bytes", _suffix),
    )
