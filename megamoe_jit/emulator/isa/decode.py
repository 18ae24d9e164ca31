"""From an instruction to values: typed operands for engines (`signature`), arrays of lanes for handlers (`Decode`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.isa.lanes import Calc, Lanes
from megamoe_jit.emulator.isa.ops import BITS, VALUE_TYPE, Ops, V
from megamoe_jit.emulator.isa.table import Form, Op
from megamoe_jit.emulator.parser.nodes import (
    Address,
    Function,
    Imm,
    Instruction,
    Not,
    Operand,
    Pair,
    PtxModule,
    Reg,
    RegOp,
    Sink,
    Special,
    Symbol,
    Vec,
)
from megamoe_jit.errors import UnsupportedError

if TYPE_CHECKING:
    from megamoe_jit.emulator.machine.state import Warp
else:
    Warp = Any

Array: TypeAlias = npt.NDArray[Any]
Reader: TypeAlias = Callable[[Warp], Array]
Writer: TypeAlias = Callable[[Warp, int, Any], None]

NUM_LANES = 32
CARRY = Special(name="%cc.cf")
"""The condition code's carry flag: a pseudo special register of type pred, one slot in a function that uses it."""


@dataclass(frozen=True, slots=True)
class Typed:
    """An operand and the PTX type that the form reads or writes it as."""

    operand: Operand
    type: str


@dataclass(frozen=True, slots=True)
class Signature:
    """Flattened operands of a pure instruction.

    Rules for engines. Vectors and pairs are given item by item. Types have `VALUE_TYPE`s; "b128" stands for two i64
    values, low half first. A register wider than the type is read by its low bits; a destination register wider than
    the type is filled by sign extension for s types, by zeros for others; else bits are kept as they are. An integer
    immediate is taken modulo 2**bits, for a float type as the nearest float; a float immediate is rounded to the type
    it is used as (`immediate_bits` does both). Results for Sink destinations are dropped. CARRY is a pred like others.
    """

    op: Op
    dst: tuple[Typed, ...]
    src: tuple[Typed, ...]

    def apply(self, ops: Ops, values: Sequence[V]) -> tuple[V, ...]:
        """Evaluate on values of engine `ops`, one for each source ("b128": two), and give those of the destinations."""
        lanes = [Lanes(ops, value, bits) for value, bits in zip(values, self._known(), strict=True)]
        result = self.op.function(Calc(ops), self.op.form, *lanes)
        results = result if isinstance(result, tuple) else (result,)
        # A form gives all it can: the predicate of `shfl` also where the instruction has no place for it.
        wanted = sum(2 if typed.type == "b128" else 1 for typed in self.dst)
        if len(results) < wanted:
            raise UnsupportedError(f"{self.op.form.opcode} gives {len(results)} values, not {wanted}.")
        if self.op.row.carry_out:
            results = (*results[: wanted - 1], results[-1])
        return tuple(lane.raw for lane in results[:wanted])

    def _known(self) -> tuple[int | None, ...]:
        """Bits of sources that are immediates, for which some forms have a shorter formula."""
        found: list[int | None] = []
        for typed in self.src:
            if typed.type == "b128":
                found += [None, None]
            elif isinstance(typed.operand, Imm):
                found.append(immediate_bits(typed.operand, typed.type))
            else:
                found.append(None)
        return tuple(found)


def flatten(operand: Operand) -> tuple[Operand, ...]:
    """Return the items of a vector or pair, or the operand itself."""
    if isinstance(operand, Vec):
        return tuple(part for item in operand.items for part in flatten(item))
    if isinstance(operand, Pair):
        return (*flatten(operand.first), *flatten(operand.second))
    return (operand,)


def signature(op: Op, instruction: Instruction) -> Signature:
    """Return the typed operands of a pure instruction; raises UnsupportedError when their number is wrong."""
    if not instruction.operands:
        raise UnsupportedError(f"{instruction.text} has no operands.")
    outputs = flatten(instruction.operands[0])
    inputs = tuple(part for operand in instruction.operands[1:] for part in flatten(operand))
    op = Op(op.row, replace(op.form, outputs=len(outputs)))
    dst = [Typed(*pair) for pair in zip(outputs, op.dst_types(len(outputs)), strict=True)]
    src = [Typed(*pair) for pair in zip(inputs, op.src_types(len(inputs)), strict=True)]
    for typed in (*dst, *src):
        if typed.type != "b128" and typed.type not in VALUE_TYPE:
            raise UnsupportedError(f"{instruction.text} has an operand of type {typed.type}, which has no value type.")
    if op.row.carry_out:
        dst.append(Typed(CARRY, "pred"))
    if op.row.carry_in:
        src.append(Typed(CARRY, "pred"))
    return Signature(op, tuple(dst), tuple(src))


@functools.lru_cache(maxsize=4096)
def lanes_of(mask: int) -> Array:
    """Return the numbers of the lanes in `mask`, ascending; read-only, as it is kept."""
    lanes = np.flatnonzero((mask >> np.arange(NUM_LANES)) & 1)
    lanes.flags.writeable = False
    return lanes


