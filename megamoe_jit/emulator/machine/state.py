"""Grids, clusters, CTAs and warps: what exists while a launch runs. What happens to them is the scheduler's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.machine.barriers import ClusterBarrier, NamedBarriers
from megamoe_jit.emulator.machine.mbarrier import Mbarrier
from megamoe_jit.emulator.machine.outcome import AwaitLanes, Jump, Outcome, Park, Retry, Waitable, Yield
from megamoe_jit.emulator.parser.nodes import SHARED_BASE

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.clocks import WarpClock
    from megamoe_jit.emulator.machine.engine import Program
    from megamoe_jit.emulator.machine.machine import Machine
    from megamoe_jit.emulator.native.shadow_layout import SharedShadow

__all__ = [
    "AwaitLanes", "Cluster", "Cta", "Grid", "Jump", "Outcome", "Park", "Place", "Retry", "Waitable", "Warp", "Yield",
]  # fmt: skip

Dims = tuple[int, int, int]
CLUSTER_RANK_SHIFT = 24
"""A shared address is (rank of the CTA in its cluster << 24) | offset, for the own CTA too."""
MAX_CLUSTER = 16
WORKSPACE_WORDS = 256


@dataclass(frozen=True, slots=True)
class Place:
    """Where an access lands.

    Attributes:
        kind: "global", "shared", "local" or "tmem".
        cta: whose shared or tensor memory; None for global.
        start: host address (global), offset in the CTA's shared space, in the lane's frame, or byte of tensor memory.
    """

    kind: str
    cta: Cta | None
    start: int


def _is_aligned(opcode: str) -> bool:
    """Whether all threads of a warp must execute an instruction together; `bar` is another spelling of it."""
    return ".aligned" in opcode or (opcode.startswith("bar.") and not opcode.startswith("bar.warp"))


class Grid:
    """One launch of one rank.

    Attributes:
        aligned: PCs of the instructions that a whole warp executes together.
        symbols: host addresses of the module's variables.
        workspace: of a cooperative launch, what the driver provides for barriers of the grid; %envreg1 and %envreg2 are
            its address.
        cycles: virtual time at which its last warp left.
        retries: how often an instruction was begun that waited, and was executed again later.
    """

    def __init__(
        self,
        machine: Machine,
        program: Program,
        *,
        grid: Dims,
        block: Dims,
        cluster: Dims = (1, 1, 1),
        dynamic_shared_bytes: int = 0,
        params: npt.NDArray[np.uint8] | None = None,
        rank: int = 0,
        index: int = 0,
        cooperative: bool = False,
        symbols: Mapping[str, int] | None = None,
    ) -> None:
        """Note the dimensions; clusters are made by `start_cluster` when the scheduler wants them."""
        self.machine = machine
        self.program = program
        self.function = program.function
        self.grid_dim = grid
        self.block_dim = block
        self.cluster_dim = cluster
        self.dynamic_shared_bytes = dynamic_shared_bytes
        self.params = params if params is not None else np.zeros(max(self.function.param_bytes, 1), np.uint8)
        self.rank = rank
        self.index = index
        self.cooperative = cooperative
        self.symbols = symbols if symbols is not None else {}
        self.scratch: dict[str, Any] = {}
        self.cycles = 0
        self.retries: Counter[str] = Counter()
        self.workspace = np.zeros(WORKSPACE_WORDS if cooperative else 0, np.uint32)
        self.aligned = frozenset(i.index for i in self.function.instructions if _is_aligned(i.opcode))

    @property
    def num_threads(self) -> int:
        """Threads of a CTA."""
        return self.block_dim[0] * self.block_dim[1] * self.block_dim[2]

    @property
    def num_warps(self) -> int:
        """Warps of a CTA."""
        return -(-self.num_threads // 32)

    @property
    def num_clusters_dim(self) -> Dims:
        """Clusters in each direction."""
        grid, cluster = self.grid_dim, self.cluster_dim
        return grid[0] // cluster[0], grid[1] // cluster[1], grid[2] // cluster[2]

    @property
    def num_clusters(self) -> int:
        """Clusters of the grid."""
        x, y, z = self.num_clusters_dim
        return x * y * z

    @property
    def smem_bytes(self) -> int:
        """End of a CTA's shared space: the reserved part, static and dynamic shared memory."""
        dynamic = self.dynamic_shared_bytes
        end = SHARED_BASE + self.function.shared_bytes
        return max(end, self.function.dynamic_shared_offset + dynamic) if dynamic else end


