"""What the checker's reports say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megamoe_jit.emulator.checks.shadow import TAIL
from megamoe_jit.emulator.memory.spaces import OFFSET_MASK
from megamoe_jit.emulator.memory.tmem import describe_cell
from megamoe_jit.emulator.native.context import Race, RaceKind
from megamoe_jit.emulator.native.shadow_layout import ACTOR_MASK, ACTOR_SHIFT
from megamoe_jit.emulator.report import Event, location_of, text_of, who_is

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.granules import Watched
    from megamoe_jit.emulator.checks.ordering import Checker
    from megamoe_jit.emulator.checks.shadow import Clash
    from megamoe_jit.emulator.checks.sync import MbarrierSync, SyncChecks
    from megamoe_jit.emulator.machine.mbarrier import Mbarrier
    from megamoe_jit.emulator.machine.queues import AsyncOp
    from megamoe_jit.emulator.machine.state import Cta, Warp

_VERBS = {"read": "reads", "write": "writes", "atomic": "updates"}
_TAIL = " It is not the first row of its box: nothing is wrong if what was read there is never used."
_SAME = " Both are by one instruction: nothing is wrong if both warps store the same value."
_PROXY = "Memory Consistency Model: Proxies; Parallel Synchronization: membar/fence (fence.proxy.async)"


def event_of(warp: Warp | None, pc: int, what: str) -> Event:
    """Make the event of an instruction of `warp`."""
    if warp is None:
        return Event(what=what, who=None, pc=pc, instruction="", location=None)
    function = warp.program.function
    return Event(
        what=what,
        who=who_is(warp, pc if pc >= 0 else None),
        pc=pc,
        instruction=text_of(function, pc) or "(instruction not known)",
        location=location_of(function, pc),
    )


def _earlier(checker: SyncChecks, number: int, pc: int, what: str, cta: Cta | None) -> Event:
    actor = checker.actors[number]
    if actor.kind in ("warp", "reads", "writes"):
        warp = actor.warp
        name = "" if actor.kind == "warp" else f" ({actor.name})"
        return event_of(warp, pc, f"{what}{name}")
    if actor.kind == "mbarrier" and actor.cta is not None and actor.cta.warps:
        function = actor.cta.grid.function
        return Event(
            what=f"{what}, completing on {actor.name}",
            who=None,
            pc=pc,
            instruction=text_of(function, pc),
            location=location_of(function, pc),
        )
    return event_of(cta.warps[0] if cta and cta.warps and actor.kind != "launch" else None, pc, f"{what} {actor.name}")


def _where(offset: int, cta: Cta | None, *, is_shared: bool, is_tensor: bool = False) -> str:
    if is_tensor and cta is not None:
        return f"tensor memory {describe_cell(offset)} of {cta.name()}"
    if is_shared and cta is not None:
        return f"shared address {offset:#x}{_variable(cta, offset)} of {cta.name()}"
    return f"global address {offset:#x}"


def _variable(cta: Cta, offset: int) -> str:
    """Name the shared variable that holds `offset`, and the place in it."""
    function = cta.grid.function
    for name, variable in function.variables.items():
        size = variable.size or len(cta.smem) - variable.offset
        if variable.space == "shared" and variable.offset <= offset < variable.offset + size:
            return f" ({name}+{offset - variable.offset:#x})"
    return ""


def _cta_of(at: Watched, by: Warp | AsyncOp) -> Cta | None:
    own = by.cta if hasattr(by, "cta") else by.issuer.cta
    for cta in own.cluster.ctas:
        if cta.shadow is at.shadow or cta.tmem_shadow is at.shadow:
            return cta
    return None


def clash(checker: Checker, found: Clash, at: Watched, by: Warp | AsyncOp, access: str) -> None:
    """Report an access that is not ordered after an earlier one."""
    cta = _cta_of(at, by)
    where = _where(found.offset, cta, is_shared=at.is_shared, is_tensor=at.is_tensor)
    kind, message = _clash_words(checker, found, at, by, access, where)
    what = {"write": "written", "read": "read"}[found.what]
    earlier = _earlier(checker, found.actor, found.pc, what, cta)
    section = _PROXY if kind.startswith("proxy") else ""
    if found.is_tail:
        kind, message = "unordered-rows", message + _TAIL
    checker.machine.report(kind, message, by=by, section=section, earlier=earlier)


def _clash_words(
    checker: Checker, found: Clash, at: Watched, by: Warp | AsyncOp, access: str, where: str
) -> tuple[str, str]:
    kind = getattr(by, "kind", "")  # of an operation; a warp has none
    is_async = bool(kind)
    subject = f"{kind} " if is_async else ""
    verb = _VERBS[access]
    if found.is_ordered and at.is_tensor:
        return "tcgen05-fence", (
            f"{subject}{verb} {where}, another thread's {found.what} was before, without "
            "tcgen05.fence::before_thread_sync there and tcgen05.fence::after_thread_sync here."
        )
    if found.is_ordered:
        return "proxy" if access == "read" else "proxy-overwrite", (
            f"{subject}{verb} {where} through the async proxy, which was written by ordinary stores with no "
            "fence.proxy.async since."
        )
    earlier_async = checker.actors[found.actor].kind in ("mbarrier", "reads", "writes")
    if found.what == "write" and earlier_async:
        return "in-flight", (
            f"{subject}{verb} {where}, which an asynchronous operation writes whose completion was not waited for."
        )
    if found.what == "read" and earlier_async:
        return "overwrite", (
            f"{subject}{verb} {where}, which an asynchronous operation reads whose completion was not waited for."
        )
    if is_async:
        done = "reads" if found.what == "read" else "writes"
        return "overwrite", (
            f"{subject}{verb} {where}, which a warp {done} with nothing that orders the two: it was not done when the "
            f"{kind} was issued."
        )
    other = "a write" if found.what == "write" else "a read"
    message = f"{verb} {where}; nothing orders this after {other} of the same bytes."
    if access == "write" and found.what == "write" and not is_async and found.pc == by.pc:
        return "same-store", message + _SAME
    return "race", message


def in_flight(checker: Checker, at: Watched, by: Warp, access: str) -> None:
    """Report the use of bytes that a pending operation will write."""
    _in_flight(checker, _cta_of(at, by), at.first, by, access, warp_pc=None)


def _in_flight(
    checker: Checker,
    cta: Cta | None,
    offset: int,
    by: Warp,
    access: str,
    *,
    warp_pc: int | None,
    lane: int | None = None,
) -> None:
    op = next((op for op in checker.machine.queues.operations() if _writes(op, cta, offset)), None)
    earlier = event_of(op.issuer, op.pc, f"{op.kind} issued, not complete") if op is not None else None
    where = _where(offset, cta, is_shared=True)
    checker.machine.report(
        "in-flight",
        f"{_VERBS[access]} {where}, which a pending asynchronous operation will write.",
        by=by,
        pc=warp_pc,
        lanes=None if lane is None else 1 << lane,
        earlier=earlier,
    )


def _writes(op: AsyncOp, cta: Cta | None, offset: int) -> bool:
    """Whether pending `op` said that it will write the granule of `offset` in `cta`."""
    if op.access is None or cta is None:
        return False
    for at in op.access.writes:
        if at.shadow is not cta.shadow:
            continue
        if isinstance(at.granules, slice):
            if at.granules.start <= offset // 4 < at.granules.stop:
                return True
        elif offset // 4 in at.granules:
            return True
    return False


def uninitialised(checker: Checker, at: Watched, offset: int, by: Warp | AsyncOp) -> None:
    """Report a read of bytes that nobody wrote."""
    where = _where(offset, _cta_of(at, by), is_shared=at.is_shared, is_tensor=at.is_tensor)
    checker.machine.report("uninitialised", f"reads {where}, which nobody has written.", by=by)


def touches_mbarrier(checker: Checker, at: Watched, by: Warp | AsyncOp) -> None:
    """Report a write over a live mbarrier."""
    where = _where(at.first, _cta_of(at, by), is_shared=True)
    checker.machine.report("mbarrier-bytes", f"writes {where}, where an mbarrier lies that was not invalidated.", by=by)


def unseen_init(checker: SyncChecks, barrier: Mbarrier, sync: MbarrierSync, by: Any) -> None:
    """Report the use of a barrier whose initialisation is not ordered before."""
    checker.machine.report(
        "race",
        f"uses {barrier.name()}, whose initialisation nothing orders before this.",
        by=by,
        section="Parallel Synchronization and Communication Instructions: mbarrier.init",
        earlier=event_of(sync.init_warp, sync.init_pc, "initialised"),
    )


def unfenced_init(checker: SyncChecks, barrier: Mbarrier, sync: MbarrierSync, by: AsyncOp) -> None:
    """Report asynchronous work on a barrier whose initialisation no fence has shown to the async proxy."""
    checker.machine.report(
        "mbarrier-init-fence",
        f"{by.kind} signals {barrier.name()}, whose initialisation no fence.mbarrier_init (or fence.proxy.async) has "
        "made visible to the async proxy.",
        by=by,
        section="Parallel Synchronization and Communication Instructions: membar/fence (fence.mbarrier_init)",
        earlier=event_of(sync.init_warp, sync.init_pc, "initialised"),
    )


def narrow_scope(checker: Checker, warp: Warp, scope: str, writer: Warp, pc: int, written: str) -> None:
    """Report strong accesses of two threads of which one does not reach the other."""
    other = "another rank" if writer.grid.rank != warp.grid.rank else writer.name()
    checker.machine.report(
        "scope",
        f"A value that was written at scope .{written} is read at scope .{scope} by a thread that is not in both: the "
        f"writer is {other}.",
        by=warp,
        earlier=event_of(writer, pc, "written"),
    )


def _is_tail(checker: Checker, race: Race) -> bool:
    """Whether the read that a write collides with is of rows that maybe nobody uses."""
    known = checker.machine.allocations.shadow(int(race.address))
    if known is None:
        return False
    words = known.slice(int(race.address), int(race.size))["reader"]
    mine = words[(words >> ACTOR_SHIFT & ACTOR_MASK) == race.other_actor]
    return bool(len(mine)) and bool((mine & TAIL).all())


_NATIVE = {
    RaceKind.READ_AFTER_WRITE: ("read", "write"),
    RaceKind.WRITE_AFTER_WRITE: ("write", "write"),
    RaceKind.WRITE_AFTER_READ: ("write", "read"),
}


def native_race(checker: Checker, warp: Warp, race: Race) -> None:
    """Report what the native engine saw."""
    kind = RaceKind(race.kind)
    cta: Cta | None = None
    offset = int(race.address)
    if race.is_shared:
        rank, offset = int(race.address) >> 24, int(race.address) & OFFSET_MASK
        cta = warp.cluster.ctas[rank] if rank < len(warp.cluster.ctas) else warp.cta
    where = _where(offset, cta, is_shared=bool(race.is_shared))
    lanes = 1 << race.lane
    report = checker.machine.report
    if kind in _NATIVE:
        access, other = _NATIVE[kind]
        actor = checker.actors[race.other_actor]
        earlier = _earlier(checker, race.other_actor, race.other_pc, {"write": "written", "read": "read"}[other], cta)
        if actor.kind in ("mbarrier", "reads", "writes"):
            name = "in-flight" if other == "write" else "overwrite"
            done = "writes" if other == "write" else "reads"
            message = (
                f"{_VERBS[access]} {where}, which an asynchronous operation {done} whose completion was not waited for."
            )
        else:
            name, message = "race", f"{_VERBS[access]} {where}; nothing orders this after a {other} of the same bytes."
            if kind is RaceKind.WRITE_AFTER_WRITE and race.other_pc == race.pc:
                name, message = "same-store", message + _SAME
        if kind is RaceKind.WRITE_AFTER_READ and not race.is_shared and _is_tail(checker, race):
            name, message = "unordered-rows", message + _TAIL
        report(name, message, by=warp, pc=race.pc, lanes=lanes, earlier=earlier)
    elif kind is RaceKind.READ_UNINITIALISED:
        report("uninitialised", f"reads {where}, which nobody has written.", by=warp, pc=race.pc, lanes=lanes)
    elif kind is RaceKind.WRITE_OBJECT:
        message = f"writes {where}, where an mbarrier lies that was not invalidated."
        report("mbarrier-bytes", message, by=warp, pc=race.pc, lanes=lanes)
    else:
        access = "read" if kind is RaceKind.READ_IN_FLIGHT else "write"
        _in_flight(checker, cta, offset, warp, access, warp_pc=race.pc, lane=race.lane)
