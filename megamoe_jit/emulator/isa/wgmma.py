"""wgmma: asynchronous matrix multiplication by a warpgroup.

PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from megamoe_jit.emulator.engines import wgmma
from megamoe_jit.emulator.isa.decode import Decode, Reader
from megamoe_jit.emulator.isa.operands import check_count, register_offsets, uniform
from megamoe_jit.emulator.isa.table import Form, handler
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.parser.nodes import Address, Imm, Vec
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.outcome import Outcome
    from megamoe_jit.emulator.machine.state import Warp

_SECTION = wgmma.SECTION
_DEPTH = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "s8": 32, "u8": 32}
_FLOATS = "f16.f16 bf16.bf16 tf32.tf32 e4m3.e4m3 e4m3.e5m2 e5m2.e4m3 e5m2.e5m2"
_INTEGERS = "s8.s8 s8.u8 u8.s8 u8.u8"
_INTEGER_N = (8, 16, 24, *range(32, 257, 16))


@handler("wgmma.fence.sync.aligned", section=f"{_SECTION}: wgmma.fence")
def wgmma_fence(_: Decode) -> Handler:
    """Order accesses to registers before later wgmma."""

    def run(warp: Warp, _: int) -> Outcome:
        wgmma.warpgroup_of(warp).fence(warp)
        return None

    return run


@handler("wgmma.commit_group.sync.aligned", section=f"{_SECTION}: wgmma.commit_group")
def wgmma_commit_group(_: Decode) -> Handler:
    """Close a group."""

    def run(warp: Warp, _: int) -> Outcome:
        wgmma.warpgroup_of(warp).commit(warp)
        return None

    return run


@handler("wgmma.wait_group.sync.aligned", section=f"{_SECTION}: wgmma.wait_group")
def wgmma_wait_group(d: Decode) -> Handler:
    """Wait until at most N groups are pending."""
    operand = d.operand(0)
    if not isinstance(operand, Imm) or not isinstance(operand.value, int) or operand.value < 0:
        raise UnsupportedError(f"{d.instruction.text}: the number of groups must be a constant of at least 0.")
    allowed = operand.value

    def run(warp: Warp, _: int) -> Outcome:
        return wgmma.warpgroup_of(warp).wait(warp, allowed)

    return run


@handler(
    "wgmma.mma_async.sync.aligned.<shape>{d:.f32|.f16}.<types>",
    sets={"shape": " ".join(f"m64n{n}k{k}" for n in range(8, 257, 8) for k in (8, 16, 32)), "types": _FLOATS},
    section=f"{_SECTION}: wgmma.mma_async",
)
@handler(
    "wgmma.mma_async.sync.aligned.<shape>{.satfinite}.s32.<types>{.satfinite}",
    sets={"shape": " ".join(f"m64n{n}k32" for n in range(8, 257, 8)), "types": _INTEGERS},
    section=f"{_SECTION}: wgmma.mma_async",
)
def wgmma_mma_async(d: Decode) -> Handler:
    """Issue D = A * B + D."""
    plan, a_reader = _plan(d)
    read_b, read_scale = d.value(2, np.uint64), d.predicate(3)

    def run(warp: Warp, _: int) -> Outcome:
        a_raw = None if a_reader is None else uniform(warp, a_reader, "descriptor of A", _SECTION)
        b_raw = uniform(warp, read_b, "descriptor of B", _SECTION)
        scale_d = bool(uniform(warp, read_scale, "scale-d", _SECTION))
        wgmma.warpgroup_of(warp).issue(warp, plan, a_raw, b_raw, scale_d)
        return None

    return run


@handler(
    "wgmma.mma_async.sp.sync.aligned.<shape>{rest:.f32|.f16|.s32|.satfinite.s32}.<types>",
    sets={
        "shape": " ".join(f"m64n{n}k{k}" for n in range(8, 257, 8) for k in (16, 32, 64)),
        "types": f"{_FLOATS} {_INTEGERS}",
    },
    section=f"{_SECTION}: wgmma.mma_async.sp",
)
@handler(
    "wgmma.mma_async.sync.aligned.<shape>.s32.b1.b1.and.popc",
    sets={"shape": " ".join(f"m64n{n}k256" for n in range(8, 257, 8))},
    section=f"{_SECTION}: wgmma.mma_async",
)
def wgmma_refused(d: Decode) -> Handler:
    """Sparse and single-bit products are refused by name."""
    what = "sparse A" if d.form.has("sp") else "single-bit operands"
    raise UnsupportedError(f"{d.form.opcode}: {what} are not modelled.")


def _shape(form: Form) -> wgmma.Shape:
    found = re.fullmatch(r"m64n(\d+)k(\d+)", form["shape"])
    assert found
    n, k = int(found[1]), int(found[2])
    a_type, b_type = form["types"].split(".")
    is_integer = a_type in ("s8", "u8")
    d_type = "s32" if is_integer else form["d"]
    if k != _DEPTH[a_type]:
        raise UnsupportedError(f"{form.opcode}: K of .{a_type} is {_DEPTH[a_type]}, not {k}.")
    if d_type == "f16" and a_type in ("bf16", "tf32"):
        raise UnsupportedError(f"{form.opcode}: .{a_type} has FP32 accumulators only.")
    if is_integer and n not in _INTEGER_N:
        raise UnsupportedError(f"{form.opcode}: N of integers is 8, 16, 24 or a multiple of 16, not {n}.")
    return wgmma.Shape(n, k, d_type, a_type, b_type, form.has("satfinite"))


def _plan(d: Decode) -> tuple[wgmma.Plan, Reader | None]:
    """Decode an instruction: the plan, and what reads the descriptor of A (None: A is in registers)."""
    shape = _shape(d.form)
    d_registers = register_offsets(d, 0, shape.n // (4 if shape.d_type == "f16" else 2), "D")
    in_registers = isinstance(d.operand(1), Vec)
    a_places = wgmma.operand_places(shape, register_offsets(d, 1, 4, "A")) if in_registers else None
    if isinstance(d.operand(1), Address) or isinstance(d.operand(2), Vec | Address):
        raise UnsupportedError(f"{d.instruction.text}: descriptors are 64-bit registers.")
    flags = _immediates(d, shape, in_registers)
    plan = wgmma.Plan(
        pc=d.pc,
        shape=shape,
        d_places=wgmma.accumulator_words(shape, d_registers),
        d_registers=tuple(d_registers),
        a_places=a_places,
        **flags,
    )
    return plan, None if in_registers else d.value(1, np.uint64)


def _immediates(d: Decode, shape: wgmma.Shape, in_registers: bool) -> dict[str, bool]:
    """Read scales of A and B (1 or -1), and transposes where the types have them."""
    if shape.is_integer:
        names = []
    else:
        names = ["negate_a", "negate_b"]
        if shape.a_type in ("f16", "bf16"):
            names += ["transpose_b"] if in_registers else ["transpose_a", "transpose_b"]
    check_count(d, 4 + len(names))
    flags = {}
    for place, name in enumerate(names, 4):
        operand = d.operand(place)
        legal = (1, -1) if name.startswith("negate") else (0, 1)
        if not isinstance(operand, Imm) or operand.value not in legal:
            raise UnsupportedError(f"{d.instruction.text}: operand {place} must be {legal[0]} or {legal[1]}.")
        flags[name] = operand.value == (-1 if name.startswith("negate") else 1)
    return flags
