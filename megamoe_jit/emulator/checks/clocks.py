"""Vector clocks: who has seen what of whom.

Actors are numbers. Each warp is one; so is each mbarrier (asynchronous writes that complete on it; the epoch is the
number of its phase, counted from 1) and each chain of asynchronous work (bulk copies of a warp, wgmma of a warpgroup,
the tensor core of a CTA; the epoch is the number of the group). A clock has rows:

- ORDER: epochs of each actor that happen before what comes next;
- SHARED, GLOBAL: those whose ordinary writes to that memory a fence.proxy.async has shown to the async proxy;
- BEFORE: those that a tcgen05.fence::before_thread_sync has closed, and TENSOR: those of BEFORE that a
  tcgen05.fence::after_thread_sync has taken up. Kernels without tensor memory do not have these two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Cluster, Cta, Warp

ORDER, SHARED, GLOBAL, BEFORE, TENSOR = 0, 1, 2, 3, 4
Rows: TypeAlias = "npt.NDArray[np.uint32]"


@dataclass(slots=True, eq=False)
class Actor:
    """Who an actor number is.

    Attributes:
        kind: "launch", "warp", "mbarrier", "reads" or "writes" (of a chain).
        name: in words.
        cta: where it lives; warp: the warp, or the one that issues the chain's work.
        last: largest epoch it had, so that a number can be used again.
    """

    kind: str
    name: str
    cta: Cta | None = None
    warp: Warp | None = None
    last: int = 0


class Actors:
    """Numbers of actors. Those that can read a cluster's shared memory have neighbouring numbers, in blocks."""

    def __init__(self) -> None:
        """Only actor 0 is known: whoever was there before the launch."""
        self.known: list[Actor] = [Actor("launch", "before the launch")]
        self._free: list[int] = []
        self._free_blocks: dict[int, list[int]] = {}

    def __len__(self) -> int:
        """How many numbers were given."""
        return len(self.known)

    def __getitem__(self, number: int) -> Actor:
        """Return who `number` is."""
        return self.known[number]

    def add(self, kind: str, name: str, cta: Cta, warp: Warp | None = None) -> int:
        """Give a number, maybe one that was given back; its epochs go on where they ended."""
        if self._free:
            number = self._free.pop()
            self.rename(number, kind, name, cta, warp)
            return number
        self.known.append(Actor(kind, name, cta, warp))
        return len(self.known) - 1

    def rename(self, number: int, kind: str, name: str, cta: Cta, warp: Warp | None = None) -> None:
        """Say who `number` is from now on."""
        self.known[number] = Actor(kind, name, cta, warp, self.known[number].last)

    def add_block(self, count: int) -> int:
        """Give `count` neighbouring numbers; returns the first."""
        blocks = self._free_blocks.get(count)
        if blocks:
            return blocks.pop()
        first = len(self.known)
        self.known += (Actor("reads", "nobody") for _ in range(count))
        return first

    def free(self, numbers: Iterable[int]) -> None:
        """Take numbers of `add` back."""
        self._free += numbers

    def free_block(self, first: int, count: int) -> None:
        """Take a block of `add_block` back."""
        self._free_blocks.setdefault(count, []).append(first)


class SyncClock:
    """What a barrier, or a location, hands from those that release to those that acquire.

    Attributes:
        rows: joined clocks, or None where nobody released.
        marks: actor -> epoch, asynchronous work that is done.
    """

    __slots__ = ("marks", "rows")

    def __init__(self) -> None:
        """Nobody has released."""
        self.rows: Rows | None = None
        self.marks: dict[int, int] = {}

    def add(self, rows: Rows) -> None:
        """Join a clock."""
        if self.rows is None:
            self.rows = rows.copy()
        elif self.rows.shape[1] >= rows.shape[1]:
            join(self.rows, rows)
        else:
            longer = rows.copy()
            join(longer, self.rows)
            self.rows = longer

    def mark(self, actor: int, epoch: int) -> None:
        """Note that asynchronous work of `actor` is done up to `epoch`."""
        if epoch > self.marks.get(actor, 0):
            self.marks[actor] = epoch

    def take(self, other: SyncClock) -> None:
        """Join all that `other` has, and leave it empty."""
        if other.rows is not None:
            if self.rows is None:
                self.rows = other.rows
            else:
                self.add(other.rows)
        for actor, epoch in other.marks.items():
            self.mark(actor, epoch)
        other.rows, other.marks = None, {}

    def clear(self) -> None:
        """Forget everything."""
        self.rows, self.marks = None, {}


def join(into: Rows, rows: Rows) -> None:
    """Join `rows` into a clock that is at least as long."""
    part = into[:, : rows.shape[1]]
    np.maximum(part, rows, out=part)


