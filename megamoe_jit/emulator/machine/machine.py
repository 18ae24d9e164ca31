"""The machine: memory, grids, pending work and the checker of one run. The scheduler drives it."""

from __future__ import annotations

import random
from collections.abc import Container
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator import addressing
from megamoe_jit.emulator.checks.interface import Checks, NoChecks
from megamoe_jit.emulator.faults import kind_of
from megamoe_jit.emulator.machine.queues import AsyncOp, AsyncQueues, Completion
from megamoe_jit.emulator.machine.scheduler import Limits, Scheduler
from megamoe_jit.emulator.machine.state import Cluster, Counters, Cta, Dims, Grid, Place, Warp
from megamoe_jit.emulator.memory.allocations import Allocations
from megamoe_jit.emulator.native.registers import aligned_zeros
from megamoe_jit.emulator.report import Event, Report, location_of, text_of, who_is
from megamoe_jit.emulator.trace import Timeline

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.engine import Engine

SMEM_ALIGNMENT = 1024


class Machine:
    """Everything that one launch, or several launched together, can see.

    Attributes:
        engine: executes ordinary instructions.
        rng: the only source of chance, with `noise` for whole arrays.
        allocations: what global addresses may be touched.
        checks: the checker; its calls do nothing when checks are off.
        numerics: "hardware" (truncating tensor-core sums) or "exact".
        num_ranks: ranks that run together.
        findings: what was reported and did not raise.
        printed: what the kernels printed.
        events: counts things that happened to barriers, queues and warps; the scheduler tells a stall by it.
        scratch: state of handler modules, by name of the module.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        allocations: Allocations | None = None,
        seed: int = 0,
        completion: Completion = "lazy",
        checks: str = "error",
        numerics: str = "hardware",
        suppress: Container[str] = (),
        limits: Limits | None = None,
    ) -> None:
        """Make an empty machine; `start_checks` makes its checker when it is known what will run."""
        self.engine = engine
        self.allocations = allocations if allocations is not None else Allocations()
        self.rng = random.Random(seed)
        self.noise = np.random.default_rng(seed)
        self.checks: Checks = NoChecks()
        self.check_mode = checks
        self.suppress = suppress
        self.numerics = numerics
        self.counters = Counters()
        self.timeline = Timeline()
        self.queues = AsyncQueues(completion, self.rng, self._op_ran)
        self.scheduler = Scheduler(self, limits or Limits())
        self.grids: list[Grid] = []
        self.num_ranks = 1
        self.findings: list[Report] = []
        self.printed: list[str] = []
        self.events = 0
        self.scratch: dict[str, Any] = {}
        self._seen: set[tuple[object, ...]] = set()

    def run(self, *grids: Grid) -> None:
        """Run `grids` side by side until all have ended; raises EmulatorFault for what they do wrong."""
        self.grids = list(grids)
        self.num_ranks = len({grid.rank for grid in grids})
        if self.check_mode != "off":
            from megamoe_jit.emulator.checks.ordering import Checker

            uses = any(i.base == "tcgen05" for grid in grids for i in grid.function.instructions)
            self.checks = Checker(self, has_tensor_memory=uses)
        self.scheduler.run()

    def submit(self, op: AsyncOp) -> None:
        """Hand an asynchronous operation over; the completion policy says when it runs."""
        self.queues.submit(op)

    def _op_ran(self, op: AsyncOp) -> None:
        self.events += 1
        self.checks.end_async(op)
        self.timeline.ran(op)

    # Memory.

    def resolve(
        self,
        warp: Warp,
        address: int,
        space: str,
        size: int,
        *,
        write: bool,
        align: int | None = None,
        lane: int | None = None,
    ) -> tuple[npt.NDArray[np.uint8], Place]:
        """Translate `address` of `space` to the bytes that it names.

        Args:
            warp: who accesses.
            address: as the program computed it.
            space: "generic", "global", "shared" ("shared::cta" too), "shared::cluster", "local", "const" or "param".
            size: bytes.
            write: whether they are written.
            align: needed alignment; None: the largest power of two that divides `size`, at most 16.
            lane: who accesses, where that is one lane (local memory: None means lane 0).

        Returns:
            The bytes, `size` of them, as a view, and where they are.

        Raises:
            MemoryFault: outside of what may be touched, or misaligned.
        """
        return addressing.resolve(self, warp, int(address), space, size, write=write, align=align, lane=lane)

    def cluster_cta(self, cta: Cta, rank: int, warp: Warp | None = None) -> Cta:
        """Return the CTA with `rank` in the cluster of `cta`; raises MemoryFault when there is none, or it has left."""
        ctas = cta.cluster.ctas
        if rank >= len(ctas):
            self.fault(
                "out-of-bounds",
                f"A shared address names CTA {rank} of the cluster, which has {len(ctas)}.",
                by=warp,
            )
        if ctas[rank].exited:
            self.fault("cta-exited", f"Shared memory of {ctas[rank].name()} is used, which has left.", by=warp)
        return ctas[rank]

    def missing_mbarrier(self, cta: Cta, offset: int, warp: Warp | None) -> NoReturn:
        """Report the use of an mbarrier that nobody initialised."""
        near = sorted(cta.mbarriers, key=lambda other: abs(other - offset))[:4]
        have = f"The nearest are at {', '.join(f'{other:#x}' for other in sorted(near))}." if near else "There is none."
        self.fault("mbarrier-init", f"No mbarrier was initialised at {offset:#x} of {cta.name()}. {have}", by=warp)

    # Reports.

    def report(
        self,
        kind: str,
        message: str,
        *,
        by: Warp | AsyncOp | None = None,
        warp: Warp | None = None,
        pc: int | None = None,
        lanes: int | None = None,
        section: str = "",
        severity: str | None = None,
        earlier: Event | None = None,
        always: bool = False,
    ) -> None:
        """Report a finding: errors raise the fault of their kind unless checks only warn, the rest is noted once.

        Args:
            kind: a row of `faults.KINDS`.
            message: what happened, with values.
            by: the warp or asynchronous operation that did it (`warp` is the same for a warp).
            pc: the instruction; the warp's current one when None.
            lanes: mask of the lanes that did it.
            section: PTX ISA section, the kind's when empty.
            severity: "error" or "warning", the kind's when None.
            earlier: what it collides with.
            always: raise even when checks only warn, as there is no going on.
        """
        if kind in self.suppress and not always:
            return
        known = kind_of(kind)
        who, found_pc, function = None, -1, None
        actor = by if by is not None else warp
        if actor is not None:
            issuer: Warp = actor if isinstance(actor, Warp) else actor.issuer
            found_pc = pc if pc is not None else actor.pc
            function = issuer.program.function
            who = who_is(issuer, found_pc, lanes)
        report = Report(
            kind=kind,
            severity="error" if (severity or known.severity) == "error" else "warning",
            message=message,
            section=section or known.section,
            who=who,
            pc=found_pc,
            instruction=text_of(function, found_pc) if function else "",
            location=location_of(function, found_pc) if function else None,
            earlier=earlier,
        )
        if always or (report.severity == "error" and self.check_mode != "warn"):
            raise known.fault(str(report), report=report)
        key = (kind, function.name if function else "", found_pc, earlier.pc if earlier else None)
        if key not in self._seen:
            self._seen.add(key)
            self.findings.append(report)

    def fault(
        self,
        kind: str,
        message: str,
        *,
        by: Warp | AsyncOp | None = None,
        warp: Warp | None = None,
        pc: int | None = None,
        lanes: int | None = None,
        section: str = "",
        earlier: Event | None = None,
    ) -> NoReturn:
        """Report something that cannot be gone on from; always raises."""
        self.report(kind, message, by=by, warp=warp, pc=pc, lanes=lanes, section=section, earlier=earlier, always=True)
        raise AssertionError("a fault raises")

    # Coming and going.

    def unpark(self, warp: Warp, mask: int) -> None:
        """Lanes `mask` of `warp` may execute their instruction again."""
        self.scheduler.unpark(warp, mask)

    def start_cluster(self, grid: Grid, index: int) -> Cluster:
        """Make cluster `index` of `grid`: memory full of noise, checkers' state, warps at their first instruction."""
        position = unravel(index, grid.num_clusters_dim)
        cluster = Cluster(grid, position, index)
        size = grid.cluster_dim[0] * grid.cluster_dim[1] * grid.cluster_dim[2]
        for rank in range(size):
            inner = unravel(rank, grid.cluster_dim)
            ctaid = tuple(p * c + i for p, c, i in zip(position, grid.cluster_dim, inner, strict=True))
            smem = aligned_zeros(grid.smem_bytes, SMEM_ALIGNMENT)
            smem[:] = np.frombuffer(self.noise.bytes(len(smem)), np.uint8)
            cluster.ctas.append(Cta(cluster, rank, (ctaid[0], ctaid[1], ctaid[2]), smem))
            cluster.smem_table[rank] = (smem.ctypes.data, len(smem))
        self.checks.new_cluster(cluster)
        for cta in cluster.ctas:
            for warp_index in range(grid.num_warps):
                warp = grid.program.new_warp(cta, warp_index)
                cta.warps.append(warp)
                self.checks.new_warp(warp)
        return cluster


def unravel(index: int, dims: Dims) -> Dims:
    """Return the coordinates of a linear index, x fastest."""
    x, y, _ = dims
    return index % x, index // x % y, index // (x * y)
