"""The 32-bit instruction descriptor of tcgen05.mma: shape, types, transposes, and which of them each kind allows.

PTX ISA, "Instruction Descriptor", "Matrix Shape", "Scale Factor A ID", "Scale Factor B ID".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from megamoe_jit.emulator.engines.numerics.formats import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    F16,
    TF32,
    UE4M3,
    UE8M0,
    ElementFormat,
)

_NARROW = {0: E4M3, 1: E5M2, 3: E2M3, 4: E3M2, 5: E2M1}


class MmaKind(Enum):
    """The `.kind::` of an instruction."""

    F16 = "f16"
    TF32 = "tf32"
    F8F6F4 = "f8f6f4"
    I8 = "i8"
    MXF8F6F4 = "mxf8f6f4"
    MXF4 = "mxf4"
    MXF4NVF4 = "mxf4nvf4"

    @property
    def is_block_scaled(self) -> bool:
        """Whether scale factors are operands."""
        return self in (MmaKind.MXF8F6F4, MmaKind.MXF4, MmaKind.MXF4NVF4)

    @property
    def is_packed_fp4(self) -> bool:
        """Whether two E2M1 elements share a byte of shared memory."""
        return self in (MmaKind.MXF4, MmaKind.MXF4NVF4)

    @property
    def element_formats(self) -> dict[int, ElementFormat]:
        """Codes of the descriptor's type fields; empty for integers."""
        return {
            MmaKind.F16: {0: F16, 1: BF16},
            MmaKind.TF32: {2: TF32},
            MmaKind.F8F6F4: _NARROW,
            MmaKind.MXF8F6F4: _NARROW,
            MmaKind.MXF4: {1: E2M1},
            MmaKind.MXF4NVF4: {1: E2M1},
        }.get(self, {})

    @property
    def depth(self) -> int:
        """K of an instruction."""
        return {MmaKind.F16: 16, MmaKind.TF32: 8, MmaKind.MXF4: 64, MmaKind.MXF4NVF4: 64}.get(self, 32)

    @property
    def d_types(self) -> dict[int, str]:
        """Codes of the accumulator's type."""
        if self is MmaKind.I8:
            return {2: "s32"}
        return {0: "f16", 1: "f32"} if self in (MmaKind.F16, MmaKind.F8F6F4) else {1: "f32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionDescriptor:
    """A decoded descriptor.

    Attributes:
        raw: the 32 bits.
        kind: of the instruction.
        m, n, k: shape of the instruction (for a pair of CTAs: of both together).
        d_type: "f32", "f16" or "s32".
        a_format, b_format: of the elements; None for integers.
        a_signed, b_signed: of integers.
        negate_a, negate_b, transpose_a, transpose_b, saturate: flags; transposed is MN-major.
        sfa_id, sfb_id: first byte of the scale factors in their word.
        scale_format: UE4M3 or UE8M0; None without block scales.
    """

    raw: int
    kind: MmaKind
    m: int
    n: int
    k: int
    d_type: str
    a_format: ElementFormat | None
    b_format: ElementFormat | None
    a_signed: bool
    b_signed: bool
    negate_a: bool
    negate_b: bool
    transpose_a: bool
    transpose_b: bool
    saturate: bool
    sfa_id: int
    sfb_id: int
    scale_format: ElementFormat | None

    @property
    def element_bytes(self) -> int:
        """Bytes of an element (of its container) in shared memory; packed FP4 has none of its own."""
        return {MmaKind.F16: 2, MmaKind.TF32: 4}.get(self.kind, 1)

    @property
    def step_bytes(self) -> int:
        """Bytes of a row along K."""
        return 48 if self.k == 96 else 32


def decode(raw: int, kind: MmaKind) -> tuple[InstructionDescriptor | None, list[str]]:
    """Decode a descriptor for `kind`: (None, problems) when a type or size field has no meaning."""
    problems: list[str] = []

    def field(high: int, low: int) -> int:
        return raw >> low & ((1 << (high - low + 1)) - 1)

    def must_be_zero(high: int, low: int, what: str = "reserved") -> None:
        if field(high, low):
            problems.append(
                f"bits {high}:{low} ({what}) are {field(high, low):#x}, but must be 0 for kind::{kind.value}"
            )

    def choose(what: str, high: int, low: int, choices: dict[int, object]) -> object:
        code = field(high, low)
        if code not in choices:
            known = ", ".join(f"{key} ({getattr(value, 'name', value)})" for key, value in choices.items())
            problems.append(f"{what} (bits {high}:{low}) is {code}; kind::{kind.value} knows {known}")
        return choices.get(code)

    if field(2, 2):
        problems.append("sparsity (bit 2) is set, but the instruction is dense")
    is_integer = kind is MmaKind.I8
    scaled, packed = kind.is_block_scaled, kind.is_packed_fp4
    formats: dict[int, object] = {0: "unsigned", 1: "signed"} if is_integer else dict(kind.element_formats)
    a_format = choose("A type", 9, 7, formats)
    b_format = choose("B type", 11 if packed else 12, 10, formats)
    must_be_zero(1, 0, "sparsity selector")
    must_be_zero(6, 6)
    scale_format: object = None
    d_type: object = "f32"
    if scaled:
        must_be_zero(3, 3)
        must_be_zero(26, 24)
        if packed:
            must_be_zero(12, 12)
            must_be_zero(16, 15, "transposes")
        else:
            must_be_zero(31, 31)
        wanted = {0: UE4M3, 1: UE8M0} if kind is MmaKind.MXF4NVF4 else {1: UE8M0}
        scale_format = choose("scale type", 23, 23, dict(wanted))
        m = field(28, 27) << 7
    else:
        d_type = choose("D type", 5, 4, dict(kind.d_types))
        if is_integer:
            must_be_zero(14, 13, "negate")
        else:
            must_be_zero(3, 3, "saturate")
        must_be_zero(23, 23)
        must_be_zero(29, 29)
        m = field(28, 24) << 4
    if any(item is None for item in (a_format, b_format, d_type)) or (scaled and scale_format is None):
        return None, problems
    return InstructionDescriptor(
        raw=raw,
        kind=kind,
        m=m,
        n=field(22, 17) << 3,
        k=96 if packed and field(31, 31) else kind.depth,
        d_type=str(d_type),
        a_format=a_format if isinstance(a_format, ElementFormat) else None,
        b_format=b_format if isinstance(b_format, ElementFormat) else None,
        a_signed=a_format == "signed",
        b_signed=b_format == "signed",
        negate_a=bool(field(13, 13)),
        negate_b=bool(field(14, 14)),
        transpose_a=bool(field(15, 15)),
        transpose_b=bool(field(16, 16)),
        saturate=bool(field(3, 3)) and is_integer,
        sfa_id=field(30, 29) if scaled else 0,
        sfb_id=field(5, 4) if scaled else 0,
        scale_format=scale_format if isinstance(scale_format, ElementFormat) else None,
    ), problems


def shape_problems(idesc: InstructionDescriptor, *, cta_group: int, ws: bool, scales: int, target: str) -> list[str]:
    """Return what is wrong with the shape for a number of CTAs, `.ws` and scales along K (0 without block scales)."""
    kind, m, n = idesc.kind, idesc.m, idesc.n
    name = f"kind::{kind.value}{'.ws' if ws else ''} with cta_group::{cta_group}"
    problems = []
    if idesc.raw >> 30 and not ws and not kind.is_block_scaled:
        problems.append(f"maximum shift (bits 31:30) is {idesc.raw >> 30}, which only .ws has")
    if ws:
        rows, columns = [32, 64, 128], [64, 128, 256]
    else:
        rows = [64, 128] if cta_group == 1 else [128, 256]
        if kind.is_block_scaled and cta_group == 1:
            rows = [128]
        columns = _columns(idesc, cta_group)
    if idesc.k == 96:
        if not target.startswith("sm_103"):
            problems.append(f"K = 96 (bit 31) exists on sm_103 only, this is {target}")
        columns = list(range(16, 257, 16))
        rows = [256] if cta_group == 2 else [128]
    if m not in rows:
        problems.append(f"M is {m}; {name} has {', '.join(map(str, rows))}")
    if n not in columns:
        step = columns[1] - columns[0] if len(columns) > 3 else 0
        known = f"{columns[0]} to {columns[-1]} in steps of {step}" if step else ", ".join(map(str, columns))
        problems.append(f"N is {n}; {name} has {known}")
    legal = {1: (0, 1, 2, 3), 2: (0, 2), 4: (0,), 3: (0, 1, 2, 3), 6: (0, 2)}.get(scales, (0,))
    for operand, number in (("A", idesc.sfa_id), ("B", idesc.sfb_id)):
        if number not in legal:
            problems.append(f"scale factor {operand} id is {number}; {scales} scales a row allow {legal}")
    return problems


def _columns(idesc: InstructionDescriptor, cta_group: int) -> list[int]:
    """Legal N of a shape without `.ws`."""
    if idesc.kind is MmaKind.I8:
        return [8, 16, 24, *range(32, 257, 16)] if cta_group == 1 else list(range(32, 257, 32))
    step = 8 * cta_group
    if idesc.transpose_b and idesc.element_bytes == 1:
        step = 16 * cta_group
    return list(range(step, 257, step))
