"""tcgen05.mma: D = A * B + D with D in tensor memory, by one CTA or by a pair.

PTX ISA, "tcgen05.mma", "Data Path Layout Organization", "Block Scaling". A pair computes one product: each CTA holds
its half of A's rows and of D, and half of B's rows; scale factors of B are needed whole in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megamoe_jit.emulator.engines.descriptors import MatrixDescriptor
from megamoe_jit.emulator.engines.instruction_descriptors import (
    InstructionDescriptor,
    MmaKind,
    decode,
    shape_problems,
)
from megamoe_jit.emulator.engines.numerics import (
    Numerics,
    Operand,
    Scales,
    block_dot,
    dot,
    integer_dot,
    rule_for,
)
from megamoe_jit.emulator.engines.numerics.formats import UE4M3, UE8M0
from megamoe_jit.emulator.engines.operands import operand_addresses, tensor_memory_codes
from megamoe_jit.emulator.engines.shared_tiles import check_bounds, note_read, shared_bytes, shared_operand
from megamoe_jit.emulator.engines.tcgen05 import (
    ALL_LANES,
    SECTION,
    Array,
    address_of,
    cell_ranges,
    check_cells,
    ctas_of,
    refuse,
    submit,
    tmem_of,
)
from megamoe_jit.emulator.engines.tcgen05_copy import descriptor_of
from megamoe_jit.emulator.engines.tensor_memory import (
    AccumulatorLayout,
    accumulator_layout,
    read_scales,
    scale_columns,
)

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.queues import AsyncOp
    from megamoe_jit.emulator.machine.state import Cta, Warp

_SECTION = f"{SECTION}: tcgen05.mma"


@dataclass(frozen=True, slots=True)
class Form:
    """What an opcode says.

    Attributes:
        kind: `.kind::`.
        cta_group: 1 or 2.
        ws: weight-stationary.
        block: elements that share a scale factor, 0 without block scales.
        target: of the module.
        pc: of the instruction.
    """

    kind: MmaKind
    cta_group: int
    ws: bool
    block: int
    target: str
    pc: int


@dataclass(frozen=True, slots=True)
class Operands:
    """Values of an instruction's operands.

    Attributes:
        d: address of D; idesc: instruction descriptor.
        a_raw: descriptor of A, None when A is in tensor memory at a_address; b_raw: descriptor of B.
        sfa, sfb: addresses of scale factors.
        accumulate: enable-input-d.
        shift: scale-input-d, the old D is divided by 2**shift.
        disabled: words of disable-output-lane, 4 for each CTA; empty for none.
    """

    d: int
    idesc: int
    a_raw: int | None
    a_address: int
    b_raw: int
    sfa: int = 0
    sfb: int = 0
    accumulate: bool = True
    shift: int = 0
    disabled: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Job:
    """An instruction whose operands are decoded and legal."""

    form: Form
    idesc: InstructionDescriptor
    layout: AccumulatorLayout
    ctas: tuple[Cta, ...]
    d: tuple[int, int]
    a: MatrixDescriptor | None
    a_cell: tuple[int, int]
    b: MatrixDescriptor
    sfa: int
    sfb: int
    scales: int
    operands: Operands

    @property
    def packed(self) -> bool:
        return self.form.kind.is_packed_fp4

    @property
    def splits_scales_of_b(self) -> bool:
        """Whether B's scale factors lie half by half: a pair that computes 128 rows."""
        return self.layout.letter == "B"

    @property
    def a_lanes(self) -> Array:
        """Lanes of A's rows in tensor memory."""
        return self.layout.lanes(self.a_cell[0]) if self.layout.letter == "F" else np.arange(self.layout.rows)

    @property
    def a_words(self) -> int:
        """Words that a row of A takes in tensor memory."""
        return self.idesc.step_bytes // 4


def multiply(warp: Warp, form: Form, operands: Operands, *, lane: int) -> None:
    """Check an instruction and start it."""
    job = _decode(warp, form, operands)
    idesc = job.idesc

    def run(op: AsyncOp) -> None:
        _run(op, job)

    nbytes = idesc.step_bytes * (job.layout.rows + idesc.n)
    submit(warp, "tcgen05.mma", run, pc=form.pc, lane=lane, nbytes=nbytes, smem_of=job.ctas)


# --- checks at issue ------------------------------------------------------------------------------------------------


