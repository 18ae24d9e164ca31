"""An engine that knows handlers and `ret`: straight-line kernels on the real machine, registers set by the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from megamoe_jit.emulator.isa import table
from megamoe_jit.emulator.isa.decode import Decode
from megamoe_jit.emulator.machine.engine import Handler, Stop, StopKind
from megamoe_jit.emulator.machine.machine import Machine
from megamoe_jit.emulator.machine.state import Cta, Grid, Warp
from megamoe_jit.emulator.native.context import WarpContext
from megamoe_jit.emulator.native.registers import RegisterLayout
from megamoe_jit.emulator.parser import parse
from megamoe_jit.emulator.parser.nodes import Function, PtxModule

FULL = 0xFFFFFFFF
Setup = Callable[["MiniProgram", Warp], None]


class MiniProgram:
    """A function whose instructions are all handlers."""

    def __init__(self, function: Function, module: PtxModule, setup: Setup) -> None:
        self.function = function
        self.layout = RegisterLayout(function)
        self.setup = setup
        self.handlers: Mapping[int, Handler] = {}
        handlers: dict[int, Handler] = {}
        for instruction in function.instructions:
            if instruction.base in ("ret", "exit"):
                continue
            op = table.lookup(instruction.opcode)
            if op.kind is table.Kind.HANDLER:
                decode = Decode(instruction, op, function, module, self.layout, self._symbol)
                handlers[instruction.index] = op.function(decode)
            else:
                assert op.kind is table.Kind.NOOP, f"{instruction.text}: only handlers run here"
                handlers[instruction.index] = lambda warp, mask: None
        self.handlers = handlers

    def _symbol(self, warp: Warp, name: str) -> int:
        return warp.cta.rank << 24 | self.function.variables[name].offset

    def new_warp(self, cta: Cta, index: int) -> Warp:
        ctx = WarpContext()
        warp = Warp(cta, index, self, regs=self.layout.new_file(), ctx=ctx)
        ctx.live = warp.lanes
        ctx.cta_rank = cta.rank
        self.setup(self, warp)
        return warp

    def free_warp(self, warp: Warp) -> None:
        pass

    def set(self, warp: Warp, name: str, value: Any) -> None:
        """Set a register (32 lanes or one value for all); nothing where no instruction uses it."""
        for reg in self.function.registers:
            if reg.name == name:
                self.layout.view(warp, reg)[:] = value

    def get(self, warp: Warp, name: str) -> np.ndarray:
        (reg,) = [reg for reg in self.function.registers if reg.name == name]
        return self.layout.view(warp, reg).copy()


class MiniEngine:
    """Runs MiniPrograms."""

    def prepare(self, function: Function, module: PtxModule) -> Any:
        raise NotImplementedError

    def run(self, warp: Warp) -> Stop:
        ctx = warp.ctx
        while True:
            live = ctx.live & ~ctx.blocked & FULL
            if not ctx.live:
                return Stop(StopKind.EXIT, 0, 0)
            if not live:
                return Stop(StopKind.BLOCKED, 0, 0)
            if ctx.fuel <= 0:
                return Stop(StopKind.YIELD, 0, 0)
            lanes = [lane for lane in range(32) if live >> lane & 1]
            pc = min(ctx.lane_pc[lane] for lane in lanes)
            mask = sum(1 << lane for lane in lanes if ctx.lane_pc[lane] == pc)
            instruction = warp.program.function.instructions[pc]
            ctx.fuel -= 1
            ctx.executed += 1
            if instruction.base in ("ret", "exit"):
                ctx.live &= ~mask & FULL
                continue
            if instruction.guard is not None:
                reg, negated = instruction.guard
                values = (warp.program.layout.view(warp, reg) != 0) != negated
                chosen = sum(1 << lane for lane in lanes if mask >> lane & 1 and values[lane])
                for lane in lanes:
                    if mask >> lane & 1 and not chosen >> lane & 1:
                        ctx.lane_pc[lane] = pc + 1
                mask = chosen
                if not mask:
                    continue
            ctx.mask, ctx.pc = mask, pc
            return Stop(StopKind.HANDLER, pc, mask)


HEADER = ".version 8.7\n.target {target}\n.address_size 64\n"


class Run:
    """A kernel of `body`, run to its end.

    Attributes:
        program, machine: what ran; cluster: of the last warp made.
    """

    def __init__(
        self,
        body: str,
        setup: Setup,
        *,
        registers: str,
        warps: int = 4,
        cluster: int = 1,
        smem_bytes: int = 1 << 16,
        target: str = "sm_100a",
        finish: Callable[[MiniProgram, Warp], None] | None = None,
        **machine: Any,
    ) -> None:
        text = (
            HEADER.format(target=target)
            + f".visible .entry k()\n{{\n{registers}\n.shared .align 1024 .b8 smem[{smem_bytes}];\n{body}\nret;\n}}\n"
        )
        module = parse(text)
        self.warps: list[Warp] = []
        self.finish = finish

        def made(program: MiniProgram, warp: Warp) -> None:
            self.warps.append(warp)
            setup(program, warp)

        self.program = MiniProgram(module.functions["k"], module, made)
        self.machine = Machine(engine=MiniEngine(), **{"checks": "off", **machine})  # type: ignore[arg-type]
        grid = Grid(self.machine, self.program, grid=(cluster, 1, 1), block=(32 * warps, 1, 1), cluster=(cluster, 1, 1))
        self.machine.run(grid)

    def get(self, warp: int, name: str) -> np.ndarray:
        """A register of warp `warp`, in the order of creation, at its end."""
        return self.program.get(self.warps[warp], name)
