"""Chains of asynchronous work: bulk copies of a warp, wgmma of a warpgroup, the tensor core of a CTA."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from megamoe_jit.emulator.checks.clocks import Actors, Rows
from megamoe_jit.emulator.machine.mbarrier import Mbarrier

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.granules import Watched
    from megamoe_jit.emulator.machine.state import Cluster, Warp


@dataclass(slots=True, eq=False)
class Chain:
    """Work whose groups end one after the other.

    Attributes:
        warp: who used it first; name: in reports.
        reads, writes: actors of what its operations read and write (reads may be over before writes are). They are one
            until it first reads memory whose shadow has an entry for each reader.
        base: added to numbers of groups to give epochs.
        number: the group that is open, counted from 1.
        in_order: its operations need no ordering among one another.
    """

    warp: Warp
    name: str
    reads: int
    writes: int
    base: int
    number: int = 1

    @property
    def has_reader(self) -> bool:
        """Whether what it reads is told from what it writes."""
        return self.reads != self.writes


@dataclass(slots=True, eq=False)
class AsyncAccess:
    """What the checker keeps of an operation (`AsyncOp.access`).

    Attributes:
        rows: the issuer's clock at the issue.
        warp, pc: who issued it.
        proxy: "async" or "generic".
        barrier: what it completes on, or None; chain: the chain it belongs to, or None; epoch: of its group.
        writes: where it will write, as far as that was said at the issue.
    """

    rows: Rows
    warp: Warp
    pc: int
    proxy: str
    barrier: Mbarrier | None
    chain: Chain | None
    epoch: int
    writes: tuple[Watched, ...] = field(default=())

    @property
    def own(self) -> int:
        """Actor whose earlier writes it is ordered with: its own chain."""
        return self.chain.writes if self.chain is not None else -1

    @property
    def own_reads(self) -> tuple[int, ...]:
        """Actors whose earlier reads it is ordered with."""
        return (self.chain.reads,) if self.chain is not None else ()


class Chains:
    """All chains of a machine."""

    def __init__(self, actors: Actors) -> None:
        """None yet."""
        self._actors = actors
        self._chains: dict[Hashable, Chain] = {}
        self._of_cluster: dict[Cluster, list[Hashable]] = {}
        self._readers: dict[Cluster, dict[int, int]] = {}

    def get(self, warp: Warp, key: Hashable) -> Chain:
        """Return the chain called `key`, made at its first use by `warp`."""
        chain = self._chains.get(key)
        if chain is None:
            chain = self._chains[key] = self._make(warp, key)
        return chain

    def find(self, key: Hashable) -> Chain | None:
        """Return the chain called `key`, None when it was never used."""
        return self._chains.get(key)

    def begin(self, warp: Warp, pc: int, actor: Mbarrier | Hashable, proxy: str) -> AsyncAccess:
        """Note an operation that `warp` issues."""
        rows = warp.clock.rows.copy()
        if isinstance(actor, Mbarrier):
            return AsyncAccess(rows, warp, pc, proxy, actor, None, 0)
        chain = self.get(warp, actor)
        return AsyncAccess(rows, warp, pc, proxy, None, chain, chain.base + chain.number)

    def commit(self, warp: Warp, key: Hashable) -> int:
        """Close the open group of a chain; returns its number."""
        chain = self.get(warp, key)
        chain.number += 1
        return chain.number - 1

    def free(self, cluster: Cluster) -> None:
        """Forget the chains of a cluster that has left."""
        for key in self._of_cluster.pop(cluster, ()):
            chain = self._chains.pop(key)
            for number in {chain.reads, chain.writes}:
                self._actors[number].last = max(self._actors[number].last, chain.base + chain.number)
            self._actors.free([chain.writes])
        self._readers.pop(cluster, None)

    def give_reader(self, chain: Chain) -> None:
        """Give `chain` a number among the readers of its CTA's memory, which are few."""
        from megamoe_jit.emulator.checks.ordering import readers_per_cta

        if chain.has_reader:
            return
        warp, cluster, cta = chain.warp, chain.warp.cluster, chain.warp.cta
        per_cta, warps = readers_per_cta(cluster), warp.grid.num_warps
        used = self._readers.setdefault(cluster, {})
        # The last number of a CTA is shared by all chains that come too late for one of their own.
        slot = min(used.get(cta.rank, 0), per_cta - warps - 1)
        used[cta.rank] = slot + 1
        chain.reads = cluster.first_actor + cta.rank * per_cta + warps + slot
        self._actors.rename(chain.reads, "reads", chain.name, cta, warp)

    def _make(self, warp: Warp, key: Hashable) -> Chain:
        from megamoe_jit.emulator.checks.ordering import readers_per_cta

        cluster, cta = warp.cluster, warp.cta
        kind = key[0] if isinstance(key, tuple) else key
        name = f"{kind} of {warp.name() if isinstance(key, tuple) and key[1] is warp else cta.name()}"
        per_cta, warps = readers_per_cta(cluster), warp.grid.num_warps
        first = cluster.first_actor + cta.rank * per_cta + warps
        writes = self._actors.add("writes", name, cta, warp)
        self._of_cluster.setdefault(cluster, []).append(key)
        # Epochs go on where those of any reader ended: which one it will be is not known yet.
        numbers = (writes, *range(first, first + per_cta - warps))
        return Chain(warp, name, writes, writes, max(self._actors[number].last for number in numbers))
