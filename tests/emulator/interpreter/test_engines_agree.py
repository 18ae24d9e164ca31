"""Both engines read and write operands alike: an instruction of every row of values, with results in memory."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from megamoe_jit.emulator.interpreter.engine import NumpyEngine
from megamoe_jit.emulator.isa.table import Kind, rows
from megamoe_jit.emulator.machine.engine import StopKind
from tests.emulator.interpreter.forms import DECLARATIONS, NUM_SOURCES, SLOT, Example, body, example, is_value_form
from tests.emulator.isa.evaluate import edges
from tests.emulator.isa.numbers import EDGES
from tests.emulator.native.harness import ENGINE, Bench, fault, kernel_text

Bytes = NDArray[np.uint8]
PER_ROW = 1
PER_KERNEL = 40
RUNS = 6
# Their f64 result comes from the C library here and from numpy there, which may differ in the last bit: rounded to f32
# or less, that shows once in many millions of inputs.
_INEXACT = ("ex2", "lg2", "sin", "cos", "tanh")


def sample() -> list[list[Example]]:
    """Return some opcodes of every row, in groups that become kernels."""
    rng = random.Random(11)
    chosen: list[Example] = []
    for row in rows():
        if row.kind is Kind.PURE and row.function is not None and is_value_form(row.function.__module__):
            opcodes = list(row.opcodes())
            picked = rng.sample(opcodes, min(PER_ROW, len(opcodes)))
            chosen += map(example, picked)
    return [chosen[start : start + PER_KERNEL] for start in range(0, len(chosen), PER_KERNEL)]


GROUPS = sample()


def sources(rng: np.random.Generator, run: int) -> Bytes:
    """Return operands of 32 lanes: random bits, numbers and integers that matter, small numbers, equal ones."""
    words = np.frombuffer(rng.bytes(NUM_SOURCES * SLOT), np.uint64).reshape(NUM_SOURCES, 32, 2).copy()
    pools: list[list[int]] = [
        [],
        EDGES["f64"],
        [x | x << 32 for x in EDGES["f32"]],
        [x * 0x0001000100010001 for x in EDGES["f16"] + EDGES["bf16"]],
        edges(32) + edges(64),
        [*range(70)],
    ]
    if pools[run]:
        words[:, :, 0] = rng.choice(np.array(pools[run], np.uint64), (NUM_SOURCES, 32))
    if run == 4:
        words[1, ::2] = words[0, ::2]
    return words.view(np.uint8).reshape(-1)


def results(text: str, engine: Any, inputs: list[Bytes], num_results: int) -> list[Bytes]:
    source, result = np.zeros(NUM_SOURCES * SLOT, np.uint8), np.zeros(num_results * SLOT, np.uint8)
    bench = Bench(text, params=struct.pack("<QQ", source.ctypes.data, result.ctypes.data), engine=engine)
    bench.allocations.add(source.ctypes.data, source.nbytes)
    bench.allocations.add(result.ctypes.data, result.nbytes)
    found = []
    for data in inputs:
        source[:] = data
        result[:] = 0
        warp = bench.warp()
        stop = bench.run(warp)
        assert stop.kind is StopKind.EXIT, fault(warp)
        found.append(result.copy())
    return found


@pytest.mark.parametrize("number", range(len(GROUPS)))
def test_values(number: int) -> None:
    group = GROUPS[number]
    rng = np.random.default_rng(number)
    text, num_results = body(group, [int(x) for x in rng.integers(0, 1 << 16, len(group))])
    ptx = kernel_text(text, ".param .u64 source, .param .u64 result", DECLARATIONS)
    inputs = [sources(rng, run) for run in range(RUNS)]
    native, plain = (results(ptx, engine, inputs, num_results) for engine in (ENGINE, NumpyEngine()))
    owners = [case for case in group for _ in case.dst]
    for data, a, b in zip(inputs, native, plain, strict=True):
        lanes_a, lanes_b = (x.reshape(num_results, 32, 2, 8).view(np.uint64)[..., 0] for x in (a, b))
        for slot, lane, _ in np.argwhere(lanes_a != lanes_b):
            case = owners[slot]
            if case.opcode.startswith(_INEXACT):
                continue
            operands = data.reshape(NUM_SOURCES, 32, 2, 8).view(np.uint64)[: len(case.src), lane, :, 0]
            pytest.fail(
                f"{case.opcode} of {[[hex(x) for x in word] for word in operands]}: native "
                f"{[hex(x) for x in lanes_a[slot, lane]]}, numpy {[hex(x) for x in lanes_b[slot, lane]]}"
            )
