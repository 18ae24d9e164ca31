"""Kernels of one instruction after the other, each with operands from memory and its results stored."""

from __future__ import annotations

import re
from dataclasses import dataclass

from megamoe_jit.emulator.isa.ops import BITS, VALUE_TYPE
from megamoe_jit.emulator.isa.table import ALL_LANES, lookup

NUM_SOURCES = 6
SLOT = 32 * 16
"""Bytes of one source or one result of a warp."""
_LETTERS = {1: "p", 8: "c", 16: "h", 32: "r", 64: "l"}
_MODULES = ("integer", "bits", "floating", "extremes", "approximate", "select", "convert", "convert_packed", "warp_ops")
_ARITIES = {"mov": 1, "selp": 3, "slct": 3, "mad": 3}


@dataclass(frozen=True, slots=True)
class Example:
    """An opcode with the types of its operands."""

    opcode: str
    dst: tuple[str, ...]
    src: tuple[str, ...]


def is_value_form(module: str) -> bool:
    """Whether a module of the package holds forms that compute values of values."""
    return module.rsplit(".", 1)[1] in _MODULES


def example(opcode: str) -> Example:
    """Give `opcode` as many operands as it can have."""
    op = lookup(opcode)
    base = opcode.split(".")[0]
    num_dst = 1 if callable(op.row.dst) else len(op.row.dst.split())
    num_src = _ARITIES.get(base, 2) if callable(op.row.src) else len(op.row.src.split())
    if base in ("setp", "set"):
        num_src = 3 if op.form["combine"] else 2
    if base in ("min", "max") and num_src == 3 and ("xorsign" in opcode or ".abs" not in opcode):
        num_src = 2
    return Example(opcode, op.dst_types(num_dst), op.src_types(num_src))


def _width(type: str) -> int:
    return 128 if type == "b128" else BITS[VALUE_TYPE[type]]


def _register(type: str, number: int) -> str:
    return f"%q{number}" if type == "b128" else f"%{_LETTERS[_width(type)]}{number}"


def _load(type: str, number: int) -> list[str]:
    """Read source `number`, its low bits when it is narrow."""
    at = f"[%in+{number * SLOT}]"
    width, register = _width(type), _register(type, number)
    if width == 1:
        return [f"ld.global.u32 %t, {at};", "and.b32 %t, %t, 1;", f"setp.ne.u32 {register}, %t, 0;"]
    if width == 8:
        return [f"ld.global.b16 %th, {at};", f"mov.b16 {{{register}, _}}, %th;"]
    if width == 128:
        return [f"ld.global.b64 %tl, {at};", f"ld.global.b64 %tm, [%in+{number * SLOT + 8}];",
                f"mov.b128 {register}, {{%tl, %tm}};"]  # fmt: skip
    return [f"ld.global.b{width} {register}, {at};"]


def _store(type: str, number: int, slot: int) -> list[str]:
    at = f"[%out+{slot * SLOT}]"
    width, register = _width(type), _register(type, number)
    if width == 1:
        return [f"selp.u32 %t, 1, 0, {register};", f"st.global.u32 {at}, %t;"]
    if width == 8:
        return [f"mov.b16 %th, {{{register}, {register}}};", f"st.global.b16 {at}, %th;"]
    if width == 128:
        return [f"mov.b128 {{%tl, %tm}}, {register};", f"st.global.b64 {at}, %tl;",
                f"st.global.b64 [%out+{slot * SLOT + 8}], %tm;"]  # fmt: skip
    return [f"st.global.b{width} {at}, {register};"]


def body(examples: list[Example], immediates: list[int]) -> tuple[str, int]:
    """Return a kernel's instructions and how many results it stores; `immediates` stand in for tables and selectors."""
    lines = ["ld.param.u64 %in, [source];", "ld.param.u64 %out, [result];", "mov.u32 %t, %laneid;",
             "mad.wide.u32 %in, %t, 16, %in;", "mad.wide.u32 %out, %t, 16, %out;"]  # fmt: skip
    slot = 0
    for index, case in enumerate(examples):
        sources = []
        for number, type in enumerate(case.src):
            lines += _load(type, number)
            sources.append(_register(type, number))
        members = lookup(case.opcode).members
        if members not in (None, ALL_LANES):
            sources[members] = "-1"
        if case.opcode.startswith("lop3"):
            sources[3] = str(immediates[index] & 0xFF)
        if case.opcode.startswith("prmt") and index % 2:
            sources[2] = str(immediates[index] & 0xFFFF)
        if re.fullmatch(r"cvt\.rs.*x4\.f32", case.opcode):
            sources = [f"{{{', '.join(sources[:4])}}}", sources[4]]
        targets = "|".join(_register(type, NUM_SOURCES + number) for number, type in enumerate(case.dst))
        lines.append(f"{case.opcode} {', '.join([targets, *sources])};")
        for number, type in enumerate(case.dst):
            lines += _store(type, NUM_SOURCES + number, slot)
            slot += 1
    return "\n".join([*lines, "ret;"]), slot


DECLARATIONS = (
    f".reg .pred %p<{NUM_SOURCES + 4}>; .reg .b8 %c<{NUM_SOURCES + 4}>; .reg .b16 %h<{NUM_SOURCES + 4}>; "
    f".reg .b32 %r<{NUM_SOURCES + 4}>; .reg .b64 %l<{NUM_SOURCES + 4}>; .reg .b128 %q<{NUM_SOURCES + 4}>; "
    ".reg .b64 %in, %out, %tl, %tm; .reg .b32 %t; .reg .b16 %th;"
)
