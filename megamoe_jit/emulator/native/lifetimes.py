"""From where to where each register of a function is wanted, so that registers can share slots.

A kernel of 5,000 instructions has 4,000 virtual registers: 570 KiB a warp with a slot for each, 50 KiB when slots are
used again.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    for block, live in zip(blocks, liveness, strict=True):
        for index in live.live_in:
            first[index], last[index] = min(first[index], block.start), max(last[index], block.start)
        for index in live.live_out:
            first[index], last[index] = min(first[index], block.end), max(last[index], block.end)
    for instruction in function.instructions:
        access = accesses(instruction)
        pc = instruction.index
        for index in access.reads | access.writes:
            first[index], last[index] = min(first[index], pc), max(last[index], pc)
        if instruction.base in ASYNCHRONOUS:
            for index in access.reads | access.writes:
                first[index], last[index] = 0, end
    return list(zip(first, last, strict=True))