def one_lane(mask: int) -> int:
    """Return the lowest lane of `mask`, which must have one."""
    assert mask, "a handler is not called without lanes"
    return (mask & -mask).bit_length() - 1


class Layout(Protocol):
    """Where registers live: what `native/registers.RegisterLayout` offers and this module needs."""

    def view(self, warp: Warp, reg: Reg) -> Array:
        """Return the lanes of `reg` as (32,) of its unsigned dtype (pred: uint8; b128: (32, 2) uint64), writable."""

    def special(self, warp: Warp, name: str) -> Array:
        """Return the lanes of a special register as (32,) unsigned, of its PTX width."""


Symbols: TypeAlias = Callable[[Warp, str], int]
"""Gives the address of a symbol: shared u32 for shared variables, LOCAL_WINDOW plus the offset in the frame for local
ones, host address for global, const and param."""


class Decode:
    """What a handler asks about its instruction once, at load time; the answers are called at each execution.

    Attributes:
        instruction: the instruction.
        form: how the table's row reads its opcode.
        op: the row and the form.
        function: the function it is in.
        module: the module that is in.
        layout: where registers live.
    """

    __slots__ = ("_symbols", "form", "function", "instruction", "layout", "module", "op")

    def __init__(
        self, instruction: Instruction, op: Op, function: Function, module: PtxModule, layout: Layout, symbols: Symbols
    ) -> None:
        """Decode `instruction` of `function`, whose registers live where `layout` says."""
        self.instruction = instruction
        self.op = op
        self.form: Form = op.form
        self.function = function
        self.module = module
        self.layout = layout
        self._symbols = symbols

    @property
    def pc(self) -> int:
        """Index of the instruction."""
        return self.instruction.index

    @property
    def count(self) -> int:
        """Number of operands."""
        return len(self.instruction.operands)

    def operand(self, index: int) -> Operand:
        """Return operand `index`; raises UnsupportedError when the instruction has fewer."""
        try:
            return self.instruction.operands[index]
        except IndexError:
            raise UnsupportedError(
                f"{self.instruction.text} has no operand {index}, which {self.form.opcode} needs."
            ) from None

    def items(self, index: int) -> tuple[Operand, ...]:
        """Return the items of vector operand `index` (of a scalar: itself)."""
        return flatten(self.operand(index))

    def value(self, index: int, dtype: npt.DTypeLike) -> Reader:
        """Read operand `index` as (32,) of `dtype`, a copy or a view.

        Equal widths keep the bits; a narrower dtype takes the low bits; a wider one is filled as the register's type
        says.
        """
        return self.reader(self.operand(index), dtype)

    def values(self, index: int, dtype: npt.DTypeLike) -> Reader:
        """Read the items of vector operand `index` (a scalar counts as one item) as (n, 32) of `dtype`."""
        readers = [self.reader(item, dtype) for item in self.items(index)]
        return lambda warp: np.stack([read(warp) for read in readers])

    def address(self, index: int) -> Reader:
        """Read `[base + offset]` of operand `index` as (32,) uint64; no translation between spaces.

        A 32-bit base is taken without sign and the sum wraps at the base's width.
        """
        operand = self.operand(index)
        if not isinstance(operand, Address):
            return self.value(index, np.uint64)
        if operand.base is None:
            constant = np.full(NUM_LANES, operand.offset % 2**64, np.uint64)
            return lambda _: constant
        narrow = isinstance(operand.base, RegOp) and operand.base.reg.width == 4
        dtype = np.dtype(np.uint32 if narrow else np.uint64)
        read = self.reader(operand.base, dtype)
        if not operand.offset:
            return lambda warp: read(warp).astype(np.uint64)
        offset = np.array(operand.offset % (1 << (8 * dtype.itemsize)), dtype)
        return lambda warp: (read(warp) + offset).astype(np.uint64)

    def coords(self, index: int) -> Reader:
        """Read the coordinates of `[map, {x, y}]` as (n, 32) int32."""
        operand = self.operand(index)
        if not isinstance(operand, Address) or operand.coords is None:
            raise UnsupportedError(f"{self.instruction.text}: operand {index} has no coordinates.")
        readers = [self.reader(item, np.int32) for item in operand.coords.items]
        return lambda warp: np.stack([read(warp) for read in readers])

    def predicate(self, index: int) -> Reader:
        """Read predicate operand `index` (`p`, `!p`, or an immediate) as (32,) bool."""
        read = self.reader(self.operand(index), np.uint8)
        return lambda warp: read(warp) != 0

    def reader(self, operand: Operand, dtype: npt.DTypeLike) -> Reader:
        """Read any scalar operand as (32,) of `dtype`; `value` says how widths meet."""
        dtype = np.dtype(dtype)
        if isinstance(operand, RegOp):
            reg = operand.reg
            view = self.layout.view
            if reg.width == 16:
                if dtype.itemsize != 8:
                    raise UnsupportedError(f"{self.instruction.text}: {reg.name} is read as {dtype} items.")
                return lambda warp: view(warp, reg)[:, 0].view(dtype)
            return _resized(lambda warp: view(warp, reg), reg.width, reg.type, dtype)
        if isinstance(operand, Imm):
            constant = np.full(NUM_LANES, immediate(operand, dtype), dtype)
            return lambda _: constant
        if isinstance(operand, Special):
            name, special = operand.name, self.layout.special
            return lambda warp: _converted(special(warp, name), "u", dtype)
        if isinstance(operand, Symbol):
            name, offset, symbols = operand.name, operand.offset, self._symbols
            mask = 2 ** (8 * dtype.itemsize) - 1
            return lambda warp: np.full(NUM_LANES, (symbols(warp, name) + offset) & mask).astype(dtype)
        if isinstance(operand, Not):
            inner = self.reader(operand.operand, np.uint8)
            return lambda warp: (inner(warp) == 0).astype(dtype)
        if isinstance(operand, Address) and operand.coords is None and operand.base is not None and not operand.offset:
            return self.reader(operand.base, dtype)
        raise UnsupportedError(f"{self.instruction.text}: a {type(operand).__name__} cannot be read as {dtype}.")

    def write(self, index: int, dtype: npt.DTypeLike) -> Writer:
        """Write `values` ((32,) or a scalar, of `dtype`) to the lanes of a mask in operand `index`; `_` drops them."""
        return self.writer(self.operand(index), dtype)

    def write_many(self, index: int, dtype: npt.DTypeLike) -> Writer:
        """Write (n, 32) `values` to the n items of vector operand `index`."""
        writers = [self.writer(item, dtype) for item in self.items(index)]

        def write(warp: Warp, mask: int, values: Any) -> None:
            for writer, value in zip(writers, values, strict=True):
                writer(warp, mask, value)

        return write

    def writer(self, operand: Operand, dtype: npt.DTypeLike) -> Writer:
        """Write any scalar destination; `write` says how."""
        dtype = np.dtype(dtype)
        if isinstance(operand, Sink):
            return lambda warp, mask, values: None  # noqa: ARG005
        if not isinstance(operand, RegOp):
            raise UnsupportedError(f"{self.instruction.text}: a {type(operand).__name__} cannot be written.")
        reg, view = operand.reg, self.layout.view
        own = np.dtype(f"u{min(reg.width, 8)}")
        kind = "s" if dtype.kind == "i" else "u"
        if reg.width == 16:
            raise UnsupportedError(f"{self.instruction.text}: {reg.name} has 128 bits, which a handler cannot write.")

        def write(warp: Warp, mask: int, values: Any) -> None:
            lanes = lanes_of(mask)
            array = np.broadcast_to(np.asarray(values).astype(dtype, copy=False), (NUM_LANES,))
            view(warp, reg)[lanes] = _converted(array, kind, own)[lanes]

        return write