class Cluster:
    """CTAs that see one another's shared memory; a cluster of one when the launch has none.

    Attributes:
        ctas: by rank in the cluster.
        smem_table: [MAX_CLUSTER, 2] uint64, host address and size of each CTA's shared space; zeros for a CTA that has
            left and for ranks that do not exist. Native code reads it.
        barrier: `barrier.cluster`.
        shadow_table, first_actor: the checker's.
    """

    def __init__(self, grid: Grid, position: Dims, index: int) -> None:
        """Make the CTAs' places; `Machine.start_cluster` makes their memory and warps."""
        self.grid = grid
        self.position = position
        self.index = index
        self.ctas: list[Cta] = []
        self.smem_table = np.zeros((MAX_CLUSTER, 2), np.uint64)
        self.barrier = ClusterBarrier(self)
        self.shadow_table = np.zeros(MAX_CLUSTER, np.uint64)
        self.first_actor = 0
        self.scratch: dict[str, Any] = {}

    @property
    def machine(self) -> Machine:
        """The machine."""
        return self.grid.machine


class Cta:
    """A thread block: shared memory, barriers, warps.

    Attributes:
        ctaid: place in the grid; rank: place in the cluster.
        smem: the shared space, indexed by offset (bytes below SHARED_BASE are never used); poisoned at the start.
        mbarriers: offset -> Mbarrier, those that `mbarrier.init` made.
        tmem: memory/tmem.Tmem, made at first use.
        shadow, tmem_shadow: the checker's.
        exit_hooks: called when the last warp has left, before the memory is taken away.
        exited: all warps have left; any later access to its shared memory is a report.
        scratch: state of handler modules, by name of the module.
    """

    def __init__(self, cluster: Cluster, rank: int, ctaid: Dims, smem: npt.NDArray[np.uint8]) -> None:
        """Place the CTA; its warps are appended by the machine."""
        self.cluster = cluster
        self.rank = rank
        self.ctaid = ctaid
        self.smem = smem
        self.warps: list[Warp] = []
        self.mbarriers: dict[int, Mbarrier] = {}
        self.barriers = NamedBarriers(self)
        self.tmem: Any = None
        self.exited = False
        self.shadow: SharedShadow | None = None
        self.tmem_shadow: SharedShadow | None = None
        self.exit_hooks: list[Callable[[Cta], None]] = []
        self.scratch: dict[str, Any] = {}

    @property
    def grid(self) -> Grid:
        """The launch it belongs to."""
        return self.cluster.grid

    @property
    def machine(self) -> Machine:
        """The machine."""
        return self.cluster.grid.machine

    @property
    def index(self) -> int:
        """Linear index in the grid, x fastest."""
        (x, y, z), (gx, gy, _) = self.ctaid, self.grid.grid_dim
        return x + gx * (y + gy * z)

    def peer(self, rank: int) -> Cta:
        """Return the CTA with `rank` of the same cluster; raises MemoryFault when there is none."""
        return self.machine.cluster_cta(self, rank)

    def mbarrier(self, offset: int, warp: Warp | None = None) -> Mbarrier:
        """Return the barrier at `offset`; reports one that was never initialised."""
        found = self.mbarriers.get(offset)
        if found is None:
            found = self.machine.missing_mbarrier(self, offset, warp)
        return found

    def name(self) -> str:
        """Say which CTA in words."""
        x, y, z = self.ctaid
        name = f"CTA ({x}, {y}, {z})" if self.grid.grid_dim[1] * self.grid.grid_dim[2] > 1 else f"CTA {x}"
        if len(self.cluster.ctas) > 1:
            name += f" (rank {self.rank} of cluster {self.cluster.index})"
        return name if self.machine.num_ranks == 1 else f"rank {self.grid.rank} {name}"


