"""Asynchronous operations: copies, reductions, matrix multiplications that complete when the completion policy says so."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from megamoe_jit.emulator.machine.outcome import Waitable

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Cta, Warp

Completion = Literal["lazy", "eager"] | float
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
        reads_smem, writes_smem: CTAs whose shared memory it touches; one that leaves meanwhile is an error.
        nbytes: size, for the model of virtual time.
        duration: virtual cycles it takes, None: from `nbytes`.
        access: what `checks.begin_async` returned.
        finish_time: virtual time at which it ended; set when it runs.
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

    __slots__ = ("name", "pending")

    def __init__(self, name: str) -> None:
        """Start empty."""
        super().__init__()
        self.name = name
        self.pending = 0

    def add(self, count: int = 1) -> None:
        """Expect `count` more operations."""
        self.pending += count

    def finish(self, count: int = 1) -> None:
        """`count` operations are done."""
        self.pending -= count
        self.wake()

    def describe(self) -> str:
        """Say in words what is waited for."""
        return f"{self.name}: {self.pending} operations pending"


@dataclass(slots=True)
class AsyncQueues:
    """All pending operations of a machine."""

    completion: Completion
    rng: random.Random
    free: list[AsyncOp] = field(default_factory=list)
    fifo: dict[Hashable, deque[AsyncOp]] = field(default_factory=dict)
    on_run: Callable[[AsyncOp], None] | None = None

    @property
    def pending(self) -> int:
        """How many operations have not run."""
        return len(self.free) + sum(len(queue) for queue in self.fifo.values())

    def submit(self, op: AsyncOp) -> None:
        """Take `op`; with completion "eager" it runs before this returns, unless an earlier one of its queue cannot."""
        raise NotImplementedError

    def step(self) -> bool:
        """Run one operation that may run, chosen by the seed; returns False when none may."""
        raise NotImplementedError
