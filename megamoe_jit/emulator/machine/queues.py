"""Asynchronous operations: copies, reductions, matrix products. The completion policy says when they run."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from megamoe_jit.emulator.machine.clock import duration
from megamoe_jit.emulator.machine.outcome import Waitable

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Cta, Warp

Completion: TypeAlias = Literal["lazy", "eager"] | float
"""lazy: only when no warp can run; eager: at once; p: with probability p at each scheduling step."""


@dataclass(slots=True, eq=False, kw_only=True)
class AsyncOp:
    """Work that an instruction started and that goes on beside the warps.

    Attributes:
        issuer: the warp that issued it.
        kind: "tma load", "bulk store", "cp.async", "wgmma", "tcgen05.mma", ...: shown in reports and in the timeline.
        pc: the instruction.
        run: does all reads and writes of data, then signals (`Mbarrier.complete_tx`, `Group.finish`, ...).
        queue: operations with the same key run in the order of submission; None: in any order.
        ready: extra condition before it may run (an earlier operation of another queue is done); None: always.
        at_exit: what happens when the issuing CTA leaves while it is pending: "flush" runs it, "report" is an error.
        smem_of: CTAs whose shared memory it touches, the issuer's left out; one that leaves meanwhile is an error.
        nbytes: size, for the model of virtual time.
        duration: virtual cycles it takes, None: from kind and `nbytes`.
        access: what `checks.begin_async` returned.
        finish_time: virtual time at which it ends; set just before it runs.
    """

    issuer: Warp
    kind: str
    pc: int
    run: Callable[[], None]
    queue: Hashable | None = None
    ready: Callable[[], bool] | None = None
    at_exit: Literal["flush", "report"] = "report"
    smem_of: tuple[Cta, ...] = ()
    nbytes: int = 0
    duration: int | None = None
    access: Any = None
    issued_at: int = 0
    finish_time: int = 0
    done: bool = False


class Group(Waitable):
    """Counts operations that are under way; waiters are woken whenever one ends (wait_group and the like)."""

    __slots__ = ("name", "pending", "time")

    def __init__(self, name: str) -> None:
        """Start empty."""
        super().__init__()
        self.name = name
        self.pending = 0
        self.time = 0

    def add(self, count: int = 1) -> None:
        """Expect `count` more operations."""
        self.pending += count

    def finish(self, count: int = 1, *, by: AsyncOp | None = None) -> None:
        """`count` operations are done."""
        self.pending -= count
        if by is not None:
            self.time = max(self.time, by.finish_time)
        self.wake()

    def describe(self) -> str:
        """Say in words what is waited for."""
        return f"{self.name}: {self.pending} operations pending"


class AsyncQueues:
    """All pending operations of a machine."""

    def __init__(self, completion: Completion, rng: random.Random, on_run: Callable[[AsyncOp], None]) -> None:
        """Start empty; `on_run` is called after each operation."""
        self.completion = completion
        self.rng = rng
        self._on_run = on_run
        self._free: list[AsyncOp] = []
        self._fifo: dict[Hashable, deque[AsyncOp]] = {}
        self._finish: dict[Hashable, int] = {}
        self._running = False

    @property
    def any(self) -> bool:
        """Whether any operation has not run."""
        return bool(self._free or self._fifo)

    @property
    def pending(self) -> int:
        """How many operations have not run."""
        return len(self._free) + sum(map(len, self._fifo.values()))

    def operations(self) -> list[AsyncOp]:
        """Return all that have not run, those of one queue in order."""
        return [*self._free, *(op for queue in self._fifo.values() for op in queue)]

    def submit(self, op: AsyncOp) -> None:
        """Take `op`; with completion "eager" it runs before this returns, unless something must run before it."""
        op.issued_at = op.issuer.time
        if op.queue is None:
            self._free.append(op)
        else:
            self._fifo.setdefault(op.queue, deque()).append(op)
        if self.completion == "eager":
            self.drain_ready()

    def drain_ready(self) -> None:
        """Run everything that may run."""
        if self._running:  # an operation that submits another: the outer loop takes it
            return
        while self.step():
            pass

    def step(self) -> bool:
        """Run one operation that may run, chosen by the seed; returns False when none may."""
        heads = list(self._fifo.values())
        count = len(self._free) + len(heads)
        start = self.rng.randrange(count) if count else 0
        for index in range(start, start + count):
            place = index % count - len(self._free)
            op = self._free[place] if place < 0 else heads[place][0]
            if op.ready is None or op.ready():
                self.run(op)
                return True
        return False

    def chance(self) -> None:
        """Run an operation with the probability of the policy; the scheduler calls it at each step."""
        if isinstance(self.completion, float) and (self._free or self._fifo) and self.rng.random() < self.completion:
            self.step()

    def run(self, op: AsyncOp) -> None:
        """Run `op`, and before it whatever its queue has before it."""
        if op.done:
            return
        if op.queue is None:
            self._free.remove(op)
            self._run(op)
            return
        queue = self._fifo[op.queue]
        while not op.done:
            head = queue.popleft()
            if not queue:
                del self._fifo[op.queue]
            self._run(head)

    def _run(self, op: AsyncOp) -> None:
        start = max(op.issued_at, self._finish.get(op.queue, 0)) if op.queue is not None else op.issued_at
        op.finish_time = start + duration(op)
        if op.queue is not None:
            self._finish[op.queue] = op.finish_time
        op.done = True
        outer, self._running = self._running, True
        try:
            op.run()
        finally:
            self._running = outer
        self._on_run(op)
