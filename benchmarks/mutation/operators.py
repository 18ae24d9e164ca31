"""Mistakes of one instruction, put into a program that was already compiled: its handler is replaced.

Everything that synchronises or runs asynchronously is executed by handlers, so a mutant costs no compilation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megamoe_jit.emulator.isa.decode import Decode, lanes_of
from megamoe_jit.emulator.isa.table import find
from megamoe_jit.emulator.native.binding import symbol_reader
from megamoe_jit.emulator.parser.nodes import Address, Imm, Instruction, Operand, Pair, Reg, RegOp, Vec

Handler = Callable[[Any, int], Any]

_COLUMN = 4  # of tensor memory: one block of 128 scale factors
_BYTES = 16
_WAIT_FILES = ("mbarrier.cuh:", "wait.cuh:", "ld_st.cuh:")
_POLLED = 0x3FFFFFFF  # more than any counter waits for
# Swizzle fields of matrix descriptors, 128 bytes -> 64 bytes: Hopper's bits 63..62, Blackwell's 63..61.
_WGMMA_SWIZZLE, _TCGEN05_SWIZZLE = 3 << 62, 6 << 61


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A change of one instruction: its class, what it does, and the handler that does it."""

    kind: str
    change: str
    instruction: Instruction
    handler: Handler

    @property
    def chain(self) -> tuple[str, ...]:
        """The template's lines, innermost first, without folders; the PTX line where there are none.

        A wait is one place, although it tries once before it looks at the clock and then again and again.
        """
        location = self.instruction.location
        if location is None:
            return (f"PTX line {self.instruction.line}",)
        lines = tuple(f"{at.file.rpartition('/')[2]}:{at.line}" for at in location.chain)
        is_wait = self.instruction.opcode.startswith(("mbarrier.try_wait", "mbarrier.test_wait", "ld.acquire"))
        outer = tuple(line for line in lines if not line.startswith(_WAIT_FILES))
        return outer if is_wait and outer else lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """A mistake in one line of the source: the same change in every instruction that the compiler made of it."""

    kind: str
    change: str
    place: str
    handlers: dict[int, Handler]


def mutants(program: Any, executed: Counter[int]) -> list[Mutant]:
    """Return the mistakes that the table below makes in instructions of `program` that were executed."""
    places: dict[tuple[str, str, str], dict[int, Handler]] = {}
    for instruction in program.function.instructions:
        if instruction.index not in program.binding.handlers:
            continue
        for made in _changes_of(program, instruction):
            place = f"{instruction.opcode} at {' <- '.join(made.chain)}"
            places.setdefault((made.kind, made.change, place), {})[instruction.index] = made.handler
    return [
        Mutant(kind=kind, change=change, place=place, handlers=handlers)
        for (kind, change, place), handlers in places.items()
        if any(executed[pc] for pc in handlers)
    ]


@contextmanager
def replaced(program: Any, handlers: dict[int, Handler]) -> Iterator[None]:
    """Have `program` execute `handlers` instead of its own."""
    before = program.handlers
    program.handlers = {**before, **handlers}
    try:
        yield
    finally:
        program.handlers = before


@contextmanager
def counted(program: Any) -> Iterator[Counter[int]]:
    """Count how often each handler of `program` is called."""
    calls: Counter[int] = Counter()

    def count(pc: int, handler: Handler) -> Handler:
        def run(warp: Any, mask: int) -> Any:
            calls[pc] += 1
            return handler(warp, mask)

        return run

    with replaced(program, {pc: count(pc, handler) for pc, handler in program.handlers.items()}):
        yield calls


