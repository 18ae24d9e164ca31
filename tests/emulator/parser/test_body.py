"""Statements of a function: labels, guards, scopes, branches, directives, the end."""

import pytest

from megamoe_jit.emulator.parser import PtxSyntaxError, parse
from tests.emulator.parser.samples import HEADER, parse_entry, ptx_entry, shown


def test_scopes_repeat_names() -> None:
    one = """{
    .reg .pred P; .reg .b32 %r1;
    LAB: try %r1; @P bra.uni DONE;
    bra LAB; DONE: }"""
    function = parse_entry(
        f".reg .pred P; .reg .b32 %r<5>; LAB: op %r1, %r2;\n{one}\n{one}\n@!P bra LAB; op %r1; exit;"
    )
    assert shown(function) == [
        "op %r1, %r2",
        "try %r1.2",
        "@P bra.uni -> 4",
        "bra -> 1",
        "try %r1.3",
        "@P.2 bra.uni -> 7",
        "bra -> 4",
        "@!P.3 bra -> 0",
        "op %r1",
        "exit",
    ]
    assert sorted(function.labels.values()) == [0, 1, 4, 4, 7]
    assert len({reg.name for reg in function.registers}) == len(function.registers)
    assert [reg.index for reg in function.registers] == list(range(len(function.registers)))


def test_inner_scope_sees_the_outer_until_it_declares() -> None:
    function = parse_entry(
        ".reg .b32 a; op a; { op a; .reg .b64 a; op a; { op [a+4]; .reg .b16 a; op a; } op a; } op a;"
    )
    types = [
        {op.type for op in function.registers if op.name == text.split()[1].strip("[]")}
        for text in shown(function)[:-1]
    ]
    assert types == [{"b32"}, {"b32"}, {"b64"}, {"b64"}, {"b16"}, {"b64"}, {"b32"}]


def test_labels_from_inner_scopes_reach_outer_ones_not_the_other_way() -> None:
    assert shown(parse_entry("OUT: { bra OUT; } { IN: bra IN; } ret;"))[:2] == ["bra -> 0", "bra -> 1"]
    with pytest.raises(PtxSyntaxError, match="label 'IN' is not in k"):
        parse_entry("{ IN: op; } bra IN;")


def test_label_and_instructions_share_a_line() -> None:
    function = parse_entry(".reg .pred p; $L__0: A: op; @p bra $L__0; @!p bra A; B : bra B;")
    assert shown(function) == ["op", "@p bra -> 0", "@!p bra -> 0", "bra -> 3"]
    assert function.labels == {"$L__0": 0, "A": 0, "B": 3}


def test_opcodes_keep_their_colons() -> None:
    function = parse_entry(
        ".reg .b32 a; L: mbarrier.try_wait.parity.shared::cta.b64 a, [a], 0;"
        "st.async.weak.shared::cluster.b32 [a], a; ret;"
    )
    assert [instruction.opcode for instruction in function.instructions[:2]] == [
        "mbarrier.try_wait.parity.shared::cta.b64",
        "st.async.weak.shared::cluster.b32",
    ]
    assert function.instructions[0].base == "mbarrier"


def test_text_and_line_are_those_of_the_source() -> None:
    text = ptx_entry(".reg .b32 a;\n\n  mov.b32 \t a,\n   5; // five\n L: op a;\n @%p bra L;", before="// first\n")
    with pytest.raises(PtxSyntaxError, match="line 13, column 2: '%p' is not declared"):
        parse(text)
    function = parse(text.replace("@%p", "")).functions["k"]
    assert [(i.text, i.line) for i in function.instructions] == [
        ("mov.b32 a, 5;", 10),
        ("op a;", 12),
        ("bra L;", 13),
    ]


def test_the_end_of_a_body_returns() -> None:
    assert shown(parse_entry("")) == ["ret"]
    assert shown(parse_entry("op; exit;")) == ["op", "exit"]
    assert shown(parse_entry("op; bra E; E:")) == ["op", "bra -> 2", "ret"]
    assert shown(parse_entry(".reg .pred p; @p exit;")) == ["@p exit", "ret"]
    assert shown(parse_entry(".reg .pred p; L: @p ret; bra L;")) == ["@p ret", "bra -> 0"]


def test_branch_tables() -> None:
    function = parse_entry(
        ".reg .b32 a;\n op a;\n L0: op 0; L1: op 1; { T: .branchtargets L1, L0 , L2, L0; brx.idx a, T; }"
        "\n{ T: .branchtargets\n L2; brx.idx.uni a, T; } L2: ret;"
    )
    assert shown(function)[3:5] == ["brx.idx a, &T", "brx.idx.uni a, &T.2"]
    assert function.branch_tables == {"T": (2, 1, 5, 1), "T.2": (5,)}
    assert "T" not in function.labels
    for bad in (
        "T: .branchtargets X; brx.idx a, T;",
        "brx.idx a, T;",
        ".branchtargets L;",
        "L: brx.idx a, L;",
        "brx.idx a;",
    ):
        with pytest.raises(PtxSyntaxError):
            parse_entry(f".reg .b32 a; {bad} ret;")


