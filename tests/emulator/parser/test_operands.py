"""Every spelling of an operand, and the ones that are none."""

import pytest

from megamoe_jit.emulator.parser import Imm, PtxSyntaxError, RegOp, Special
from tests.emulator.parser.samples import one_operand, parse_entry, show, shown

_DECLARED = ".reg .b32 a, b, %r<10>; .reg .b64 %rd<9>; .reg .pred p, %p<4>; .reg .b8 x<4>; .shared .align 4 .b8 s[64];"


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("a", "a"),
        ("%r9", "%r9"),
        (" %rd8 ", "%rd8"),
        ("17", "#17"),
        ("-1", "#-1"),
        ("0f40490FDB", "#3.1415927410125732"),
        ("%tid.x", "special %tid.x"),
        ("%clock64", "special %clock64"),
        ("%envreg31", "special %envreg31"),
        ("WARP_SZ", "#32"),
        ("_", "_"),
        ("!p", "!p"),
        ("! %p3", "!%p3"),
        ("p|%p0", "p|%p0"),
        ("a | p", "a|p"),
        ("_|p", "_|p"),
        ("{a, 5, _, %r1}", "{a, #5, _, %r1}"),
        ("{ %rd1 }", "{%rd1}"),
        ("{x0,x1,x2,x3}", "{x0, x1, x2, x3}"),
        ("s", "&s"),
        ("s+4", "&s+4"),
        ("s - 4", "&s+-4"),
        ("g+8*2", "&g+16"),
        ("[a]", "[a]"),
        ("[%rd1+16]", "[%rd1 16]"),
        ("[%rd1 + -8]", "[%rd1 -8]"),
        ("[%rd1+-8]", "[%rd1 -8]"),
        ("[%rd1-8]", "[%rd1 -8]"),
        ("[ %r1 + 0 ]", "[%r1]"),
        ("[s]", "[&s]"),
        ("[s+12]", "[&s 12]"),
        ("[1024]", "[1024]"),
        ("[0x10+4]", "[20]"),
        ("[%rd1, {a, b}]", "[%rd1 {a, b}]"),
        ("[%rd1+64, {a, 0, b}]", "[%rd1 64 {a, #0, b}]"),
        ("[%rd1, {a, b}, {%r1}]", "[%rd1 {a, b} {%r1}]"),
        ("[%rd1, a]", "[%rd1 a]"),
        ("[q]", "[&q]"),
        ("[q+4]", "[&q 4]"),
        ("q", "&q"),
    ],
)
def test_spellings(text: str, meaning: str) -> None:
    found = one_operand(text, declare=_DECLARED, before=".global .b8 g[64];", params=".param .u64 q")
    assert show(found) == meaning


_NO_OPERANDS = """c %r10 %r01 %x x4 {} {a a} [a a] [] [{a}] {[a]} !5x !s a|5 a||b a+4 [%tid.x] [!p] [_] 1.5x %tid.q
[s+x] 'a' "a" @p a:b [a+] p| |p a,,b a, [a]] % $ {{a}} [a+1.5] -a ~a s*2"""


@pytest.mark.parametrize("text", [*_NO_OPERANDS.split(), "a b", "a, , b", "[a b]", "{a b}"])
def test_no_operand(text: str) -> None:
    with pytest.raises(PtxSyntaxError) as caught:
        one_operand(text, declare=_DECLARED, before=".global .b8 g[64];", params=".param .u64 q")
    assert caught.value.line == 8, "the line of the instruction"
    assert caught.value.column == 2


def test_registers_are_dense_and_made_when_met() -> None:
    function = parse_entry(
        ".reg .b32 %r<1000>; .reg .f64 %fd<7>; .reg .pred %p<3>;\n op %r999, %fd6, %r3; @%p2 op %r3; ret;"
    )
    assert [(reg.name, reg.type, reg.index, reg.width) for reg in function.registers] == [
        ("%r999", "b32", 0, 4),
        ("%fd6", "f64", 1, 8),
        ("%r3", "b32", 2, 4),
        ("%p2", "pred", 3, 1),
    ]
    first, second = function.instructions[:2]
    assert isinstance(first.operands[2], RegOp)
    assert first.operands[2].reg is second.operands[0].reg
    assert second.guard == (function.registers[3], False)


def test_vector_registers_are_their_members() -> None:
    function = parse_entry(".reg .v4 .f32 v; .reg .v2 .b64 w;\n op v, v.y, w.x; op v.x, v.w; ret;")
    assert shown(function)[:2] == ["op {v.x, v.y, v.z, v.w}, v.y, w.x", "op v.x, v.w"]
    assert [reg.type for reg in function.registers] == ["f32"] * 4 + ["b64"] * 2
    with pytest.raises(PtxSyntaxError):
        parse_entry(".reg .v2 .b64 w;\n op w.z;")


def test_a_declared_register_hides_a_special_one() -> None:
    assert isinstance(one_operand("%laneid"), Special)
    assert isinstance(one_operand("%laneid", declare=".reg .b32 %laneid;"), RegOp)


def test_constants_keep_what_was_written() -> None:
    assert one_operand("0xffffffff") == Imm(value=0xFFFFFFFF)
    assert one_operand("0d3FF8000000000000") == Imm(value=1.5, is_float=True, bits=0x3FF8000000000000, size=8)