def immediate_bits(operand: Imm, type: str) -> int:
    """Return the bits of a constant used as PTX type `type`."""
    value = VALUE_TYPE[type]
    if value == "i1":
        return int(bool(operand.value))
    width = BITS[value] // 8
    return int(immediate(operand, f"f{width}" if value[0] == "f" else f"u{width}").view(f"u{width}"))


def immediate(operand: Imm, dtype: npt.DTypeLike) -> Any:
    """Return a constant as a scalar of `dtype`: integers modulo its width, floats by their bits where widths agree."""
    dtype = np.dtype(dtype)
    if operand.is_float:
        if operand.bits is not None and operand.size == dtype.itemsize:
            return np.array(operand.bits, f"u{operand.size}").view(dtype)[()]
        if dtype.kind == "f":
            return np.array(operand.value, dtype)[()]
        bits = np.array(operand.value, f"f{dtype.itemsize}") if dtype.itemsize >= 2 else np.array(operand.bits or 0)
        return bits.view(dtype)[()] if bits.dtype.itemsize == dtype.itemsize else bits.astype(dtype)[()]
    if dtype.kind == "f":
        return np.array(operand.value, dtype)[()]
    width = 8 * dtype.itemsize
    return np.array(int(operand.value) % (1 << width), f"u{dtype.itemsize}").view(dtype)[()]


def _resized(read: Reader, width: int, reg_type: str, dtype: np.dtype[Any]) -> Reader:
    """Read a register's lanes, `width` bytes each, as `dtype`."""
    if width == dtype.itemsize:
        return lambda warp: read(warp).view(dtype)
    kind = reg_type[0]
    return lambda warp: _converted(read(warp), kind, dtype)


def _converted(values: Array, kind: str, dtype: np.dtype[Any]) -> Array:
    """Return bit patterns of `values` cut or filled to the width of `dtype`; kind "s" fills with the sign."""
    size = values.dtype.itemsize
    if size != dtype.itemsize:
        letter = "i" if kind == "s" else "u"
        values = values.view(f"{letter}{size}").astype(f"{letter}{dtype.itemsize}")
    return values.view(dtype)
