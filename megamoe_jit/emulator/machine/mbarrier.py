"""mbarrier objects: kept beside the bytes of shared memory, not in them.

PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megamoe_jit.emulator.machine.clock import time_of
from megamoe_jit.emulator.machine.outcome import Waitable

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.queues import AsyncOp
    from megamoe_jit.emulator.machine.state import Cta, Warp

MAX_COUNT = (1 << 20) - 1
"""Largest count of arrivals, and largest transaction count either way."""

_TOKEN_COUNT_BITS = 20


class Mbarrier(Waitable):
    """An mbarrier: phases that end when all arrivals have come and the transaction count is zero.

    Attributes:
        expected: arrivals of each phase; pending: arrivals that the current phase still needs.
        tx: transactions expected minus completed.
        phase: number of completed phases; its parity is bit 0.
        time: virtual time of the last event; phase_time: of the end of the last phase.
        sync: what the checker keeps of it.
    """

    __slots__ = ("cta", "expected", "offset", "pending", "phase", "phase_time", "sync", "time", "tx")

    def __init__(self, cta: Cta, offset: int, count: int) -> None:
        """Start in phase 0 with `count` pending arrivals."""
        super().__init__()
        self.cta = cta
        self.offset = offset
        self.expected = count
        self.pending = count
        self.tx = 0
        self.phase = 0
        self.time = 0
        self.phase_time = 0
        self.sync: Any = None

    def arrive(
        self,
        count: int = 1,
        *,
        by: Warp | AsyncOp | None,
        release: bool = True,
        scope: str = "cta",
        no_complete: bool = False,
        drop: bool = False,
    ) -> int:
        """Take `count` arrivals of `by`; returns the state token (of the phase before the arrival)."""
        machine = self.cta.machine
        token = self.phase << _TOKEN_COUNT_BITS | self.pending
        if count > self.pending:
            machine.report(
                "mbarrier-count",
                f"{count} arrivals at {self.name()}, whose phase {self.phase} waits for {self.pending} more "
                f"(of {self.expected}).",
                by=by,
            )
            count = self.pending
        machine.checks.mbarrier_arrive(self, by, release, scope)
        self.pending -= count
        if drop:
            self.expected -= count
        self.time = max(self.time, time_of(by))
        if no_complete and self.pending == 0 and self.tx == 0:
            machine.report("mbarrier-count", f"An arrival with .noComplete completes a phase of {self.name()}.", by=by)
        self._maybe_complete()
        return token

    def expect_tx(self, nbytes: int, *, by: Warp | AsyncOp | None) -> None:
        """Expect `nbytes` more transactions in this phase."""
        self._add_tx(nbytes, by)
        self._maybe_complete()

    def complete_tx(self, nbytes: int, *, by: Warp | AsyncOp | None) -> None:
        """`nbytes` transactions are done; an asynchronous operation passes itself."""
        self.cta.machine.checks.mbarrier_complete(self, by)
        self._add_tx(-nbytes, by)
        self.time = max(self.time, time_of(by))
        self._maybe_complete()

    def add_pending(self, count: int = 1, *, by: Warp | AsyncOp | None) -> None:
        """Raise the pending count of this phase (`cp.async.mbarrier.arrive` without .noinc)."""
        if self.pending + count > MAX_COUNT:
            self.cta.machine.report("mbarrier-count", f"{self.name()} counts more than {MAX_COUNT} arrivals.", by=by)
        self.pending += count

    def test_parity(self, parity: int) -> bool:
        """Whether the phase with `parity` has completed: the current one has the other parity."""
        return (self.phase & 1) != (parity & 1)

    def test_token(self, token: int) -> bool:
        """Whether the phase that `token` came from has completed."""
        return self.phase > token >> _TOKEN_COUNT_BITS

    def name(self) -> str:
        """Say which barrier in words."""
        return f"the mbarrier at shared address {self.offset:#x} of {self.cta.name()}"

    def describe(self) -> str:
        """Say in words what is waited for."""
        tx = f", {self.tx} transaction bytes outstanding" if self.tx else ""
        return f"{self.name()}: phase {self.phase}, {self.pending} of {self.expected} arrivals missing{tx}"

    def _add_tx(self, nbytes: int, by: Warp | AsyncOp | None) -> None:
        self.tx += nbytes
        if abs(self.tx) > MAX_COUNT:
            self.cta.machine.report(
                "mbarrier-tx",
                f"The transaction count of {self.name()} becomes {self.tx}; it holds +-{MAX_COUNT}.",
                by=by,
            )

    def _maybe_complete(self) -> None:
        if self.pending == 0 and self.tx == 0:
            self.phase += 1
            self.pending = self.expected
            self.phase_time = self.time
            self.cta.machine.checks.mbarrier_phase(self)
            self.wake()


def token_pending(token: int) -> int:
    """Return the pending count that a state token holds (`mbarrier.pending_count`)."""
    return token & MAX_COUNT
