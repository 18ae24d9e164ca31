"""Why mistakes survive: each was looked at in the kernel's source, or in the PTX of those that others compiled."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.mutation.operators import Mutant


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """Why mistakes of class `kind` ("" is any) whose place and change contain `where` survive in `case`.

    Most change nothing that anybody could see: they are equivalent. The others are limits of the emulator.
    """

    case: str = ""  # a part of the kernel's name; "" is any
    kind: str = ""
    where: str
    why: str
    equivalent: bool = True

    def fits(self, case: str, mutant: Mutant) -> bool:
        """Whether this is said of `mutant`."""
        return self.case in case and self.kind in ("", mutant.kind) and self.where in f"{mutant.place}, {mutant.change}"


_BEFORE_ALLOCATION = "before the barrier behind the allocation nothing has touched tensor memory"
_FENCED_AGAIN = "whoever touches tensor memory first waits for an mbarrier and fences again"
_FENCED_BEFORE = "every warp has fenced after its last access, before it released the tile"
_ONLY_FREED = "only the deallocation follows, which the barrier orders"
_LAST_STORES = "the last wait for stores: a warp that leaves completes its stores first"
_ONE_ISSUER = "thread 0 issues what stands before the barrier and what stands behind it"
_BARRIER_BEFORE = "the barrier before it has the same threads, and nothing lies between"

EQUIVALENT: tuple[Reason, ...] = (
    Reason(
        where="at ring.cuh:38 <- ring.cuh:44",
        why="the last waits of a loader: what they wait for comes before an arrival that the epilogue waits for, in "
        "order of one thread's commits, which the emulator keeps",
    ),
    Reason(
        case="gemm", kind="wait", where="cp.async.bulk.wait_group at tma_sm100.cuh:33 <- epilogue.cuh", why=_LAST_STORES
    ),
    Reason(case="gemm", kind="fence", where="<- sm100.cuh:47", why=_BEFORE_ALLOCATION),
    Reason(case="gemm", kind="fence", where="<- sm100.cuh:49", why=_FENCED_AGAIN),
    Reason(case="gemm", kind="fence", where="<- sm100.cuh:63", why=_FENCED_BEFORE),
    Reason(case="gemm", kind="fence", where="<- sm100.cuh:66", why=_ONLY_FREED),
    Reason(case="mega_sm100", kind="fence", where="<- sm100.cuh:76", why=_BEFORE_ALLOCATION),
    Reason(case="mega_sm100", kind="fence", where="<- sm100.cuh:78", why=_FENCED_AGAIN),
    Reason(case="mega_sm100", kind="fence", where="<- sm100.cuh:99", why=_FENCED_BEFORE),
    Reason(case="mega_sm100", kind="fence", where="<- sm100.cuh:102", why=_ONLY_FREED),
    Reason(
        case="mega_sm100",
        kind="wait",
        where="at ring.cuh:38 <- load_sm100.cuh:29 <- load_sm100.cuh:46",
        why="at this size an L2 tile has one stage, and the L1 results that it waits for come from the MMAs that read "
        "the stages before",
    ),
    Reason(
        case="mega",
        kind="bar.sync",
        where="<- cleanup.cuh:13",
        why="with up to 32 experts only the first consumer warp looks at counters, and it counts the block",
    ),
    Reason(
        case="mega_sm90",
        kind="fence",
        where="fence.mbarrier_init.release.cluster at mbarrier.cuh:12 <- sm90.cuh:27",
        why="the thread that initialises the barriers loads weights, with a fence.proxy.async before its first copy",
    ),
    Reason(case="mega_sm90", kind="bar.sync", where="bar.sync at sm90.cuh:32", why="routing ends with a barrier"),
    Reason(
        case="mega_sm90",
        kind="fence",
        where="<- load_weights_sm90.cuh:24",
        why="between ordinary reads and the copy that overwrites what they read: most code leaves this fence out, and "
        "the emulator does not ask for it",
        equivalent=False,
    ),
    Reason(
        case="triton_pointers",
        kind="wait",
        where="tcgen05.wait::st.sync.aligned at scaled_kernels.py:43",
        why="each warp waits for its stores again, at line 47, before the barrier that the MMA stands behind",
    ),
    Reason(
        case="triton_pointers",
        kind="commit",
        where="cp.async.commit_group at scaled_kernels.py:43",
        why="the commit of line 44 takes the copies along, and the wait is for all groups",
    ),
    Reason(
        case="triton_pointers",
        kind="bar.sync",
        where="bar.sync at scaled_kernels.py:43",
        why="only the MMA reads what was copied, behind the barriers of line 47",
    ),
    Reason(
        case="triton_pointers",
        kind="bar.sync",
        where="bar.sync at scaled_kernels.py:42",
        why="nothing reads shared memory between it and the barrier of line 47",
    ),
    Reason(
        case="triton",
        kind="wait",
        where="tcgen05.wait::ld",
        why="this compiler uses loaded registers before it waits, so that reports on them are off here, and nothing "
        "writes tensor memory afterwards",
        equivalent=False,
    ),
    Reason(
        case="triton_pointers",
        kind="bar.sync",
        where="barrier.sync at scaled_kernels.py:8",
        why="all warps have read tensor memory before the barrier of line 53, and only the deallocation follows",
    ),
    Reason(case="triton_maps", kind="bar.sync", where="bar.sync at scaled_kernels.py:137", why=_ONE_ISSUER),
    Reason(case="triton_maps", kind="bar.sync", where="bar.sync at scaled_kernels.py:138", why=_ONE_ISSUER),
    Reason(case="triton_maps", kind="bar.sync", where="bar.sync at scaled_kernels.py:104", why=_ONE_ISSUER),
    Reason(case="triton_maps", kind="bar.sync", where="bar.sync at scaled_kernels.py:141", why=_ONE_ISSUER),
    Reason(case="triton_maps", kind="commit", where="cp.async.bulk.commit_group", why=_LAST_STORES),
    Reason(case="triton_maps", kind="wait", where="cp.async.bulk.wait_group", why=_LAST_STORES),
    Reason(case="triton_maps", kind="bar.sync", where="barrier.sync at scaled_kernels.py:110", why=_BARRIER_BEFORE),
    Reason(
        case="triton_hopper",
        kind="bar.sync",
        where="bar.sync at dot_kernels.py:37",
        why="one warpgroup: each of its warps has waited for the products that read the tile",
    ),
)


def reason_for(case: str, mutant: Mutant) -> Reason | None:
    """Return why a mistake survives, None when nobody knows."""
    return next((reason for reason in EQUIVALENT if reason.fits(case, mutant)), None)
