"""PTX functions as LLVM IR.

A kernel is one function over a warp's context. It begins in the dispatcher, which asks `emu_next` for the group of
lanes to run and its PC, and switches to that block. Blocks run the group's instructions and jump to one another as long
as the group is the whole warp; else they go back to the dispatcher, where groups part and meet. The function returns
when Python is needed. Contract: context.py.

Measured on an AVX-512 server core: 5,264 instructions take 0.3 s to write and 0.65 s to compile at O0 (1.8 s for AVX2),
7 ms to load again. O1 takes 2.5 times as long and is up to a sixth faster to run. A straight piece of 134 instructions
runs at 700 million warp instructions a second, SwiGLU with conversions at 160, a loop of four in 12 ns a turn. A warp's
load or store takes 25 to 60 ns, with the race checker 160 to 840 ns. Masks are `<32 x i1>` and write-back is a select:
on AVX2 both could be faster, but are quick to compile.
"""

from __future__ import annotations

from collections.abc import Sequence

from megamoe_jit.emulator.isa.decode import Signature, flatten, signature
from megamoe_jit.emulator.isa.memory import Access, access_of
from megamoe_jit.emulator.isa.table import ALL_LANES, Kind, Op, unsupported
from megamoe_jit.emulator.memory.spaces import RANK_SHIFT, SHARED_WINDOW
from megamoe_jit.emulator.native.binding import Binding
from megamoe_jit.emulator.native.context import FaultSpace
from megamoe_jit.emulator.native.control_helpers import count_block
from megamoe_jit.emulator.native.fields import context
from megamoe_jit.emulator.native.forms import Forms
from megamoe_jit.emulator.native.ir import Body, Val, module_text
from megamoe_jit.emulator.native.memory_helpers import ACCESS_HELPERS, ADDRESSES
from megamoe_jit.emulator.native.ops import LANES
from megamoe_jit.emulator.native.values import Values
from megamoe_jit.emulator.parser.cfg import Block
from megamoe_jit.emulator.parser.nodes import (
    WIDTH,
    Address,
    Imm,
    Instruction,
    LabelOp,
    Operand,
    RegOp,
    Sink,
    Symbol,
)
from megamoe_jit.errors import UnsupportedError

KERNEL = "kernel"
LOST = -2
"""`ctx.stop` when a lane's PC is not the start of a block: a bug of whoever set it."""


def generate(plan: Binding) -> tuple[str, str | None]:
    """Return the IR of the kernel, and that of its long forms (to be optimised), None when it has none.

    Raises UnsupportedError that lists every instruction whose operands have no meaning.
    """
    writer = _Writer(plan)
    return writer.text(), writer.forms.text()


