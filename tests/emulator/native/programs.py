"""Random programs without talk between lanes, and what each lane computes, found by running the lanes one by one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

NUM_REGS = 8
NUM_PREDS = 3
MASK = 0xFFFFFFFF

_BINARY: dict[str, Callable[[int, int], int]] = {
    "add.u32": lambda a, b: a + b,
    "sub.s32": lambda a, b: a - b,
    "mul.lo.u32": lambda a, b: a * b,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "min.u32": min,
    "max.s32": lambda a, b: max(_signed(a), _signed(b)),
    "shl.b32": lambda a, b: a << b if b < 32 else 0,
    "shr.u32": lambda a, b: a >> b if b < 32 else 0,
}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "setp.lt.u32": lambda a, b: a < b,
    "setp.ge.s32": lambda a, b: _signed(a) >= _signed(b),
    "setp.eq.b32": lambda a, b: a == b,
    "setp.ne.u32": lambda a, b: a != b,
}


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


@dataclass
class Step:
    """An instruction: `opcode` is a PTX one, "bra", "ret", "ld", "st", or "selp"."""

    opcode: str
    dst: int = 0
    a: int = 0
    b: int = 0
    immediate: int | None = None
    guard: tuple[int, bool] | None = None
    target: int = 0

    def text(self, temporary: int) -> str:
        """Return the PTX, which goes through registers of its own: %t<temporary> and %q<temporary>."""
        t, q = f"%t{temporary}", f"%q{temporary}"
        b = f"%r{self.b}" if self.immediate is None else str(self.immediate)
        guard = f"@{'!' if self.guard[1] else ''}%p{self.guard[0]} " if self.guard else ""
        if self.opcode == "bra":
            return f"{guard}bra L{self.target};"
        if self.opcode == "ret":
            return f"{guard}bra DONE;"
        if self.opcode == "ld":
            return f"and.b32 {t}, %r{self.a}, 28;\n{guard}ld.local.u32 %r{self.dst}, [{t}];"
        if self.opcode == "st":
            return f"and.b32 {t}, %r{self.a}, 28;\n{guard}st.local.u32 [{t}], %r{self.b};"
        if self.opcode == "selp":
            return f"{guard}selp.b32 %r{self.dst}, %r{self.a}, {b}, %p{self.target};"
        if self.opcode in _COMPARE:
            return f"{guard}{self.opcode} {q}, %r{self.a}, {b};\n{guard}mov.pred %p{self.dst}, {q};"
        return f"{guard}{self.opcode} {t}, %r{self.a}, {b};\n{guard}mov.b32 %r{self.dst}, {t};"


@dataclass
class Program:
    """Blocks of steps; each block but the last ends in a branch or falls through."""

    blocks: list[list[Step]] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        """Steps of all blocks."""
        return sum(map(len, self.blocks))

    def body(self) -> str:
        """Return PTX that works on %r and the local frame, and goes to DONE."""
        lines = []
        temporary = itertools.count()
        for number, block in enumerate(self.blocks):
            lines.append(f"L{number}:")
            # Every program ends: a lane runs so many blocks at most.
            lines += ["sub.u32 %left, %left, 1;", "setp.eq.u32 %out, %left, 0;", "@%out bra DONE;"]
            lines += [step.text(next(temporary)) for step in block]
        return "\n".join(lines)

    def run_lane(self, regs: list[int], frame: list[int], budget: int) -> None:
        """Run one lane, in place."""
        preds = [False] * NUM_PREDS
        number = 0
        while number < len(self.blocks):
            budget -= 1
            if budget == 0:
                return
            following = number + 1
            for step in self.blocks[number]:
                if step.guard is not None and preds[step.guard[0]] == step.guard[1]:
                    continue
                if step.opcode == "ret":
                    return
                if step.opcode == "bra":
                    following = step.target
                    break
                _execute(step, regs, frame, preds)
            number = following


def _execute(step: Step, regs: list[int], frame: list[int], preds: list[bool]) -> None:
    a = regs[step.a]
    b = regs[step.b] if step.immediate is None else step.immediate
    if step.opcode == "ld":
        regs[step.dst] = frame[(a & 28) // 4]
    elif step.opcode == "st":
        frame[(a & 28) // 4] = regs[step.b]
    elif step.opcode == "selp":
        regs[step.dst] = a if preds[step.target] else b
    elif step.opcode in _COMPARE:
        preds[step.dst] = _COMPARE[step.opcode](a, b)
    else:
        regs[step.dst] = _BINARY[step.opcode](a, b) & MASK


def random_program(rng: random.Random, num_blocks: int, length: int) -> Program:
    """Return a program whose branches go anywhere, backwards too."""
    opcodes = [*_BINARY, *_COMPARE, *_COMPARE, "selp", "ld", "st"]
    program = Program()
    for number in range(num_blocks):
        block = []
        for _ in range(rng.randrange(1, length)):
            opcode = rng.choice(opcodes)
            step = Step(
                opcode,
                dst=rng.randrange(NUM_PREDS if opcode in _COMPARE else NUM_REGS),
                a=rng.randrange(NUM_REGS),
                b=rng.randrange(NUM_REGS),
                immediate=rng.choice([None, None, rng.randrange(40), rng.getrandbits(32)]),
                guard=rng.choice([None, None, (rng.randrange(NUM_PREDS), rng.random() < 0.5)]),
                target=rng.randrange(NUM_PREDS),
            )
            if opcode in ("ld", "st"):
                step.immediate = None
            block.append(step)
        kind = rng.random()
        if kind < 0.6:
            guard = (rng.randrange(NUM_PREDS), rng.random() < 0.5)
            block.append(Step("bra", guard=guard, target=rng.randrange(num_blocks)))
        elif kind < 0.7:
            block.append(Step("bra", target=rng.randrange(number, num_blocks)))
        elif kind < 0.8:
            block.append(Step("ret", guard=(rng.randrange(NUM_PREDS), rng.random() < 0.5)))
        program.blocks.append(block)
    return program
