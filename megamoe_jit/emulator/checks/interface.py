"""What engines and handlers tell the checker; `NoChecks` is the one that does not listen.

A range is (kind, cta or None, start, length) or, for scattered accesses of one CTA, (kind, cta, offsets) with an
integer array of byte offsets, every byte meant listed: kind "shared", "global" or "tmem"; start an offset in the CTA's
shared space, what `memory.tmem.shadow_pieces` counts in tensor memory, or a host address. (kind, cta, starts, length)
with an array are pieces of shared memory of one length, all of them distinct and multiples of 4.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.barriers import ClusterBarrier, NamedBarrier
    from megamoe_jit.emulator.machine.mbarrier import Mbarrier
    from megamoe_jit.emulator.machine.queues import AsyncOp
    from megamoe_jit.emulator.machine.state import Cluster, Cta, Place, Warp

Range: TypeAlias = (
    "tuple[str, Cta | None, int, int] | tuple[str, Cta | None, npt.NDArray[np.integer[Any]]]"
    " | tuple[str, Cta | None, npt.NDArray[np.integer[Any]], int]"
)
Access: TypeAlias = Literal["read", "write", "atomic"]
Semantics: TypeAlias = Literal["weak", "relaxed", "acquire", "release", "acq_rel"]
Scope: TypeAlias = Literal["cta", "cluster", "gpu", "sys"]


class Checks(Protocol):
    """Interface of the checker.

    An `actor` of asynchronous work is the Mbarrier that it completes on, or the key of a chain whose waits call
    `observe_chain`: a tuple like ("bulk", warp), ("tc", cta), ("wgmma", cta, warpgroup).
    """

    enabled: bool

    def generic(self, warp: Warp, place: Place, size: int, access: Access) -> None:
        """A Python handler makes an ordinary (weak) access on behalf of `warp`, through the generic proxy."""
        ...

    def generic_ranges(self, warp: Warp, ranges: Iterable[Range], access: Access) -> None:
        """Same as `generic` for several places at once; tcgen05.ld and .st use it with ranges of kind "tmem"."""
        ...

    def strong(self, warp: Warp, place: Place, size: int, access: Access, semantics: Semantics, scope: Scope) -> None:
        """A strong load or store (relaxed, volatile, acquire, release), or an atomic (access "atomic")."""
        ...

    def atomic(
        self, warp: Warp, place: Place, size: int, semantics: Semantics = "relaxed", scope: Scope = "gpu"
    ) -> None:
        """An atom or red reads and writes `size` bytes."""
        ...

    def begin_async(
        self,
        warp: Warp,
        op: AsyncOp,
        actor: Mbarrier | Hashable,
        *,
        proxy: str = "async",
        writes: Iterable[Range] = (),
        same_thread: Iterable[Hashable] = (),
    ) -> Any:
        """An asynchronous operation is issued; the result goes into `op.access`.

        `same_thread` are chains of the issuing thread whose use of tensor memory needs no tcgen05 fence, only a wait.

        `proxy` is "generic" for what needs no fence.proxy.async (cp.async, st.async); `writes` are the shared ranges
        that it will write, where they are known: using them before it has run is then a report of its own.
        """
        ...

    def async_read(self, op: AsyncOp, ranges: Iterable[Range]) -> None:
        """`op` reads (called in its `run`)."""
        ...

    def async_write(
        self, op: AsyncOp, ranges: Iterable[Range], *, actor: Mbarrier | None = None, atomic: bool = False
    ) -> None:
        """`op` writes (called in its `run`, before it signals).

        `actor` is the barrier that these ranges complete on when there are several (multicast); `atomic` is for
        reductions, which may meet others.
        """
        ...

    def end_async(self, op: AsyncOp) -> None:
        """`op` has run; called by the machine."""
        ...

    def commit_chain(self, warp: Warp, actor: Hashable) -> int:
        """Close a group of a chain; returns its number, for `observe_chain`."""
        ...

    def observe_chain(
        self, warp: Warp, actor: Hashable, number: int, *, reads_only: bool = False, tensor: bool = True
    ) -> None:
        """`warp` has seen group `number` of the chain complete (`reads_only`: only that its sources were read).

        `tensor`: the wait stands for a tcgen05.fence::before_thread_sync as well.
        """
        ...

    def fence(self, warp: Warp, semantics: Semantics, scope: Scope) -> None:
        """`fence.{acquire, release, acq_rel, sc}.scope` or membar."""
        ...

    def fence_proxy(self, warp: Warp, space: Literal["", "global", "shared"] = "") -> None:
        """`fence.proxy.async`, of all memory or of one kind."""
        ...

    def fence_mbarrier_init(self, warp: Warp) -> None:
        """`fence.mbarrier_init`."""
        ...

    def tensor_fence(self, warp: Warp, when: Literal["before", "after"]) -> None:
        """`tcgen05.fence::before_thread_sync` or `::after_thread_sync`."""
        ...

    def new_cluster(self, cluster: Cluster) -> None:
        """The CTAs of `cluster` have their memory and will get warps."""
        ...

    def new_warp(self, warp: Warp) -> None:
        """`warp` was made and has not run."""
        ...

    def free_cluster(self, cluster: Cluster) -> None:
        """Every CTA of `cluster` has left."""
        ...

    def drain(self, warp: Warp, *, last_pc: int | None = None) -> None:
        """Report what the engine saw in the last slice of `warp`, at instructions up to `last_pc`."""
        ...

    def mbarrier_init(self, barrier: Mbarrier, warp: Warp) -> None:
        """`barrier` was made by `warp`."""
        ...

    def mbarrier_inval(self, barrier: Mbarrier, warp: Warp) -> None:
        """`barrier` is no more."""
        ...

    def mbarrier_arrive(self, barrier: Mbarrier, by: Warp | AsyncOp | None, release: bool, scope: str) -> None:
        """Someone is about to arrive."""
        ...

    def mbarrier_complete(self, barrier: Mbarrier, by: Warp | AsyncOp | None) -> None:
        """Transactions are about to complete."""
        ...

    def mbarrier_phase(self, barrier: Mbarrier) -> None:
        """A phase has ended; `barrier.phase` counts it."""
        ...

    def mbarrier_observe(self, barrier: Mbarrier, warp: Warp, *, acquire: bool = True) -> None:
        """`warp` has seen that a phase has ended."""
        ...

    def barrier_arrive(self, barrier: NamedBarrier, warp: Warp) -> None:
        """`warp` is about to arrive at a barrier of its CTA."""
        ...

    def barrier_complete(self, barrier: NamedBarrier) -> None:
        """All have come."""
        ...

    def barrier_observe(self, barrier: NamedBarrier, warp: Warp) -> None:
        """`warp` goes on."""
        ...

    def cluster_arrive(self, barrier: ClusterBarrier, warp: Warp, release: bool) -> None:
        """`warp` is about to arrive at the cluster's barrier."""
        ...

    def cluster_complete(self, barrier: ClusterBarrier) -> None:
        """All have come."""
        ...

    def cluster_observe(self, barrier: ClusterBarrier, warp: Warp, acquire: bool) -> None:
        """`warp` goes on."""
        ...


class NoChecks:
    """Listens to nothing."""

    enabled = False

    def __getattr__(self, name: str) -> Any:
        """Every call is accepted and does nothing."""
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing


def _nothing(*_: object, **__: object) -> None:
    return None