class _Writer:
    def __init__(self, plan: Binding) -> None:
        self.plan = plan
        self.f = f = Body(KERNEL, "void", [("ptr", "ctx")])
        self.ctx = context(f["ctx"])
        self.values = Values(f, self.ctx, plan.function, plan.layout, plan.symbols)
        self.forms = Forms()
        self._pointers = f.alloca(ADDRESSES, 64)
        self._away: list[tuple[str, str]] = []
        self._yield: list[tuple[str, str]] = []
        self._num_sites = 0
        self._tables: list[str] = []
        self._failed: list[tuple[Instruction, str]] = []
        self._heads = {to for number, block in enumerate(plan.blocks) for to in block.successors if to <= number}

    def text(self) -> str:
        f, plan = self.f, self.plan
        self.ctx.set("fuel_start", self.ctx.get("fuel"))
        f.jump("next")
        for number, block in enumerate(plan.blocks):
            self._block(number, block)
        if self._failed:
            raise unsupported(self._failed)
        self._end_of_function()
        self._dispatcher()
        return module_text([f], self._tables)

    def _dispatcher(self) -> None:
        f, ctx = self.f, self.ctx
        starts = [*(block.start for block in self.plan.blocks), len(self.plan.ops)]
        if self._away:
            f.place("away")
            f.call("emu_goto", "void", f["ctx"], f.phi("i32", self._away))
            f.jump("next")
        if self._yield:
            f.place("yield")
            f.call("emu_yield", "void", f["ctx"], f.phi("i32", self._yield))
            f.ret()
        f.place("next")
        pc = f.call("emu_next", "i32", f["ctx"])
        f.switch(pc, "lost", [(-1, "leave"), *((start, f"pc{start}") for start in starts)])
        f.place("lost")
        ctx.set("pc", pc)
        ctx.set("stop", LOST)
        f.ret()
        f.place("leave")
        f.ret()

    def _end_of_function(self) -> None:
        """Running past the last instruction returns."""
        f = self.f
        f.place(f"pc{len(self.plan.ops)}")
        f.call("emu_exit", "void", f["ctx"], self.ctx.get("mask"), f.const("i32", 0))
        f.jump("next")

    # --- blocks ---

    def _block(self, number: int, block: Block) -> None:
        f, ctx, values = self.f, self.ctx, self.values
        f.place(f"pc{block.start}")
        values.begin()
        # Every loop has a jump back, so looking at the fuel where such jumps end is enough.
        if number in self._heads:
            burning = f.label("burning")
            self._yield.append((str(block.start), f.current))
            f.branch(ctx.get("fuel").cmp("slt", 0), "yield", burning)
            f.place(burning)
        first = self.plan.function.instructions[block.start]
        is_handler = self.plan.ops[block.start].kind is Kind.HANDLER and first.guard is None
        self._uncounted = number if is_handler else -1
        if not is_handler:
            count_block(ctx, number, block.end - block.start)
        self._live = self.plan.liveness[number].live_out
        for instruction in self.plan.function.instructions[block.start : block.end]:
            values.set_time(block.end - instruction.index)
            values.set_guard(instruction)
            try:
                self._instruction(instruction, self.plan.ops[instruction.index])
            except UnsupportedError as error:
                self._failed.append((instruction, str(error)))
        if not f.has_ended:
            self._go(block.end)

    def _instruction(self, instruction: Instruction, op: Op) -> None:
        match op.kind:
            case Kind.PURE if op.members is not None:
                self._sync(instruction, op)
            case Kind.PURE:
                self._pure(signature(op, instruction))
            case Kind.MEMORY:
                self._memory(instruction, op)
            case Kind.CONTROL:
                self._control(instruction)
            case Kind.HANDLER:
                self._handler(instruction)

    def _go(self, target: int) -> None:
        """End the block: the group goes on at `target`."""
        f, values = self.f, self.values
        values.write_back(self._live)
        self._away.append((str(target), f.current))
        f.branch(values.mask.eq(self.ctx.get("straight")), f"pc{target}", "away")

    def _pc(self, instruction: Instruction) -> Val:
        return self.f.const("i32", instruction.index)

    def _pure(self, operands: Signature) -> None:
        values = self.values
        sources = [value for typed in operands.src for value in values.value(typed.operand, typed.type)]
        results = list(self.forms.apply(operands, values.ops, sources))
        for typed in operands.dst:
            count = 2 if typed.type == "b128" else 1
            values.put(typed.operand, typed.type, results[:count])
            del results[:count]

    def _handler(self, instruction: Instruction) -> None:
        f, values = self.f, self.values
        lanes = values.executing()
        if instruction.guard is not None:
            needed = f.label("needed")
            self._away.append((str(instruction.index + 1), f.current))
            f.branch(lanes.eq(0), "away", needed)
            f.place(needed)
        block = f.const("i32", self._uncounted)
        f.call("emu_handler", "void", f["ctx"], self._pc(instruction), lanes, block)
        f.ret()

    def _sync(self, instruction: Instruction, op: Op) -> None:
        f, values = self.f, self.values
        operands = signature(op, instruction)
        assert op.members is not None
        members: Operand = Imm(value=-1) if op.members == ALL_LANES else operands.src[op.members].operand
        together, apart = f.label("together"), f.label("apart")
        lanes = values.executing()
        if instruction.guard is not None:
            self._away.append((str(instruction.index + 1), f.current))
            some = f.label("some")
            f.branch(lanes.eq(0), "away", some)
            f.place(some)
        elif isinstance(members, Imm) and int(members.value) % (1 << 32) == 0xFFFFFFFF:
            f.branch(values.mask.eq(self.ctx.get("straight")), together, apart)
            f.place(apart)
        at = values.spill(values.scalar(members, "b32"), 0)
        ready = f.call("emu_sync", "i32", f["ctx"], self._pc(instruction), lanes, at)
        f.branch(ready.ne(0), together, "next")
        f.place(together)
        values.forget_mask()
        self._pure(operands)

    # --- control ---

    def _control(self, instruction: Instruction) -> None:
        match instruction.base:
            case "bra":
                self._branch(instruction)
            case "brx":
                self._branch_table(instruction)
            case "ret" | "exit":
                self._exit(instruction)
            case "bar":
                if len(instruction.operands) != 1:
                    raise UnsupportedError("bar.warp.sync takes a member mask.")
                f = self.f
                members = self.values.spill(self.values.scalar(instruction.operands[0], "b32"), 0)
                lanes = self.values.executing()
                f.call("emu_warpsync", "void", f["ctx"], self._pc(instruction), lanes, members)
                f.jump("next")
            case base:
                raise UnsupportedError(f"{base} is no branch that this engine knows.")

    def _branch(self, instruction: Instruction) -> None:
        f, values = self.f, self.values
        (label,) = instruction.operands
        if not isinstance(label, LabelOp):
            raise UnsupportedError("a branch goes to a label.")
        if instruction.guard is None:
            self._go(label.target)
            return
        taken, otherwise = values.executing(), instruction.index + 1
        values.write_back(self._live)
        some, all_, apart = f.label("some"), f.label("all"), f.label("apart")
        none = f.label("none")
        f.branch(taken.eq(0), none, some)
        f.place(some)
        f.branch(taken.eq(values.mask), all_, apart)
        f.place(apart)
        numbers = [f.const("i32", number) for number in (label.target, otherwise, ".uni" in instruction.opcode)]
        f.call("emu_diverge", "void", f["ctx"], self._pc(instruction), taken, *numbers)
        f.jump("next")
        f.place(all_)
        self._go(label.target)
        f.place(none)
        self._go(otherwise)

    def _branch_table(self, instruction: Instruction) -> None:
        f, values = self.f, self.values
        index, table = instruction.operands
        if not isinstance(table, Symbol) or table.name not in self.plan.function.branch_tables:
            raise UnsupportedError("the second operand of brx.idx names a list of .branchtargets.")
        targets = self.plan.function.branch_tables[table.name]
        name = f"@table{len(self._tables)}"
        listed = ", ".join(f"i32 {target}" for target in targets)
        self._tables.append(f"{name} = internal constant [{len(targets)} x i32] [{listed}]")
        at = values.spill(values.scalar(index, "u32"), 0)
        lanes = values.executing()
        values.write_back(self._live)
        count, uniform = f.const("i32", len(targets)), f.const("i32", ".uni" in instruction.opcode)
        f.call(
            "emu_brx", "void", f["ctx"], self._pc(instruction), lanes, at, Val(f, "ptr", name), count, uniform
        )  # fmt: skip
        f.jump("next")

    def _exit(self, instruction: Instruction) -> None:
        f, values = self.f, self.values
        lanes = values.executing()
        values.write_back(self._live)
        f.call("emu_exit", "void", f["ctx"], lanes, f.const("i32", instruction.index + 1))
        f.jump("next")

    # --- memory ---

    def _memory(self, instruction: Instruction, op: Op) -> None:
        access = access_of(op)
        if len(instruction.operands) < 2 or (access is None and len(instruction.operands) > 2):
            raise UnsupportedError(f"it has {len(instruction.operands)} operands, but takes 2.")
        if access is None:
            self._is_in_own_cta(instruction)
        elif access.is_load:
            self._load(instruction, access)
        else:
            self._store(instruction, access)

    def _items(self, operand: Operand, access: Access) -> Sequence[Operand]:
        items = flatten(operand)
        if len(items) != access.count:
            raise UnsupportedError(f"{access.count} registers are needed, {len(items)} are given.")
        return items

    def _address(self, operand: Operand) -> Address:
        if not isinstance(operand, Address) or operand.coords is not None:
            raise UnsupportedError("an address is needed.")
        return operand

    def _access(self, instruction: Instruction, access: Access, address: Address) -> Val:
        """Translate and check the addresses of all lanes; returns those that may go on."""
        f, values = self.f, self.values
        at, offset, narrow = values.lane_addresses(address, 0)
        helper = ACCESS_HELPERS[access.space]
        if narrow and access.space in (FaultSpace.SHARED, FaultSpace.SHARED_CLUSTER, FaultSpace.LOCAL):
            helper += "_narrow"
        elif narrow:
            raise UnsupportedError(f"addresses of space {access.space.name.lower()} have 64 bits.")
        self._num_sites += 1
        numbers = [
            f.const("i32", number)
            for number in (access.size, not access.is_load, access.space, instruction.index, self._num_sites)
        ]
        return f.call(
            helper, "i32", f["ctx"], values.executing(), at, f.const("i64", offset), *numbers, self._pointers
        )  # fmt: skip

    def _load(self, instruction: Instruction, access: Access) -> None:
        f, values = self.f, self.values
        items = self._items(instruction.operands[0], access)
        address = self._address(instruction.operands[1])
        if access.space is FaultSpace.PARAM and self._load_param(access, items, address):
            return
        self._access(instruction, access, address)
        places, later = [], []
        lanes = values.executing()
        for index, item in enumerate(items):
            if isinstance(item, RegOp) and item.reg.width == access.width and item.reg.type != "pred":
                places.append(values.slot_for_loading(item.reg))
            else:
                places.append(values.scratch(index + 1))
                if not isinstance(item, Sink):
                    later.append((item, places[-1]))
        name = f"emu_gather_{access.width}x{access.count}"
        f.call(name, "void", lanes, self._pointers, *places)
        for item, place in later:
            element = LANES[f"i{8 * access.width}"]
            values.put(item, _bits_type(access.type), [place.load(element, 64)])

    def _load_param(self, access: Access, items: Sequence[Operand], address: Address) -> bool:
        """Load a parameter whose place is known: the same value for all lanes."""
        base = address.base
        params = {param.name: param for param in self.plan.function.params}
        if not isinstance(base, Symbol) or base.name not in params or access.width == 16:
            return False
        offset = params[base.name].offset + base.offset + address.offset
        if offset % access.size or not 0 <= offset <= self.plan.function.param_bytes - access.size:
            return False
        start = self.ctx.pointer("params")
        for index, item in enumerate(items):
            value = start.at(offset + index * access.width).load(f"i{8 * access.width}", 1)
            self.values.put(item, _bits_type(access.type), [value.splat()])
        return True

    def _store(self, instruction: Instruction, access: Access) -> None:
        f, values = self.f, self.values
        address = self._address(instruction.operands[0])
        items = self._items(instruction.operands[1], access)
        good = self._access(instruction, access, address)
        places = []
        for index, item in enumerate(items):
            if isinstance(item, RegOp) and item.reg.width == access.width and item.reg.type != "pred":
                places.append(values.place(item.reg, index + 1))
            elif access.width == 16:
                raise UnsupportedError("128 bits are stored from a .b128 register.")
            else:
                places.append(values.spill(values.scalar(item, _stored_type(item, access.type)), index + 1))
        f.call(f"emu_scatter_{access.width}x{access.count}", "void", good, self._pointers, *places)

    def _is_in_own_cta(self, instruction: Instruction) -> None:
        values = self.values
        target, source = instruction.operands
        window = self.ctx.get("cta_rank").zext("i64") + (SHARED_WINDOW >> RANK_SHIFT)
        address = values.scalar(source, "u64")
        values.put(target, "pred", [(address >> RANK_SHIFT).eq(window.splat())])


def _bits_type(type: str) -> str:
    """Return the integer type that a loaded value widens as."""
    return type if type[0] in "us" else f"b{8 * WIDTH[type]}"


def _stored_type(item: Operand, type: str) -> str:
    """Return the type that an element is read as: its bits, unless a constant must be rounded to a float."""
    return type if isinstance(item, Imm) else f"b{8 * WIDTH[type]}"
