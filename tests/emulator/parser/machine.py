"""A one-lane machine of a dozen opcodes, enough to see that inlined functions compute what the source says."""

from __future__ import annotations

from megamoe_jit.emulator.parser import Address, Function, Imm, LabelOp, Operand, RegOp, Symbol, Vec

_WIDTHS = {"8": 1, "16": 2, "32": 4, "64": 8}
_MAX_STEPS = 100_000


class Lane:
    """Runs a function for one lane; `printed` collects arguments of calls that are not inlined."""

    def __init__(self, function: Function, params: bytes) -> None:
        self.function = function
        self.params = params
        self.registers: dict[int, int] = {}
        self.local = bytearray(function.local_bytes)
        self.out: dict[int, int] = {}
        self.printed: list[tuple[str, list[int]]] = []

    def run(self) -> dict[int, int]:
        """Return what was stored to global addresses."""
        pc = 0
        for _ in range(_MAX_STEPS):
            instruction = self.function.instructions[pc]
            pc += 1
            if instruction.guard is not None:
                reg, negated = instruction.guard
                if bool(self.registers[reg.index]) == negated:
                    continue
            if instruction.base in ("ret", "exit"):
                return self.out
            if instruction.base == "bra":
                (label,) = instruction.operands
                assert isinstance(label, LabelOp)
                pc = label.target
            elif instruction.base == "brx":
                index, table = instruction.operands
                assert isinstance(table, Symbol)
                pc = self.function.branch_tables[table.name][self.value(index)]
            else:
                self.step(instruction.opcode, instruction.operands)
        raise AssertionError("the function does not end")

    def step(self, opcode: str, operands: tuple[Operand, ...]) -> None:
        """Execute what is neither a branch nor a return."""
        name, *modifiers = opcode.split(".") if "." in opcode else (opcode, "")
        kind = modifiers[-1]
        width = 1 if kind == "pred" else _WIDTHS.get(kind.lstrip("bsuf"), 0)
        mask = (1 << 8 * width) - 1
        if name == "call":
            results, callee, arguments = operands
            assert isinstance(results, Vec)
            assert isinstance(callee, Symbol)
            assert isinstance(arguments, Vec)
            self.printed.append((callee.name, [self.value(item) for item in arguments.items]))
            for item in results.items:
                self.write(item, len(self.printed))
        elif name == "ld":
            target, address = operands
            items = target.items if isinstance(target, Vec) else (target,)
            for number, item in enumerate(items):
                data = self.memory(modifiers[0], address, number * width, width)
                self.write(item, int.from_bytes(data, "little", signed=kind[0] == "s"))
        elif name == "st":
            address, source = operands
            items = source.items if isinstance(source, Vec) else (source,)
            for number, item in enumerate(items):
                value = self.value(item) & mask
                if modifiers[0] == "global":
                    assert isinstance(address, Address)
                    self.out[self.value(address.base) + address.offset + number * width] = value
                else:
                    assert modifiers[0] == "local", opcode
                    self.memory(modifiers[0], address, number * width, width)[:] = value.to_bytes(width, "little")
        else:
            values = [self.value(operand) for operand in operands[1:]]
            if name == "setp":
                signed = [value - (1 << 8 * width) if value >> (8 * width - 1) & 1 else value for value in values]
                result = {"eq": signed[0] == signed[1], "ne": signed[0] != signed[1], "gt": signed[0] > signed[1]}
                result["lt"] = signed[0] < signed[1]
                self.write(operands[0], int(result[modifiers[0]]))
                return
            result = {
                "mov": lambda: values[0],
                "add": lambda: values[0] + values[1],
                "sub": lambda: values[0] - values[1],
                "mul": lambda: values[0] * values[1],
                "xor": lambda: values[0] ^ values[1],
                "cvta": lambda: values[0],
            }[name]()
            self.write(operands[0], result & mask)

    def memory(self, space: str, address: Operand, more: int, width: int) -> memoryview:
        """Return the bytes of a local or parameter address."""
        assert isinstance(address, Address)
        start = self.value(address.base) + address.offset + more
        place = {"local": memoryview(self.local), "param": memoryview(bytearray(self.params))}[space]
        assert 0 <= start <= start + width <= len(place)
        return place[start : start + width]

    def value(self, operand: Operand | None) -> int:
        """Return an operand's number; a symbol's is its offset in its space."""
        if isinstance(operand, RegOp):
            return self.registers[operand.reg.index]
        if isinstance(operand, Imm):
            assert isinstance(operand.value, int)
            return operand.value
        assert isinstance(operand, Symbol)
        variables = self.function.variables
        known = variables[operand.name] if operand.name in variables else self.function.param(operand.name)
        return known.offset + operand.offset

    def write(self, operand: Operand, value: int) -> None:
        """Set a register, whose width cuts the value."""
        assert isinstance(operand, RegOp)
        mask = 1 if operand.reg.type == "pred" else (1 << 8 * operand.reg.width) - 1
        self.registers[operand.reg.index] = value & mask
