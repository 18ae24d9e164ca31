"""Warp-level matrix multiplication: fragments of registers, and what mma.sync makes of them.

PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions", "Block Scaling for mma.sync". Registers are 32 bits; with
g = lane / 4 and t = lane % 4, register i of A holds row g + 8 (i % 2), register i of B column g, and both hold, for W
elements a register, k = 4 W (i / 2 for A, i for B) + W t + 0 .. W - 1.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.engines.numerics import (
    FORMATS,
    Numerics,
    Operand,
    Scales,
    block_dot,
    dot,
    integer_dot,
    rule_for,
)
from megamoe_jit.emulator.engines.numerics.adder import NAN_F16, NAN_F32
from megamoe_jit.emulator.engines.operands import container_codes, packed_fp4

Array: TypeAlias = npt.NDArray[Any]

INTEGERS = {"s8": (8, True), "u8": (8, False), "s4": (4, True), "u4": (4, False)}
_BITS = {"f16": 16, "bf16": 16, "tf32": 32} | {name: bits for name, (bits, _) in INTEGERS.items()}


@dataclass(frozen=True, slots=True)
class Shape:
    """What an opcode says.

    Attributes:
        m, n, k: of the instruction.
        a_type, b_type: of elements; FP8, FP6 and FP4 of the f8f6f4 kinds have containers of a byte.
        d_type: of C and D, "f32", "f16" or "s32".
        packed: elements are FP4, eight to a register.
        saturate: integers are held in range.
        scale_type: "ue4m3" or "ue8m0", "" without block scales; scales: factors of a row.
        as_f16: FP8 is multiplied as FP16, see `multiply_as_f16`.
    """

    m: int
    n: int
    k: int
    a_type: str
    b_type: str
    d_type: str
    packed: bool = False
    saturate: bool = False
    scale_type: str = ""
    scales: int = 0
    as_f16: bool = False

    @property
    def element_bits(self) -> int:
        """Bits of an element in a register."""
        return 4 if self.packed else _BITS.get(self.a_type, 8)

    @property
    def a_registers(self) -> int:
        """Registers of A."""
        return self.m * self.k * self.element_bits // 1024

    @property
    def b_registers(self) -> int:
        """Registers of B."""
        return self.n * self.k * self.element_bits // 1024

    @property
    def d_registers(self) -> int:
        """Registers of C, and of D."""
        return self.m * self.n // (64 if self.d_type == "f16" else 32)


@functools.lru_cache(maxsize=64)
def operand_index(rows: int, depth: int, element_bytes: int) -> Array:
    """Where each element of A (16 or 8 rows) or B (8 rows) is among the elements of its registers: [rows, depth].

    Registers are taken as an array [registers, 32 lanes] of words, flattened to elements.
    """
    per_word = 4 // element_bytes
    halves = rows // 8
    r, k = np.arange(rows)[:, None], np.arange(depth)[None]
    register = halves * (k // (4 * per_word)) + r // 8
    lane = 4 * (r % 8) + k // per_word % 4
    return (register * 32 + lane) * per_word + k % per_word


@functools.lru_cache(maxsize=16)
def accumulator_index(rows: int, columns: int, *, half: bool) -> Array:
    """Where each element of C or D is among the elements of its registers: [rows, columns]."""
    r, c = np.arange(rows)[:, None], np.arange(columns)[None]
    lane = 4 * (r % 8) + c // 2
    if half:
        return (r // 8 * 32 + lane) * 2 + c % 2
    return (2 * (r // 8) + c % 2) * 32 + lane


def codes_of(words: Array, kind: str, rows: int, depth: int, *, packed: bool) -> Array:
    """Codes [rows, depth] of an operand's registers [registers, 32]."""
    flat = np.ascontiguousarray(words)
    if packed or kind in ("s4", "u4"):
        data = flat.view(np.uint8).ravel()[operand_index(rows, depth // 2, 1)]
        return packed_fp4(data)
    if kind in ("f16", "bf16"):
        return flat.view(np.uint16).ravel()[operand_index(rows, depth, 2)]
    if kind == "tf32":
        return flat.ravel()[operand_index(rows, depth, 4)] >> 13
    data = flat.view(np.uint8).ravel()[operand_index(rows, depth, 1)]
    return data if kind in INTEGERS else container_codes(data, FORMATS[kind])


def accumulator_of(words: Array, kind: str, rows: int, columns: int) -> Array:
    """Bits [rows, columns] of an accumulator's registers [registers, 32]."""
    flat = np.ascontiguousarray(words)
    is_half = kind == "f16"
    return (flat.view(np.uint16) if is_half else flat).ravel()[accumulator_index(rows, columns, half=is_half)]


def accumulator_words(bits: Array, kind: str) -> Array:
    """Registers [registers, 32] of an accumulator's bits [rows, columns]: the inverse of `accumulator_of`."""
    rows, columns = bits.shape
    is_half = kind == "f16"
    flat = np.empty(bits.size, np.uint16 if is_half else np.uint32)
    flat[accumulator_index(rows, columns, half=is_half)] = bits
    return flat.view(np.uint32).reshape(-1, 32)


def _integers(codes: Array, kind: str) -> Array:
    bits, signed = INTEGERS[kind]
    if bits == 8:
        return codes.view(np.int8 if signed else np.uint8)
    return (codes ^ 8).astype(np.int8) - np.int8(8) if signed else codes


def scale_codes(words: Array, rows: int, thread_id: int, byte_id: int, count: int) -> Array:
    """Scale factors [rows, count] of A (16 rows) or B (8 columns) from one register [32].

    Rows g and g + 8 of A are supplied by lanes 2 * thread_id and 2 * thread_id + 1 of each group of four, column g of B
    by lane thread_id.
    """
    row = np.arange(rows)
    lane = 4 * (row % 8) + (2 * thread_id + row // 8 if rows == 16 else thread_id)
    return np.ascontiguousarray(words).view(np.uint8).reshape(32, 4)[lane, byte_id : byte_id + count]


def scale_problem(operand: str, count: int, byte_id: int, thread_id: int) -> str | None:
    """Return why ids of scale factors are not legal."""
    legal = {1: (0, 1, 2, 3), 2: (0, 2), 4: (0,)}[count]
    if byte_id not in legal:
        return f"byte-id of scale {operand} is {byte_id}; {count} scales a row allow {', '.join(map(str, legal))}"
    limit = 2 if operand == "A" else 4
    if thread_id >= limit:
        return f"thread-id of scale {operand} is {thread_id}; it must be below {limit}"
    return None


def multiply(
    shape: Shape,
    a: Array,
    b: Array,
    c: Array,
    scales: tuple[Array, Array] | None = None,
    *,
    numerics: Numerics = "hardware",
) -> Array:
    """Compute D's registers.

    Args:
        shape: of the instruction.
        a, b, c: registers [registers, 32] of the operands.
        scales: codes of the scale factors of A's rows and B's columns.
        numerics: how sums are formed.
    """
    left = codes_of(a, shape.a_type, shape.m, shape.k, packed=shape.packed)
    right = codes_of(b, shape.b_type, shape.n, shape.k, packed=shape.packed)
    old = accumulator_of(c, shape.d_type, shape.m, shape.n)
    if shape.a_type in INTEGERS:
        ints = _integers(left, shape.a_type), _integers(right, shape.b_type)
        return accumulator_words(integer_dot(*ints, old, saturate=shape.saturate), "s32")
    if shape.as_f16 and numerics == "hardware":
        return accumulator_words(multiply_as_f16(shape, left, right, old), shape.d_type)
    operands = Operand(FORMATS[shape.a_type], left), Operand(FORMATS[shape.b_type], right)
    factors = None
    if scales is not None:
        factors = Scales(FORMATS[shape.scale_type], scales[0]), Scales(FORMATS[shape.scale_type], scales[1])
    if factors is not None and shape.packed:
        return accumulator_words(block_dot(*operands, factors, old, numerics=numerics), "f32")
    rule = rule_for("mma", shape.a_type, "f16" if shape.d_type == "f16" else "f32")
    return accumulator_words(dot(*operands, old, rule, numerics=numerics, scales=factors), shape.d_type)


def multiply_as_f16(shape: Shape, left: Array, right: Array, old: Array) -> Array:
    """Multiply FP8 as targets without an FP8 mma.sync do (sm_90, sm_100, sm_103, sm_110), bit for bit as an H200.

    Their code has two FP16 multiplications, which start from zero: one of the lower two bytes of each register, then
    one of the upper two that adds to it. C is added last, rounded to nearest.

    Args:
        shape: of the instruction.
        left, right: codes [m, k] and [n, k].
        old: bits [m, n] of C.

    Returns:
        Bits [m, n] of D.
    """
    lower = np.arange(shape.k) % 4 < 2
    rule = rule_for("mma", "f16", "f16" if shape.d_type == "f16" else "f32")
    total: Array | None = None
    for chosen in (lower, ~lower):
        a, b = (np.ascontiguousarray(codes[:, chosen]) for codes in (left, right))
        total = dot(Operand(FORMATS[shape.a_type], a), Operand(FORMATS[shape.b_type], b), total, rule)
    assert total is not None
    if shape.d_type == "f16":
        return _nearest_sum(old.view(np.float16), total.view(np.float16), np.uint16(NAN_F16))
    return _nearest_sum(old.view(np.float32), total.view(np.float32), np.uint32(NAN_F32))


def _nearest_sum(a: Array, b: Array, nan: Any) -> Array:
    """Add floats; return bits, `nan` for every NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = a + b
    bits: Array = np.where(np.isnan(total), nan, total.view(nan.dtype))
    return bits
