"""atom and red: read-modify-write of global and shared memory, lane by lane in the order of lanes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.engines.copies import Bytes, Site
from megamoe_jit.emulator.engines.lanes import Addresses, check_alignment
from megamoe_jit.emulator.engines.reductions import Combine, accumulates, bits_dtype, combination, items_of
from megamoe_jit.emulator.isa import qualifiers
from megamoe_jit.emulator.isa.bulk import check_operands, site_of
from megamoe_jit.emulator.isa.decode import Decode, lanes_of
from megamoe_jit.emulator.isa.qualifiers import Qualifiers
from megamoe_jit.emulator.isa.scalars import address_of, scalar
from megamoe_jit.emulator.isa.table import handler
from megamoe_jit.emulator.machine.engine import Handler
from megamoe_jit.emulator.machine.outcome import Outcome, Yield
from megamoe_jit.emulator.machine.state import Place, Warp
from megamoe_jit.emulator.parser.nodes import Operand, RegOp, Sink
from megamoe_jit.errors import MemoryFault, UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.checks.interface import Scope, Semantics

Bits: TypeAlias = npt.NDArray[Any]

_SECTION = "Parallel Synchronization and Communication Instructions: "
_KINDS = {
    "semantics": "relaxed acquire release acq_rel",
    "scope": qualifiers.SCOPES,
    "space": "global shared shared::cta shared::cluster",
    "operation": "and or xor cas exch add inc dec min max",
    "subnormals": "noftz",
    "hint": qualifiers.CACHE_HINT,
    "vector": "v2 v4 v8",
    "type": "b16 b32 b64 b128 u32 u64 s32 s64 f32 f64 f16 f16x2 bf16 bf16x2",
}
_ATOM = Qualifiers("atom", _KINDS)
_RED = Qualifiers("red", _KINDS)

# Operation -> types of its scalar form.
_SCALAR = {
    "and": "b32 b64", "or": "b32 b64", "xor": "b32 b64",
    "exch": "b32 b64 b128", "cas": "b16 b32 b64 b128",
    "add": "u32 u64 s32 s64 f32 f64 f16 f16x2 bf16 bf16x2",
    "inc": "u32", "dec": "u32", "min": "u32 u64 s32 s64", "max": "u32 u64 s32 s64",
}  # fmt: skip
# Type -> (operations, vectors) of its vector form.
_VECTOR = {
    "f32": ("add", "v2 v4"),
    **dict.fromkeys(("f16", "bf16"), ("add min max", "v2 v4 v8")),
    **dict.fromkeys(("f16x2", "bf16x2"), ("add min max", "v2 v4")),
}
_HALVES = ("f16", "f16x2", "bf16", "bf16x2")
_LARGEST_SPAN = 1 << 32
_FIRST = np.zeros(1, np.intp)


def refuse_form(found: dict[str, str], *, returns: bool) -> str | None:
    """Return why there is no such instruction, None where there is one."""
    operation, type_, vector = found["operation"], found["type"], found["vector"]
    if not operation or not type_:
        return "an operation and a type are missing"
    if vector:
        operations, vectors = _VECTOR.get(type_, ("", ""))
        if operation not in operations.split() or vector not in vectors.split():
            return f".{operation} has no .{vector}.{type_} form"
        if found["space"] not in ("", "global"):
            return f"vectors are in global memory, not in .{found['space']}"
    elif type_ not in _SCALAR[operation].split():
        return f".{operation} takes no .{type_}"
    if (type_ in _HALVES) != bool(found["subnormals"]):
        return ".noftz belongs to f16 and bf16 types, and to no other"
    if not returns and (operation in ("cas", "exch") or found["semantics"] in ("acquire", "acq_rel")):
        return f"red has no .{operation} with .{found['semantics'] or 'relaxed'}"
    return None


@handler(_ATOM.pattern, section=f"{_SECTION}atom", where=_ATOM.matches)
def atom(d: Decode) -> Handler:
    """Combine with memory and return what was there."""
    return _atomic(d, _ATOM.of(d.form), returns=True)


@handler(_RED.pattern, section=f"{_SECTION}red", where=_RED.matches)
def red(d: Decode) -> Handler:
    """Combine with memory."""
    return _atomic(d, _RED.of(d.form), returns=False)


def _atomic(d: Decode, found: dict[str, str], *, returns: bool) -> Handler:
    reason = refuse_form(found, returns=returns)
    if reason is not None:
        raise UnsupportedError(f"{d.form.opcode}: {reason}.")
    operation, type_ = found["operation"], found["type"]
    is_cas = operation == "cas"
    check_operands(d, 2 + returns + is_cas + bool(found["hint"]))
    lanes = int(found["vector"][1:]) if found["vector"] else 1
    if type_ == "b128":
        return _wide_atomic(d, found)
    dtype = bits_dtype(type_)
    per_lane = lanes * items_of(type_)
    size = per_lane * dtype.itemsize
    storage = np.dtype(f"u{items_of(type_) * dtype.itemsize}")
    addresses = d.address(int(returns))
    operands = d.values(1 + returns, storage)
    others = d.values(2 + returns, storage) if is_cas else None
    if len(d.items(1 + returns)) != lanes or (returns and len(d.items(0)) not in (1, lanes)):
        raise UnsupportedError(f"{d.instruction.text}: {d.form.opcode} takes vectors of {lanes}.")
    wants_result = returns and not isinstance(d.operand(0), Sink)
    write = d.write_many(0, storage) if wants_result else None
    target = _Target(d, found, size, operation, type_)
    single = _single_lane(d, target, operation, type_, returns=returns) if not found["vector"] else None

    def execute(warp: Warp, mask: int) -> Outcome:
        if single is not None and mask & (mask - 1) == 0:
            return single(warp, mask)
        where = lanes_of(mask)
        values = _by_lane(operands(warp), where, dtype)
        swaps = _by_lane(others(warp), where, dtype) if others else None
        old, changed = target.apply(warp, addresses(warp)[where], values, swaps)
        if write is not None:
            full = np.zeros((32, lanes), storage)
            full[where] = old.view(storage)
            write(warp, mask, full.T)
            return None if changed else spins(warp, target.site.pc, mask, old.tobytes())
        return None

    return execute


def _single_lane(d: Decode, target: _Target, operation: str, type_: str, *, returns: bool) -> Handler | None:
    """Make the handler for one lane, in Python integers; None where there is none (floats, other widths)."""
    compute = _INTEGERS.get(operation)
    destination = d.operand(0)
    if compute is None or type_[0] == "f" or type_ in _HALVES:
        return None
    if returns and not isinstance(destination, Sink) and not _has_width(destination, target.size):
        return None
    size, space, site = target.size, target.space, target.site
    cell = _FORMATS[size]
    address = address_of(d, int(returns))
    value = scalar(d, d.items(1 + returns)[0], size)
    swap = scalar(d, d.items(2 + returns)[0], size) if operation == "cas" else value
    signed, wrap = type_[0] == "s", (1 << 8 * size) - 1
    sign = 1 << (8 * size - 1)
    layout: Any = d.layout
    start = int(layout.offset(destination.reg)) if returns and isinstance(destination, RegOp) else -1

    def execute(warp: Warp, mask: int) -> Outcome:
        lane = mask.bit_length() - 1
        where = address(warp, lane)
        if where % size:
            site.refuse(warp, f"Access address 0x{where:x} is no multiple of {size}.", kind="misaligned")
        memory: Any
        memory, place = warp.machine.resolve(warp, where, space, size, write=True, align=size, lane=lane)
        target.tell(warp, place)
        old, operand = cell.unpack_from(memory)[0], value(warp, lane)
        if signed:
            new = compute((old ^ sign) - sign, (operand ^ sign) - sign, 0) & wrap
        else:
            new = compute(old, operand, swap(warp, lane)) & wrap
        cell.pack_into(memory, 0, new)
        if start < 0:
            return None
        regs: Any = warp.regs
        cell.pack_into(regs, start + lane * size, old)
        return None if new != old else spins(warp, site.pc, mask, old)

    return execute


def _has_width(operand: Operand, size: int) -> bool:
    return isinstance(operand, RegOp) and operand.reg.width == size


_FORMATS = {2: struct.Struct("<H"), 4: struct.Struct("<I"), 8: struct.Struct("<Q")}
# Old value, operand, and what a compare-and-swap swaps in.
_INTEGERS: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda old, value, _: old + value,
    "and": lambda old, value, _: old & value,
    "or": lambda old, value, _: old | value,
    "xor": lambda old, value, _: old ^ value,
    "exch": lambda _, value, __: value,
    "min": lambda old, value, _: min(old, value),
    "max": lambda old, value, _: max(old, value),
    "inc": lambda old, value, _: 0 if old >= value else old + 1,
    "dec": lambda old, value, _: value if old == 0 or old > value else old - 1,
    "cas": lambda old, value, swap: swap if old == value else old,
}


def spins(warp: Warp, pc: int, mask: int, old: object) -> Outcome:
    """Let others run when an atomic that changed nothing finds what it found the last time: it polls."""
    seen = (mask, old)
    if warp.polls.get(pc) == seen:
        return Yield(spin=True)
    warp.polls[pc] = seen
    return None


def _by_lane(values: Bits, lanes: Bits, dtype: np.dtype[Any]) -> Bits:
    """Return operands (items, 32) as (lanes, values of `dtype`)."""
    return np.ascontiguousarray(values[:, lanes].T).view(dtype)


class _Target:
    """What an atomic does to memory.

    Attributes:
        size: bytes of one lane's access.
    """

    def __init__(self, d: Decode, found: dict[str, str], size: int, operation: str, type_: str) -> None:
        self.size = size
        self.site: Site = site_of(d)
        space = found["space"]
        self.space = {"": "generic", "shared::cta": "shared"}.get(space, space)
        self.semantics: Semantics = found["semantics"] or "relaxed"  # type: ignore[assignment]
        self.scope: Scope = found["scope"] or "gpu"  # type: ignore[assignment]
        self.dtype = bits_dtype(type_)
        self.is_cas = operation == "cas"
        self.combine: Combine = combination("exch" if self.is_cas else operation, type_)
        self.combine_global = self.combine
        if operation == "add" and type_ in ("f32", "f64"):  # done elsewhere than those in shared memory
            self.combine_global = combination(operation, type_, flushes=True, keeps_nan=True)
        self.accumulate = None if self.is_cas else accumulates(operation, type_)

    def apply(self, warp: Warp, addresses: Addresses, values: Bits, swaps: Bits | None) -> tuple[Bits, bool]:
        """Combine `values` (lanes, items) with memory; returns what each lane found, and whether anything changed."""
        check_alignment(warp, self.site, addresses, self.size, "Access")
        if len(addresses) > 1:
            together = self._resolve_all(warp, addresses)
            if together is not None:
                memory, low, is_global = together
                index = ((addresses - np.uint64(low)) // np.uint64(self.size)).astype(np.intp)
                return self._apply(memory, index, values, swaps, is_global)
        old, changed = np.empty_like(values), False
        for lane, address in enumerate(addresses.tolist()):
            memory, place = warp.machine.resolve(warp, address, self.space, self.size, write=True, align=self.size)
            self.tell(warp, place)
            one = slice(lane, lane + 1)
            swap = None if swaps is None else swaps[one]
            old[one], other = self._apply(memory, _FIRST, values[one], swap, place.kind == "global")
            changed |= other
        return old, changed

    def _resolve_all(self, warp: Warp, addresses: Addresses) -> tuple[Bytes, int, bool] | None:
        """Look the memory of all lanes up at once, where it lies in one allocation or in one CTA's shared memory."""
        low, high = int(addresses.min()), int(addresses.max()) + self.size
        if high - low > _LARGEST_SPAN:
            return None
        try:
            memory, place = warp.machine.resolve(warp, low, self.space, high - low, write=True, align=self.size)
        except MemoryFault:
            return None
        if warp.machine.checks.enabled:
            for address in dict.fromkeys(addresses.tolist()):
                self.tell(warp, Place(place.kind, place.cta, place.start + address - low))
        return memory, low, place.kind == "global"

    def tell(self, warp: Warp, place: Place) -> None:
        """Report places that atomics do not take, and tell the checker."""
        if place.kind not in ("global", "shared"):
            self.site.refuse(warp, f"Atomics take global and shared memory, not {place.kind} memory.")
        warp.machine.checks.atomic(warp, place, self.size, self.semantics, self.scope)

    def _apply(
        self, memory: Bytes, index: Bits, values: Bits, swaps: Bits | None, is_global: bool
    ) -> tuple[Bits, bool]:
        cells = memory.view(self.dtype).reshape(-1, values.shape[1])
        combine = self.combine_global if is_global else self.combine
        if len(index) > 1 and (index == index[0]).all() and self.accumulate is not None and values.shape[1] == 1:
            return self._accumulate(cells, int(index[0]), values)
        if len(index) == 1 or len(np.unique(index)) == len(index):
            return self._combine(cells, index, values, swaps, combine)
        old, changed = np.empty_like(values), False
        for lane in range(len(index)):
            one = slice(lane, lane + 1)
            swap = None if swaps is None else swaps[one]
            old[one], other = self._combine(cells, index[one], values[one], swap, combine)
            changed |= other
        return old, changed

    def _combine(
        self, cells: Bits, index: Bits, values: Bits, swaps: Bits | None, combine: Combine
    ) -> tuple[Bits, bool]:
        old: Bits = cells[index]
        new = combine(old, values) if swaps is None else np.where(old == values, swaps, old)
        cells[index] = new
        return old, bool((new != old).any())

    def _accumulate(self, cells: Bits, at: int, values: Bits) -> tuple[Bits, bool]:
        """Apply all lanes to one cell."""
        assert self.accumulate is not None
        chain = self.accumulate.accumulate(np.concatenate((cells[at], values[:, 0])), dtype=self.dtype)
        changed = bool(chain[-1] != chain[0])
        cells[at, 0] = chain[-1]
        return chain[:-1, None], changed


