"""Tensor memory and the tensor core of data-center Blackwell at run time: pairs of CTAs, order, completion.

PTX ISA, "TensorCore 5th Generation Family Instructions". Copies, multiplications and commits of one warp run in the
order of issue; those of different warps in any order, as nothing but barriers orders them. Shipped kernels rely on
copies staying behind the multiplications before them, which the manual does not promise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.engines.tensor_memory import split_address
from megamoe_jit.emulator.machine.outcome import Waitable
from megamoe_jit.emulator.machine.queues import AsyncOp
from megamoe_jit.emulator.memory.tmem import Tmem, shadow_pieces

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.interface import Range
    from megamoe_jit.emulator.machine.state import Cta, Warp

Array: TypeAlias = npt.NDArray[Any]

SECTION = "TensorCore 5th Generation Family Instructions"
ALL_LANES = np.arange(128)


class _FreeColumns(Waitable):
    """Lanes whose tcgen05.alloc found too few free columns."""

    __slots__ = ("memory",)

    def __init__(self, memory: TensorMemory) -> None:
        super().__init__()
        self.memory = memory

    def describe(self) -> str:
        return f"free columns in tensor memory of {self.memory.cta.name()}, {self.memory.describe()}"


class TensorMemory(Tmem):
    """Tensor memory of a CTA.

    Attributes:
        cta: whose it is.
        freed: woken when columns are given back.
    """

    __slots__ = ("cta", "freed")

    def __init__(self, cta: Cta) -> None:
        """Fill it with noise; a leak is reported when the CTA exits."""
        super().__init__(cta.machine.rng.getrandbits(32))
        self.cta = cta
        self.freed = _FreeColumns(self)
        cta.exit_hooks.append(_report_leak)


def _report_leak(cta: Cta) -> None:
    leak = cta.tmem.leak()
    if leak:
        cta.machine.report(
            "tmem-leak",
            f"{cta.name()} leaves with tensor memory {leak}: free it with tcgen05.dealloc.",
            by=cta.warps[0],
        )


def tmem_of(cta: Cta) -> TensorMemory:
    """Return the tensor memory of a CTA, made at its first use."""
    if cta.tmem is None:
        cta.tmem = TensorMemory(cta)
    memory: TensorMemory = cta.tmem
    return memory


def ctas_of(warp: Warp, cta_group: int) -> tuple[Cta, ...]:
    """Return the CTAs that an instruction of `warp` works on: its own, or the pair, even rank first."""
    cta = warp.cta
    if cta_group == 1:
        return (cta,)
    if len(cta.cluster.ctas) % 2:
        refuse(warp, f".cta_group::2 in a cluster of {len(cta.cluster.ctas)} CTAs, where CTA {cta.rank} has no pair")
    even = cta.rank & ~1
    return tuple(cta if rank == cta.rank else cta.peer(rank) for rank in (even, even + 1))


def refuse(by: Warp | AsyncOp, problem: str, *, kind: str = "argument", section: str = "") -> NoReturn:
    """Report an operand that the instruction does not take."""
    machine = by.machine if hasattr(by, "machine") else by.issuer.machine
    machine.fault(kind, f"{problem}.", by=by, section=section or SECTION)
    raise AssertionError("a fault raises")


def check_cells(by: Warp | AsyncOp, cta: Cta, what: str, lanes: Array, column: int, columns: int) -> None:
    """Report cells beyond tensor memory or its allocations."""
    first, last = int(lanes.min()), int(lanes.max())
    problem = tmem_of(cta).access_problem(first, last - first + 1, column, columns)
    if problem:
        refuse(by, f"{what}: {problem}", kind="tmem-bounds", section=f"{SECTION}: Tensor Memory")


def cell_ranges(cta: Cta, lanes: Array, column: int, columns: int) -> list[Range]:
    """Return cells as the checker's ranges."""
    return [("tmem", cta, *shadow_pieces(lanes, column, columns))]


def address_of(by: Warp, address: int, what: str, *, base_lanes: tuple[int, ...] = (0,)) -> tuple[int, int]:
    """Split the address of an operand; reports a base lane that it may not have."""
    lane, column = split_address(address)
    if lane not in base_lanes:
        legal = " or ".join(map(str, base_lanes))
        refuse(
            by, f"{what} {address:#010x} has base lane {lane}; it must be {legal}", section=f"{SECTION}: Tensor Memory"
        )
    return lane, column


# --- the tensor core's own chain of work ----------------------------------------------------------------------------


def chain_of(warp: Warp) -> tuple[str, Warp]:
    """Return the key of the tensor-core work that `warp` issues, for queues and the checker."""
    return ("tc", warp)


def load_chain(warp: Warp) -> tuple[str, Warp]:
    """Return the checker's key of the warp's tcgen05.ld."""
    return ("tcgen05.ld", warp)


def store_chain(warp: Warp) -> tuple[str, Warp]:
    """Return the checker's key of the warp's tcgen05.st."""
    return ("tcgen05.st", warp)


def submit(
    warp: Warp,
    kind: str,
    run: Callable[[AsyncOp], None],
    *,
    pc: int,
    lane: int,
    nbytes: int = 0,
    smem_of: tuple[Cta, ...] = (),
) -> AsyncOp:
    """Start work of the tensor core that `lane` issues; `run` gets the operation."""
    op = AsyncOp(
        issuer=warp, kind=kind, pc=pc, run=lambda: run(op), queue=chain_of(warp), nbytes=nbytes,
        smem_of=tuple(cta for cta in smem_of if cta is not warp.cta),
    )  # fmt: skip
    machine = warp.machine
    if machine.checks.enabled:
        op.access = machine.checks.begin_async(
            warp, op, chain_of(warp), same_thread=(load_chain(warp), store_chain(warp))
        )
    machine.submit(op)
    _uncommitted(warp)[lane] = pc
    return op


def _uncommitted(warp: Warp) -> dict[int, int]:
    """Lanes that have issued work since their last commit, and the PC of the last of it."""
    lanes: dict[int, int] = warp.scratch.setdefault("tcgen05 uncommitted", {})
    return lanes


def commit(warp: Warp, targets: tuple[tuple[Cta, int], ...], *, pc: int, lane: int) -> None:
    """Arrive at barriers (CTA, offset) when all earlier tensor-core work of the thread is done."""
    pending = _uncommitted(warp)
    if pending and lane not in pending:
        other, where = next(iter(pending.items()))
        warp.machine.report(
            "tcgen05-issue",
            f"tcgen05.commit of lane {lane} waits for what that thread has issued, which is nothing; the work at PC "
            f"{where} is lane {other}'s.",
            by=warp,
            lanes=1 << lane,
            section=f"{SECTION}: tcgen05.commit",
        )

    def run(op: AsyncOp) -> None:
        for cta, offset in targets:
            cta.mbarrier(offset, warp).arrive(1, by=op, scope="cluster")

    submit(warp, "tcgen05.commit", run, pc=pc, lane=lane, smem_of=tuple(cta for cta, _ in targets))
    pending.pop(lane, None)
    if warp.machine.checks.enabled:
        warp.machine.checks.commit_chain(warp, chain_of(warp))
