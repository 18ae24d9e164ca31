"""`.loc` chains, against what the text says by hand; NVRTC's own are in test_nvrtc.py."""

import pytest

from megamoe_jit.emulator.parser import Location, parse
from megamoe_jit.emulator.parser.debug import CallSites
from tests.emulator.parser.samples import HEADER

_STRINGS = """
.section .debug_str
{
$L__info_string0:
.b8 111,117,116,101,114,0
$L__info_string1:
.b8 105,0x6e,110
.b8 101,114
.b8 0
.b32 $L__info_string0
}
.section .debug_info { .b32 99999999999 .b8 junk }
"""

_TEXT = f"""{HEADER}
.entry k {{
 .reg .b32 a;
 op a;
 .loc 1 10 1
 op a;
 .loc 2 20 5, function_name $L__info_string0, inlined_at 1 10 1
 op a;
 .loc 3 30 7, function_name $L__info_string1, inlined_at 2 20 5
 op a;
 .loc 3 31 7, function_name $L__info_string0 + 2, inlined_at 2 20 5
 op a; op a;
 .loc 2 22 1, function_name $L__unknown, inlined_at 1 99 9
 op a;
 .loc 7 1 1
 op a;
 ret;
}}
.file 1 "/kernel.cu"
.file 2 "/roles/load.cuh"
.file 3 "/ptx/tma.cuh"
{_STRINGS}
"""


def test_chains() -> None:
    function = parse(_TEXT).functions["k"]
    kernel = Location(file="/kernel.cu", line=10)
    outer = Location(file="/roles/load.cuh", line=20, inlined_at=kernel, function="outer")
    inner = Location(file="/ptx/tma.cuh", line=30, inlined_at=outer, function="inner")
    skipped = Location(file="/ptx/tma.cuh", line=31, inlined_at=outer, function="ter")
    unknown = Location(
        file="/roles/load.cuh", line=22, inlined_at=Location(file="/kernel.cu", line=99), function="$L__unknown"
    )
    nameless = Location(file="<file 7>", line=1)
    expected = [None, kernel, outer, inner, skipped, skipped, unknown, nameless, nameless]
    assert [instruction.location for instruction in function.instructions] == expected
    assert inner.chain == (inner, outer, kernel)
    assert str(inner) == "/ptx/tma.cuh:30 <- /roles/load.cuh:20 <- /kernel.cu:10"


@pytest.mark.parametrize("repeats", [1, 500])
def test_positions_that_name_themselves_do_not_grow_without_end(repeats: int) -> None:
    line = ".loc 1 5 5, function_name f, inlined_at 1 5 5\n op;\n"
    function = parse(f"{HEADER}.entry k {{ {line * repeats} ret; }}").functions["k"]
    for instruction in function.instructions:
        assert instruction.location is not None
        assert len(instruction.location.chain) <= 66


def test_call_sites_extend_chains_at_their_outer_end() -> None:
    call = Location(file="k.cu", line=1, inlined_at=Location(file="main.cu", line=2))
    deep = Location(file="a.cuh", line=3, inlined_at=Location(file="f.cuh", line=4), function="a")
    sites = CallSites()
    moved = sites.inlined(deep, call, "f")
    assert moved is not None
    assert [(place.file, place.line, place.function) for place in moved.chain] == [
        ("a.cuh", 3, "a"),
        ("f.cuh", 4, "f"),
        ("k.cu", 1, None),
        ("main.cu", 2, None),
    ]
    assert sites.inlined(deep, call, "f") is moved
    assert sites.inlined(None, call, "f") is call
    assert sites.inlined(deep, None, "f") is deep
    assert sites.inlined(None, None, "f") is None