class WarpClock:
    """Clock of a warp; its ORDER row is what native code reads.

    Attributes:
        fences: scope -> clock at the last releasing fence of that scope; later strong writes hand it over.
        seen: level -> what relaxed reads saw; acquiring fences take it.
        versions: location -> what was last taken from it.
    """

    __slots__ = ("_ctx", "actor", "array", "count", "fences", "seen", "versions")

    def __init__(self, ctx: Any, actor: int, epoch: int, num_rows: int, capacity: int) -> None:
        """Start knowing only itself."""
        self._ctx = ctx
        self.actor = actor
        self.array = np.zeros((num_rows, capacity), np.uint32)
        self.array[ORDER, actor] = epoch
        self.count = actor + 1
        self.fences: dict[str, Rows] = {}
        self.seen: dict[str, SyncClock] = {}
        self.versions: dict[Location, tuple[int, str, str]] = {}
        self._publish()

    def _publish(self) -> None:
        self._ctx.clocks = self.array.ctypes.data
        self._ctx.num_actors = self.array.shape[1]
        self._ctx.epoch = int(self.array[ORDER, self.actor])

    def grow(self, capacity: int) -> None:
        """Make room for more actors."""
        array = np.zeros((self.array.shape[0], capacity), np.uint32)
        array[:, : self.array.shape[1]] = self.array
        self.array = array
        self._publish()

    @property
    def epoch(self) -> int:
        """The warp's own epoch."""
        return int(self.array[ORDER, self.actor])

    @property
    def rows(self) -> Rows:
        """The clock, as far as it is not zero."""
        return self.array[:, : self.count]

    def tick(self) -> None:
        """Begin a new epoch: what comes next is not part of what was handed over."""
        epoch = int(self.array[ORDER, self.actor]) + 1
        self.array[ORDER, self.actor] = epoch
        self._ctx.epoch = epoch

    def join(self, rows: Rows) -> None:
        """Take over what `rows` knows."""
        join(self.array, rows)
        self.count = max(self.count, rows.shape[1])

    def observe(self, actor: int, epoch: int, *, tensor: bool = True) -> None:
        """Note that asynchronous work of `actor` is done up to `epoch`."""
        array = self.array
        if epoch > array[ORDER, actor]:
            array[ORDER, actor] = epoch
        if tensor and len(array) > BEFORE and epoch > array[BEFORE, actor]:
            array[BEFORE, actor] = epoch
        self.count = max(self.count, actor + 1)

    def acquire(self, sync: SyncClock) -> None:
        """Take over what `sync` holds."""
        if sync.rows is not None:
            self.join(sync.rows)
        for actor, epoch in sync.marks.items():
            self.observe(actor, epoch)

    def saw(self, level: str, sync: SyncClock) -> None:
        """A relaxed read saw what `sync` holds."""
        seen = self.seen.setdefault(level, SyncClock())
        if sync.rows is not None:
            seen.add(sync.rows)
        for actor, epoch in sync.marks.items():
            seen.mark(actor, epoch)


LEVELS = ("cta", "cluster", "gpu", "sys")


class Location:
    """What strong writes to one address hand over, by how far they reach.

    A release at scope s of warp w can be acquired, at a scope that reaches back to w, by whoever s reaches: so it is
    kept once for each level up to s, under the CTA, cluster, rank of w.

    Attributes:
        last: (warp, pc, scope) of the last strong write; version counts them.
    """

    __slots__ = ("last", "levels", "version")

    def __init__(self) -> None:
        """Nobody has written."""
        self.levels: dict[tuple[str, object], SyncClock] = {}
        self.last: tuple[Warp, int, str] | None = None
        self.version = 0

    def release(self, warp: Warp, rows: Rows, scope: str) -> None:
        """`warp` hands over `rows` at `scope`."""
        for level in LEVELS[: LEVELS.index(scope) + 1]:
            self.levels.setdefault((level, home(warp, level)), SyncClock()).add(rows)

    def reachable(self, warp: Warp, scope: str) -> Iterable[tuple[str, SyncClock]]:
        """Give (level, clock) of all that `warp` may acquire at `scope`."""
        for level in LEVELS[: LEVELS.index(scope) + 1]:
            sync = self.levels.get((level, home(warp, level)))
            if sync is not None:
                yield level, sync


def home(warp: Warp, level: str) -> Cta | Cluster | int | None:
    """Return the CTA, cluster or rank of `warp`; None for the system."""
    match level:
        case "cta":
            return warp.cta
        case "cluster":
            return warp.cluster
        case "gpu":
            return warp.grid.rank
    return None


def reaches(scope: str, one: Warp, other: Warp) -> bool:
    """Whether `scope`, named by a thread of `one`, includes `other`."""
    return home(one, scope) == home(other, scope)
