"""The numpy engine: slow, short, and independent of the code generator, so that each can be held to the other."""

# Control instructions are functions of one signature.
# ruff: noqa: ARG001

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megamoe_jit.emulator.interpreter import control
from megamoe_jit.emulator.interpreter.memory import memory_step
from megamoe_jit.emulator.interpreter.ops import DTYPES, NumpyOps
from megamoe_jit.emulator.isa.decode import CARRY, Decode, Typed, immediate_bits, signature
from megamoe_jit.emulator.isa.ops import VALUE_TYPE
from megamoe_jit.emulator.isa.table import ALL_LANES, Kind, Op, unsupported
from megamoe_jit.emulator.machine.engine import Stop, StopKind
from megamoe_jit.emulator.native.binding import Binding, bind, new_warp, symbol_reader
from megamoe_jit.emulator.native.context import FULL_MASK, FaultKind, WarpContext
from megamoe_jit.emulator.parser.nodes import Imm, Instruction, LabelOp, RegOp, Sink, Special, Symbol
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.engine import Handler
    from megamoe_jit.emulator.machine.state import Cta, Warp
    from megamoe_jit.emulator.parser.nodes import Function, PtxModule

Step = Callable[["Warp", int], None]
"""Executes one instruction for the lanes of a mask."""


@dataclass(frozen=True, slots=True)
class _Decoded:
    """An instruction, ready to run.

    Attributes:
        step: what pure instructions, loads and stores do; None where nothing happens.
        guard: the guard's lanes, None without one.
        index: of brx.idx.
        members: member mask of each lane, of `.sync` instructions.
    """

    instruction: Instruction
    op: Op
    step: Step | None = None
    guard: Callable[[Warp], int] | None = None
    index: Callable[[Warp], Any] | None = None
    members: Callable[[Warp], Any] | None = None


