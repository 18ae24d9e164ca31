"""Evaluates one form on arrays of operands, with the numpy primitives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from megamoe_jit.emulator.interpreter.ops import DTYPES, NumpyOps
from megamoe_jit.emulator.isa.decode import Signature, signature
from megamoe_jit.emulator.isa.ops import VALUE_TYPE
from megamoe_jit.emulator.isa.table import lookup
from megamoe_jit.emulator.parser.nodes import Imm, Instruction, Operand, Reg, RegOp, Vec

Array = NDArray[Any]


def instruction(opcode: str, num_dst: int, sources: list[Operand]) -> Instruction:
    """Make an instruction that writes `num_dst` registers."""
    registers = tuple(RegOp(reg=Reg(name=f"%d{i}", type="b64", index=i)) for i in range(num_dst))
    first: Operand = registers[0] if num_dst == 1 else Vec(items=registers)
    operands = (first, *sources)
    return Instruction(index=0, opcode=opcode, operands=operands, guard=None, line=1, text=opcode, location=None)


def _register(index: int) -> Operand:
    return RegOp(reg=Reg(name=f"%s{index}", type="b64", index=100 + index))


def bound(opcode: str, sources: tuple[Array | int, ...], num_dst: int = 1) -> Signature:
    """Return the signature of a form whose Python int operands are immediates."""
    operands = [_register(i) if isinstance(value, np.ndarray) else Imm(value=value) for i, value in enumerate(sources)]
    op = lookup(opcode)
    if op.row.carry_in:
        operands.pop()
    return signature(op, instruction(opcode, num_dst, operands))


def evaluate(opcode: str, *sources: Array | int, num_dst: int = 1, active: Array | None = None) -> tuple[Array, ...]:
    """Return all destinations as unsigned bits; operands are arrays of any dtype of the right width, ints immediates.

    "b128" operands are two arrays, and a carry is the last.
    """
    form = bound(opcode, sources, num_dst)
    length = max((len(value) for value in sources if isinstance(value, np.ndarray)), default=32)
    ops = NumpyOps(active, length)
    types = [type for typed in form.src for type in (["b64", "b64"] if typed.type == "b128" else [typed.type])]
    values = []
    for value, type in zip(sources, types, strict=True):
        dtype = DTYPES[VALUE_TYPE[type]]
        if not isinstance(value, np.ndarray):
            values.append(ops.const(VALUE_TYPE[type], value))
        elif dtype.kind == "b":
            values.append(value.astype(np.bool_))
        else:
            assert value.dtype.itemsize == dtype.itemsize, f"{opcode}: operand of {type} given as {value.dtype}"
            values.append(value.view(dtype))
    with np.errstate(all="ignore"):
        results = form.apply(ops, values)
    return tuple(_unsigned(np.broadcast_to(result, (length,))) for result in results)


def one(opcode: str, *sources: Array | int, **options: Any) -> Array:
    """Return the only destination."""
    (result,) = evaluate(opcode, *sources, **options)
    return result


def _unsigned(array: Array) -> Array:
    return array if array.dtype.kind == "b" else np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def edges(bits: int) -> list[int]:
    """Return integers that break careless arithmetic."""
    top = 1 << bits
    special = [0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 0x5555, 0xAAAA, 0x8001]
    special += [top - 1 - value for value in special] + [(top >> 1) + d for d in (-2, -1, 0, 1, 2)]
    special += [1 << i for i in range(bits)] + [(1 << i) - 1 for i in range(bits)]
    return sorted({value % top for value in special})


def integers(bits: int, count: int, rng: np.random.Generator, *, crossed: int = 2) -> list[Array]:
    """Return `crossed` arrays: all combinations of edge values, then random ones of random magnitude."""
    pool = np.array(edges(bits), np.uint64)
    if crossed > 2:
        pool = rng.permutation(pool)[:24]
    grids = [grid.ravel() for grid in np.meshgrid(*[pool] * crossed)]
    arrays = []
    for grid in grids:
        noise = rng.integers(0, 1 << 64, count, np.uint64, endpoint=False) >> rng.integers(0, 64, count).astype(
            np.uint64
        )
        arrays.append(np.concatenate([grid, noise]).astype(f"u{bits // 8}"))
    return arrays


def signed(values: Array) -> list[int]:
    """Return Python integers, read with sign."""
    return [int(value) for value in values.view(f"i{values.dtype.itemsize}")]


def unsigned(values: Array) -> list[int]:
    """Return Python integers, read without sign."""
    return [int(value) for value in values]


__all__ = ["bound", "edges", "evaluate", "instruction", "integers", "one", "signed", "unsigned"]
