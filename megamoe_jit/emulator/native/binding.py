"""What both engines do before code is made: look every instruction up, bind handlers, name the addresses they need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.isa.decode import CARRY, Decode
from megamoe_jit.emulator.isa.table import Kind, Op, find, lookup, unsupported
from megamoe_jit.emulator.memory.spaces import LOCAL_WINDOW, shared_address
from megamoe_jit.emulator.native.context import WarpContext
from megamoe_jit.emulator.native.lifetimes import lifetimes
from megamoe_jit.emulator.native.registers import SPECIALS, RegisterLayout, aligned_zeros, special_width, specials_of
from megamoe_jit.emulator.parser.cfg import Block, Liveness, blocks, liveness
from megamoe_jit.emulator.parser.nodes import (
    Address,
    Function,
    Instruction,
    Not,
    Operand,
    Pair,
    PtxModule,
    Symbol,
    Vec,
)
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.engine import Handler
    from megamoe_jit.emulator.machine.state import Cta, Grid, Warp

_FRAME_ALIGNMENT = 16
_POISON = 0xCD
"""Fills local frames, so that a read of what nobody wrote shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A function with the meaning of each instruction.

    Attributes:
        ops: what the table says, by PC.
        handlers: PC -> handler of the instructions that Python executes.
        blocks, liveness: the function cut at branches and at instructions of `is_stop`.
        symbols: names of the module's variables that the function mentions.
    """

    function: Function
    module: PtxModule
    layout: RegisterLayout
    ops: tuple[Op, ...]
    handlers: Mapping[int, Handler]
    blocks: tuple[Block, ...]
    liveness: tuple[Liveness, ...]
    symbols: tuple[str, ...]

    def symbol_table(self, grid: Grid) -> npt.NDArray[np.uint64]:
        """Return the addresses of `symbols` in a launch, whose `symbols` (name -> address) says where variables are."""
        table: npt.NDArray[np.uint64] | None = grid.scratch.get("native.symbols")
        if table is None:
            addresses = [grid.symbols[name] for name in self.symbols]
            table = grid.scratch["native.symbols"] = np.array([*addresses, 0], np.uint64)
        return table

    def new_context(self, warp: Warp) -> None:
        """Fill the parts of `warp.ctx` that do not depend on the engine, and the constant special registers."""
        from megamoe_jit.emulator.machine.specials import special_values

        cta, grid, ctx = warp.cta, warp.grid, warp.ctx
        ctx.live = warp.lanes
        ctx.regs = warp.regs.ctypes.data
        ctx.params, ctx.param_bytes = grid.params.ctypes.data, self.function.param_bytes
        ctx.smem_table = warp.cluster.smem_table.ctypes.data
        ctx.cta_rank, ctx.rank = cta.rank, grid.rank
        ctx.ranges = warp.machine.allocations.table_address
        ctx.symbols = self.symbol_table(grid).ctypes.data
        frame = -(-self.function.local_bytes // _FRAME_ALIGNMENT) * _FRAME_ALIGNMENT
        frames = aligned_zeros(32 * frame, 64)
        frames[:] = _POISON
        ctx.local, ctx.local_bytes = frames.ctypes.data, frame
        ctx.keep = (frames,)
        for name in self.layout.constants:
            if name != CARRY.name:
                self.layout.special(warp, name)[:] = special_values(warp, name).astype(f"u{special_width(name)}")

    def counts(self, executions: Iterable[tuple[range, int]]) -> Counter[str]:
        """Return how often each opcode was executed, from (PCs of a block, executions of the block)."""
        total: Counter[str] = Counter()
        for pcs, count in executions:
            if count:
                for pc in pcs:
                    total[self.function.instructions[pc].opcode] += count
        return total


def bind(function: Function, module: PtxModule) -> Binding:
    """Look every instruction up and bind the handlers.

    Args:
        function: an entry.
        module: what it is in.

    Raises:
        UnsupportedError: lists every instruction that has no meaning here.
    """
    failed: list[tuple[Instruction, str]] = []
    ops: list[Op] = []
    for instruction in function.instructions:
        op = find(instruction.opcode)
        if op is None:
            failed.append((instruction, _unknown(instruction.opcode)))
        else:
            ops.append(op)
        unknown = [name for name in specials_of(instruction) if name not in SPECIALS]
        failed += [(instruction, f"The emulator does not know the special register {name}.") for name in unknown]
    if failed:
        raise unsupported(failed)
    uses_carry = any(op.row.carry_in or op.row.carry_out for op in ops)
    cut = blocks(function, lambda instruction: is_stop(ops[instruction.index]))
    live = liveness(function, cut)
    layout = RegisterLayout(function, [CARRY.name] if uses_carry else [], lifetimes(function, cut, live))
    address_of = symbol_reader(function)
    handlers: dict[int, Handler] = {}
    for instruction, op in zip(function.instructions, ops, strict=True):
        if op.kind is Kind.HANDLER:
            try:
                handlers[instruction.index] = op.function(Decode(instruction, op, function, module, layout, address_of))
            except UnsupportedError as error:
                failed.append((instruction, str(error)))
    if failed:
        raise unsupported(failed)
    return Binding(
        function=function,
        module=module,
        layout=layout,
        ops=tuple(ops),
        handlers=handlers,
        blocks=cut,
        liveness=live,
        symbols=_symbols(function, module),
    )


def is_stop(op: Op) -> bool:
    """Whether an instruction is a block of its own: Python executes it, or lanes wait at it for one another."""
    if op.kind is Kind.CONTROL:
        return op.form.opcode.startswith("bar")
    return op.kind is Kind.HANDLER or (op.kind is Kind.PURE and op.members is not None)


def _unknown(opcode: str) -> str:
    try:
        lookup(opcode)
    except UnsupportedError as error:
        return str(error)
    raise AssertionError(f"{opcode} is known")


def symbol_reader(function: Function) -> Callable[[Warp, str], int]:
    """Return what gives handlers the address of a symbol; see decode.Symbols."""
    params = {param.name: param.offset for param in function.params}

    def address(warp: Warp, name: str) -> int:
        variable = function.variables.get(name)
        if variable is not None and variable.space == "shared":
            return shared_address(warp.cta.rank, variable.offset)
        if variable is not None and variable.space == "local":
            return LOCAL_WINDOW + variable.offset
        if name in params:
            return int(warp.grid.params.ctypes.data) + params[name]
        return int(warp.grid.symbols[name])

    return address


def _symbols(function: Function, module: PtxModule) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for instruction in function.instructions:
        for operand in instruction.operands:
            names.update(dict.fromkeys(_names(operand)))
    return tuple(name for name in names if name in module.globals and name not in function.variables)


def _names(operand: Operand | None) -> Iterator[str]:
    match operand:
        case Symbol():
            yield operand.name
        case Vec():
            for item in operand.items:
                yield from _names(item)
        case Pair():
            yield from _names(operand.first)
            yield from _names(operand.second)
        case Not():
            yield from _names(operand.operand)
        case Address():
            for part in (operand.base, operand.coords, *operand.extra):
                yield from _names(part)


def local_frames(warp: Warp) -> npt.NDArray[np.uint8]:
    """Return the local memory of a warp's lanes, [32, bytes of a frame]."""
    (frames,) = warp.ctx.keep
    return frames.reshape(32, warp.ctx.local_bytes)  # type: ignore[no-any-return]


def new_warp(cta: Cta, index: int, program: object, binding: Binding, regs: npt.NDArray[np.uint8]) -> Warp:
    """Make warp `index` of `cta` with a register file of `binding.layout`."""
    from megamoe_jit.emulator.machine.state import Warp

    warp = Warp(cta, index, program, regs=regs, ctx=WarpContext())  # type: ignore[arg-type]
    binding.new_context(warp)
    return warp


def fingerprint(function: Function, symbols: Sequence[str]) -> str:
    """Return a text that holds all of `function` that code depends on."""
    parts = [f"{i.opcode} {i.operands} {i.guard}" for i in function.instructions]
    parts.append(repr((function.params, function.registers, dict(function.branch_tables), tuple(symbols))))
    parts += [repr((v.name, v.space, v.offset)) for v in function.variables.values()]
    parts.append(repr(function.local_bytes))
    return "\n".join(parts)
