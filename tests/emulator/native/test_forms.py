"""Every pure form of the table: native code against the numpy primitives, bit by bit."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest

from megamoe_jit.emulator.interpreter.ops import DTYPES, NumpyOps
from megamoe_jit.emulator.isa.decode import CARRY, Signature, immediate_bits, signature
from megamoe_jit.emulator.isa.ops import VALUE_TYPE
from megamoe_jit.emulator.isa.table import Kind, find, rows
from megamoe_jit.emulator.parser import Imm, RegOp, Special
from megamoe_jit.errors import UnsupportedError
from tests.emulator.native.harness import Bench, finish, kernel_text

MOST_OF_A_ROW = 12
"""Opcodes taken of rows with hundreds (`set`, `setp`), chosen by chance."""
BATCH = 40
ROUNDS = 3
RNG = np.random.default_rng(11)


def pure_opcodes() -> list[str]:
    chance = random.Random(3)
    chosen = []
    for row in rows():
        if row.kind is Kind.PURE:
            opcodes = list(row.opcodes())
            chosen += opcodes if len(opcodes) <= MOST_OF_A_ROW else chance.sample(opcodes, MOST_OF_A_ROW)
    return chosen


OPCODES = pure_opcodes()
BATCHES = [OPCODES[start : start + BATCH] for start in range(0, len(OPCODES), BATCH)]


def shapes(opcode: str) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the (destination types, source types) that the form takes."""
    op = find(opcode)
    assert op is not None

    def possible(types: Any, count: int) -> list[tuple[str, ...]]:
        try:
            found = types(count)
        except (UnsupportedError, AssertionError, KeyError, IndexError, ValueError):
            return []
        return [found] if all(type == "b128" or type in VALUE_TYPE for type in found) else []

    destinations = [types for count in range(1, 9) for types in possible(op.dst_types, count)]
    sources = [types for count in range(9) for types in possible(op.src_types, count)]
    found = [(dst, src) for dst in destinations for src in sources if _is_taken(opcode, dst, src)]
    assert found, f"{opcode}: no operands fit"
    return found


def _register_type(type: str) -> str:
    if type in ("pred", "b128"):
        return type
    return {"i8": "b16", "i16": "b16", "i32": "b32", "i64": "b64", "f32": "f32", "f64": "f64"}[VALUE_TYPE[type]]


class Case:
    """One instruction with its registers."""

    def __init__(
        self, number: int, opcode: str, dst: tuple[str, ...], src: tuple[str, ...], *, immediates: bool
    ) -> None:
        self.opcode = opcode
        self.dst, self.src = dst, src
        op = find(opcode)
        assert op is not None
        self.op = op
        self.dst_regs = [f"%d{number}_{i}" for i in range(len(dst))]
        self.sources = [f"%s{number}_{i}" for i in range(len(src))]
        self.declarations = [
            f".reg .{_register_type(type)} {name};"
            for name, type in zip([*self.dst_regs, *self.sources], [*dst, *src], strict=True)
        ]
        for index, type in enumerate(src):
            if op.members == index:
                self.sources[index] = "0xffffffff"
            elif immediates and type not in ("pred", "b128") and (index or len(src) == 1) and RNG.random() < 0.5:
                self.sources[index] = _immediate(type)
        first = self.dst_regs[0] if len(dst) == 1 else "{" + ", ".join(self.dst_regs) + "}"
        self.text = f"{opcode} {', '.join([first, *self.sources])};"


def _is_taken(opcode: str, dst: tuple[str, ...], src: tuple[str, ...]) -> bool:
    """Whether an instruction with these operands has a signature that numpy can evaluate."""
    case = Case(0, opcode, dst, src, immediates=False)
    try:
        form = _form(case)
        ops = NumpyOps()
        with np.errstate(all="ignore"):
            results = form.apply(ops, [value for typed in form.src for value in _zeros(typed.type)])
    except (UnsupportedError, TypeError, ValueError, IndexError):
        return False
    return len(results) == sum(2 if typed.type == "b128" else 1 for typed in form.dst)


def _form(case: Case) -> Signature:
    from megamoe_jit.emulator.parser import parse

    (function,) = parse(kernel_text(case.text + "\nret;", "", " ".join(case.declarations))).entries
    return signature(case.op, function.instructions[0])


