"""Instructions with too few, too many or other operands are refused, or run; nothing else comes of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from megamoe_jit.emulator import Emulator
from megamoe_jit.emulator.interpreter.engine import NumpyEngine
from megamoe_jit.emulator.isa import table
from megamoe_jit.emulator.native.binding import bind
from megamoe_jit.emulator.native.codegen import generate
from megamoe_jit.emulator.parser import PtxSyntaxError, parse
from megamoe_jit.errors import MegaMoeError, UnsupportedError
from tests.emulator.cuda_source import object_cache

_KERNEL = """
.version 8.7
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 x) {{
    .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<9>; .reg .pred %p<9>;
    {body}
    ret;
}}
"""
_OPERANDS = ("%r1", "[%rd1]", "%p1", "1", "{%r1, %r2}")


def _bodies() -> Iterator[str]:
    """One opcode of each row of the table, with each number of operands, and with operands of each kind."""
    for row in table.rows():
        opcode = next(row.pattern.spellings())
        for count in range(7):
            yield f"{opcode} {', '.join(itertools.islice(itertools.cycle(('%r1', '[%rd1]')), count))};"
        for operand in _OPERANDS:
            yield f"{opcode} {operand}, {operand};"


def _is_refused(body: str, engine: str) -> bool:
    try:
        module = parse(_KERNEL.format(body=body))
        function = module.functions["k"]
        if engine == "native":
            generate(bind(function, module))  # LLVM is not asked: the texts that it gets are right or wrong by then
        else:
            NumpyEngine().prepare(function, module)
    except MegaMoeError:
        return True
    except Exception as error:
        raise AssertionError(f"{body}: {type(error).__name__}: {error}") from error
    return False


@pytest.mark.parametrize("engine", ["native", "numpy"])
def test_every_opcode_with_other_operands(engine: str) -> None:
    refused = [_is_refused(body, engine) for body in _bodies()]
    assert sum(refused) > 1000
    assert not all(refused)


@pytest.mark.parametrize("limit", ["maxntid", "minnctapersm", "reqntid 1, 1,"])
def test_limits_of_thousands_of_digits(limit: str) -> None:
    for digits in ("9" * 5000, "1" + "0" * 4999):
        with pytest.raises(PtxSyntaxError, match="32 bits"):
            parse(_KERNEL.format(body="").replace("(.param .u64 x)", f"(.param .u64 x) .{limit} {digits}"))
    assert parse(_KERNEL.format(body="").replace("(.param .u64 x)", f"(.param .u64 x) .{limit} {'0' * 4999}7"))


@pytest.mark.parametrize("end", ["x", ",", "%", "-1"])
def test_a_long_number_with_a_wrong_end_is_refused_at_once(end: str) -> None:
    text = _KERNEL.format(body="").replace("(.param .u64 x)", f"(.param .u64 x) .maxntid {'0' * 5000}{end}")
    start = time.monotonic()
    with pytest.raises(PtxSyntaxError, match=r"32 bits|no directive"):
        parse(text)
    assert time.monotonic() - start < 5


def test_a_form_without_its_last_source_says_what_it_takes() -> None:
    module = Emulator(cache_dir=object_cache()).load(_KERNEL.format(body="selp.u32 %r1, %r2, %r3;"))
    with pytest.raises(UnsupportedError, match="has 2 sources, but takes"):
        module.prepare("k")
