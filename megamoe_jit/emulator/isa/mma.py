"""mma.sync: matrix multiplication by a warp.

PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions: mma".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from megamoe_jit.emulator.engines import mma_sync
from megamoe_jit.emulator.engines.numerics import Numerics
from megamoe_jit.emulator.isa.decode import Decode, Reader
from megamoe_jit.emulator.isa.table import Form, handler
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.parser.nodes import RegOp
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.outcome import Outcome
    from megamoe_jit.emulator.machine.state import Warp

_SECTION = "Warp Level Matrix Multiply-Accumulate Instructions: mma"
_FLOATS = "f16 bf16 tf32 e4m3 e5m2"
_NARROW = "e4m3 e5m2 e3m2 e2m3 e2m1"
_SHAPES = {
    "f16": ("m16n8k8", "m16n8k16"),
    "bf16": ("m16n8k8", "m16n8k16"),
    "tf32": ("m16n8k4", "m16n8k8"),
    "e4m3": ("m16n8k16", "m16n8k32"),
    "e5m2": ("m16n8k16", "m16n8k32"),
    "s8": ("m8n8k16", "m16n8k16", "m16n8k32"),
    "u8": ("m8n8k16", "m16n8k16", "m16n8k32"),
    "s4": ("m8n8k32", "m16n8k32", "m16n8k64"),
    "u4": ("m8n8k32", "m16n8k32", "m16n8k64"),
}
_ALL_SHAPES = "m8n8k16 m8n8k32 m16n8k4 m16n8k8 m16n8k16 m16n8k32 m16n8k64"
_WITHOUT_FP8 = ("sm_90", "sm_10", "sm_11")
"""Targets for which the assembler makes FP16 multiplications of FP8 ones (seen in its output)."""
_SCALES = {
    ("mxf8f6f4", ""): 1, ("mxf8f6f4", "scale_vec::1X"): 1,
    ("mxf4", ""): 2, ("mxf4", "scale_vec::2X"): 2,
    ("mxf4nvf4", "scale_vec::2X"): 2, ("mxf4nvf4", "scale_vec::4X"): 4,
}  # fmt: skip
_KIND = (
    "{before:.kind::mxf8f6f4|.kind::mxf4|.kind::mxf4nvf4|}{.block_scale}{.scale_vec::1X|.scale_vec::2X|.scale_vec::4X|}"
)


@handler(
    "mma.sync.aligned.<shape>.row.col.<d>.<a>.<b>.<c>",
    sets={"shape": _ALL_SHAPES, "d": "f32 f16", "a": _FLOATS, "b": _FLOATS, "c": "f32 f16"},
    section=_SECTION,
)
@handler(
    "mma.sync.aligned.<shape>.row.col{.satfinite}.<d>.<a>.<b>.<c>",
    sets={"shape": _ALL_SHAPES, "d": "s32", "a": "s8 u8 s4 u4", "b": "s8 u8 s4 u4", "c": "s32"},
    section=_SECTION,
)
def mma_plain(d: Decode) -> Handler:
    """D = A * B + C, all operands in registers."""
    form = d.form
    a, b = form["a"], form["b"]
    eights = {"e4m3", "e5m2"}
    same = a == b or {a, b} <= eights or (a[1:] == b[1:] and a in mma_sync.INTEGERS)
    shapes = _SHAPES[a]
    half = form["d"] == "f16" and a in ("bf16", "tf32")
    if not same or form["shape"] not in shapes or form["d"] != form["c"] or half:
        raise UnsupportedError(
            f"{form.opcode}: no such combination; .{a} has shapes {', '.join(shapes)}, the same type (or width) for B, "
            "and one type for C and D."
        )
    as_f16 = a in eights and d.module.target.startswith(_WITHOUT_FP8)
    return _handler(d, _shape(form, saturate=form.has("satfinite"), as_f16=as_f16))


@handler(
    "mma.sync.aligned{.kind::f8f6f4}.<shape>.row.col{.kind::f8f6f4}.<d>.<a>.<b>.<c>",
    sets={"shape": "m16n8k32", "d": "f32 f16", "a": _NARROW, "b": _NARROW, "c": "f32 f16"},
    where=lambda form: form.has("kind::f8f6f4"),
    section=_SECTION,
)
def mma_f8f6f4(d: Decode) -> Handler:
    """D = A * B + C of any FP8, FP6 and FP4, each in a byte."""
    if d.form["d"] != d.form["c"]:
        raise UnsupportedError(f"{d.form.opcode}: C and D have one type.")
    return _handler(d, _shape(d.form))


@handler(
    f"mma.sync.aligned{_KIND}.<shape>.row.col{_KIND.replace('before', 'after')}.f32.<a>.<b>.f32.<scale>",
    sets={"shape": "m16n8k32 m16n8k64", "a": _NARROW, "b": _NARROW, "scale": "ue8m0 ue4m3"},
    where=lambda form: form.has("block_scale"),
    section=f"{_SECTION}; Block Scaling for mma.sync",
)
def mma_block_scale(d: Decode) -> Handler:
    """D = (A * scale A) * (B * scale B) + C."""
    form = d.form
    kind = (form["before"] or form["after"]).removeprefix("kind::")
    sizes = [part for part in form.parts if part.startswith("scale_vec")]
    scales = _SCALES.get((kind, sizes[0] if sizes else ""))
    packed = kind != "mxf8f6f4"
    legal = scales is not None and form["shape"] == ("m16n8k64" if packed else "m16n8k32")
    legal &= not packed or form["a"] == form["b"] == "e2m1"
    legal &= form["scale"] == "ue8m0" or (kind == "mxf4nvf4" and scales == 4)
    if not legal or scales is None:
        raise UnsupportedError(f"{form.opcode}: no such combination of kind, shape, scale_vec and types.")
    shape = _shape(form, packed=packed, scale_type=form["scale"], scales=scales)
    return _handler(d, shape, _scale_reader(d, shape))


@handler(
    "mma.sp{::ordered_metadata}.sync.aligned.<shape>.row.col{.satfinite}.<d>.<a>.<b>.<c>",
    sets={
        "shape": "m16n8k8 m16n8k16 m16n8k32 m16n8k64 m16n8k128",
        "d": "f32 f16 s32",
        "a": f"{_FLOATS} s8 u8 s4 u4",
        "b": f"{_FLOATS} s8 u8 s4 u4",
        "c": "f32 f16 s32",
    },
    section="Warp Level Matrix Multiply-Accumulate Instructions: mma.sp",
)
@handler(
    f"mma.sp::ordered_metadata.sync.aligned{_KIND}.<shape>.row.col{_KIND.replace('before', 'after')}"
    ".f32.<a>.<b>.f32.<scale>",
    sets={"shape": "m16n8k64 m16n8k128", "a": _NARROW, "b": _NARROW, "scale": "ue8m0 ue4m3"},
    where=lambda form: form.has("block_scale"),
    section="Warp Level Matrix Multiply-Accumulate Instructions: mma.sp",
)
def mma_sparse(d: Decode) -> Handler:
    """Sparse A is refused by name."""
    raise UnsupportedError(f"{d.form.opcode}: sparse A is not modelled.")


def _shape(form: Form, **fields: Any) -> mma_sync.Shape:
    found = re.fullmatch(r"m(\d+)n(\d+)k(\d+)", form["shape"])
    assert found
    m, n, k = map(int, found.groups())
    d_type = form.captures.get("d", "f32")
    return mma_sync.Shape(m=m, n=n, k=k, a_type=form["a"], b_type=form["b"], d_type=d_type, **fields)


def _handler(d: Decode, shape: mma_sync.Shape, read_scales: Callable[[Warp], tuple[Any, Any]] | None = None) -> Handler:
    expected = 4 + (0 if read_scales is None else 4)
    if d.count != expected:
        raise UnsupportedError(f"{d.instruction.text} has {d.count} operands, {d.form.opcode} takes {expected}.")
    for index, count in enumerate((shape.d_registers, shape.a_registers, shape.b_registers, shape.d_registers)):
        if len(d.items(index)) != count:
            raise UnsupportedError(
                f"{d.instruction.text}: operand {index} has {len(d.items(index))} registers, {d.form.opcode} takes "
                f"{count}."
            )
    write = d.write_many(0, np.uint32)
    read_a, read_b, read_c = (_words(d, index) for index in (1, 2, 3))
    flops = 2 * shape.m * shape.n * shape.k

    def run(warp: Warp, mask: int) -> Outcome:
        machine = warp.machine
        numerics: Numerics = "exact" if machine.numerics == "exact" else "hardware"
        scales = None if read_scales is None else read_scales(warp)
        result = mma_sync.multiply(shape, read_a(warp), read_b(warp), read_c(warp), scales, numerics=numerics)
        write(warp, mask, result)
        machine.counters.mmas += 1
        machine.counters.mma_flops += flops
        return None

    return run


def _words(d: Decode, index: int) -> Reader:
    """Read a vector of 32-bit registers as [registers, 32]: all at once where all are registers."""
    items = d.items(index)
    if not all(isinstance(item, RegOp) and item.reg.width == 4 for item in items):
        return d.values(index, np.uint32)
    layout: Any = d.layout
    offsets = np.array([layout.offset(item.reg) for item in items if isinstance(item, RegOp)])
    places = offsets[:, None] // 4 + np.arange(32)
    return lambda warp: warp.regs.view(np.uint32)[places]


def _scale_reader(d: Decode, shape: mma_sync.Shape) -> Callable[[Warp], tuple[Any, Any]]:
    """Read scale factors: operands 4 to 7 are scale A, {byte-id, thread-id}, scale B, {byte-id, thread-id}."""
    operands = [_ScaleOperand(d, shape, 4, "A"), _ScaleOperand(d, shape, 6, "B")]

    def read(warp: Warp) -> tuple[Any, Any]:
        return operands[0].read(warp), operands[1].read(warp)

    return read


class _ScaleOperand:
    """A register of scale factors, and the ids that say which of its bytes and which lanes count."""

    def __init__(self, d: Decode, shape: mma_sync.Shape, index: int, name: str) -> None:
        ids = d.items(index + 1)
        if len(ids) != 2:
            raise UnsupportedError(f"{d.instruction.text}: operand {index + 1} must be {{byte-id, thread-id}}.")
        self.name = name
        self.rows = shape.m if name == "A" else shape.n
        self.scales = shape.scales
        self.words = d.value(index, np.uint32)
        self.ids = [d.reader(item, np.uint16) for item in ids]

    def read(self, warp: Warp) -> Any:
        """Return the factors' codes, [rows, scales]."""
        byte_id, thread_id = (int(reader(warp)[0]) for reader in self.ids)
        problem = mma_sync.scale_problem(self.name, self.scales, byte_id, thread_id)
        if problem:
            warp.machine.fault("argument", f"mma.sync: {problem}.", by=warp, section="Block Scaling for mma.sync")
        return mma_sync.scale_codes(self.words(warp), self.rows, thread_id, byte_id, self.scales)
