"""tcgen05.ld and tcgen05.st: cells of tensor memory to and from registers.

PTX ISA, "tcgen05.ld", "tcgen05.st", "tcgen05.wait". Registers of a load hold a NaN until `wait::ld`, which brings its
values. Some compilers count on hardware that stalls the first use of such a register, and put the wait behind it: with
reports of "tmem-registers" suppressed, loads are done at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megamoe_jit.emulator.engines.tcgen05 import (
    SECTION,
    Array,
    cell_ranges,
    chain_of,
    check_cells,
    load_chain,
    store_chain,
    tmem_of,
)
from megamoe_jit.emulator.engines.tensor_memory import (
    QUARTER,
    load_cells,
    split_address,
    store_cells,
    transfer_span,
)
from megamoe_jit.emulator.machine.outcome import Outcome, Park
from megamoe_jit.emulator.machine.queues import AsyncOp, Group

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Warp

POISON = np.uint32(0x7FDE7FDE)
"""In registers that a load has not brought yet: a NaN as FP32 and as two FP16."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What an opcode says.

    Attributes:
        name: "32x32b", "16x64b", "16x128b", "16x256b" or "16x32bx2".
        registers: of each thread.
        packed: `.pack::16b` or `.unpack::16b`.
        split: columns between the halves of 16x32bx2.
        reduction: "min" or "max" over a thread's registers, "" for none; kind: "f32", "u32" or "s32" of it.
        absolute, propagates_nan: of an f32 reduction.
    """

    name: str
    registers: int
    packed: bool = False
    split: int = 0
    reduction: str = ""
    kind: str = "f32"
    absolute: bool = False
    propagates_nan: bool = False

    @property
    def base_step(self) -> int:
        """The base lane is a multiple of this."""
        return QUARTER if self.name == "32x32b" else 16


@dataclass(slots=True, eq=False)
class Load:
    """A load under way: where its registers are (in words of the register file), and what it read."""

    places: Array
    pc: int
    values: Array | None = None


@dataclass(slots=True, eq=False)
class Transfers:
    """Loads and stores of one warp that no wait has covered."""

    loads: list[Load]
    load_group: Group
    store_group: Group


def transfers_of(warp: Warp) -> Transfers:
    """Return the warp's transfers, made at their first use."""
    found: Transfers | None = warp.scratch.get("tcgen05.ld")
    if found is None:
        name = warp.name()
        found = Transfers([], Group(f"tcgen05.ld of {name}"), Group(f"tcgen05.st of {name}"))
        warp.scratch["tcgen05.ld"] = found
    return found


def _base(warp: Warp, shape: Shape, address: int, what: str) -> tuple[int, int, Array]:
    """Return (lane, column, lanes touched); a warp reaches its own quarter only."""
    lane, column = split_address(address)
    quarter = warp.index % 4
    machine = warp.machine
    if lane % shape.base_step:
        machine.fault(
            "tmem-lanes",
            f"{what} address {address:#010x} has lane {lane}; .{shape.name} needs a multiple of {shape.base_step}.",
            by=warp,
            section=SECTION,
        )
    if lane // QUARTER != quarter:
        wrong = lane // QUARTER
        machine.report(
            "tmem-lanes",
            f"{what} of warp {warp.index} names lane {lane} in quarter {wrong}; it reaches lanes {32 * quarter}.."
            f"{32 * quarter + 31} (warp index modulo 4) only"
            + (", and hardware takes the lane modulo 32." if wrong == 0 else "."),
            by=warp,
            severity="warning" if wrong == 0 else "error",
            section=f"{SECTION}: Access restrictions",
        )
    lane = QUARTER * quarter + lane % QUARTER
    lanes = np.arange(lane, lane + shape.base_step)
    for first, width in _columns(shape, column):
        check_cells(warp, warp.cta, what, lanes, first, width)
    return lane, column, lanes


def _columns(shape: Shape, column: int) -> list[tuple[int, int]]:
    """Blocks of columns that a transfer touches: two for 16x32bx2."""
    wide = 2 if shape.packed else 1
    if shape.name != "16x32bx2":
        return [(column, transfer_span(shape.name, shape.registers, wide=shape.packed)[1])]
    return [(column, shape.registers * wide), (column + shape.split, shape.registers * wide)]


