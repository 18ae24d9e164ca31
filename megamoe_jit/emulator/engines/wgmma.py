"""Warpgroup matrix multiplication: what four warps issue together, and registers that are in flight meanwhile.

PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions". An instruction runs when all four warps
have issued it. While accumulators are in flight their registers hold NaNs: results come back when `wait_group` passes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.engines.descriptors import MatrixDescriptor, decode_sm90, layout_problems, phase_warning
from megamoe_jit.emulator.engines.numerics import FORMATS, Numerics, Operand, Rule, dot, integer_dot, rule_for
from megamoe_jit.emulator.engines.operands import operand_addresses
from megamoe_jit.emulator.engines.shared_tiles import check_bounds, note_read, shared_bytes, shared_operand
from megamoe_jit.emulator.machine.outcome import Outcome, Park, Waitable
from megamoe_jit.emulator.machine.queues import AsyncOp

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Cta, Warp

Array: TypeAlias = npt.NDArray[Any]

SECTION = "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions"
NUM_WARPS = 4
ROWS = 64
WARP_ROWS = 16
POISON = np.uint32(0x7FDE7FDE)
"""In registers of D that are in flight: a NaN as FP32 and as two FP16."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What an opcode says.

    Attributes:
        n, k: of the instruction; M is 64.
        d_type: "f32", "f16" or "s32".
        a_type, b_type: "e4m3", "e5m2", "f16", "bf16", "tf32", "s8" or "u8".
        saturate: integers are held in range.
    """

    n: int
    k: int
    d_type: str
    a_type: str
    b_type: str
    saturate: bool = False

    @property
    def is_integer(self) -> bool:
        """Whether operands are integers."""
        return self.d_type == "s32"

    @property
    def element_bytes(self) -> int:
        """Bytes of an element of A and B."""
        return 32 // self.k

    @property
    def rule(self) -> Rule:
        """How products are added."""
        return rule_for("wgmma", self.a_type, "f16" if self.d_type == "f16" else "f32")


def accumulator_words(shape: Shape, offsets: list[int]) -> Array:
    """Places of a warp's share of D in its register file: [16, n], counted in words (FP16: in halves).

    Args:
        shape: of the instruction.
        offsets: byte at which each register of D begins.
    """
    lane = np.arange(32)
    places = np.empty((WARP_ROWS, shape.n), np.int64)
    for r, offset in enumerate(offsets):
        if shape.d_type == "f16":
            row = lane // 4 + 8 * (r % 2)
            for half in range(2):
                places[row, 8 * (r // 2) + 2 * (lane % 4) + half] = offset // 2 + 2 * lane + half
        else:
            row = lane // 4 + 8 * (r // 2 % 2)
            places[row, 8 * (r // 4) + 2 * (lane % 4) + r % 2] = offset // 4 + lane
    return places


def operand_places(shape: Shape, offsets: list[int]) -> Array:
    """Places of a warp's share of A in its register file: [16, k], counted in elements."""
    size = shape.element_bytes
    per_word = 4 // size
    lane = np.arange(32)
    places = np.empty((WARP_ROWS, shape.k), np.int64)
    for i, offset in enumerate(offsets):
        row = lane // 4 + 8 * (i % 2)
        for j in range(per_word):
            k = 4 * per_word * (i // 2) + per_word * (lane % 4) + j
            places[row, k] = (offset + 4 * lane) // size + j
    return places


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """An instruction made ready.

    Attributes:
        pc: its index.
        shape: from the opcode.
        d_places: see `accumulator_words`; d_registers: bytes at which the registers of D begin.
        a_places: see `operand_places`; None when A is in shared memory.
        negate_a, negate_b, transpose_a, transpose_b: immediates.
    """

    pc: int
    shape: Shape
    d_places: Array
    d_registers: tuple[int, ...]
    a_places: Array | None
    negate_a: bool = False
    negate_b: bool = False
    transpose_a: bool = False
    transpose_b: bool = False

    @property
    def d_dtype(self) -> type[np.unsignedinteger[Any]]:
        """Unsigned type of an element of D."""
        return np.uint16 if self.shape.d_type == "f16" else np.uint32


@dataclass(slots=True, eq=False)
class Accumulator:
    """D registers of a warpgroup that instructions in flight use.

    Attributes:
        plan: of an instruction that uses them (all of them name the same registers).
        matrix: [64, n] bits.
        outstanding: for each warp, instructions issued whose completion it has not waited for.
        returned: for each warp, how many wgmma.fence it had executed when its rows went back to registers; -1: never.
    """

    plan: Plan
    matrix: Array
    outstanding: list[int] = field(default_factory=lambda: [0] * NUM_WARPS)
    returned: list[int] = field(default_factory=lambda: [-1] * NUM_WARPS)


@dataclass(slots=True, eq=False)
class Collective:
    """An instruction that four warps issue.

    Attributes:
        plan: the instruction; a_raw, b_raw: descriptors (a_raw None: A in registers); scale_d: whether D is added.
        accumulator: its D.
        a_codes: [64, k], rows filled in as warps issue; only with A in registers.
        op: what runs; submitted when all have issued.
        missing: warps that have not issued.
    """

    plan: Plan
    a_raw: int | None
    b_raw: int
    scale_d: bool
    accumulator: Accumulator
    a_codes: Array | None
    op: AsyncOp
    missing: int = NUM_WARPS


@dataclass(slots=True, eq=False)
class Group:
    """A committed group of one warp: its instructions, and its number for the checker."""

    members: list[Collective]
    number: int


@dataclass(slots=True, eq=False)
class Member:
    """What one warp of a warpgroup has under way.

    `fenced` are its registers as its last wgmma.fence found them; kept for the checks.
    """

    issued: int = 0
    open: list[Collective] = field(default_factory=list)
    committed: deque[Group] = field(default_factory=deque)
    groups: int = 0
    fences: int = 0
    fenced: Array | None = None


class Warpgroup(Waitable):
    """Four warps and what they have issued."""

    def __init__(self, cta: Cta, index: int) -> None:
        """Nothing is issued."""
        super().__init__()
        self.cta = cta
        self.index = index
        self.members = [Member() for _ in range(NUM_WARPS)]
        self.waiting: deque[Collective] = deque()
        self.first_waiting = 0
        self.accumulators: dict[tuple[int, ...], Accumulator] = {}
        self.numbers: list[int] = []

    @property
    def chain(self) -> tuple[str, Cta, int]:
        """Key of its work for queues and the checker."""
        return ("wgmma", self.cta, self.index)

    def describe(self) -> str:
        """Say in words what is waited for."""
        pending = [collective for collective in self.waiting if collective.missing]
        if pending:
            return (
                f"wgmma of warpgroup {self.index} of {self.cta.name()}: {pending[0].missing} of its 4 warps have not "
                f"issued the instruction at PC {pending[0].plan.pc}"
            )
        return f"wgmma of warpgroup {self.index} of {self.cta.name()}"

    # --- issuing ---

    def issue(self, warp: Warp, plan: Plan, a_raw: int | None, b_raw: int, scale_d: bool) -> None:
        """Issue an instruction for `warp`; the fourth warp to do so starts it."""
        number = warp.index % NUM_WARPS
        member = self.members[number]
        place = member.issued - self.first_waiting
        if place == len(self.waiting):
            self.waiting.append(self._new(warp, plan, a_raw, b_raw, scale_d))
        collective = self.waiting[place]
        self._check_same(warp, collective, plan, a_raw, b_raw, scale_d)
        self._take_accumulator(warp, number, member, collective)
        if collective.a_codes is not None and plan.a_places is not None:
            codes = warp.regs.view(collective.a_codes.dtype)[plan.a_places]
            collective.a_codes[WARP_ROWS * number : WARP_ROWS * (number + 1)] = codes
            self._check_fenced(warp, member, plan, codes)
        self._join_clock(warp, collective)
        member.issued += 1
        member.open.append(collective)
        collective.missing -= 1
        while self.waiting and not self.waiting[0].missing:
            self.first_waiting += 1
            ready = self.waiting.popleft()
            self.cta.machine.submit(ready.op)

    def _new(self, warp: Warp, plan: Plan, a_raw: int | None, b_raw: int, scale_d: bool) -> Collective:
        accumulator = self.accumulators.get(plan.d_registers)
        if accumulator is None:
            accumulator = Accumulator(plan, np.zeros((ROWS, plan.shape.n), plan.d_dtype))
            self.accumulators[plan.d_registers] = accumulator
        a_codes = None
        if plan.a_places is not None:
            a_codes = np.zeros((ROWS, plan.shape.k), f"u{plan.shape.element_bytes}")
        op = AsyncOp(
            issuer=warp, kind="wgmma", pc=plan.pc, run=lambda: self._run(collective), queue=self.chain,
            nbytes=32 * plan.shape.n,
        )  # fmt: skip
        checks = self.cta.machine.checks
        if checks.enabled:
            op.access = checks.begin_async(warp, op, self.chain)
        collective = Collective(plan, a_raw, b_raw, scale_d, accumulator, a_codes, op)
        return collective

    def _join_clock(self, warp: Warp, collective: Collective) -> None:
        """What the operands need must have been seen by all four warps."""
        if not self.cta.machine.checks.enabled or warp is collective.op.issuer:
            return
        access, rows = collective.op.access, warp.clock.rows
        width = min(access.rows.shape[1], rows.shape[1])
        access.rows = np.minimum(access.rows[:, :width], rows[:, :width])
        warp.clock.tick()

    def _check_same(
        self, warp: Warp, collective: Collective, plan: Plan, a_raw: int | None, b_raw: int, scale_d: bool
    ) -> None:
        mine = (plan.pc, a_raw, b_raw, scale_d)
        theirs = (collective.plan.pc, collective.a_raw, collective.b_raw, collective.scale_d)
        if mine == theirs:
            return
        names = ("instruction", "descriptor of A", "descriptor of B", "scale-d")
        for name, one, other in zip(names, mine, theirs, strict=True):
            if one != other:
                shown = [
                    f"{value:#x}" if isinstance(value, int) and name != "scale-d" else value for value in (one, other)
                ]
                warp.machine.fault(
                    "non-uniform",
                    f"warp {warp.index} issues wgmma with {name} {shown[0]}, but warp {collective.op.issuer.index} of "
                    f"the same warpgroup with {shown[1]}: all four must agree.",
                    by=warp,
                    section=SECTION,
                )

    def _take_accumulator(self, warp: Warp, number: int, member: Member, collective: Collective) -> None:
        """Move D from the warp's registers to the accumulator, unless it is there already."""
        accumulator, plan = collective.accumulator, collective.plan
        if not accumulator.outstanding[number]:
            self._check_overlap(warp, number, accumulator)
            registers = warp.regs.view(plan.d_dtype)
            rows = accumulator.matrix[WARP_ROWS * number : WARP_ROWS * (number + 1)]
            values = registers[plan.d_places]
            returned = accumulator.returned[number]
            touched = returned < 0 or (returned == member.fences and (values != rows).any())
            if touched and member.fences == max(returned, 0):
                warp.machine.report(
                    "wgmma-fence",
                    "wgmma.mma_async uses accumulator registers that ordinary instructions have written, with no "
                    "wgmma.fence since.",
                    by=warp,
                    section=f"{SECTION}: wgmma.fence",
                )
            rows[:] = values
            registers[plan.d_places] = POISON.astype(plan.d_dtype)
        accumulator.outstanding[number] += 1

    def _check_fenced(self, warp: Warp, member: Member, plan: Plan, codes: Array) -> None:
        """Report registers of A that are not as the warp's last fence found them."""
        if member.fenced is not None and (codes != member.fenced.view(codes.dtype)[plan.a_places]).any():
            warp.machine.report(
                "wgmma-fence",
                "wgmma.mma_async takes A from registers that ordinary instructions have written, with no wgmma.fence "
                "since.",
                by=warp,
                section=f"{SECTION}: wgmma.fence",
            )

    def _check_overlap(self, warp: Warp, number: int, accumulator: Accumulator) -> None:
        mine = set(accumulator.plan.d_registers)
        for other in self.accumulators.values():
            if other is not accumulator and other.outstanding[number] and mine & set(other.plan.d_registers):
                warp.machine.fault(
                    "wgmma-registers",
                    f"wgmma.mma_async shares {len(mine & set(other.plan.d_registers))} accumulator registers with the "
                    f"one at PC {other.plan.pc}, which is in flight with other registers beside: wait for it first.",
                    by=warp,
                    section=SECTION,
                )

    # --- running ---

    def _run(self, collective: Collective) -> None:
        plan, shape, machine = collective.plan, collective.plan.shape, self.cta.machine
        op = collective.op
        b = self._from_shared(op, collective.b_raw, "B", shape.n, plan.transpose_b, plan.negate_b, shape.b_type)
        if collective.a_raw is not None:
            a = self._from_shared(op, collective.a_raw, "A", ROWS, plan.transpose_a, plan.negate_a, shape.a_type)
        else:
            assert collective.a_codes is not None
            a = self._from_registers(collective.a_codes, plan)
        accumulator = collective.accumulator.matrix
        old = accumulator if collective.scale_d else None
        if isinstance(a, Operand) and isinstance(b, Operand):
            numerics: Numerics = "exact" if machine.numerics == "exact" else "hardware"
            accumulator[:] = dot(a, b, old, shape.rule, numerics=numerics)
        else:
            accumulator[:] = integer_dot(a, b, old, saturate=shape.saturate)
        machine.counters.mmas += 1
        machine.counters.mma_flops += 2 * ROWS * shape.n * shape.k
        self.wake()

    def _from_shared(
        self, op: AsyncOp, raw: int, name: str, rows: int, transposed: bool, negate: bool, element: str
    ) -> Any:
        descriptor, problems = decode_sm90(raw)
        problems += layout_problems(descriptor, mn_major=transposed)
        self._report_descriptor(op, name, raw, descriptor, problems)
        size = {"f16": 2, "bf16": 2, "tf32": 4}.get(element, 1)
        addresses = operand_addresses(descriptor, rows, 32 // size, size, 32, mn_major=transposed)
        check_bounds(self.cta, op, name, addresses)
        note_read(self.cta, op, addresses)
        if element in ("s8", "u8"):
            codes = shared_bytes((self.cta,), addresses, rows, mn_major=False)
            return codes.view(np.int8 if element == "s8" else np.uint8)
        return shared_operand(
            (self.cta,), addresses, FORMATS[element], rows, packed=False, mn_major=transposed, negate=negate
        )

    def _report_descriptor(
        self, op: AsyncOp, name: str, raw: int, descriptor: MatrixDescriptor, problems: list[str]
    ) -> None:
        machine = self.cta.machine
        for problem in problems:
            machine.fault(
                "descriptor",
                f"descriptor of {name} {raw:#018x}: {problem}.",
                by=op,
                section=f"{SECTION}: Matrix Descriptor Format",
            )
        warning = phase_warning(descriptor)
        if warning:
            machine.report("descriptor", f"descriptor of {name} {raw:#018x}: {warning}.", by=op, severity="warning")

    def _from_registers(self, codes: Array, plan: Plan) -> Any:
        element = plan.shape.a_type
        if element in ("s8", "u8"):
            return codes.view(np.int8 if element == "s8" else np.uint8)
        return Operand(FORMATS[element], codes >> 13 if element == "tf32" else codes, negate=plan.negate_a)

    # --- waiting ---

    def fence(self, warp: Warp) -> None:
        """`wgmma.fence`."""
        member = self.members[warp.index % NUM_WARPS]
        member.fences += 1
        if self.cta.machine.checks.enabled:
            member.fenced = warp.regs.copy()

    def commit(self, warp: Warp) -> None:
        """`wgmma.commit_group`: close the warp's group; groups of four warps have one number."""
        member = self.members[warp.index % NUM_WARPS]
        if member.groups == len(self.numbers):
            checks = self.cta.machine.checks
            self.numbers.append(checks.commit_chain(warp, self.chain) if checks.enabled else member.groups)
        member.committed.append(Group(member.open, self.numbers[member.groups]))
        member.groups += 1
        member.open = []

    def wait(self, warp: Warp, allowed: int) -> Outcome:
        """`wgmma.wait_group`: park until all but the `allowed` latest groups of the warp are done."""
        number = warp.index % NUM_WARPS
        member = self.members[number]
        older = len(member.committed) - allowed
        for group in list(member.committed)[: max(older, 0)]:
            if not all(collective.op.done for collective in group.members):
                return Park((self,))
        checks = self.cta.machine.checks
        for _ in range(max(older, 0)):
            group = member.committed.popleft()
            if checks.enabled:
                checks.observe_chain(warp, self.chain, group.number)
            for collective in group.members:
                warp.advance_to(collective.op.finish_time)
                self._give_back(warp, number, collective)
        return None

    def _give_back(self, warp: Warp, number: int, collective: Collective) -> None:
        """Move D back to the warp's registers when nothing that it has issued uses it any more."""
        accumulator, plan = collective.accumulator, collective.plan
        self._check_sources(warp, number, collective)
        accumulator.outstanding[number] -= 1
        if accumulator.outstanding[number]:
            return
        accumulator.returned[number] = self.members[number].fences
        registers = warp.regs.view(plan.d_dtype)
        if (registers[plan.d_places] != POISON.astype(plan.d_dtype)).any():
            warp.machine.report(
                "wgmma-registers",
                "accumulator registers were written while wgmma.mma_async had them in flight: nothing may touch them "
                "before wgmma.wait_group.",
                by=warp,
                section=SECTION,
            )
        registers[plan.d_places] = accumulator.matrix[WARP_ROWS * number : WARP_ROWS * (number + 1)]

    def _check_sources(self, warp: Warp, number: int, collective: Collective) -> None:
        """Report registers of A that are no longer as they were when the instruction was issued."""
        codes, plan = collective.a_codes, collective.plan
        if codes is None or plan.a_places is None:
            return
        now = warp.regs.view(codes.dtype)[plan.a_places]
        if (now != codes[WARP_ROWS * number : WARP_ROWS * (number + 1)]).any():
            warp.machine.report(
                "wgmma-registers",
                f"registers of A were written while wgmma.mma_async (PC {plan.pc}) had them in flight: nothing may "
                "touch them before wgmma.wait_group.",
                by=warp,
                section=SECTION,
            )


def warpgroup_of(warp: Warp) -> Warpgroup:
    """Return the warpgroup of `warp`, made at its first use."""
    groups = warp.cta.scratch.setdefault("wgmma", {})
    index = warp.index // NUM_WARPS
    found: Warpgroup | None = groups.get(index)
    if found is None:
        if NUM_WARPS * (index + 1) > len(warp.cta.warps):
            warp.machine.fault(
                "argument",
                f"wgmma by warp {warp.index}, but {warp.cta.name()} has {len(warp.cta.warps)} warps: a warpgroup is "
                "four consecutive ones.",
                by=warp,
                section=SECTION,
            )
        found = groups[index] = Warpgroup(warp.cta, index)
    return found
