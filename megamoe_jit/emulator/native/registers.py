"""Where registers live in a warp's register file: 32 lanes side by side, one slot a register."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.native.context import NUM_LANES, WarpContext
from megamoe_jit.emulator.parser.nodes import Address, Function, Instruction, Not, Operand, Pair, Reg, Special, Vec

ALIGNMENT = 64
_WIDE_SPECIALS = {"%gridid", "%clock64", "%globaltimer", "%current_graph_exec"}
_PREDICATE_SPECIALS = {"%cc.cf", "%is_explicit_cluster"}
TIMERS = {
    "%clock": (4, 0), "%clock_hi": (4, 32), "%clock64": (8, 0),
    "%globaltimer": (8, 0), "%globaltimer_lo": (4, 0), "%globaltimer_hi": (4, 32),
}  # fmt: skip
"""Special registers that tell the time: (bytes, first bit of the 64-bit time). They have no slot."""


_VECTORS = (
    "tid", "ntid", "ctaid", "nctaid", "clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid",
)  # fmt: skip
_SCALARS = (
    "laneid", "warpid", "nwarpid", "smid", "nsmid", "gridid", "cluster_ctarank", "cluster_nctarank",
    "is_explicit_cluster", "dynamic_smem_size", "total_smem_size", "aggr_smem_size", "current_graph_exec",
    "reserved_smem_offset_begin", "reserved_smem_offset_end", "reserved_smem_offset_cap",
    "pm0", "pm1", "lanemask_eq", "lanemask_le", "lanemask_lt", "lanemask_ge", "lanemask_gt",
)  # fmt: skip
SPECIALS = frozenset(
    [f"%{name}.{axis}" for name in _VECTORS for axis in "xyz"]
    + [f"%{name}" for name in _SCALARS]
    + [f"%envreg{number}" for number in range(32)]
    + list(TIMERS)
)
"""Special registers that programs may read."""


class HasRegisters(Protocol):
    """A warp, as far as its registers are concerned."""

    @property
    def regs(self) -> npt.NDArray[np.uint8]:
        """The register file."""
        ...

    @property
    def ctx(self) -> WarpContext:
        """What native code sees of it."""
        ...


def special_width(name: str) -> int:
    """Return the bytes of a special register; 1 for a predicate."""
    if name in _PREDICATE_SPECIALS:
        return 1
    return 8 if name in _WIDE_SPECIALS or name.endswith("_64") else 4


def special_registers(function: Function) -> tuple[str, ...]:
    """Return the special registers that instructions of `function` name, in order of appearance."""
    return tuple(dict.fromkeys(name for instruction in function.instructions for name in specials_of(instruction)))


def specials_of(instruction: Instruction) -> Iterator[str]:
    """Yield the special registers that `instruction` names."""
    return (name for operand in instruction.operands for name in _specials(operand))


def _specials(operand: Operand | None) -> Iterator[str]:
    if isinstance(operand, Special):
        yield operand.name
    elif isinstance(operand, Vec):
        yield from (name for item in operand.items for name in _specials(item))
    elif isinstance(operand, Pair):
        yield from (name for item in (operand.first, operand.second) for name in _specials(item))
    elif isinstance(operand, Not):
        yield from _specials(operand.operand)
    elif isinstance(operand, Address):
        for item in (operand.base, operand.coords, *operand.extra):
            yield from _specials(item)


class RegisterLayout:
    """Places of a function's registers, and of the special registers that are constant for a thread.

    A slot is 32 lanes of the register's width (predicates: a byte, 0 or 1; b128: two 64-bit words, low half first), at
    a multiple of 64 bytes. Registers that are never wanted at the same time may share one, so that a register's lanes
    mean something only as long as the program may still read them.

    Attributes:
        nbytes: size of a register file.
        constants: names of the special registers that have a slot; who makes a warp fills it.
    """

    def __init__(
        self,
        function: Function,
        extra_specials: Iterable[str] = (),
        lifetimes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Place all registers of `function`, its special registers, and `extra_specials`.

        `lifetimes` has the first and the last PC at which each register is wanted; without it each has its own slot.
        """
        self._specials: dict[str, int] = {}
        self._offsets, end = _place(function.registers, lifetimes)
        for name in (*special_registers(function), *extra_specials):
            if name not in self._specials and name not in TIMERS:
                self._specials[name] = end
                end += _slot_bytes(special_width(name))
        self.nbytes = max(end, ALIGNMENT)

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of the special registers that have a slot."""
        return tuple(self._specials)

    def offset(self, reg: Reg) -> int:
        """Return the byte at which `reg` begins in the register file."""
        return self._offsets[reg.index]

    def special_offset(self, name: str) -> int:
        """Return the byte at which special register `name` (one of `constants`) begins."""
        return self._specials[name]

    def view(self, warp: HasRegisters, reg: Reg) -> npt.NDArray[Any]:
        """Return the lanes of `reg`, (32,) of its unsigned dtype (pred: uint8; b128: (32, 2) uint64), writable."""
        offset, width = self._offsets[reg.index], reg.width
        lanes = warp.regs[offset : offset + NUM_LANES * width]
        return lanes.view(np.uint64).reshape(NUM_LANES, 2) if width == 16 else lanes.view(f"u{width}")

    def special(self, warp: HasRegisters, name: str) -> npt.NDArray[Any]:
        """Return the lanes of a special register, (32,) unsigned; those that tell the time are made when asked."""
        timer = TIMERS.get(name)
        if timer is not None:
            width, shift = timer
            time = (int(warp.ctx.clock + warp.ctx.executed) >> shift) % (1 << 8 * width)
            return np.full(NUM_LANES, time, f"u{width}")
        offset, width = self._specials[name], special_width(name)
        return warp.regs[offset : offset + NUM_LANES * width].view(f"u{width}")

    def new_file(self) -> npt.NDArray[np.uint8]:
        """Return a register file of zeros, aligned as native code needs it."""
        return aligned_zeros(self.nbytes, ALIGNMENT)


def _place(registers: Sequence[Reg], lifetimes: Sequence[tuple[int, int]] | None) -> tuple[list[int], int]:
    """Return the offset of each register and where the last one ends."""
    offsets = [0] * len(registers)
    end = 0
    free: dict[tuple[int, bool], list[int]] = {}
    taken: list[tuple[int, tuple[int, bool], int]] = []  # heap of (last PC, kind of slot, offset)
    order = sorted(registers, key=lambda reg: lifetimes[reg.index][0]) if lifetimes else registers
    for reg in order:
        kind = (reg.width, reg.type == "pred")
        if lifetimes:
            first, last = lifetimes[reg.index]
            while taken and taken[0][0] < first:
                _, other, offset = heapq.heappop(taken)
                free.setdefault(other, []).append(offset)
            if free.get(kind):
                offsets[reg.index] = free[kind].pop()
                heapq.heappush(taken, (last, kind, offsets[reg.index]))
                continue
            heapq.heappush(taken, (last, kind, end))
        offsets[reg.index] = end
        end += _slot_bytes(reg.width)
    return offsets, end


def _slot_bytes(width: int) -> int:
    return -(-NUM_LANES * width // ALIGNMENT) * ALIGNMENT


def aligned_zeros(nbytes: int, alignment: int) -> npt.NDArray[np.uint8]:
    """Return zeros whose address is a multiple of `alignment`."""
    raw = np.zeros(nbytes + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + nbytes]