def _wide_atomic(d: Decode, found: dict[str, str]) -> Handler:
    """Exchange, or compare and swap, 16 bytes."""
    read: list[Callable[[Warp], Bits]] = [
        _wide_reader(d, index) for index in range(2, 3 + (found["operation"] == "cas"))
    ]
    destination, layout = d.operand(0), d.layout
    if not isinstance(destination, Sink) and not (isinstance(destination, RegOp) and destination.reg.width == 16):
        raise UnsupportedError(f"{d.instruction.text}: the destination must be a .b128 register.")
    addresses, target = d.address(1), _Target(d, found, 16, "exch", "b64")

    def execute(warp: Warp, mask: int) -> Outcome:
        values = [reader(warp).copy() for reader in read]
        found_old = np.zeros((32, 2), np.uint64)
        changed = False
        for lane in lanes_of(mask).tolist():
            check_alignment(warp, target.site, addresses(warp)[lane : lane + 1], 16, "Access")
            memory, place = warp.machine.resolve(
                warp, int(addresses(warp)[lane]), target.space, 16, write=True, align=16
            )
            target.tell(warp, place)
            cell = memory.view(np.uint64)
            found_old[lane] = old = cell.copy()
            if len(values) == 1 or (old == values[0][lane]).all():
                cell[:] = values[-1][lane]
            changed |= bool((cell != old).any())
            if isinstance(destination, RegOp):
                layout.view(warp, destination.reg)[lane] = old
        return None if changed else spins(warp, target.site.pc, mask, found_old.tobytes())

    return execute


def _wide_reader(d: Decode, index: int) -> Callable[[Warp], Bits]:
    """Read a .b128 register as (32, 2) uint64."""
    operand, layout = d.operand(index), d.layout
    if not isinstance(operand, RegOp) or operand.reg.width != 16:
        raise UnsupportedError(f"{d.instruction.text}: operand {index} must be a .b128 register.")
    reg = operand.reg
    return lambda warp: layout.view(warp, reg)
