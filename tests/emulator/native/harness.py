"""Runs single warps on the native engine, without the machine's scheduler."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.machine.engine import Stop, StopKind
from megamoe_jit.emulator.machine.state import Cluster, Cta, Grid, Warp
from megamoe_jit.emulator.memory.allocations import Allocations
from megamoe_jit.emulator.native.engine import NativeEngine, NativeProgram
from megamoe_jit.emulator.parser import SHARED_BASE, parse

HEADER = ".version 8.7\n.target sm_100a\n.address_size 64\n"
ENGINE = NativeEngine()


def kernel_text(body: str, params: str = "", declarations: str = "", module: str = "") -> str:
    """Return PTX of one entry `k`."""
    return f"{HEADER}{module}\n.visible .entry k({params})\n{{\n{declarations}\n{body}\n}}\n"


class Bench:
    """One grid of one cluster, its CTAs, and warps made when they are asked for."""

    def __init__(
        self,
        text: str,
        *,
        block: int = 32,
        cluster: int = 1,
        params: bytes = b"",
        dynamic_shared: int = 0,
        rank: int = 0,
        engine: Any = None,
        symbols: dict[str, int] | None = None,
        allocations: Allocations | None = None,
    ) -> None:
        module = parse(text)
        (function,) = module.entries
        self.engine = engine or ENGINE
        self.program: NativeProgram = self.engine.prepare(function, module)
        self.allocations = allocations or Allocations()
        machine: Any = types.SimpleNamespace(allocations=self.allocations, num_ranks=1)
        size = max(function.param_bytes, 1)
        self.params = np.frombuffer(params.ljust(size, b"\0"), np.uint8).copy()
        self.allocations.add(self.params.ctypes.data, size, writable=False, name="params")
        self.grid = Grid(
            machine, self.program, grid=(cluster, 1, 1), block=(block, 1, 1), cluster=(cluster, 1, 1),
            params=self.params, rank=rank, dynamic_shared_bytes=dynamic_shared,
        )  # fmt: skip
        self.grid.symbols = symbols or {}
        self.cluster = Cluster(self.grid, (0, 0, 0), 0)
        for index in range(cluster):
            smem = np.zeros(self.grid.smem_bytes + 1024, np.uint8)
            start = -smem.ctypes.data % 1024
            smem = smem[start : start + self.grid.smem_bytes]
            self.cluster.ctas.append(Cta(self.cluster, index, (index, 0, 0), smem))
            self.cluster.smem_table[index] = smem.ctypes.data, smem.size

    def warp(self, index: int = 0, cta: int = 0, fuel: int = 1 << 40) -> Warp:
        warp = self.program.new_warp(self.cluster.ctas[cta], index)
        warp.ctx.fuel = fuel
        return warp

    def reg(self, warp: Warp, name: str) -> npt.NDArray[Any]:
        (reg,) = [reg for reg in self.program.function.registers if reg.name == name]
        return self.program.layout.view(warp, reg)

    def run(self, warp: Warp) -> Stop:
        """Run until the warp exits; Python handlers run as they come."""
        while True:
            stop = self.engine.run(warp)
            if stop.kind is not StopKind.HANDLER:
                return stop
            outcome = self.program.handlers[stop.pc](warp, stop.mask)
            assert outcome is None, "handlers of these tests are done at once"
            pcs = np.ctypeslib.as_array(warp.ctx.lane_pc)
            pcs[[lane for lane in range(32) if stop.mask >> lane & 1]] = stop.pc + 1


def finish(bench: Bench, warp: Warp) -> None:
    """Run a warp that is expected to exit."""
    stop = bench.run(warp)
    assert stop.kind is StopKind.EXIT, (stop, fault(warp))


def fault(warp: Warp) -> tuple[int, int, int, int, int]:
    """Return (kind, pc, lane, address, size) of the warp's fault."""
    ctx = warp.ctx
    return ctx.fault_kind, ctx.fault_pc, ctx.fault_lane, ctx.fault_address, ctx.fault_size


__all__ = ["ENGINE", "HEADER", "SHARED_BASE", "Bench", "fault", "finish", "kernel_text"]
