"""Minimum and maximum: an order of patterns in which -0 is below +0 and NaN is apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.emulator.isa.evaluate import one
from tests.emulator.isa.numbers import operands

MANTISSA = {"f16": 10, "bf16": 7, "f32": 23, "f64": 52}
EXPONENT = {"f16": 5, "bf16": 8, "f32": 8, "f64": 11}
CANONICAL = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF}


def model(type: str, modifiers: set[str], pick: Callable[..., int], row: list[int]) -> int | None:
    """Return the pattern, None for any NaN."""
    mantissa, sign = MANTISSA[type], 1 << (MANTISSA[type] + EXPONENT[type])
    infinity = ((1 << EXPONENT[type]) - 1) << mantissa
    if "ftz" in modifiers:
        row = [x & sign if x & infinity == 0 else x for x in row]
    product = (row[0] ^ row[1]) & sign
    if "abs" in modifiers:
        row = [x & ~sign for x in row]
    kept = [x for x in row if x & ~sign <= infinity]
    if not kept or ("NaN" in modifiers and len(kept) < len(row)):
        return None
    result = pick(kept, key=lambda x: -(x & ~sign) - 1 if x & sign else x)
    return result | product if "xorsign" in modifiers else result


FORMS = {
    "f32": ["", "ftz", "NaN", "ftz.NaN", "xorsign.abs", "ftz.NaN.xorsign.abs"],
    "f64": [""],
    "f16": ["", "ftz", "NaN", "ftz.NaN", "xorsign.abs", "ftz.NaN.xorsign.abs"],
    "bf16": ["", "NaN", "xorsign.abs", "NaN.xorsign.abs"],
}


def check(opcode: str, type: str, modifiers: str, count: int) -> None:
    name = opcode.split(".")[0]
    inputs = operands(type, 2500, count, 70)
    # Equal numbers, and numbers that differ in their sign.
    inputs[1][-1000:] = inputs[0][-1000:]
    inputs[1][-500:] ^= np.array(1 << (8 * inputs[1].dtype.itemsize - 1), inputs[1].dtype)
    result = one(opcode, *inputs)
    pick = min if name == "min" else max
    infinity = ((1 << EXPONENT[type]) - 1) << MANTISSA[type]
    top = 1 << (MANTISSA[type] + EXPONENT[type])
    for i, got in enumerate(result.tolist()):
        row = [int(x[i]) for x in inputs]
        expected = model(type, set(modifiers.split(".")), pick, row)
        if expected is None:
            assert got == CANONICAL[type] if type in CANONICAL else got & (top - 1) > infinity, row
        else:
            assert got == expected, (list(map(hex, row)), hex(got), hex(expected))


@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize(("type", "modifiers"), [(type, m) for type, all_of in FORMS.items() for m in all_of])
def test_two(type: str, modifiers: str, name: str) -> None:
    check(".".join(filter(None, [name, modifiers, type])), type, modifiers, 2)


@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize("modifiers", ["", "ftz", "NaN", "abs", "ftz.NaN.abs"])
def test_three(modifiers: str, name: str) -> None:
    check(".".join(filter(None, [name, modifiers, "f32"])), "f32", modifiers, 3)
