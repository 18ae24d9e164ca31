"""tcgen05.cp and tcgen05.shift: shared memory to tensor memory, and rows of tensor memory by one.

PTX ISA, "tcgen05.cp", "tcgen05.shift".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megamoe_jit.emulator.engines.descriptors import (
    MatrixDescriptor,
    decode_sm100,
    k_major_addresses,
    layout_problems,
    phase_warning,
)
from megamoe_jit.emulator.engines.operands import gather
from megamoe_jit.emulator.engines.shared_tiles import check_bounds, note_read
from megamoe_jit.emulator.engines.tcgen05 import SECTION, cell_ranges, check_cells, ctas_of, refuse, submit, tmem_of
from megamoe_jit.emulator.engines.tensor_memory import LANES, QUARTER, CopyShape, split_address, widen

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.queues import AsyncOp
    from megamoe_jit.emulator.machine.state import Cta, Warp

SHIFT_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Copy:
    """What a tcgen05.cp says: shape, bits of compressed elements (0: none), number of CTAs."""

    shape: CopyShape
    name: str
    source_bits: int
    cta_group: int


def descriptor_of(warp: Warp, raw: int, name: str, *, mn_major: bool = False, step_bytes: int = 32) -> MatrixDescriptor:
    """Decode a matrix descriptor; reports what is wrong with it."""
    descriptor, problems = decode_sm100(raw)
    problems += layout_problems(descriptor, mn_major=mn_major, step_bytes=step_bytes)
    section = f"{SECTION}: Shared Memory Descriptor"
    if problems:
        refuse(warp, f"descriptor of {name} {raw:#018x}: {'; '.join(problems)}", kind="descriptor", section=section)
    warning = phase_warning(descriptor)
    if warning:
        message = f"descriptor of {name} {raw:#018x}: {warning}."
        warp.machine.report("descriptor", message, by=warp, severity="warning", section=section)
    return descriptor


def copy(warp: Warp, what: Copy, address: int, raw: int, *, pc: int, lane: int) -> None:
    """Start a copy."""
    shape = what.shape
    base_lane, column = split_address(address)
    descriptor = descriptor_of(warp, raw, "the source", step_bytes=shape.row_bytes)
    lanes = base_lane + shape.lanes
    ctas = ctas_of(warp, what.cta_group)
    limit = QUARTER if what.name == "4x256b" else 1
    if base_lane >= limit:
        refuse(warp, f"tcgen05.cp.{what.name} to lane {base_lane}; the base lane must be below {limit}")
    for cta in ctas:
        check_cells(warp, cta, "tcgen05.cp", lanes.ravel(), column, shape.columns)
    addresses = k_major_addresses(descriptor, shape.rows, shape.row_bytes)

    def run(op: AsyncOp) -> None:
        checks = warp.machine.checks
        for cta in ctas:
            check_bounds(cta, op, "its source", addresses)
            note_read(cta, op, addresses)
            if checks.enabled:
                checks.async_write(op, cell_ranges(cta, lanes.ravel(), column, shape.columns))
            data = gather(cta.smem, addresses)
            if what.source_bits:
                data = np.ascontiguousarray(widen(data, what.source_bits))
            words = data.view(np.uint32)
            for copies in lanes:
                tmem_of(cta).words[copies, column : column + shape.columns] = words

    submit(warp, "tcgen05.cp", run, pc=pc, lane=lane, nbytes=shape.rows * shape.row_bytes, smem_of=ctas)


def shift_down(warp: Warp, address: int, cta_group: int, *, pc: int, lane: int) -> None:
    """Start a shift: in each quarter from the base lane's on, row i takes row i + 1, and the last row stays."""
    first, column = split_address(address)
    if first % QUARTER:
        refuse(warp, f"tcgen05.shift.down at lane {first}; the lane must be a multiple of {QUARTER}")
    lanes = np.arange(first, LANES)
    ctas = ctas_of(warp, cta_group)
    for cta in ctas:
        check_cells(warp, cta, "tcgen05.shift", lanes, column, SHIFT_COLUMNS)

    def run(op: AsyncOp) -> None:
        for cta in ctas:
            _shift(op, cta, first, column)

    submit(warp, "tcgen05.shift", run, pc=pc, lane=lane, nbytes=4 * SHIFT_COLUMNS * lanes.size)


def _shift(op: AsyncOp, cta: Cta, lane: int, column: int) -> None:
    checks = cta.machine.checks
    if checks.enabled:
        ranges = cell_ranges(cta, np.arange(lane, LANES), column, SHIFT_COLUMNS)
        checks.async_read(op, ranges)
        checks.async_write(op, ranges)
    words = tmem_of(cta).words
    for first in range(lane, LANES, QUARTER):
        block = words[first : first + QUARTER, column : column + SHIFT_COLUMNS]
        block[:-1] = block[1:].copy()
