"""mbarrier objects: kept beside the bytes of shared memory, not in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megamoe_jit.emulator.machine.outcome import Waitable

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.queues import AsyncOp
    from megamoe_jit.emulator.machine.state import Cta, Warp

MAX_COUNT = (1 << 20) - 1


class Mbarrier(Waitable):
    """An mbarrier: phases that end when all arrivals have come and the transaction count is zero.

    Attributes:
        expected: arrivals of each phase; pending: arrivals that the current phase still needs.
        tx: transactions expected minus completed.
        phase: number of completed phases; its parity is bit 0.
    """

    __slots__ = ("cta", "expected", "offset", "pending", "phase", "tx")

    def __init__(self, cta: Cta, offset: int, count: int) -> None:
        """Start in phase 0 with `count` pending arrivals."""
        super().__init__()
        self.cta = cta
        self.offset = offset
        self.expected = count
        self.pending = count
        self.tx = 0
        self.phase = 0

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
        raise NotImplementedError

    def expect_tx(self, nbytes: int, *, by: Warp | None) -> None:
        """Expect `nbytes` more transactions in this phase."""
        raise NotImplementedError

    def complete_tx(self, nbytes: int, *, by: Warp | AsyncOp | None) -> None:
        """`nbytes` transactions are done; an asynchronous operation passes itself."""
        raise NotImplementedError

    def add_pending(self, count: int = 1, *, by: Warp | None) -> None:
        """Raise the pending count of this phase (`cp.async.mbarrier.arrive` without .noinc)."""
        raise NotImplementedError

    def test_parity(self, parity: int) -> bool:
        """Whether the phase with `parity` has completed: the current one has the other parity."""
        return (self.phase & 1) != (parity & 1)

    def test_token(self, token: int) -> bool:
        """Whether the phase that `token` came from has completed."""
        raise NotImplementedError
