"""Basic blocks and liveness of a function."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megamoe_jit.emulator.parser.nodes import (
    Address,
    Function,
    Instruction,
    LabelOp,
    Not,
    Operand,
    Pair,
    RegOp,
    Symbol,
    Vec,
)

_NO_FALL_THROUGH = frozenset({"ret", "exit", "trap", "bra", "brx"})
_BLOCK_ENDS = frozenset({"bra", "brx", "ret", "exit", "trap"})

# Opcodes whose first operand is a source though it may be a register. (An address is never a destination.)
_NO_DESTINATION = re.compile(
    r"st|st\..*|red|red\..*|bra|bra\..*|brx|brx\..*|ret.*|exit|trap|brkpt|pmevent.*|nanosleep.*|setmaxnreg.*|fence.*"
    r"|membar.*|prefetch.*|cp\..*|stmatrix.*|discard.*|applypriority.*|stackrestore.*|sust.*|sured.*|wmma\.store.*"
    r"|tensormap.*|multimem\.(st|red).*|griddepcontrol.*|wgmma\.(fence|commit_group|wait_group).*"
    r"|tcgen05\.(?!ld).*|(bar|barrier)(?!.*\.red\.).*|mbarrier\.(init|inval|expect_tx|complete_tx).*"
)
# Written registers keep or add to what they held, or are written some time later.
_READS_DESTINATION = re.compile(r"wgmma\.mma_async.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Instructions [start, end) that run one after the other; `successors` are indices of blocks."""

    start: int
    end: int
    successors: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """Indices of the registers whose values are wanted at a block's start and at its end."""

    live_in: frozenset[int]
    live_out: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accesses:
    """Indices of the registers that an instruction reads, and of those that it writes."""

    reads: frozenset[int]
    writes: frozenset[int]


def blocks(function: Function, is_stop: Callable[[Instruction], bool]) -> tuple[Block, ...]:
    """Cut `function` into blocks: at labels, after branches, before and after each instruction that `is_stop` names."""
    instructions = function.instructions
    count = len(instructions)
    starts = {0}
    starts.update(target for targets in function.branch_tables.values() for target in targets)
    for instruction in instructions:
        index = instruction.index
        if is_stop(instruction):
            starts.update((index, index + 1))
        elif instruction.base in _BLOCK_ENDS:
            starts.add(index + 1)
        for operand in instruction.operands:
            if isinstance(operand, LabelOp):
                starts.add(operand.target)
    cuts = sorted(start for start in starts if start < count)
    number = {start: block for block, start in enumerate(cuts)}
    return tuple(
        Block(start=start, end=end, successors=_successors(function, end - 1, number))
        for start, end in zip(cuts, [*cuts[1:], count], strict=True)
    )


def _successors(function: Function, last: int, number: dict[int, int]) -> tuple[int, ...]:
    instruction = function.instructions[last]
    found: list[int] = []
    base = instruction.base
    if (base not in _NO_FALL_THROUGH or instruction.guard is not None) and last + 1 in number:
        found.append(number[last + 1])
    if base == "bra":
        found += [number[operand.target] for operand in instruction.operands if isinstance(operand, LabelOp)]
    elif base == "brx":
        table = instruction.operands[-1]
        assert isinstance(table, Symbol)
        found += [number[target] for target in function.branch_tables[table.name]]
    return tuple(dict.fromkeys(found))


def accesses(instruction: Instruction) -> Accesses:
    """Return the registers that `instruction` reads and writes, judged by its form; unsure ones count as read."""
    reads: set[int] = set()
    writes: set[int] = set()
    operands = instruction.operands
    opcode = instruction.opcode
    if operands and not isinstance(operands[0], Address) and _NO_DESTINATION.fullmatch(opcode) is None:
        # `tcgen05.ld.red` has a second destination; else the first operand is the only one.
        count = 2 if opcode.startswith("tcgen05.ld.red.") else 1
        written = {index for operand in operands[:count] for index in _registers(operand)}
        writes |= written
        if _READS_DESTINATION.fullmatch(opcode):
            reads |= written
        operands = operands[count:]
    for operand in operands:
        reads.update(_registers(operand))
    if instruction.guard is not None:
        reads.add(instruction.guard[0].index)
    return Accesses(reads=frozenset(reads), writes=frozenset(writes))


def _registers(operand: Operand) -> list[int]:
    if isinstance(operand, RegOp):
        return [operand.reg.index]
    if isinstance(operand, Vec):
        return [index for item in operand.items for index in _registers(item)]
    if isinstance(operand, Pair):
        return _registers(operand.first) + _registers(operand.second)
    if isinstance(operand, Not):
        return _registers(operand.operand)
    if isinstance(operand, Address):
        inside = [] if operand.base is None else _registers(operand.base)
        for item in (operand.coords, *operand.extra):
            inside += [] if item is None else _registers(item)
        return inside
    return []


def liveness(
    function: Function,
    blocks: Sequence[Block],
    accesses: Callable[[Instruction], Accesses] = accesses,
) -> tuple[Liveness, ...]:
    """Return what is live at both ends of each block; a guarded write does not kill.

    Lanes go their own ways, and each of them is followed alone, so that divergence makes no difference.
    """
    uses, kills = _summaries(function, blocks, accesses)
    live_in = list(uses)
    live_out = [0] * len(blocks)
    predecessors: list[list[int]] = [[] for _ in blocks]
    for block, found in enumerate(blocks):
        for successor in found.successors:
            predecessors[successor].append(block)
    waiting = list(range(len(blocks)))
    queued = [True] * len(blocks)
    while waiting:
        block = waiting.pop()
        queued[block] = False
        out = 0
        for successor in blocks[block].successors:
            out |= live_in[successor]
        live_out[block] = out
        before = uses[block] | (out & ~kills[block])
        if before != live_in[block]:
            live_in[block] = before
            for predecessor in predecessors[block]:
                if not queued[predecessor]:
                    queued[predecessor] = True
                    waiting.append(predecessor)
    return tuple(
        Liveness(live_in=_members(before), live_out=_members(after))
        for before, after in zip(live_in, live_out, strict=True)
    )


def _summaries(
    function: Function, blocks: Sequence[Block], accesses: Callable[[Instruction], Accesses]
) -> tuple[list[int], list[int]]:
    """Return, as bit sets, what each block reads before it writes it, and what it surely writes."""
    uses: list[int] = []
    kills: list[int] = []
    for block in blocks:
        read = written = 0
        for instruction in function.instructions[block.start : block.end]:
            found = accesses(instruction)
            for index in found.reads:
                if not written >> index & 1:
                    read |= 1 << index
            if instruction.guard is None:
                for index in found.writes:
                    written |= 1 << index
        uses.append(read)
        kills.append(written)
    return uses, kills


def _members(bits: int) -> frozenset[int]:
    found: list[int] = []
    while bits:
        lowest = bits & -bits
        found.append(lowest.bit_length() - 1)
        bits ^= lowest
    return frozenset(found)
