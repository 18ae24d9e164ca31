"""From where to where each register of a function is wanted, so that registers can share slots.

A kernel of 5,000 instructions has 4,000 virtual registers: 570 KiB a warp with a slot for each, 50 KiB when slots are
used again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from megamoe_jit.emulator.parser.cfg import Block, Liveness, accesses
from megamoe_jit.emulator.parser.nodes import Function

ASYNCHRONOUS = ("wgmma", "tcgen05")
"""Instructions that may read or write their registers some time after they were issued."""


def lifetimes(function: Function, blocks: Sequence[Block], liveness: Sequence[Liveness]) -> list[tuple[int, int]]:
    """Return for each register the PCs between which its value is wanted: first and last, both included.

    Lanes run the program in different orders, but each lane's own way through it keeps to these. Registers of
    asynchronous instructions are wanted from beginning to end.
    """
    end = len(function.instructions)
    first = [end] * len(function.registers)
    last = [0] * len(function.registers)

    def extend(indices: Iterable[int], pc: int) -> None:
        for index in indices:
            if pc < first[index]:
                first[index] = pc
            if pc > last[index]:
                last[index] = pc

    for block, live in zip(blocks, liveness, strict=True):
        extend(live.live_in, block.start)
        extend(live.live_out, block.end)
    for instruction in function.instructions:
        access = accesses(instruction)
        extend(access.reads, instruction.index)
        extend(access.writes, instruction.index)
        if instruction.base in ASYNCHRONOUS:
            for pc in (0, end):
                extend(access.reads | access.writes, pc)
    return list(zip(first, last, strict=True))