def _zeros(type: str) -> list[np.ndarray]:
    names = ["i64", "i64"] if type == "b128" else [VALUE_TYPE[type]]
    return [np.zeros(32, DTYPES[name]) for name in names]


def _immediate(type: str) -> str:
    bits = int(_random_bits(VALUE_TYPE[type], 1)[0])
    if VALUE_TYPE[type] == "f32":
        return f"0f{bits:08x}"
    if VALUE_TYPE[type] == "f64":
        return f"0d{bits:016x}"
    return str(bits)


def _random_bits(value_type: str, count: int = 32) -> np.ndarray:
    """Return bits of values that matter: edges, small numbers, neighbours of powers of two, noise."""
    width = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "f32": 4, "i64": 8, "f64": 8}[value_type]
    dtype = np.dtype(f"u{width}")
    if value_type == "i1":
        return RNG.integers(0, 2, count).astype(np.uint8)
    noise = RNG.integers(0, 1 << 8 * width, count, np.uint64 if width == 8 else np.int64).astype(dtype)
    small = RNG.integers(0, 70, count).astype(dtype)
    shifted = (noise >> RNG.integers(0, 8 * width, count).astype(dtype)).astype(dtype)
    edges = np.array([0, 1, (1 << 8 * width) - 1, 1 << (8 * width - 1), (1 << (8 * width - 1)) - 1], np.uint64)
    picked = RNG.choice(edges, count).astype(dtype)
    if value_type in ("f32", "f64"):
        floats = (RNG.standard_normal(count) * 2.0 ** RNG.integers(-40, 40, count)).astype(f"f{width}").view(dtype)
        special = np.array(
            [0.0, -0.0, 1.0, -1.5, 2.5, 0.5, np.inf, -np.inf, np.nan, 448.0, 6.0, 1e-40, 65520.0, 2147483648.0]
        )
        picked = np.where(RNG.random(count) < 0.5, RNG.choice(special, count).astype(f"f{width}").view(dtype), floats)
    choice = RNG.integers(0, 4, count)
    return np.choose(choice, [noise, small, shifted, picked]).astype(dtype)


def _run(cases: list[Case]) -> None:
    """Run all cases in one kernel, for some rounds of data, and compare."""
    body = ["ld.param.u64 %in, [source];", "ld.param.u64 %out, [target];", "mov.u32 %lane, %laneid;"]
    # Each operand is a row of 32 x 16 bytes.
    body += ["mad.wide.u32 %in, %lane, 16, %in;", "mad.wide.u32 %out, %lane, 16, %out;"]
    declarations = [".reg .b64 %in, %out; .reg .b32 %lane, %x; .reg .pred %carry;"]
    inputs: list[tuple[int, str, str]] = []
    outputs: list[tuple[int, str, str]] = []
    forms = []
    row_in = row_out = 0
    for case in cases:
        declarations += case.declarations
        form = _form(case)
        forms.append(form)
        for name, type in zip(case.sources, case.src, strict=True):
            if name.startswith("%s"):
                inputs.append((row_in, name, type))
                body.append(_load(name, type, 512 * row_in))
                row_in += 1
        if case.op.row.carry_in or case.op.row.carry_out:
            # The flag is set from a row of its own: 0xffffffff plus that carries where the row is not zero.
            inputs.append((row_in, "carry", "pred"))
            body.append(f"ld.global.u8 %x, [%in+{512 * row_in}];\nadd.cc.u32 %x, %x, 0xffffffff;")
            row_in += 1
        body.append(case.text)
        for name, type in zip(case.dst_regs, case.dst, strict=True):
            outputs.append((row_out, name, type))
            body.append(_store(name, type, 512 * row_out))
            row_out += 1
        if case.op.row.carry_out:
            outputs.append((row_out, "carry", "pred"))
            body.append(f"addc.u32 %x, 0, 0;\nst.global.u8 [%out+{512 * row_out}], %x;")
            row_out += 1
    body.append("ret;")
    source = np.zeros((row_in, 32, 16), np.uint8)
    target = np.zeros((row_out, 32, 16), np.uint8)
    source, target = (_aligned(array) for array in (source, target))
    bench = Bench(
        kernel_text("\n".join(body), ".param .u64 source, .param .u64 target", " ".join(declarations)),
        params=struct.pack("<QQ", source.ctypes.data, target.ctypes.data),
    )
    for array in (source, target):
        bench.allocations.add(array.ctypes.data, array.nbytes)
    for _ in range(ROUNDS):
        for row, _, type in inputs:
            for half, value in enumerate(["i64", "i64"] if type == "b128" else [VALUE_TYPE[type]]):
                bits = _random_bits(value)
                source[row, :, 8 * half : 8 * half + bits.itemsize] = bits.reshape(32, 1).view(np.uint8)
        finish(bench, bench.warp())
        reading, writing = iter(inputs), iter(outputs)
        for case, form in zip(cases, forms, strict=True):
            _compare(case, form, source, target, reading, writing)


