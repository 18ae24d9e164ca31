"""The machine: memory, grids, pending work and the checker of one run. The scheduler drives it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.machine.queues import AsyncOp, AsyncQueues, Completion
from megamoe_jit.emulator.machine.state import Counters, Cta, Grid, Place, Warp

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.interface import Checks
    from megamoe_jit.emulator.machine.engine import Engine
    from megamoe_jit.emulator.machine.mbarrier import Mbarrier
    from megamoe_jit.emulator.report import Report


class Machine:
    """Everything that one launch, or several launched together, can see.

    Attributes:
        rng: the only source of chance (random.Random of the seed).
        allocations: memory/allocations.Allocations: what global addresses may be touched.
        checks: the checker (checks/interface.py); its calls do nothing when checks are off.
        numerics: "hardware" (truncating tensor-core sums) or "exact".
        num_ranks: ranks that run together.
        scratch: state of handler modules, by name of the module.
    """

    engine: Engine
    rng: random.Random
    allocations: Any
    checks: Checks
    queues: AsyncQueues
    counters: Counters
    numerics: str
    num_ranks: int
    grids: list[Grid]
    scratch: dict[str, Any]

    def __init__(
        self, *, engine: Engine, seed: int = 0, completion: Completion = "lazy", numerics: str = "hardware"
    ) -> None:
        """Make an empty machine."""
        self.engine = engine
        self.rng = random.Random(seed)
        self.queues = AsyncQueues(completion, self.rng)
        self.counters = Counters()
        self.numerics = numerics
        self.num_ranks = 1
        self.grids = []
        self.scratch = {}

    def submit(self, op: AsyncOp) -> None:
        """Hand an asynchronous operation over; the completion policy says when it runs."""
        self.queues.submit(op)

    def resolve(
        self, warp: Warp, address: int, space: str, size: int, *, write: bool, align: int | None = None
    ) -> tuple[npt.NDArray[np.uint8], Place]:
        """Translate `address` of `space` to the bytes that it names.

        Args:
            warp: who accesses.
            address: as the program computed it.
            space: "generic", "global", "shared" ("shared::cta" too), "shared::cluster", "local", "const" or "param".
            size: bytes.
            write: whether they are written.
            align: needed alignment; None: the largest power of two that divides `size`, at most 16.

        Returns:
            The bytes, `size` of them, as a view, and where they are.

        Raises:
            MemoryFault: outside of what may be touched, or misaligned.
        """
        raise NotImplementedError

    def report(
        self,
        kind: str,
        message: str,
        *,
        warp: Warp | None = None,
        pc: int | None = None,
        lanes: int | None = None,
        section: str = "",
        severity: str = "error",
        earlier: Any = None,
    ) -> None:
        """Report a finding: raises the fault of its kind when checks are errors, else notes it."""
        raise NotImplementedError

    def fault(self, kind: str, message: str, *, warp: Warp | None = None, pc: int | None = None) -> NoReturn:
        """Report something that cannot be gone on from; always raises."""
        raise NotImplementedError

    def unpark(self, warp: Warp, mask: int) -> None:
        """Lanes `mask` of `warp` may execute their instruction again."""
        raise NotImplementedError

    def cluster_cta(self, cta: Cta, rank: int) -> Cta:
        """Return the CTA with `rank` in the cluster of `cta`; raises MemoryFault when there is none."""
        raise NotImplementedError

    def missing_mbarrier(self, cta: Cta, offset: int, warp: Warp | None) -> Mbarrier:
        """Report the use of an mbarrier that nobody initialised; always raises."""
        raise NotImplementedError

    @property
    def findings(self) -> list[Report]:
        """What was noted so far."""
        raise NotImplementedError
