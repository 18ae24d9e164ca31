"""Words for what stops a launch: deadlocks, stalls, lanes that never come, CTAs that leave too early, bad accesses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from megamoe_jit.emulator.memory.spaces import OFFSET_MASK, RANK_SHIFT
from megamoe_jit.emulator.native.context import FULL_MASK, FaultKind, FaultSpace
from megamoe_jit.emulator.parser.nodes import SHARED_BASE
from megamoe_jit.emulator.report import lane_ranges, location_of, role_of, text_of

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.machine import Machine
    from megamoe_jit.emulator.machine.state import Cluster, Cta, Warp

_MAX_GROUPS = 40
_MAX_BARRIERS = 4


def report_deadlock(machine: Machine, clusters: Iterable[Cluster]) -> NoReturn:
    """Raise DeadlockFault: each warp, where it is, what it waits for."""
    pending = machine.queues.operations()
    lines = ["No warp can go on, and no asynchronous work is pending."]
    if pending:
        lines = [f"No warp can go on, and none of {len(pending)} pending operations may run."]
        lines += [f"  pending: {op.kind} of {op.issuer.name()}" for op in pending[:8]]
    machine.fault("deadlock", "\n".join([*lines, *_whereabouts(clusters)]))


def report_livelock(machine: Machine, clusters: Iterable[Cluster], why: str) -> NoReturn:
    """Raise DeadlockFault: a limit is reached."""
    machine.fault("livelock", "\n".join([f"Stopped because {why}.", *_whereabouts(clusters)]))


def _whereabouts(clusters: Iterable[Cluster]) -> list[str]:
    """Say of each live warp where it is and what it waits for; warps of a CTA that do the same share a line."""
    groups: dict[tuple[Cta, int, str], list[int]] = {}
    for cluster in sorted(clusters, key=lambda c: (c.grid.index, c.index)):
        for cta in cluster.ctas:
            for warp in cta.warps:
                for pc, lanes, what in _waits(warp):
                    where = f"{what} (lanes {lane_ranges(lanes)})" if lanes != warp.ctx.live else what
                    groups.setdefault((cta, pc, where), []).append(warp.index)
    lines = []
    for (cta, pc, what), warps in list(groups.items())[:_MAX_GROUPS]:
        function = cta.grid.function
        location = location_of(function, pc)
        role = role_of(location)
        names = f"warp {warps[0]}" if len(warps) == 1 else f"warps {_ranges(warps)}"
        lines.append(f"  {cta.name()} {names}{f' ({role})' if role else ''}: {what}")
        lines.append(f"      at {text_of(function, pc)}" + (f"\n      {location}" if location else ""))
    if len(groups) > _MAX_GROUPS:
        lines.append(f"  ... and {len(groups) - _MAX_GROUPS} more")
    return lines


def _waits(warp: Warp) -> list[tuple[int, int, str]]:
    """Return (pc, lanes, words) of each place where lanes of `warp` are."""
    ctx = warp.ctx
    if warp.exited or not ctx.live:
        return []
    found = []
    rest = int(ctx.live)
    for pc, (mask, park, _) in warp.parks.items():
        words = "; ".join(waitable.describe() for waitable in park.waitables[:_MAX_BARRIERS])
        found.append((pc, mask & rest, f"waits for {words}"))
        rest &= ~mask
    for pc, mask in warp.awaiting.items():
        if mask & rest:
            found.append((pc, mask & rest, "waits for the other lanes of the warp"))
            rest &= ~mask
    by_pc: dict[int, int] = {}
    for lane in range(32):
        if rest >> lane & 1:
            pc = int(ctx.lane_pc[lane])
            by_pc[pc] = by_pc.get(pc, 0) | 1 << lane
    for pc, mask in by_pc.items():
        if mask & ctx.waiting:
            found.append((pc, mask, "waits for lanes of its member mask"))
        elif warp.polls:
            polled = max(warp.polls, key=lambda seen: getattr(warp.polls[seen], "turn", 0))
            words = warp.polls[polled].describe() if hasattr(warp.polls[polled], "describe") else "no change"
            found.append((polled, mask, f"polls and sees {words}"))
        else:
            found.append((pc, mask, "runs"))
    return found


def _ranges(numbers: list[int]) -> str:
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return lane_ranges(mask)


def report_non_uniform(machine: Machine, warp: Warp) -> NoReturn:
    """Raise for a warp whose lanes wait for one another at different instructions."""
    ctx, function = warp.ctx, warp.program.function
    places: dict[int, int] = {}
    for lane in range(32):
        if ctx.live >> lane & 1:
            pc = int(ctx.lane_pc[lane])
            places[pc] = places.get(pc, 0) | 1 << lane
    where = "".join(
        f"\n    lanes {lane_ranges(lanes)} at {text_of(function, pc)}"
        + (f"\n      {location_of(function, pc)}" if location_of(function, pc) else "")
        for pc, lanes in sorted(places.items())
    )
    pc = min(warp.awaiting, default=min(places))
    if pc in warp.awaiting:
        machine.fault(
            "non-uniform",
            f"Every thread of a warp must execute an .aligned instruction together; {warp.name()} has its lanes in "
            f"different places and none can go on:{where}",
            by=warp,
            pc=pc,
            lanes=places.get(pc),
        )
    machine.fault(
        "member-mask",
        f"Lanes of {warp.name()} wait for lanes of their member mask that never come:{where}",
        by=warp,
        pc=pc,
        lanes=places.get(pc),
    )


def leave(machine: Machine, cta: Cta) -> None:
    """Finish what a CTA leaves behind: flush its stores, report what touches its memory, run hooks of other modules."""
    for op in machine.queues.operations():
        if op.done or not (op.issuer.cta is cta or cta in op.smem_of):
            continue
        if op.issuer.cta is not cta or op.at_exit == "report":
            machine.report(
                "exit-pending",
                f"{cta.name()} leaves while a {op.kind} that uses its memory is under way.",
                by=op,
            )
        machine.queues.run(op)
    for barrier in cta.mbarriers.values():
        if barrier.tx:
            machine.report(
                "exit-tx",
                f"{cta.name()} leaves with {barrier.tx} transaction bytes outstanding at the mbarrier at "
                f"{barrier.offset:#x} (phase {barrier.phase}).",
                warp=cta.warps[0],
            )
    for hook in cta.exit_hooks:
        hook(cta)


_SPACES = {
    FaultSpace.GENERIC: "generic",
    FaultSpace.GLOBAL: "global",
    FaultSpace.SHARED: "shared",
    FaultSpace.SHARED_CLUSTER: "shared::cluster",
    FaultSpace.LOCAL: "local",
    FaultSpace.PARAM: "param",
}


def memory_fault(warp: Warp, kind: FaultKind) -> tuple[str, str]:
    """Return (kind of report, message) for the fault that an engine noted."""
    ctx = warp.ctx
    address, size = int(ctx.fault_address), int(ctx.fault_size)
    verb = "Writes" if ctx.fault_write else "Reads"
    space = _SPACES.get(FaultSpace(ctx.fault_space), "")
    access = f"{verb} {size} bytes at {space} address {address:#x}"
    cta = warp.cta
    allocations = warp.machine.allocations
    match kind:
        case FaultKind.MISALIGNED:
            return "misaligned", f"{access}, which is no multiple of {size}."
        case FaultKind.UNMAPPED | FaultKind.OUT_OF_BOUNDS:
            near = allocations.nearest(address)
            name = f"; the nearest below is {near.name or 'memory'} [{near.address:#x}, {near.end:#x})" if near else ""
            what = (
                "begins inside an allocation and ends behind it" if kind is FaultKind.OUT_OF_BOUNDS else "no allocation"
            )
            return "out-of-bounds", f"{access}: {what}{name}."
        case FaultKind.READ_ONLY:
            found = allocations.find(address, 1)
            return "read-only", f"{access}: {found.name or 'its allocation' if found else 'it'} may only be read."
        case FaultKind.FOREIGN_RANK:
            found = allocations.find(address, 1)
            owner = f"{found.name or 'memory'} of rank {found.rank}" if found else "another rank's memory"
            return "foreign-rank", f"{access}: {owner} is not peer accessible for rank {warp.grid.rank}."
        case FaultKind.SHARED_BOUNDS:
            return "out-of-bounds", f"{access}; {cta.name()} has [{SHARED_BASE:#x}, {len(cta.smem):#x})."
        case FaultKind.SHARED_RANK:
            rank = (address & FULL_MASK) >> RANK_SHIFT
            if rank < len(cta.cluster.ctas):
                return "cta-exited", f"{access}: {cta.cluster.ctas[rank].name()} has left."
            return "out-of-bounds", f"{access} in CTA {rank} of the cluster, which has {len(cta.cluster.ctas)}."
        case FaultKind.SHARED_FOREIGN:
            return "out-of-bounds", (
                f"{access} (offset {address & OFFSET_MASK:#x}): a .shared::cta access of CTA {cta.rank} names CTA "
                f"{(address & FULL_MASK) >> RANK_SHIFT}; use .shared::cluster."
            )
        case FaultKind.LOCAL_BOUNDS:
            return "out-of-bounds", f"{access}; a lane's frame has {ctx.local_bytes} bytes."
        case FaultKind.PARAM_BOUNDS:
            return "out-of-bounds", f"{access}; the kernel has {ctx.param_bytes} bytes of parameters."
        case FaultKind.MEMBER_MASK:
            return "member-mask", f"A lane is not in the member mask {address:#x} of the instruction that it executes."
        case FaultKind.BRANCH_INDEX:
            return "argument", f"brx.idx with index {address}, past the end of its table."
        case FaultKind.DIVERGENT_UNIFORM:
            return "non-uniform", "Lanes disagree in a branch that is marked .uni."
    return "out-of-bounds", access