class NumpyProgram:
    """A function whose instructions are Python closures.

    Attributes:
        binding: meaning of each instruction.
        function, handlers, layout, blocks: as in every program.
        block_counts: how often each block was executed, by all warps so far.
    """

    def __init__(self, binding: Binding) -> None:
        """Decode all instructions; raises UnsupportedError that lists those whose operands have no meaning."""
        self.binding = binding
        self.function = binding.function
        self.layout = binding.layout
        self.blocks = binding.blocks
        self.block_counts = [0] * len(binding.blocks)
        self.starts = {block.start: number for number, block in enumerate(binding.blocks)}
        self.heads = {
            to for number, block in enumerate(binding.blocks) for to in block.successors if to <= number
        }  # fmt: skip
        self.handlers: Mapping[int, Handler] = binding.handlers
        self._address = symbol_reader(binding.function)
        # Polling loads and atomics are handlers that call native helpers, and those keep a hint where to look first.
        self._hints = np.zeros(1, np.uint32)
        pairs = zip(binding.function.instructions, binding.ops, strict=True)
        results = [self._decode_or_explain(instruction, op) for instruction, op in pairs]
        failed = [result for result in results if not isinstance(result, _Decoded)]
        if failed:
            raise unsupported(failed)
        self.decoded = [result for result in results if isinstance(result, _Decoded)]

    def new_warp(self, cta: Cta, index: int) -> Warp:
        """Make warp `index` of `cta`."""
        warp = new_warp(cta, index, self, self.binding, self.layout.new_file())
        warp.ctx.hints = self._hints.ctypes.data
        return warp

    def free_warp(self, warp: Warp) -> None:
        """Do nothing: numpy frees what is not used."""

    def instruction_counts(self) -> Counter[str]:
        """Return how often warps executed each opcode."""
        executions = zip(self.blocks, self.block_counts, strict=True)
        return self.binding.counts((range(block.start, block.end), count) for block, count in executions)

    # Decoding.

    def _decode_or_explain(self, instruction: Instruction, op: Op) -> _Decoded | tuple[Instruction, str]:
        try:
            return self._decode(instruction, op)
        except UnsupportedError as error:
            return instruction, str(error)

    def _decode(self, instruction: Instruction, op: Op) -> _Decoded:
        binding = self.binding
        decode = Decode(instruction, op, binding.function, binding.module, self.layout, self._address)
        step: Step | None = None
        index = members = None
        if op.kind is Kind.PURE:
            step = self._pure(decode)
            members = self._members(decode)
        elif op.kind is Kind.MEMORY:
            # What is neither load nor store is executed like a handler, but at once.
            step = memory_step(decode) or op.function(decode)
        elif op.kind is Kind.CONTROL:
            if instruction.base == "bar":
                members = decode.value(0, np.uint32)
            elif instruction.base == "brx":
                index = decode.value(0, np.uint32)
                self._targets(instruction)
            elif instruction.base == "bra" and not isinstance(instruction.operands[0], LabelOp):
                raise UnsupportedError("a branch goes to a label.")
        return _Decoded(instruction, op, step, self._guard(decode), index, members)

    def _guard(self, decode: Decode) -> Callable[[Warp], int] | None:
        if decode.instruction.guard is None:
            return None
        reg, negated = decode.instruction.guard
        flip = FULL_MASK if negated else 0
        return lambda warp: control.mask_of(self.layout.view(warp, reg) != 0) ^ flip

    def _members(self, decode: Decode) -> Callable[[Warp], Any] | None:
        if decode.op.members is None:
            return None
        if decode.op.members == ALL_LANES:
            everyone = np.full(32, FULL_MASK, np.uint32)
            return lambda _: everyone
        operands = signature(decode.op, decode.instruction)
        return decode.reader(operands.src[decode.op.members].operand, np.uint32)

    def _pure(self, decode: Decode) -> Step:
        operands = signature(decode.op, decode.instruction)
        readers = [read for typed in operands.src for read in self._readers(decode, typed)]
        writers = [self._writer(typed) for typed in operands.dst]

        def step(warp: Warp, mask: int) -> None:
            lanes = control.bools(mask)
            results = operands.apply(NumpyOps(lanes), [read(warp) for read in readers])
            first = 0
            for count, write in writers:
                write(warp, lanes, results[first : first + count])
                first += count

        return step

    def _readers(self, decode: Decode, typed: Typed) -> list[Callable[[Warp], Any]]:
        operand, type = typed.operand, typed.type
        view, special = self.layout.view, self.layout.special
        if type == "b128":
            if not isinstance(operand, RegOp) or operand.reg.width != 16:
                raise UnsupportedError("a 128-bit register is needed.")
            reg = operand.reg
            return [lambda warp: view(warp, reg)[:, 0].copy(), lambda warp: view(warp, reg)[:, 1].copy()]
        dtype = DTYPES[VALUE_TYPE[type]]
        if isinstance(operand, Imm):
            bits = np.array([immediate_bits(operand, type)], f"u{dtype.itemsize}")
            constant = bits.astype(dtype) if dtype.kind == "b" else bits.view(dtype)
            return [lambda _: constant]
        if dtype.kind == "b":
            if operand is CARRY:
                return [lambda warp: special(warp, CARRY.name) != 0]
            read = decode.reader(operand, np.uint8)
            return [lambda warp: read(warp) != 0]
        # A copy: a destination may be one of the sources.
        read = decode.reader(operand, dtype)
        return [lambda warp: read(warp).copy()]

    def _writer(self, typed: Typed) -> tuple[int, Callable[[Warp, Any, tuple[Any, ...]], None]]:
        """Return how many values a destination takes (one, or both halves), and what writes them."""
        operand, type = typed.operand, typed.type
        view, special = self.layout.view, self.layout.special
        if isinstance(operand, Sink):
            return (2 if type == "b128" else 1), lambda warp, lanes, values: None  # noqa: ARG005
        if isinstance(operand, Special):

            def write_carry(warp: Warp, lanes: Any, values: tuple[Any, ...]) -> None:
                np.copyto(special(warp, CARRY.name), values[0], where=lanes)

            return 1, write_carry
        if not isinstance(operand, RegOp):
            raise UnsupportedError(f"a {operand.__class__.__name__} cannot be written.")
        reg = operand.reg
        if type == "b128":
            if reg.width != 16:
                raise UnsupportedError("a 128-bit register is needed.")

            def write_halves(warp: Warp, lanes: Any, values: tuple[Any, ...]) -> None:
                for half, value in enumerate(values):
                    np.copyto(view(warp, reg)[:, half], value, where=lanes)

            return 2, write_halves
        value_bytes = DTYPES[VALUE_TYPE[type]].itemsize
        own = np.dtype(f"u{reg.width}")
        same = np.dtype(f"u{value_bytes}")
        letter = "i" if type[0] == "s" else "u"
        narrow, wide = np.dtype(f"{letter}{value_bytes}"), np.dtype(f"{letter}{reg.width}")

        def write(warp: Warp, lanes: Any, values: tuple[Any, ...]) -> None:
            (value,) = values
            bits = value.view(same) if same == own else value.view(narrow).astype(wide).view(own)
            np.copyto(view(warp, reg), bits, where=lanes)

        return 1, write

    def _targets(self, instruction: Instruction) -> tuple[int, ...]:
        table = instruction.operands[1]
        if not isinstance(table, Symbol) or table.name not in self.function.branch_tables:
            raise UnsupportedError("the second operand of brx.idx names a list of .branchtargets.")
        return self.function.branch_tables[table.name]


class NumpyEngine:
    """Executes functions instruction by instruction."""

    def prepare(self, function: Function, module: PtxModule) -> NumpyProgram:
        """Make a program of `function`; raises UnsupportedError that lists every instruction without a meaning here."""
        return NumpyProgram(bind(function, module))

    def run(self, warp: Warp) -> Stop:
        """Run `warp` until Python is needed."""
        program: NumpyProgram = warp.program  # type: ignore[assignment]
        with np.errstate(all="ignore"):
            return _run(warp, warp.ctx, program)


