"""Operands of instructions that a warp executes as a whole: values that its lanes share, vectors of registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megamoe_jit.emulator.isa.decode import NUM_LANES, Array, Decode, Reader
from megamoe_jit.emulator.parser.nodes import RegOp
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Warp


def uniform(warp: Warp, read: Reader, name: str, section: str) -> int:
    """Return an operand on which all lanes must agree; reports lanes that do not."""
    values = read(warp)
    if (values != values[0]).any():
        lane = int(np.flatnonzero(values != values[0])[0])
        warp.machine.fault(
            "non-uniform",
            f"{name} is {int(values[0]):#x} in lane 0, but {int(values[lane]):#x} in lane {lane}: all must agree.",
            by=warp,
            section=section,
        )
    return int(values[0])


def register_offsets(d: Decode, index: int, count: int, name: str) -> list[int]:
    """Return the bytes at which the 32-bit registers of vector operand `index` begin in a register file."""
    items = d.items(index)
    if len(items) != count or not all(isinstance(item, RegOp) and item.reg.width == 4 for item in items):
        raise UnsupportedError(f"{d.instruction.text}: {name} must be {count} registers of 32 bits.")
    layout: Any = d.layout
    return [layout.offset(item.reg) for item in items if isinstance(item, RegOp)]


def register_words(offsets: list[int]) -> Array:
    """Return the words of a register file that registers at `offsets` take: [registers, 32 lanes]."""
    return np.array(offsets, np.int64)[:, None] // 4 + np.arange(NUM_LANES)


def check_count(d: Decode, *counts: int) -> None:
    """Refuse an instruction with another number of operands."""
    if d.count not in counts:
        takes = " or ".join(map(str, counts))
        raise UnsupportedError(f"{d.instruction.text} has {d.count} operands, {d.form.opcode} takes {takes}.")
