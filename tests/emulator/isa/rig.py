"""Executes single instructions by their handlers on a real machine, without an engine."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.isa.decode import Decode
from megamoe_jit.emulator.isa.table import lookup
from megamoe_jit.emulator.machine.machine import Machine
from megamoe_jit.emulator.machine.mbarrier import Mbarrier
from megamoe_jit.emulator.machine.outcome import Outcome, Park
from megamoe_jit.emulator.machine.state import Cta, Grid, Warp
from megamoe_jit.emulator.memory.spaces import shared_address
from megamoe_jit.emulator.native.context import WarpContext
from megamoe_jit.emulator.native.registers import RegisterLayout
from megamoe_jit.emulator.parser.parser import parse

ALL = 0xFFFFFFFF
SMEM = 64 * 1024
_REGISTERS = """
.reg .pred %p<8>; .reg .b16 %h<32>; .reg .b32 %r<64>; .reg .b64 %d<32>; .reg .f32 %f<32>; .reg .f64 %g<8>;
.reg .b128 %q<16>;
"""


class _Program:
    """What a grid needs of a program."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.layout = RegisterLayout(function)
        self.handlers: dict[int, Any] = {}

    def new_warp(self, cta: Cta, index: int) -> Warp:
        context = WarpContext()
        context.live = ALL
        warp = Warp(cta, index, self, regs=self.layout.new_file(), ctx=context)  # type: ignore[arg-type]
        return warp

    def free_warp(self, warp: Warp) -> None:
        pass


class Rig:
    """A cluster of CTAs with one warp each, and instructions to execute one by one."""

    def __init__(
        self, *instructions: str, cluster: int = 1, completion: Any = "lazy", checks: str = "off", seed: int = 0
    ) -> None:
        """Parse and decode `instructions`; registers are %p, %h, %r, %d, %f, %g, %q with a number."""
        body = "\n".join(f"{text};" for text in instructions)
        text = (
            f".version 9.0\n.target sm_100a\n.address_size 64\n.visible .entry rig() {{\n{_REGISTERS}\n{body}\nret;\n}}"
        )
        self.module = parse(text)
        self.function = self.module.functions["rig"]
        self.program = _Program(self.function)
        self.machine = Machine(engine=None, completion=completion, checks=checks, seed=seed)  # type: ignore[arg-type]
        if checks != "off":
            from megamoe_jit.emulator.checks.ordering import Checker

            self.machine.checks = Checker(self.machine, has_tensor_memory=False)
        self.grid = Grid(
            self.machine, self.program, grid=(cluster, 1, 1), block=(32, 1, 1), cluster=(cluster, 1, 1),
            dynamic_shared_bytes=SMEM,
        )  # fmt: skip
        self.cluster = self.machine.start_cluster(self.grid, 0)
        self.ctas = self.cluster.ctas
        self.warp = self.ctas[0].warps[0]
        self.kept: list[Any] = []

    @property
    def cta(self) -> Cta:
        """The first CTA."""
        return self.ctas[0]

    def step(self, index: int, mask: int = ALL, cta: int = 0) -> Outcome:
        """Execute instruction `index` for lanes `mask` of a CTA's warp."""
        handler = self.program.handlers.get(index)
        warp = self.ctas[cta].warps[0]
        if handler is None:
            instruction = self.function.instructions[index]
            decode = Decode(
                instruction, lookup(instruction.opcode), self.function, self.module, self.program.layout,
                lambda _, name: self.fail(name),
            )  # fmt: skip
            handler = self.program.handlers[index] = decode.op.function(decode)
        warp.pc = index
        outcome: Outcome = handler(warp, mask)
        return outcome

    @staticmethod
    def fail(name: str) -> int:
        """Symbols are not used here."""
        raise AssertionError(name)

    def register(self, name: str, cta: int = 0) -> npt.NDArray[Any]:
        """Return the lanes of a register, writable."""
        reg = next(reg for reg in self.function.registers if reg.name == name)
        return self.program.layout.view(self.ctas[cta].warps[0], reg)

    def set(self, cta: int = 0, **values: Any) -> None:
        """Set registers: r3=7 is %r3; f registers take floats. Those that no instruction has are passed over."""
        known = {reg.name for reg in self.function.registers}
        for name, value in values.items():
            if f"%{name}" not in known:
                continue
            lanes = self.register(f"%{name}", cta)
            if name[0] == "f":
                value = np.asarray(value, np.float32).view(np.uint32)
            elif name[0] == "g":
                value = np.asarray(value, np.float64).view(np.uint64)
            else:
                value = np.asarray(value, np.int64) if np.ndim(value) or abs(value) < 1 << 63 else value
                value = np.asarray(value).astype(lanes.dtype)
            lanes[...] = value

    def memory(self, data: npt.NDArray[Any], *, align: int = 128, writable: bool = True) -> npt.NDArray[np.uint8]:
        """Copy `data` to registered global memory; returns it as bytes."""
        raw = np.zeros(data.nbytes + align, np.uint8)
        start = -raw.ctypes.data % align
        found = raw[start : start + data.nbytes]
        found[:] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self.machine.allocations.add(found.ctypes.data, found.nbytes, writable=writable, name="test", keep=raw)
        self.kept.append(found)
        return found

    def barrier(self, offset: int, count: int = 1, cta: int = 0) -> Mbarrier:
        """Make an mbarrier."""
        barrier = Mbarrier(self.ctas[cta], offset, count)
        self.ctas[cta].mbarriers[offset] = barrier
        self.machine.checks.mbarrier_init(barrier, self.ctas[cta].warps[0])
        self.machine.checks.fence_mbarrier_init(self.ctas[cta].warps[0])
        return barrier

    def finish(self) -> None:
        """Run everything that is pending."""
        self.machine.queues.drain_ready()
        assert not self.machine.queues.pending


def address_of(memory: npt.NDArray[Any]) -> int:
    """Return the host address of an array."""
    return int(memory.ctypes.data)


def shared(offset: int, rank: int = 0) -> int:
    """Return a shared address."""
    return shared_address(rank, offset)


def parks(outcome: Outcome) -> bool:
    """Whether the instruction waits."""
    return isinstance(outcome, Park)


def namespace(**values: Any) -> types.SimpleNamespace:
    """Return an object with these attributes."""
    return types.SimpleNamespace(**values)