class Warp:
    """32 lanes, their registers, and where each of them is.

    Attributes:
        regs: the register file; `program`'s layout says where a register is.
        ctx: native/context.py: lane_pc, live, blocked, mask, pc, fuel, executed, clock, fault_*.
        lanes: mask of the threads that exist (the last warp of an odd block has fewer).
        clock: vector clock of the checker; actor: its own index in it.
        timed_out: lanes that a scheduler's time-out woke (see Park.can_time_out).
        awaiting: PC -> lanes blocked there by AwaitLanes.
        parks: PC -> (lanes, what for, virtual time since when).
        polls: what polling loads and atomics saw last, by PC; spins: instructions in a row that saw nothing new.
        scratch: state of handler modules, by name of the module.
    """

    __slots__ = (
        "__weakref__", "actor", "awaiting", "clock", "cta", "ctx", "exited", "index", "lanes", "parks", "pc", "polls",
        "program", "queued", "regs", "scratch", "spins", "timed_out",
    )  # fmt: skip

    def __init__(self, cta: Cta, index: int, program: Program, *, regs: npt.NDArray[np.uint8], ctx: Any) -> None:
        """Wrap what the engine made; called by `Program.new_warp`."""
        self.cta = cta
        self.index = index
        self.program = program
        self.regs = regs
        self.ctx = ctx
        threads = min(32, cta.grid.num_threads - 32 * index)
        self.lanes = (1 << threads) - 1
        self.actor = -1
        self.clock: WarpClock = None  # type: ignore[assignment]  # set by checks.new_warp, before the warp runs
        self.exited = False
        self.queued = False
        self.pc = 0
        self.spins = 0
        self.timed_out = 0
        self.awaiting: dict[int, int] = {}
        self.parks: dict[int, tuple[int, Park, int]] = {}
        self.polls: dict[int, Any] = {}
        self.scratch: dict[str, Any] = {}

    @property
    def machine(self) -> Machine:
        """The machine."""
        return self.cta.cluster.grid.machine

    @property
    def cluster(self) -> Cluster:
        """Its cluster."""
        return self.cta.cluster

    @property
    def grid(self) -> Grid:
        """Its launch."""
        return self.cta.cluster.grid

    @property
    def time(self) -> int:
        """Virtual time of this warp, in cycles (1 cycle is 1 ns)."""
        return int(self.ctx.clock + self.ctx.executed)

    def advance_to(self, time: int) -> None:
        """Move the warp's virtual time forward to `time`; never back."""
        late = time - self.time
        if late > 0:
            self.ctx.clock += late

    def unpark(self, mask: int) -> None:
        """Let lanes `mask` execute their instruction again; called by Waitable.wake."""
        self.machine.unpark(self, mask)

    def name(self) -> str:
        """Say which warp in words."""
        return f"{self.cta.name()} warp {self.index}"


@dataclass(slots=True)
class Counters:
    """What a launch did; `api.LaunchReport` shows it."""

    tma_bytes: int = 0
    mmas: int = 0
    barrier_waits: int = 0
    mma_flops: int = 0
    extra: dict[str, int] = field(default_factory=dict)


def linear_tids(block: Dims, index: int) -> tuple[npt.NDArray[np.uint32], ...]:
    """Return (tid.x, tid.y, tid.z) of the 32 lanes of warp `index`; lanes without a thread get wrapped numbers."""
    linear = np.arange(32 * index, 32 * index + 32, dtype=np.uint32)
    x, y = np.uint32(block[0]), np.uint32(block[1])
    return linear % x, (linear // x) % y, linear // (x * y)


def mask_of(lanes: Sequence[int]) -> int:
    """Return the mask with bits `lanes`."""
    mask = 0
    for lane in lanes:
        mask |= 1 << int(lane)
    return mask
