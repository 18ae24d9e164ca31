"""The emulator's interface: load PTX, launch its kernels on tensors of the CPU, read what happened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megamoe_jit.emulator.arguments import PARAM_ALIGNMENT, Globals, Memory, Region, pack, region_of, register
from megamoe_jit.emulator.faults import KINDS
from megamoe_jit.emulator.machine.engine import Engine, Program
from megamoe_jit.emulator.machine.machine import Machine
from megamoe_jit.emulator.machine.queues import Completion
from megamoe_jit.emulator.machine.scheduler import Limits
from megamoe_jit.emulator.machine.state import MAX_CLUSTER, Dims, Grid
from megamoe_jit.emulator.memory.allocations import ALL_RANKS, Allocations
from megamoe_jit.emulator.parser import Function, PtxModule, parse
from megamoe_jit.emulator.report import LaunchReport
from megamoe_jit.errors import ArgumentError

__all__ = ["Emulator", "Launch", "Limits", "Memory", "Module"]

_MAX_THREADS = 1024
_MAX_BLOCK = (1024, 1024, 64)
_MAX_GRID = (2**31 - 1, 65535, 65535)
_MAX_SMEM_BYTES = 227 * 1024
_ENGINES = ("native", "numpy")
_CHECKS = ("error", "warn", "off")
_NUMERICS = ("hardware", "exact")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Launch:
    """A launch, for `Emulator.launch_together`.

    Attributes:
        module, name: the kernel.
        grid, block, cluster: (x, y, z), shorter tuples and integers are filled with 1.
        shared_bytes: dynamic shared memory of a CTA.
        args: one value a parameter.
        memory: what the kernel may touch beside the tensors in `args`.
        rank: whose it is; None: its position in the list.
        cooperative: all CTAs must be resident at once.
    """

    module: Module
    name: str
    grid: Any
    block: Any
    cluster: Any = (1, 1, 1)
    shared_bytes: int = 0
    args: Sequence[Any] = ()
    memory: Iterable[Memory] = ()
    rank: int | None = None
    cooperative: bool = False


class Emulator:
    """A device that executes PTX on the CPU.

    Attributes:
        seed: decides every choice that the machine may make; each launch draws from its own part of it.
        completion: when asynchronous work runs: "lazy" (when nothing else can), "eager" (at once), or the probability
            at each step of the scheduler.
        checks: "error" raises what is certainly wrong, "warn" notes everything in `Module.report.findings`, "off" looks
            at no memory accesses (misused barriers still raise).
        engine: "native" (LLVM) or "numpy" (slow, needs no compiler).
        numerics: tensor cores sum as "hardware" does, or "exact".
        suppress: kinds of reports (`faults.KINDS`) not to make.
        limits: when to give up.
    """

    def __init__(
        self,
        seed: int = 0,
        completion: Completion = "lazy",
        checks: Literal["error", "warn", "off"] | str = "error",
        engine: str = "native",
        numerics: Literal["hardware", "exact"] | str = "hardware",
        cache_dir: Path | str | None = None,
        *,
        suppress: Iterable[str] = (),
        limits: Limits | None = None,
    ) -> None:
        """Describe the device; `cache_dir` keeps compiled kernels. Raises ArgumentError for an unknown choice."""
        _one_of("checks", checks, _CHECKS)
        _one_of("engine", engine, _ENGINES)
        _one_of("numerics", numerics, _NUMERICS)
        is_probability = isinstance(completion, float) and 0 < completion <= 1
        if completion not in ("lazy", "eager") and not is_probability:
            raise ArgumentError(f"completion={completion!r}; it is 'lazy', 'eager' or a probability in (0, 1].")
        self.suppress = frozenset(suppress)
        unknown = sorted(self.suppress - set(KINDS))
        if unknown:
            raise ArgumentError(f"suppress has {unknown}, which are no kinds of reports; those are {sorted(KINDS)}.")
        self.seed = seed
        self.completion = completion
        self.checks = checks
        self.numerics = numerics
        self.limits = limits or Limits()
        self.engine: Engine = _make_engine(engine, cache_dir)
        self._memory: list[Region] = []
        self._launches = 0

    def load(self, ptx: str) -> Module:
        """Read a PTX text; raises PtxSyntaxError. Kernels are decoded when they are first launched, or by `prepare`."""
        return Module(self, parse(ptx))

    def memory(
        self, tensor: Any, *, rank: int | None = None, peer: bool = False, writable: bool = True, name: str = ""
    ) -> Any:
        """Let kernels touch `tensor` through raw addresses, from now on; returns it.

        `rank` None lets every rank; `peer` lets other ranks than `rank` too.
        """
        memory = Memory(tensor, writable=writable, rank=ALL_RANKS if rank is None else rank, peer=peer, name=name)
        region = region_of(memory, ALL_RANKS)
        if region.size:
            self._memory.append(region)
        return tensor

    def forget(self, tensor: Any) -> None:
        """Take back what `memory` allowed for this very tensor."""
        self._memory = [region for region in self._memory if region.keep is not tensor]

    def launch_together(self, launches: Sequence[Launch]) -> None:
        """Run several launches side by side, as ranks do; returns when all have ended.

        Raises:
            ArgumentError: an argument or a dimension that the kernel cannot take.
            UnsupportedError: an instruction without a meaning here.
            EmulatorFault: a kernel did something wrong; reports of all modules hold what was found until then.
        """
        allocations = Allocations()
        machine = Machine(
            engine=self.engine,
            allocations=allocations,
            seed=self.seed * 1_000_003 + self._launches,
            completion=self.completion,
            checks=self.checks,
            numerics=self.numerics,
            suppress=self.suppress,
            limits=self.limits,
        )
        self._launches += 1
        regions = list(self._memory)
        grids = []
        for index, launch in enumerate(launches):
            rank = index if launch.rank is None else launch.rank
            grid, used = _make_grid(machine, launch, rank, index)
            grids.append(grid)
            regions += used
        register(allocations, regions)
        modules = list(dict.fromkeys(launch.module for launch in launches))
        programs = {grid.program: launch.module for grid, launch in zip(grids, launches, strict=True)}
        before = {program: program.instruction_counts() for program in programs}
        try:
            machine.run(*grids)
        finally:
            for program, module in programs.items():
                module.report.instructions += program.instruction_counts() - before[program]
                for grid in (grid for grid in grids if grid.program is program):
                    module.report.instructions.subtract(grid.retries)
                module.report.warp_instructions = module.report.instructions.total()
            for module in modules:
                _note(module.report, machine, grids)


class Module:
    """A PTX text on an emulated device.

    Attributes:
        ptx: what was read.
        report: what all launches did so far.
    """

    def __init__(self, emulator: Emulator, ptx: PtxModule) -> None:
        """Take a text that was read."""
        self.emulator = emulator
        self.ptx = ptx
        self.report = LaunchReport()
        self._programs: dict[str, Program] = {}
        self._globals: dict[int, Globals] = {}

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels."""
        return tuple(function.name for function in self.ptx.entries)

    def prepare(self, name: str) -> Program:
        """Decode and compile a kernel; raises ArgumentError for an unknown one, UnsupportedError for its contents."""
        if name not in self._programs:
            function = self.ptx.functions.get(name)
            if function is None or not function.is_entry:
                raise ArgumentError(f"The module has no kernel {name!r}; it has {', '.join(self.kernels) or 'none'}.")
            self._programs[name] = self.emulator.engine.prepare(function, self.ptx)
        return self._programs[name]

    def variables(self, rank: int = 0) -> Globals:
        """Return the module's global and const variables on `rank`; they keep their values between launches."""
        if rank not in self._globals:
            self._globals[rank] = Globals(self.ptx, rank)
        return self._globals[rank]

    def variable(self, name: str, rank: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the bytes of a global or const variable."""
        arrays = self.variables(rank).arrays
        if name not in arrays:
            raise ArgumentError(f"The module has no variable {name!r}; it has {', '.join(arrays) or 'none'}.")
        return arrays[name]

    def launch(
        self,
        name: str,
        grid: Any,
        block: Any,
        cluster: Any = (1, 1, 1),
        shared_bytes: int = 0,
        args: Sequence[Any] = (),
        *,
        memory: Iterable[Memory] = (),
        cooperative: bool = False,
    ) -> None:
        """Run a kernel to its end; results are in the tensors. `Launch` describes the arguments."""
        self.emulator.launch_together(
            [
                Launch(
                    module=self,
                    name=name,
                    grid=grid,
                    block=block,
                    cluster=cluster,
                    shared_bytes=shared_bytes,
                    args=args,
                    memory=memory,
                    rank=0,
                    cooperative=cooperative,
                )
            ]
        )


def _make_engine(name: str, cache_dir: Path | str | None) -> Engine:
    if name == "native":
        from megamoe_jit.emulator.native.engine import NativeEngine

        return NativeEngine(cache_dir)
    from megamoe_jit.emulator.interpreter.engine import NumpyEngine

    return NumpyEngine()


def _make_grid(machine: Machine, launch: Launch, rank: int, index: int) -> tuple[Grid, list[Region]]:
    module = launch.module
    program = module.prepare(launch.name)
    function = program.function
    grid, block, cluster = (_dims(launch.name, what, getattr(launch, what)) for what in ("grid", "block", "cluster"))
    if cluster == (1, 1, 1) and function.required_cluster:
        cluster = function.required_cluster
    _check_dims(function, grid, block, cluster, launch.shared_bytes)
    params, regions = pack(function, launch.args, rank)
    regions += [region_of(memory, rank) for memory in launch.memory]
    variables = module.variables(rank)
    regions += variables.regions
    regions.append(Region(int(params.ctypes.data), len(params), "parameters", rank, False, False, params))
    made = Grid(
        machine,
        program,
        grid=grid,
        block=block,
        cluster=cluster,
        dynamic_shared_bytes=launch.shared_bytes,
        params=params,
        rank=rank,
        index=index,
        cooperative=launch.cooperative,
        symbols=variables.symbols,
    )
    assert params.ctypes.data % PARAM_ALIGNMENT == 0, "parameters are aligned"
    if launch.cooperative:
        made.workspace[0] = made.workspace.nbytes
        regions.append(region_of(Memory(made.workspace, name="workspace of the grid"), rank))
    return made, regions


def _dims(name: str, what: str, value: Any) -> Dims:
    items = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not 1 <= len(items) <= 3 or not all(isinstance(item, int | np.integer) and item > 0 for item in items):
        raise ArgumentError(f"{name}: {what}={value!r}; one to three positive integers are needed.")
    x, y, z = (*(int(item) for item in items), 1, 1)[:3]
    return x, y, z


def _check_dims(function: Function, grid: Dims, block: Dims, cluster: Dims, shared_bytes: int) -> None:
    name = function.name
    threads = block[0] * block[1] * block[2]
    if threads > _MAX_THREADS or any(b > most for b, most in zip(block, _MAX_BLOCK, strict=True)):
        raise ArgumentError(f"{name}: block={block} has {threads} threads; a CTA has at most {_MAX_THREADS}.")
    if any(g > most for g, most in zip(grid, _MAX_GRID, strict=True)):
        raise ArgumentError(f"{name}: grid={grid} is larger than {_MAX_GRID}.")
    if any(g % c for g, c in zip(grid, cluster, strict=True)):
        raise ArgumentError(f"{name}: grid={grid} is no multiple of cluster={cluster}.")
    if cluster[0] * cluster[1] * cluster[2] > MAX_CLUSTER:
        raise ArgumentError(f"{name}: cluster={cluster} has more than {MAX_CLUSTER} CTAs.")
    if function.required_block and block != function.required_block:
        raise ArgumentError(f"{name}: block={block}, but the kernel was compiled for {function.required_block}.")
    if function.required_cluster and cluster != function.required_cluster:
        raise ArgumentError(f"{name}: cluster={cluster}, but the kernel was compiled for {function.required_cluster}.")
    if function.max_threads is not None and threads > function.max_threads:
        raise ArgumentError(
            f"{name}: block={block} has {threads} threads; the kernel was compiled for {function.max_threads} at most."
        )
    smem = function.shared_bytes + shared_bytes
    if shared_bytes < 0 or smem > _MAX_SMEM_BYTES:
        raise ArgumentError(
            f"{name}: {function.shared_bytes} static and {shared_bytes} dynamic bytes of shared memory; a CTA has "
            f"{_MAX_SMEM_BYTES}."
        )


def _note(report: LaunchReport, machine: Machine, grids: Sequence[Grid]) -> None:
    counters = machine.counters
    report.tma_bytes += counters.tma_bytes
    report.mmas += counters.mmas
    report.barrier_waits += counters.barrier_waits
    report.cycles = max((grid.cycles for grid in grids), default=0)
    report.findings += machine.findings
    report.printed += "".join(machine.printed)
    report.trace = machine.timeline


def _one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ArgumentError(f"{name}={value!r}; it is one of {', '.join(map(repr, allowed))}.")
