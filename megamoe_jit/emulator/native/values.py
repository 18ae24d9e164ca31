"""Registers and operands of a kernel that is being generated.

Within a block a register is an SSA value; between blocks it is in its slot. What is still wanted afterwards is written
back at the block's end, for the lanes of the group only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from megamoe_jit.emulator.isa.decode import immediate_bits
from megamoe_jit.emulator.isa.ops import BITS, VALUE_TYPE
from megamoe_jit.emulator.memory.spaces import LOCAL_WINDOW, RANK_SHIFT
from megamoe_jit.emulator.native.fields import Fields
from megamoe_jit.emulator.native.ir import Body, Val, element_of, vector
from megamoe_jit.emulator.native.ops import LANES, LlvmOps
from megamoe_jit.emulator.native.registers import TIMERS, RegisterLayout, special_width
from megamoe_jit.emulator.parser.nodes import (
    Address,
    Function,
    Imm,
    Instruction,
    Not,
    Operand,
    Reg,
    RegOp,
    Sink,
    Special,
    Symbol,
)
from megamoe_jit.errors import UnsupportedError

SCRATCH_BYTES = 512


@dataclass(slots=True)
class _Dirty:
    """A value that its slot does not have yet."""

    value: Val
    index: int | None
    """Of the register; None for a special register, which is always wanted."""


class Values:
    """Reads and writes operands, at the end of the function `f`."""

    def __init__(
        self, f: Body, ctx: Fields, function: Function, layout: RegisterLayout, symbols: Sequence[str]
    ) -> None:
        """Start without a block; `symbols` are the names in the program's table of addresses."""
        self.f = f
        self.ctx = ctx
        self.function = function
        self.layout = layout
        self.ops = LlvmOps(f, self.active)
        self._symbols = {name: index for index, name in enumerate(symbols)}
        self._regs = ctx.pointer("regs")
        self._symbol_table = ctx.pointer("symbols")
        self._scratch: list[Val] = []
        self.begin()

    def begin(self) -> None:
        """Begin a block: nothing is known of any register."""
        self._clean: dict[int, Val] = {}
        self._dirty: dict[int, _Dirty] = {}
        self._guard: Val | None = None
        self.forget_mask()

    def forget_mask(self) -> None:
        """The group has changed."""
        self._mask: Val | None = None
        self._lanes: Val | None = None

    # --- lanes ---

    @property
    def mask(self) -> Val:
        """The group, as i32."""
        if self._mask is None:
            self._mask = self.ctx.get("mask")
        return self._mask

    def active(self) -> Val:
        """Lanes that execute the current instruction, as i1."""
        if self._lanes is None:
            self._lanes = self.mask.bitcast(LANES["i1"])
        return self._lanes if self._guard is None else self.ops.and_(self._lanes, self._guard)

    def executing(self) -> Val:
        """Lanes that execute the current instruction, as i32."""
        return self.mask if self._guard is None else self._guard.bitcast("i32") & self.mask

    def set_guard(self, instruction: Instruction) -> bool:
        """Begin an instruction; returns whether it has a guard."""
        self._guard = None
        if instruction.guard is not None:
            reg, negated = instruction.guard
            condition = self.read(reg)
            self._guard = self.ops.not_(condition) if negated else condition
        return self._guard is not None

    # --- registers ---

    def slot(self, offset: int) -> Val:
        """Return the address of a slot."""
        return self._regs.at(offset)

    def read(self, reg: Reg) -> Val:
        """Return a register: integers of its width, i1 for a predicate. Not for b128."""
        return self._read(self.layout.offset(reg), "i1" if reg.type == "pred" else f"i{8 * reg.width}")

    def _read(self, offset: int, type: str) -> Val:
        if offset in self._dirty:
            return self._dirty[offset].value
        value = self._clean.get(offset)
        if value is None:
            value = self._clean[offset] = self._load(self.slot(offset), type)
        return value

    def _load(self, address: Val, type: str) -> Val:
        if type == "i1":
            return address.load(LANES["i8"], 32).ne(0)
        return address.load(LANES[type], 64)

    def _store(self, address: Val, value: Val) -> None:
        address.store(value.zext(LANES["i8"]) if value.type == LANES["i1"] else value, 32)

    def write(self, reg: Reg, value: Val) -> None:
        """Give a register a new value, in the lanes that execute."""
        offset = self.layout.offset(reg)
        if self._guard is not None:
            value = self.ops.select(self._guard, value, self.read(reg))
        self._dirty[offset] = _Dirty(value, reg.index)

    def slot_for_loading(self, reg: Reg) -> Val:
        """Return the slot of a register that native code outside is about to write for the lanes that execute."""
        offset = self.layout.offset(reg)
        if self._guard is not None:
            self._flush([offset])
        self._dirty.pop(offset, None)
        self._clean.pop(offset, None)
        return self.slot(offset)

    def place(self, reg: Reg, index: int) -> Val:
        """Return the address of a register's lanes: its slot, or scratch memory `index` when the slot is stale."""
        offset = self.layout.offset(reg)
        if offset not in self._dirty:
            return self.slot(offset)
        return self.spill(self._dirty[offset].value, index)

    def write_back(self, live: Iterable[int]) -> None:
        """End a block: bring the slots of the registers `live` up to date."""
        wanted = frozenset(live)
        self._guard = None
        self._flush([at for at, dirty in self._dirty.items() if dirty.index is None or dirty.index in wanted])

    def _flush(self, offsets: Iterable[int]) -> None:
        guard, self._guard = self._guard, None
        for offset in offsets:
            dirty = self._dirty.pop(offset, None)
            if dirty is None:
                continue
            slot = self.slot(offset)
            value = dirty.value.zext(LANES["i8"]) if dirty.value.type == LANES["i1"] else dirty.value
            slot.store(self.active().select(value, slot.load(value.type, 32)), 32)
            self._clean.pop(offset, None)
        self._guard = guard

    # --- scratch memory ---

    def scratch(self, index: int) -> Val:
        """Return scratch memory `index` of the function, SCRATCH_BYTES."""
        while len(self._scratch) <= index:
            self._scratch.append(self.f.alloca(f"[{SCRATCH_BYTES} x i8]", 64))
        return self._scratch[index]

    def spill(self, value: Val, index: int) -> Val:
        """Write a value to scratch memory `index`; returns its address."""
        address = self.scratch(index)
        self._store(address, value)
        return address

    # --- operands ---

    def value(self, operand: Operand, type: str) -> tuple[Val, ...]:
        """Read an operand as PTX type `type`; two values for b128."""
        if type == "b128":
            return self._halves(operand)
        return (self.scalar(operand, type),)

    def scalar(self, operand: Operand, type: str) -> Val:
        """Read an operand as PTX type `type`, not b128."""
        wanted = VALUE_TYPE[type]
        if isinstance(operand, Imm):
            return self.ops.from_bits(wanted, immediate_bits(operand, type))
        if isinstance(operand, Not):
            return self.ops.not_(self.scalar(operand.operand, type))
        if isinstance(operand, RegOp):
            return self._resized(self.read(operand.reg), wanted, operand.reg.type[0] == "s")
        if isinstance(operand, Special):
            return self._resized(self._special(operand.name), wanted, False)
        if isinstance(operand, Symbol):
            return self._resized(self.address_of(operand).splat(), wanted, False)
        raise UnsupportedError(f"a {_kind(operand)} cannot be read as {type}.")

    def _resized(self, value: Val, wanted: str, signed: bool) -> Val:
        """Cut or fill an integer to the width of type `wanted`, and read the bits as that."""
        bits, have = BITS[wanted], BITS[self.ops.type(value)]
        if bits < have:
            value = self.ops.trunc(value, f"i{bits}")
        elif bits > have:
            extend = self.ops.sext if signed else self.ops.zext
            value = extend(value, f"i{bits}")
        return self.ops.bitcast(value, wanted) if wanted[0] == "f" else value

    def _halves(self, operand: Operand) -> tuple[Val, ...]:
        if not isinstance(operand, RegOp) or operand.reg.width != 16:
            raise UnsupportedError(f"a {_kind(operand)} cannot be read as b128.")
        pairs = self.slot(self.layout.offset(operand.reg)).load(vector(64, "i64"), 64)
        return tuple(self._shuffle(pairs, pairs, range(half, 64, 2)) for half in (0, 1))

    def _shuffle(self, a: Val, b: Val, order: Iterable[int]) -> Val:
        indices = list(order)
        type = vector(len(indices), element_of(a.type))
        return self.f.emit(type, f"shufflevector {a}, {b}, {self.f.lanes('i32', indices)}")

    def put(self, operand: Operand, type: str, values: Sequence[Val]) -> None:
        """Write a destination of PTX type `type`."""
        if isinstance(operand, Sink):
            return
        if type == "b128":
            self._put_halves(operand, values)
            return
        (value,) = values
        if isinstance(operand, Special):
            if self._guard is not None:
                value = self.ops.select(self._guard, value, self._special(operand.name))
            self._dirty[self.layout.special_offset(operand.name)] = _Dirty(value, None)
            return
        if not isinstance(operand, RegOp):
            raise UnsupportedError(f"a {_kind(operand)} cannot be written.")
        reg = operand.reg
        whole = self.ops.bitcast(value, f"i{BITS[self.ops.type(value)]}")
        own = "i1" if reg.type == "pred" else f"i{8 * reg.width}"
        self.write(reg, self._resized(whole, own, type[0] == "s"))

    def _put_halves(self, operand: Operand, values: Sequence[Val]) -> None:
        if not isinstance(operand, RegOp) or operand.reg.width != 16:
            raise UnsupportedError(f"a {_kind(operand)} cannot be written as b128.")
        low, high = values
        slot = self.slot(self.layout.offset(operand.reg))
        pairs = self._shuffle(low, high, [lane + half for lane in range(32) for half in (0, 32)])
        active = self.active()
        twice = self._shuffle(active, active, [lane for lane in range(32) for _ in range(2)])
        slot.store(twice.select(pairs, slot.load(pairs.type, 64)), 64)

    def _special(self, name: str) -> Val:
        if name == "%laneid":
            return self.ops.lane_id()
        timer = TIMERS.get(name)
        if timer is not None:
            width, shift = timer
            time = (self._time() >> shift) if shift else self._time()
            return time.trunc(f"i{8 * width}").splat()
        width = special_width(name)
        return self._read(self.layout.special_offset(name), "i1" if width == 1 else f"i{8 * width}")

    def set_time(self, instructions_left: int) -> None:
        """Note how many instructions of the block, whose fuel is paid, are not executed yet."""
        self._instructions_left = instructions_left

    def _time(self) -> Val:
        ctx = self.ctx
        used = ctx.get("fuel_start") - ctx.get("fuel") - self._instructions_left
        return ctx.get("clock") + ctx.get("executed") + used

    def address_of(self, symbol: Symbol) -> Val:
        """Return the address of a symbol: i32 for shared variables, else i64."""
        f, ctx, name = self.f, self.ctx, symbol.name
        variable = self.function.variables.get(name)
        if variable is not None and variable.space == "shared":
            return (ctx.get("cta_rank") << RANK_SHIFT) + (variable.offset + symbol.offset)
        if variable is not None and variable.space == "local":
            return f.const("i64", LOCAL_WINDOW + variable.offset + symbol.offset)
        for param in self.function.params:
            if param.name == name:
                return ctx.get("params") + (param.offset + symbol.offset)
        if name not in self._symbols:
            raise UnsupportedError(f"{name} names no variable whose address is known.")
        return self._symbol_table.at(self._symbols[name], "i64").load("i64") + symbol.offset

    def lane_addresses(self, address: Address, index: int) -> tuple[Val, int, bool]:
        """Return (where the 32 addresses lie, offset to add, whether they have 32 bits); may use scratch `index`."""
        base = address.base
        if isinstance(base, RegOp) and base.reg.width in (4, 8):
            return self.place(base.reg, index), address.offset, base.reg.width == 4
        if base is None:
            return self.spill(self.ops.const("i64", 0), index), address.offset, False
        value = self.scalar(base, "u64")
        return self.spill(value, index), address.offset, False


def _kind(operand: Operand) -> str:
    names = {"RegOp": "register", "Imm": "number", "Vec": "vector", "LabelOp": "label", "Not": "negation"}
    name = type(operand).__name__
    return names.get(name, name.lower())