def _decode(warp: Warp, form: Form, operands: Operands) -> _Job:
    idesc, problems = decode(operands.idesc, form.kind)
    scales = 0
    if idesc is not None:
        scales = idesc.k // form.block if form.block else 0
        problems += shape_problems(idesc, cta_group=form.cta_group, ws=form.ws, scales=scales, target=form.target)
    if problems or idesc is None:
        refuse(
            warp,
            f"instruction descriptor {operands.idesc:#010x}: {'; '.join(problems)}",
            kind="descriptor",
            section=f"{SECTION}: Instruction Descriptor",
        )
    ctas = ctas_of(warp, form.cta_group)
    layout = accumulator_layout(idesc.m, idesc.n, cta_group=form.cta_group, ws=form.ws)
    base_lanes = (0, 16) if layout.may_start_at_lane_16 else (0,)
    d = address_of(warp, operands.d, "D", base_lanes=base_lanes)
    a, a_cell = None, (0, 0)
    if operands.a_raw is None:
        a_cell = address_of(warp, operands.a_address, "A", base_lanes=(d[0],))
        if idesc.transpose_a:
            refuse(warp, "A in tensor memory is K-major, but transpose A (bit 15) is set", kind="descriptor")
    else:
        a = descriptor_of(warp, operands.a_raw, "A", mn_major=idesc.transpose_a, step_bytes=idesc.step_bytes)
    b = descriptor_of(warp, operands.b_raw, "B", mn_major=idesc.transpose_b, step_bytes=idesc.step_bytes)
    sfa = sfb = 0
    if form.block:
        sfa = address_of(warp, operands.sfa, "scale-A")[1]
        sfb = address_of(warp, operands.sfb, "scale-B")[1]
    job = _Job(form, idesc, layout, ctas, d, a, a_cell, b, sfa, sfb, scales, operands)
    for cta in ctas:
        for what, lanes, column, columns in _cells(job):
            check_cells(warp, cta, f"{what} of tcgen05.mma", lanes, column, columns)
    return job