def load(warp: Warp, shape: Shape, places: Array, reduced: Array | None, address: int, *, pc: int) -> None:
    """Start a load.

    Args:
        warp: who loads.
        shape: of the instruction.
        places: words of the register file, [registers, 32].
        reduced: likewise [32], of the register that takes a reduction.
        address: of the cells.
        pc: of the instruction.
    """
    lane, column, lanes = _base(warp, shape, address, "tcgen05.ld")
    machine, cta = warp.machine, warp.cta
    transfers = transfers_of(warp)
    all_places = places if reduced is None else np.concatenate([places, reduced[None]])
    pending = Load(all_places, pc)

    def run() -> None:
        if machine.checks.enabled:
            for first, width in _columns(shape, column):
                machine.checks.async_read(op, cell_ranges(cta, lanes, first, width))
        values = load_cells(
            tmem_of(cta).words, lane, column, shape.name, shape.registers, split=shape.split, pack=shape.packed
        )
        if shape.reduction:
            values = np.concatenate([values, reduce_registers(shape, values)[None]])
        pending.values = values
        transfers.load_group.finish(by=op)

    op = AsyncOp(issuer=warp, kind="tcgen05.ld", pc=pc, run=run, nbytes=128 * shape.registers)
    if machine.checks.enabled:
        op.access = machine.checks.begin_async(
            warp, op, load_chain(warp), same_thread=(store_chain(warp), chain_of(warp))
        )
    registers = warp.regs.view(np.uint32)
    transfers.load_group.add()
    machine.submit(op)
    if "tmem-registers" in machine.suppress:
        machine.queues.run(op)
        assert pending.values is not None
        registers[all_places] = pending.values
    else:
        registers[all_places] = POISON
        transfers.loads.append(pending)


def reduce_registers(shape: Shape, values: Array) -> Array:
    """Reduce each thread's registers [registers, 32] to one [32]."""
    if shape.kind != "f32":
        numbers = values.view(np.int32) if shape.kind == "s32" else values
        reduced: Array = (numbers.max if shape.reduction == "max" else numbers.min)(axis=0)
        return reduced.view(np.uint32)
    numbers = values.view(np.float32)
    if shape.absolute:
        numbers = np.abs(numbers)
    functions = {
        ("max", True): np.maximum, ("max", False): np.fmax, ("min", True): np.minimum, ("min", False): np.fmin,
    }  # fmt: skip
    result = functions[shape.reduction, shape.propagates_nan].reduce(numbers, axis=0)
    bits: Array = np.ascontiguousarray(result, np.float32).view(np.uint32)
    return np.where(np.isnan(result), np.uint32(0x7FFFFFFF), bits)


def store(warp: Warp, shape: Shape, values: Array, address: int, *, pc: int) -> None:
    """Start a store of registers [registers, 32]."""
    lane, column, lanes = _base(warp, shape, address, "tcgen05.st")
    machine, cta = warp.machine, warp.cta
    group = transfers_of(warp).store_group

    def run() -> None:
        if machine.checks.enabled:
            for first, width in _columns(shape, column):
                machine.checks.async_write(op, cell_ranges(cta, lanes, first, width))
        store_cells(tmem_of(cta).words, lane, column, shape.name, values, split=shape.split, unpack=shape.packed)
        group.finish(by=op)

    op = AsyncOp(issuer=warp, kind="tcgen05.st", pc=pc, run=run, nbytes=128 * shape.registers)
    if machine.checks.enabled:
        op.access = machine.checks.begin_async(
            warp, op, store_chain(warp), same_thread=(load_chain(warp), chain_of(warp))
        )
    group.add()
    machine.submit(op)


def wait_loads(warp: Warp) -> Outcome:
    """`wait::ld`: park until all loads of the warp are done, then bring their values."""
    transfers = transfers_of(warp)
    if transfers.load_group.pending:
        return Park((transfers.load_group,))
    registers = warp.regs.view(np.uint32)
    for pending in transfers.loads:
        if (registers[pending.places] != POISON).any():
            warp.machine.report(
                "tmem-registers",
                f"registers of a tcgen05.ld (PC {pending.pc}) were written before tcgen05.wait::ld.",
                by=warp,
                section=f"{SECTION}: tcgen05.wait",
            )
    for pending in transfers.loads:
        assert pending.values is not None
        registers[pending.places] = pending.values
    transfers.loads.clear()
    _observe(warp, load_chain(warp), transfers.load_group)
    return None


def wait_stores(warp: Warp) -> Outcome:
    """`wait::st`: park until all stores of the warp are done."""
    group = transfers_of(warp).store_group
    if group.pending:
        return Park((group,))
    _observe(warp, store_chain(warp), group)
    return None


def _observe(warp: Warp, chain: tuple[str, Warp], group: Group) -> None:
    warp.advance_to(group.time)
    checks = warp.machine.checks
    if checks.enabled:
        checks.observe_chain(warp, chain, checks.commit_chain(warp, chain), tensor=False)