def _changes_of(program: Any, i: Instruction) -> Iterator[Change]:
    opcode = i.opcode

    def mutant(kind: str, change: str, handler: Handler) -> Change:
        return Change(kind=kind, change=change, instruction=i, handler=handler)

    if opcode.startswith(("mbarrier.try_wait", "mbarrier.test_wait")):
        yield mutant("wait", "does not wait", _answer(program, i, 1))
        if ".parity" in opcode:
            yield mutant("phase", "waits for the other phase", _perturb(program, i, 2, lambda v: v ^ 1))
    elif opcode.startswith("ld.acquire"):
        yield mutant("wait", "sees the counter complete", _answer(program, i, _POLLED))
    elif opcode.startswith(("tcgen05.wait", "wgmma.wait_group", "cp.async.wait", "cp.async.bulk.wait_group")):
        yield mutant("wait", "dropped", _drop)
    elif opcode.startswith(("fence", "membar", "tcgen05.fence", "wgmma.fence")):
        yield mutant("fence", "dropped", _drop)
    elif opcode.startswith(("tcgen05.commit", "wgmma.commit_group", "cp.async.bulk.commit_group", "cp.async.commit")):
        yield mutant("commit", "dropped", _drop)
    elif ".expect_tx" in opcode:
        last = len(i.operands) - 1
        yield mutant("expect_tx", f"{_BYTES} bytes too many", _perturb(program, i, last, lambda v: v + _BYTES))
        yield mutant("expect_tx", f"{_BYTES} bytes too few", _perturb(program, i, last, lambda v: v - _BYTES))
    elif opcode.startswith(("mbarrier.arrive", "cp.async.mbarrier.arrive", "red.release", "st.release")):
        yield mutant("arrive", "dropped", _drop)
    elif opcode.startswith("mbarrier.init"):
        yield mutant("arrive", "one arrival more is expected", _perturb(program, i, 1, lambda v: v + 1))
    elif opcode.startswith(("bar.sync", "barrier.sync", "barrier.cluster")):
        yield mutant("bar.sync", "dropped", _drop)
    elif opcode.startswith("tcgen05.cp"):
        yield mutant("SF column", f"{_COLUMN} columns on", _perturb(program, i, 0, lambda v: v + _COLUMN))
    elif opcode.startswith("tcgen05.mma"):
        if "block_scale" in opcode:
            for operand, name in ((4, "SFA"), (5, "SFB")):
                shift = _perturb(program, i, operand, lambda v: v + _COLUMN)
                yield mutant("SF column", f"{name} read {_COLUMN} columns on", shift)
        for operand, name in ((1, "A"), (2, "B")):
            if not isinstance(i.operands[operand], Address):
                turn = _perturb(program, i, operand, lambda v: v ^ np.uint64(_TCGEN05_SWIZZLE))
                yield mutant("swizzle", f"{name} read with 64-byte swizzle", turn)
    elif opcode.startswith("wgmma.mma_async"):
        for operand in (1, 2):
            if not isinstance(i.operands[operand], Vec):
                turn = _perturb(program, i, operand, lambda v: v ^ np.uint64(_WGMMA_SWIZZLE))
                yield mutant("swizzle", f"operand {operand} read with 64-byte swizzle", turn)


def _drop(warp: Any, mask: int) -> None:
    """Do nothing."""


def _answer(program: Any, i: Instruction, value: int) -> Handler:
    """Give `value` to the first destination at once."""
    target = i.operands[0]
    register = target.first if isinstance(target, Pair) else target
    assert isinstance(register, RegOp)

    def run(warp: Any, mask: int) -> None:
        program.layout.view(warp, register.reg)[lanes_of(mask)] = value

    return run


def _perturb(program: Any, i: Instruction, index: int, change: Callable[[Any], Any]) -> Handler:
    """Execute `i` with another value of operand `index`: an immediate, a register, or an address's register."""
    operand: Operand = i.operands[index]
    if isinstance(operand, Imm):
        operands = (
            *i.operands[:index],
            replace(operand, value=int(change(int(operand.value))), bits=None),
            *i.operands[index + 1 :],
        )
        return _bound(program, replace(i, operands=operands))
    handler: Handler = program.binding.handlers[i.index]
    base = operand.base if isinstance(operand, Address) else operand
    assert isinstance(base, RegOp), i.text
    register: Reg = base.reg

    def run(warp: Any, mask: int) -> Any:
        lanes = program.layout.view(warp, register)
        before = lanes.copy()
        lanes[:] = change(before)
        try:
            return handler(warp, mask)
        finally:
            lanes[:] = before

    return run


def _bound(program: Any, i: Instruction) -> Handler:
    binding = program.binding
    op = find(i.opcode)
    assert op is not None
    made: Handler = op.function(
        Decode(i, op, binding.function, binding.module, binding.layout, symbol_reader(binding.function))
    )
    return made