def _cells(job: _Job) -> list[tuple[str, Array, int, int]]:
    """Blocks of tensor memory that a CTA's share touches: (operand, lanes, column, columns), D first."""
    layout = job.layout
    blocks = [("D", layout.lanes(job.d[0]), job.d[1], layout.width)]
    if job.a is None:
        blocks.append(("A", job.a_lanes, job.a_cell[1], job.a_words))
    if job.form.block:
        for what, column, rows, halves in (
            ("scale-A", job.sfa, layout.rows, False),
            ("scale-B", job.sfb, job.idesc.n, job.splits_scales_of_b),
        ):
            width = scale_columns(rows, split_halves=halves)
            first = job.idesc.sfa_id if what == "scale-A" else job.idesc.sfb_id
            words = -(-(first + job.scales) // 4)
            blocks += [(what, ALL_LANES, column + (4 if rows <= 128 else 8) * word, width) for word in range(words)]
    return blocks


# --- running --------------------------------------------------------------------------------------------------------


def _run(op: AsyncOp, job: _Job) -> None:
    machine = op.issuer.machine
    idesc = job.idesc
    numerics: Numerics = "exact" if machine.numerics == "exact" else "hardware"
    b = _operand(op, job, job.b, job.ctas, idesc.n // len(job.ctas), "B")
    for number, cta in enumerate(job.ctas):
        a = _a_operand(op, job, cta)
        if machine.checks.enabled:
            _note_cells(op, job, cta)
        old = _old(job, cta)
        if isinstance(a, Operand) and isinstance(b, Operand):
            result = _float_product(op, job, cta, a, b, old, numerics)
        else:
            assert not isinstance(a, Operand)
            assert not isinstance(b, Operand)
            result = integer_dot(a, b, old, saturate=idesc.saturate)
        _write(job, cta, number, result)
    machine.counters.mmas += 1
    machine.counters.mma_flops += 2 * idesc.m * idesc.n * idesc.k


def _operand(
    op: AsyncOp, job: _Job, descriptor: MatrixDescriptor, ctas: tuple[Cta, ...], rows: int, name: str
) -> Operand | Array:
    """Read an operand from shared memory: `rows` rows of each of `ctas`."""
    idesc = job.idesc
    is_a = name == "A"
    form = idesc.a_format if is_a else idesc.b_format
    mn_major = idesc.transpose_a if is_a else idesc.transpose_b
    addresses = operand_addresses(descriptor, rows, idesc.k, idesc.element_bytes, idesc.step_bytes, mn_major=mn_major)
    for cta in ctas:
        check_bounds(cta, op, name, addresses)
        note_read(cta, op, addresses)
    if form is None:
        codes = shared_bytes(ctas, addresses, rows, mn_major=mn_major)
        return codes.view(np.int8) if (idesc.a_signed if is_a else idesc.b_signed) else codes
    negate = idesc.negate_a if is_a else idesc.negate_b
    return shared_operand(ctas, addresses, form, rows, packed=job.packed, mn_major=mn_major, negate=negate)


def _a_operand(op: AsyncOp, job: _Job, cta: Cta) -> Operand | Array:
    if job.a is not None:
        return _operand(op, job, job.a, (cta,), job.layout.rows, "A")
    idesc = job.idesc
    words = tmem_of(cta).words
    first, last = job.a_cell[1], job.a_cell[1] + job.a_words
    rows = words[job.a_lanes, first:last]
    if job.layout.letter == "B" and (rows != words[job.a_lanes + 64, first:last]).any():
        refuse(op, "A in tensor memory of a pair that computes 128 rows must be in lanes 0..63 and again in 64..127")
    if idesc.a_format is None:
        codes = np.ascontiguousarray(rows).view(np.uint8)
        return codes.view(np.int8) if idesc.a_signed else codes
    return Operand(idesc.a_format, tensor_memory_codes(rows, idesc.a_format, packed=job.packed), negate=idesc.negate_a)


def _note_cells(op: AsyncOp, job: _Job, cta: Cta) -> None:
    """Tell the checker which cells are read and written."""
    checks = cta.machine.checks
    d, *others = _cells(job)
    for _, lanes, column, columns in others:
        checks.async_read(op, cell_ranges(cta, lanes, column, columns))
    ranges = cell_ranges(cta, *d[1:])
    if job.operands.accumulate:
        checks.async_read(op, ranges)
    checks.async_write(op, ranges)


def _old(job: _Job, cta: Cta) -> Array | None:
    """Read the old D as bits [rows, n]; None when it is not added."""
    if not job.operands.accumulate:
        return None
    layout, (lane, column) = job.layout, job.d
    words = tmem_of(cta).words
    cells = words[layout.lanes(lane), column : column + layout.width]
    bits = np.ascontiguousarray(layout.to_matrix(cells))
    if job.idesc.d_type == "f16":
        bits = bits.astype(np.uint16)
    if not job.operands.shift:
        return bits
    with np.errstate(invalid="ignore", under="ignore"):
        values = bits.view(np.float16 if job.idesc.d_type == "f16" else np.float32).astype(np.float32)
        scaled: Array = np.ldexp(values, -job.operands.shift).view(np.uint32)
    return scaled


def _float_product(
    op: AsyncOp, job: _Job, cta: Cta, a: Operand, b: Operand, old: Array | None, numerics: Numerics
) -> Array:
    idesc = job.idesc
    scales = None
    if job.form.block:
        scales = (
            _scales(op, job, cta, "A", job.sfa, job.layout.rows, idesc.sfa_id, False),
            _scales(op, job, cta, "B", job.sfb, idesc.n, idesc.sfb_id, job.splits_scales_of_b),
        )
    if scales is not None and job.packed:
        return block_dot(a, b, scales, old, numerics=numerics)
    rule = rule_for("tcgen05", a.form.name, "f16" if idesc.d_type == "f16" else "f32")
    return dot(a, b, old, rule, numerics=numerics, scales=scales)


def _scales(op: AsyncOp, job: _Job, cta: Cta, name: str, column: int, rows: int, first: int, halves: bool) -> Scales:
    codes, problem = read_scales(tmem_of(cta).words, column, rows, first, job.scales, split_halves=halves)
    if problem:
        op.issuer.machine.report(
            "scale-factors",
            f"scale factors of {name} of tcgen05.mma in {cta.name()}: {problem}.",
            by=op,
            section=f"{SECTION}: Block Scaling",
        )
    return Scales(UE8M0 if job.idesc.scale_format is UE8M0 else UE4M3, codes)


def _write(job: _Job, cta: Cta, number: int, result: Array) -> None:
    """Write D; lanes that are disabled keep what they had."""
    layout, (lane, column) = job.layout, job.d
    lanes = layout.lanes(lane)
    cells = layout.to_cells(result).astype(np.uint32, copy=False)
    if job.operands.disabled:
        mask = np.array(job.operands.disabled[4 * number : 4 * number + 4], np.uint32)
        enabled = (mask[lanes // 32] >> (lanes % 32).astype(np.uint32) & 1) == 0
        lanes, cells = lanes[enabled], cells[enabled]
    tmem_of(cta).words[lanes, column : column + layout.width] = cells
