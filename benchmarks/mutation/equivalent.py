"""Mistakes that nobody can see, with the reason: each was looked at in the kernel's source."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.mutation.operators import Mutant


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """Why mistakes of class `kind` ("" is any) at a place and change that contain `where` change nothing in `case`."""

    case: str = ""  # a part of the kernel's name; "" is any
    kind: str = ""
    where: str
    why: str

    def fits(self, case: str, mutant: Mutant) -> bool:
        """Whether this is said of `mutant`."""
        return self.case in case and self.kind in ("", mutant.kind) and self.where in f"{mutant.place}, {mutant.change}"


EQUIVALENT: tuple[Reason, ...] = (
    Reason(
        where="at ring.cuh:38 <- ring.cuh:44",
        why="the last waits of a loader: what they wait for comes before an arrival that the epilogue waits for, in "
        "order of one thread's commits, which the emulator keeps",
    ),
    Reason(
        case="gemm",
        kind="wait",
        where="cp.async.bulk.wait_group at tma_sm100.cuh:33 <- epilogue.cuh",
        why="the last wait for stores: a CTA that leaves waits for them in the emulator",
    ),
    Reason(
        case="gemm",
        kind="fence",
        where="<- sm100.cuh:47",
        why="before the barrier behind the allocation nothing has touched tensor memory",
    ),
    Reason(
        case="gemm",
        kind="fence",
        where="<- sm100.cuh:49",
        why="whoever touches tensor memory first waits for an mbarrier and fences again",
    ),
    Reason(
        case="gemm",
        kind="fence",
        where="<- sm100.cuh:63",
        why="every warp has fenced after its last access, before it released the tile",
    ),
    Reason(
        case="gemm",
        kind="fence",
        where="<- sm100.cuh:66",
        why="only the deallocation follows, which the emulator orders by the barrier",
    ),
)


def reason_for(case: str, mutant: Mutant) -> Reason | None:
    """Return why a mistake cannot be seen, or None."""
    return next((reason for reason in EQUIVALENT if reason.fits(case, mutant)), None)
