"""What a Python handler may answer, and what lanes can wait for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Warp


class Waitable:
    """Something that lanes can be parked on; who changes it calls `wake()`: the parked instructions run again."""

    __slots__ = ("parked",)

    def __init__(self) -> None:
        """Nobody waits."""
        self.parked: list[tuple[Warp, int]] = []

    def park(self, warp: Warp, mask: int) -> None:
        """Note that lanes `mask` of `warp` wait here; the scheduler calls it for the outcome Park."""
        self.parked.append((warp, mask))

    def wake(self) -> None:
        """Let every parked lane execute its instruction again."""
        if not self.parked:
            return
        parked, self.parked = self.parked, []
        for warp, mask in parked:
            warp.unpark(mask)

    def describe(self) -> str:
        """Say in words what is waited for; the deadlock report prints it."""
        return type(self).__name__


@dataclass(frozen=True, slots=True)
class Park:
    """The instruction is not done: block the lanes until one of `waitables` wakes them, then execute it again.

    Attributes:
        waitables: what is waited for.
        can_time_out: the hardware may give up waiting (`mbarrier.try_wait`): before a deadlock is reported, the lanes
            run once more with `warp.timed_out` set, and the handler then answers "not yet" to the program.
    """

    waitables: tuple[Waitable, ...]
    can_time_out: bool = False


@dataclass(frozen=True, slots=True)
class AwaitLanes:
    """The instruction is not done: it needs all lanes of `needed` at this PC, and some are elsewhere.

    The lanes are blocked until the others arrive (they then join the group). When no lane of the warp can run any more,
    that is a report: a non-uniform `.aligned` instruction, or lanes of a member mask that never come.
    """

    needed: int


@dataclass(frozen=True, slots=True)
class Yield:
    """The instruction is done; let other warps run. `spin`: it observed nothing new (an unchanged polling load)."""

    spin: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """The instruction is not done and nobody will wake it: execute it again after others had a turn."""


@dataclass(frozen=True, slots=True)
class Jump:
    """The instruction is done and the handler has set `warp.ctx.lane_pc` (or `live`) of its lanes itself."""


Outcome: TypeAlias = Park | AwaitLanes | Yield | Retry | Jump | None
"""None: done, the lanes go on with the next instruction."""