def _aligned(array: np.ndarray) -> np.ndarray:
    raw = np.zeros(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + array.nbytes].reshape(array.shape)


def _load(name: str, type: str, offset: int) -> str:
    if type == "pred":
        return f"ld.global.u8 %x, [%in+{offset}];\nsetp.ne.u32 {name}, %x, 0;"
    return f"ld.global.{_bits(type)} {name}, [%in+{offset}];"


def _store(name: str, type: str, offset: int) -> str:
    if type == "pred":
        return f"selp.u32 %x, 1, 0, {name};\nst.global.u8 [%out+{offset}], %x;"
    return f"st.global.{_bits(type)} [%out+{offset}], {name};"


def _bits(type: str) -> str:
    return "b128" if type == "b128" else f"b{8 * max(DTYPES[VALUE_TYPE[type]].itemsize, 1)}"


def _compare(
    case: Case, form: Signature, source: np.ndarray, target: np.ndarray, reading: Any, writing: Any
) -> None:  # fmt: skip
    ops = NumpyOps()
    values = []
    for typed in form.src:
        if isinstance(typed.operand, Imm):
            bits = np.full(32, immediate_bits(typed.operand, typed.type), np.uint64)
            values.append(_as_value(bits.view(np.uint8).reshape(32, 8), VALUE_TYPE[typed.type]))
            continue
        assert isinstance(typed.operand, RegOp | Special)
        row, _, _ = next(reading)
        for half, value in enumerate(["i64", "i64"] if typed.type == "b128" else [VALUE_TYPE[typed.type]]):
            values.append(_as_value(source[row, :, 8 * half :], value))
    if case.op.row.carry_out and not case.op.row.carry_in:
        next(reading)
    with np.errstate(all="ignore"):
        results = list(form.apply(ops, values))
    for typed in form.dst:
        row, _, _ = next(writing)
        is_carry = typed.operand == CARRY
        for half in range(2 if typed.type == "b128" else 1):
            expected = np.ascontiguousarray(np.broadcast_to(results.pop(0), (32,)))
            bits = expected.view(np.uint8).reshape(32, -1)
            got = target[row, :, 8 * half : 8 * half + bits.shape[1]]
            wrong = np.flatnonzero((bits != got).any(axis=1))
            if len(wrong):
                lane = wrong[0]
                operands = [hex(int(v[lane if len(v) > 1 else 0].view(f"u{v.dtype.itemsize}"))) for v in values]
                raise AssertionError(
                    f"{case.text} {'carry ' if is_carry else ''}lane {lane} of {operands}: "
                    f"numpy {bits[lane][::-1].tobytes().hex()}, native {got[lane][::-1].tobytes().hex()}"
                )


def _as_value(raw: np.ndarray, value_type: str) -> np.ndarray:
    dtype = DTYPES[value_type]
    column = np.ascontiguousarray(raw[:, : dtype.itemsize]).reshape(-1)
    return (column != 0) if value_type == "i1" else column.view(dtype)


@pytest.mark.parametrize("batch", range(len(BATCHES)))
def test_native_code_computes_what_numpy_does(batch: int) -> None:
    cases = []
    for opcode in BATCHES[batch]:
        for dst, src in shapes(opcode):
            cases.append(Case(len(cases), opcode, dst, src, immediates=False))
            cases.append(Case(len(cases), opcode, dst, src, immediates=True))
    _run(cases)