def _run(warp: Warp, ctx: WarpContext, program: NumpyProgram) -> Stop:
    end = len(program.decoded)
    while True:
        stop = control.next_group(ctx)
        if stop is not None:
            return stop
        pc: int | None = ctx.pc
        while pc is not None:
            if pc == end:
                control.leave(ctx, ctx.mask, 0)
                break
            number = program.starts[pc]
            block = program.blocks[number]
            # Every loop has a jump back, so looking at the fuel where such jumps end is enough.
            if number in program.heads and ctx.fuel < 0:
                return control.tire(ctx, pc)
            ctx.fuel -= block.end - block.start
            program.block_counts[number] += 1
            target: int | None = block.end
            for decoded in program.decoded[block.start : block.end]:
                lanes = ctx.mask if decoded.guard is None else decoded.guard(warp) & ctx.mask
                outcome = _execute(warp, ctx, program, decoded, lanes)
                ctx.executed += 1
                if isinstance(outcome, Stop):
                    return outcome
                target = outcome
            if target is not None and (ctx.mask != ctx.live or ctx.fault_kind):
                # Others may wait where the group is going.
                control.go(ctx, ctx.mask, target)
                target = None
            pc = target


def _execute(warp: Warp, ctx: WarpContext, program: NumpyProgram, decoded: _Decoded, lanes: int) -> int | Stop | None:
    """Execute an instruction for `lanes` of the group.

    Returns where the whole group goes on, None when `lane_pc` says it for each lane, or a stop.
    """
    instruction, kind = decoded.instruction, decoded.op.kind
    pc = instruction.index
    if kind is Kind.CONTROL:
        return _CONTROL[instruction.base](warp, ctx, program, decoded, lanes)
    if not lanes:
        return pc + 1
    if kind is Kind.HANDLER:
        control.split(ctx, lanes, pc, pc + 1)
        if ctx.fault_kind:
            control.go(ctx, ctx.mask, pc)
            return control.stop_at(ctx, StopKind.FAULT, ctx.fault_pc)
        return control.stop_at(ctx, StopKind.HANDLER, pc, lanes)
    if decoded.members is not None:
        if not control.gather(ctx, pc, lanes, decoded.members(warp)):
            return None
        lanes &= ctx.mask
    if decoded.step is not None:
        decoded.step(warp, lanes)
    return pc + 1


def _branch(
    warp: Warp, ctx: WarpContext, program: NumpyProgram, decoded: _Decoded, lanes: int
) -> int | None:  # fmt: skip
    instruction = decoded.instruction
    (label,) = instruction.operands
    assert isinstance(label, LabelOp), "decoding has looked"
    if lanes in (0, ctx.mask):
        return label.target if lanes else instruction.index + 1
    control.split(ctx, lanes, label.target, instruction.index + 1)
    if ".uni" in instruction.opcode:
        first = next(control.lanes_in(lanes))
        control.note_fault(ctx, FaultKind.DIVERGENT_UNIFORM, instruction.index, first, lanes)
    return None


def _branch_table(
    warp: Warp, ctx: WarpContext, program: NumpyProgram, decoded: _Decoded, lanes: int
) -> None:  # fmt: skip
    assert decoded.index is not None, "brx.idx has one"
    instruction = decoded.instruction
    pc = instruction.index
    targets = program._targets(instruction)
    indices = decoded.index(warp)
    control.go(ctx, ctx.mask, pc + 1)
    first: int | None = None
    for lane in control.lanes_in(lanes):
        index = int(indices[lane])
        first = index if first is None else first
        if index < len(targets):
            ctx.lane_pc[lane] = targets[index]
        else:
            control.note_fault(ctx, FaultKind.BRANCH_INDEX, pc, lane, index)
        if index != first and ".uni" in instruction.opcode:
            control.note_fault(ctx, FaultKind.DIVERGENT_UNIFORM, pc, lane, index)


def _exit(warp: Warp, ctx: WarpContext, program: NumpyProgram, decoded: _Decoded, lanes: int) -> None:
    control.leave(ctx, lanes, decoded.instruction.index + 1)


def _warp_barrier(
    warp: Warp, ctx: WarpContext, program: NumpyProgram, decoded: _Decoded, lanes: int
) -> None:  # fmt: skip
    assert decoded.members is not None, "bar.warp.sync has a mask"
    control.warp_barrier(ctx, decoded.instruction.index, lanes, decoded.members(warp))


_CONTROL: dict[str, Callable[[Warp, WarpContext, NumpyProgram, _Decoded, int], int | None]] = {
    "bra": _branch,
    "brx": _branch_table,
    "ret": _exit,
    "exit": _exit,
    "bar": _warp_barrier,
}
