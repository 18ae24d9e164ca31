"""What the emulator says about a kernel: who did what, where, and what it collides with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megamoe_jit.emulator.faults import Severity

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Warp
    from megamoe_jit.emulator.parser.nodes import Function, Location
    from megamoe_jit.emulator.trace import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """Who did something.

    Attributes:
        rank: rank of the launch; cta: place in the grid; cluster_rank: rank in the cluster.
        warp: index in the CTA; None when all of it is meant.
        role: what the warp was doing, from the source file of its instruction.
        lanes: mask of the lanes.
    """

    rank: int
    cta: tuple[int, int, int]
    cluster_rank: int
    warp: int | None
    role: str | None = None
    lanes: int | None = None

    def __str__(self) -> str:
        """Say it in words."""
        x, y, z = self.cta
        text = f"rank {self.rank}, CTA {x}" if not (y or z) else f"rank {self.rank}, CTA ({x}, {y}, {z})"
        if self.warp is not None:
            text += f", warp {self.warp}"
        if self.lanes is not None and self.lanes != 0xFFFFFFFF:
            text += f", lanes {lane_ranges(self.lanes)}"
        return f"{text} ({self.role})" if self.role else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened earlier."""

    what: str
    who: Who | None
    pc: int
    instruction: str
    location: Location | None

    def __str__(self) -> str:
        """Say it in words."""
        by = f" by {self.who}" if self.who else ""
        return f"{self.what}{by}\n      {self.instruction}{_at(self.location)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A finding.

    Attributes:
        kind: name of a row of `faults.KINDS`; severity: "error" or "warning".
        message: what happened, with values.
        section: PTX ISA section.
        who: rank, CTA, warp, role and lanes, or None.
        pc: index of the instruction (-1: none is to blame); instruction: its text; location: its source line.
        earlier: the event that it collides with, or None.
    """

    kind: str
    severity: Severity
    message: str
    section: str
    who: Who | None = None
    pc: int = -1
    instruction: str = ""
    location: Location | None = None
    earlier: Event | None = None

    def __str__(self) -> str:
        """Say it in words, several lines."""
        lines = [f"{self.kind}: {self.message}"]
        if self.who:
            lines.append(f"  by {self.who}")
        if self.instruction:
            lines.append(f"  at {self.instruction}{_at(self.location)}")
        if self.earlier:
            lines.append(f"  earlier: {self.earlier}")
        lines.append(f"  PTX ISA: {self.section}")
        return "\n".join(lines)


@dataclass(slots=True, kw_only=True)
class LaunchReport:
    """What launches of a module did, all of them together.

    Attributes:
        instructions: warp instructions executed, by opcode.
        warp_instructions: their sum.
        tma_bytes: bytes that bulk and tensor copies moved.
        mmas: tensor-core instructions (wgmma, mma.sync, tcgen05.mma).
        barrier_waits: times that lanes waited at an mbarrier or barrier.
        findings: reports that raised nothing (checks="warn", warnings).
        printed: what the kernel printed.
        cycles: virtual time of the last launch.
    """

    instructions: Counter[str] = field(default_factory=Counter)
    warp_instructions: int = 0
    tma_bytes: int = 0
    mmas: int = 0
    barrier_waits: int = 0
    cycles: int = 0
    findings: list[Report] = field(default_factory=list)
    printed: str = ""
    trace: Timeline | None = None

    def timeline(self) -> dict[str, Any]:
        """Return the last launch as a Chrome trace (chrome://tracing, Perfetto): `json.dump` it to a file."""
        return self.trace.chrome() if self.trace is not None else {"traceEvents": []}

    def __str__(self) -> str:
        """Say it in words."""
        top = ", ".join(f"{opcode} {count}" for opcode, count in self.instructions.most_common(8))
        lines = [
            f"{self.warp_instructions} warp instructions ({top})",
            f"{self.mmas} tensor-core instructions, {self.tma_bytes} bytes by TMA, {self.barrier_waits} barrier waits, "
            f"{self.cycles} virtual cycles",
        ]
        return "\n".join([*lines, *(str(finding) for finding in self.findings)])


def lane_ranges(mask: int) -> str:
    """Write a lane mask as ranges: 0-3,7."""
    parts = []
    lane = 0
    while lane < 32:
        if mask >> lane & 1:
            first = lane
            while lane + 1 < 32 and mask >> (lane + 1) & 1:
                lane += 1
            parts.append(f"{first}-{lane}" if lane > first else str(first))
        lane += 1
    return ",".join(parts) or "none"


def role_of(location: Location | None) -> str | None:
    """Return the role of a source place: the first `roles/<role>` file of its chain, else the outermost file."""
    if location is None:
        return None
    chain = location.chain
    for place in chain:
        folder, _, name = place.file.rpartition("/")
        if folder.endswith("roles") and (not folder[:-5] or folder[-6] == "/"):
            return name.partition(".")[0]
    return chain[-1].file.rpartition("/")[2].partition(".")[0] or None


def who_is(warp: Warp, pc: int | None = None, lanes: int | None = None) -> Who:
    """Say who `warp` is when it executes the instruction at `pc`."""
    cta = warp.cta
    location = location_of(warp.program.function, pc)
    return Who(
        rank=cta.grid.rank,
        cta=cta.ctaid,
        cluster_rank=cta.rank,
        warp=warp.index,
        role=role_of(location),
        lanes=lanes,
    )


def location_of(function: Function, pc: int | None) -> Location | None:
    """Return the source place of the instruction at `pc`."""
    if pc is None or not 0 <= pc < len(function.instructions):
        return None
    return function.instructions[pc].location


def text_of(function: Function, pc: int | None) -> str:
    """Return the instruction at `pc`, with its PTX line."""
    if pc is None or not 0 <= pc < len(function.instructions):
        return ""
    instruction = function.instructions[pc]
    return f"{instruction.text}  [PTX line {instruction.line}]"


def _at(location: Location | None) -> str:
    return f"\n      {location}" if location is not None else ""