def test_pragmas_with_braces() -> None:
    function = parse_entry('.pragma "nounroll {;}"; op; { .pragma "a", "b"; } ret;', before='.pragma "x};";')
    assert shown(function) == ["op", "ret"]


def test_calls_that_nobody_inlines_stay() -> None:
    function = parse_entry(
        ".reg .b64 %rd<3>; .reg .b32 %r<3>;\n"
        "{ .param .b64 p0; .param .b64 p1; .param .b32 r; st.param.b64 [p0+0], %rd1; st.param.b64 [p1], 0;\n"
        " call.uni (r), vprintf, (p0, p1); ld.param.b32 %r1, [r+0]; }\n"
        "{ P: .callprototype (.param .b32 _) _ (.param .b64 _); } ret;",
        before=".extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);",
    )
    assert shown(function) == [
        "mov.b64 p0(), %rd1",
        "mov.b64 p1(), #0",
        "call.uni {r()}, &vprintf, {p0(), p1()}",
        "mov.b32 %r1, r()",
        "ret",
    ]
    assert {reg.name: reg.type for reg in function.registers} == {
        "%rd1": "b64", "%r1": "b32", "p0()": "b64", "p1()": "b64", "r()": "b32",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("op", "is no statement"),
        ("op;;", "is no statement"),
        ("op; }", "begins no directive"),
        ("{ op;", "never closed"),
        ("L: L: op;", "stands twice"),
        ("bra;", "label ''"),
        ("bra X;", "label 'X'"),
        ("bra 5;", "label '5'"),
        (".reg .b32 a, a;", "declared twice"),
        (".reg .b32 a; .reg .b64 a;", "declared twice"),
        (".reg .b32 %r<4>; .reg .f32 %r<4>;", "declared twice"),
        (".reg .b33 a;", "is not known"),
        (".reg a;", "need a type"),
        (".reg .v2 .pred a;", "need a type"),
        (".reg .b32;", "declares no register"),
        (".reg .b32 a<99999999999>;", "declares no register"),
        (".reg .b32 a; @a op;", "is no predicate"),
        ("@q op;", "not declared"),
        (".loc 1 2;", "is no .loc"),
        (".foo 1;", "not known"),
        (".section x;", "not known"),
        (".reg .b64 f; call f;", "indirect"),
        ("call;", "not declared"),
        ("call (;", "never closed"),
        ("call nothing, ();", "not declared"),
        ("{" * 300, "nested too deeply"),
        ("Op;", "is no statement"),
        ("op \0;", "is no operand"),
    ],
)
def test_errors_name_their_place(body: str, message: str) -> None:
    with pytest.raises(PtxSyntaxError, match=message) as caught:
        parse_entry(body)
    assert caught.value.line >= 7


@pytest.mark.parametrize(
    "text", ["", "   ", "hello", ".version", ".version 8.7", "{", "}", ".target sm_90a", "\0", "/*", '"']
)
def test_texts_that_are_no_module(text: str) -> None:
    with pytest.raises(PtxSyntaxError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".address_size 32", "32 bits"),
        (".entry k() { ret; } .entry k() { ret; }", "defined twice"),
        (".global .u32 k; .entry k() { ret; }", "defined twice"),
        (".entry (.param .b32 r) k() { ret; }", "cannot return"),
        (".entry k(.param .b32) { ret; }", "declares nothing"),
        (".entry k(.param .b32 x[]) { ret; }", "no size"),
        (".entry k() .maxntid { ret; }", "needs numbers"),
        (".entry k() .maxntid 99999999999 { ret; }", "needs numbers"),
        (".entry k() what { ret; }", "no directive of a function"),
        (".entry k(.param .b32 x, .param .b64 x) { ret; }", "declared twice"),
        (".alias a, b;", "cannot be an alias"),
        (".file x", "cannot be read"),
        (".section .debug_str { ", "cannot be read"),
        (".entry", "is no function"),
        (".func f(", "is no function"),
    ],
)
def test_errors_of_the_module(text: str, message: str) -> None:
    with pytest.raises(PtxSyntaxError, match=message):
        parse(HEADER + text)


def test_directives_of_an_entry() -> None:
    function = parse_entry(
        "ret;",
        directives=".explicitcluster .maxntid 32, 2, 3\n.minnctapersm 2 .maxnreg 168 "
        ".reqnctapercluster 2,1,1 .maxclusterrank 16",
    )
    assert (function.max_block, function.max_threads) == ((32, 2, 3), 192)
    assert (function.min_ctas, function.max_registers, function.max_cluster) == (2, 168, 16)
    assert function.required_cluster == (2, 1, 1)
    assert function.required_block is None
    assert parse_entry("ret;", directives=".reqntid 128").required_block == (128, 1, 1)


def test_module_facts() -> None:
    module = parse(
        '.version 9.4 .target sm_100a, debug\n.address_size 64\n.file 2 "/a b.cu", 5, 6\n'
        ".entry k { ret; } .weak .entry j() {}"
    )
    assert (module.version, module.target, module.files) == ((9, 4), "sm_100a", {2: "/a b.cu"})
    assert [function.name for function in module.entries] == ["k", "j"]
