"""Inlined device functions, executed by a machine of their own and held to Python."""

import random
import struct

import pytest

from megamoe_jit.emulator.parser import Function, PtxSyntaxError, parse
from tests.emulator.parser.machine import Lane
from tests.emulator.parser.samples import HEADER, shown

_MASK = (1 << 32) - 1

# triangle(n) = n + ... + 1, by a loop; scaled(n, f) adds triangle to itself, f times. Parameters as nvcc writes them.
_FUNCTIONS = """
.func (.param .b32 r) triangle(.param .b32 n)
{
    .reg .pred %p<3>; .reg .b32 %r<5>;
    ld.param.u32 %r1, [n];
    mov.u32 %r2, 0;
    setp.eq.s32 %p1, %r1, 0;
    @%p1 bra DONE;
LOOP:
    add.s32 %r2, %r2, %r1;
    sub.s32 %r1, %r1, 1;
    setp.ne.s32 %p2, %r1, 0;
    @%p2 bra LOOP;
DONE:
    st.param.b32 [r+0], %r2;
    ret;
}
.func (.param .b32 r) scaled(.param .b32 n, .param .b32 f)
{
    .reg .pred %p<3>; .reg .b32 %r<9>;
    ld.param.u32 %r1, [n];
    ld.param.u32 %r2, [f];
    mov.u32 %r4, 0;
LOOP:
    setp.eq.s32 %p1, %r2, 0;
    @!%p1 bra MORE;
    st.param.b32 [r], %r4;
    ret;
MORE:
    {
    .param .b32 p0;
    st.param.b32 [p0+0], %r1;
    .param .b32 v;
    call.uni (v), triangle, (p0);
    ld.param.b32 %r3, [v+0];
    }
    add.s32 %r4, %r4, %r3;
    sub.s32 %r2, %r2, 1;
    bra LOOP;
}
"""


def _entry(body: str, functions: str = _FUNCTIONS, params: str = ".param .u32 x, .param .u32 y") -> Function:
    return parse(f"{HEADER}{functions}.entry k({params}) {{ {body} }}").functions["k"]


def _run(function: Function, *values: int) -> dict[int, int]:
    return Lane(function, struct.pack(f"<{len(values)}I", *values)).run()


_LOADS = ".reg .b32 %r<20>; .reg .b64 %rd<9>; .reg .pred %p<9>; ld.param.u32 %r1, [x]; ld.param.u32 %r2, [y];\n"


def _call(result: str, callee: str, *arguments: str) -> str:
    lines = "".join(f".param .b32 p{i}; st.param.b32 [p{i}], {argument};\n" for i, argument in enumerate(arguments))
    names = ", ".join(f"p{i}" for i in range(len(arguments)))
    return f"{{ {lines} .param .b32 v; call (v), {callee}, ({names}); ld.param.b32 {result}, [v]; }}\n"


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def test_nested_functions_compute_what_they_say() -> None:
    function = _entry(
        _LOADS
        + _call("%r3", "scaled", "%r1", "%r2")
        + _call("%r4", "triangle", "%r3")
        + "mov.u64 %rd0, 0; st.global.u32 [%rd0], %r3; st.global.u32 [%rd0+4], %r4; ret;"
    )
    for x, y in [(0, 0), (0, 3), (5, 0), (5, 1), (7, 4), (12, 3)]:
        out = _run(function, x, y)
        assert out == {0: _triangle(x) * y, 4: _triangle(_triangle(x) * y)}
    assert not any(
        instruction.base == "call" or ".param" in instruction.opcode for instruction in function.instructions[2:]
    )
    assert function.local_bytes == 0, "scalars live in registers"
    assert len({reg.name for reg in function.registers}) == len(function.registers)


def test_a_guarded_call_is_skipped_as_a_whole() -> None:
    function = _entry(
        _LOADS
        + "mov.u64 %rd0, 0; mov.u32 %r3, 77; setp.gt.s32 %p1, %r1, 3;\n"
        + "{ .param .b32 p; .param .b32 v; st.param.b32 [v], 5; st.param.b32 [p], %r1; @!%p1 call (v), triangle, (p); "
        + "ld.param.b32 %r3, [v]; } st.global.u32 [%rd0], %r3; ret;"
    )
    assert [_run(function, x, 0)[0] for x in (1, 3, 4, 9)] == [1, 6, 5, 5]


def test_random_programs_of_calls() -> None:
    rng = random.Random(5)
    for _ in range(30):
        values: list[str] = ["%r1", "%r2"]
        body, expected = _LOADS, []
        for number in range(rng.randrange(1, 8)):
            target = f"%r{number + 3}"
            which = rng.randrange(3)
            a, b = rng.choice(values), rng.choice(values)
            if which == 0:
                body += _call(target, "triangle", a)
                expected.append((target, lambda e, a=a: _triangle(e[a]) & _MASK))
            elif which == 1:
                body += _call(target, "scaled", a, b)
                expected.append((target, lambda e, a=a, b=b: _triangle(e[a]) * e[b] & _MASK))
            else:
                body += f"xor.b32 {target}, {a}, {b};\n"
                expected.append((target, lambda e, a=a, b=b: e[a] ^ e[b]))
            if which == 2:
                values.append(target)
        body += "mov.u64 %rd0, 0;" + "".join(f"st.global.u32 [%rd0+{4 * i}], %r{i + 3};" for i in range(len(expected)))
        function = _entry(body + "ret;")
        x, y = rng.randrange(6), rng.randrange(6)
        environment = {"%r1": x, "%r2": y}
        for target, compute in expected:
            environment[target] = compute(environment)
        assert _run(function, x, y) == {4 * i: environment[target] for i, (target, _) in enumerate(expected)}


def test_structures_and_addresses_of_parameters_go_through_local_memory() -> None:
    functions = """
    .func (.param .align 8 .b8 r[16]) swap(.param .align 8 .b8 a[16], .param .b64 which)
    {
        .reg .b32 %r<9>; .reg .b64 %rd<9>; .local .align 4 .b8 frame[8];
        mov.b64 %rd1, a;
        ld.param.u32 %r1, [%rd1];
        ld.param.v2.u32 {%r2, %r3}, [a+4];
        ld.param.u64 %rd2, [which];
        mov.u64 %rd3, frame;
        st.local.u32 [%rd3+4], %r1;
        ld.local.u32 %r4, [frame+4];
        st.param.b32 [r], %r3;
        st.param.v2.b32 [r+4], {%r2, %r4};
        cvta.param.u64 %rd4, a;
        ret;
    }
    """
    call = """{ .param .align 8 .b8 s[16]; st.param.b32 [s], %r1; st.param.b32 [s+4], %r2; st.param.b32 [s+8], 9;
        .param .b64 w; st.param.b64 [w], 1; .param .align 8 .b8 v[16]; call (v), swap, (s, w);
        ld.param.b32 %r3, [v]; ld.param.v2.b32 {%r4, %r5}, [v+4]; }"""
    store = "mov.u64 %rd0, 0; st.global.u32 [%rd0], %r3; st.global.u32 [%rd0+4], %r4; st.global.u32 [%rd0+8], %r5;"
    function = _entry(f"{_LOADS} {call} {store} ret;", functions)
    assert _run(function, 3, 4) == {0: 9, 4: 4, 8: 3}
    assert [instruction.opcode for instruction in function.instructions if "cvta" in instruction.opcode] == [
        "cvta.local.u64"
    ]
    twice = _entry(f"{_LOADS} {call} {call} {store} ret;", functions)
    assert _run(twice, 3, 4) == {0: 9, 4: 4, 8: 3}
    assert twice.local_bytes == 2 * function.local_bytes


def test_narrow_parameters_keep_their_bytes() -> None:
    functions = """
    .func (.param .b32 r) low(.param .b32 a, .param .b8 b, .param .b16 c)
    {
        .reg .b16 %rs<9>; .reg .b32 %r<9>;
        ld.param.u8 %r1, [a]; ld.param.s8 %r2, [b]; ld.param.b16 %rs1, [c]; ld.param.u16 %r3, [c];
        add.u32 %r4, %r1, %r2; add.u32 %r4, %r4, %r3;
        st.param.b32 [r], %r4; ret;
    }
    """
    function = _entry(
        _LOADS
        + ".reg .b16 %rs<4>; { .param .b32 a; .param .b8 b; .param .b16 c; st.param.b32 [a], %r1; st.param.b8 [b], %r2;"
        "st.param.b16 [c], 513; .param .b32 v; call (v), low, (a, b, c); ld.param.b32 %r3, [v]; }"
        "mov.u64 %rd0, 0; st.global.u32 [%rd0], %r3; ret;",
        functions,
    )
    assert _run(function, 0x1234, 0x5F0)[0] == (0x34 - 0x10 + 513) & _MASK


def test_register_parameters_and_constants() -> None:
    functions = """
    .func (.reg .b32 r) sum(.reg .b32 a, .reg .b32 b) { add.s32 r, a, b; add.s32 a, a, 100; ret; }
    .func (.param .b32 r) mixed(.param .b32 a)
    { .reg .b32 t; ld.param.b32 t, [a]; add.s32 t, t, 1; st.param.b32 [r], t; ret.uni; }
    .func nothing() { ret; }
    """
    function = _entry(
        _LOADS + "call (%r3), sum, (%r1, %r2); call (%r4), mixed, (%r3); call (%r5), mixed, (41); call nothing;"
        "call nothing, (); { .param .b32 p; .param .b32 q; st.param.b32 [p], %r1;"
        "call (q), sum, (p, 5); ld.param.b32 %r6, [q]; call (_), sum, (1, 2); }"
        "mov.u64 %rd0, 0; st.global.v4.u32 [%rd0], {%r3, %r4, %r5, %r6}; st.global.u32 [%rd0+16], %r1; ret;",
        functions,
    )
    assert _run(function, 30, 4) == {0: 34, 4: 35, 8: 42, 12: 35, 16: 30}


def test_branch_tables_inside_functions() -> None:
    functions = """
    .func (.reg .b32 r) pick(.reg .b32 i) { T: .branchtargets A, B, C; brx.idx i, T;
      A: mov.u32 r, 10; ret; B: mov.u32 r, 20; bra END; C: mov.u32 r, 30; END: ret; }
    """
    function = _entry(
        _LOADS + "call (%r3), pick, (%r1); call (%r4), pick, (%r2); mov.u64 %rd0, 0;"
        "st.global.v2.u32 [%rd0], {%r3, %r4}; T: .branchtargets X, Y; brx.idx 1, T;"
        "X: st.global.u32 [%rd0], 0; Y: ret;",
        functions,
    )
    for x in range(3):
        for y in range(3):
            assert _run(function, x, y) == {0: 10 * (x + 1), 4: 10 * (y + 1)}
    assert len(function.branch_tables) == 3


def test_functions_that_stay_outside_are_called_with_values() -> None:
    functions = """
    .extern .func (.param .b32 r) vprintf(.param .b64 f, .param .b64 a);
    .func say(.param .b64 what) { .reg .b64 t; .reg .b32 s; ld.param.b64 t, [what];
      { .param .b64 a; .param .b64 b; .param .b32 v; st.param.b64 [a], t; st.param.b64 [b], 7;
        call (v), vprintf, (a, b); ld.param.b32 s, [v]; } ret; }
    """
    calls = [f"{{ .param .b64 w; st.param.b64 [w], {value}; call say, (w); }}" for value in (100, 200)]
    lane = Lane(_entry(f"{' '.join(calls)} ret;", functions, params=""), b"")
    lane.run()
    assert lane.printed == [("vprintf", [100, 7]), ("vprintf", [200, 7])]


def test_shared_variables_of_a_function_are_one_place_locals_are_not() -> None:
    functions = ".func f() { .shared .align 8 .b8 s[8]; .local .b32 t; .reg .b32 a; mov.u32 a, s; mov.u32 a, t; ret; }"
    function = _entry(".shared .b8 s[4]; .reg .b32 a; mov.u32 a, s; call f; call f; ret;", functions, params="")
    assert {name: v.offset for name, v in function.variables.items() if v.space == "shared"} == {
        "s": 1024,
        "f::s": 1032,
    }
    assert sorted(v.offset for v in function.variables.values() if v.space == "local") == [0, 4]
    assert shown(function)[0].endswith("&s")
    assert sum("&f::s" in line for line in shown(function)) == 2


def test_places_of_inlined_instructions_name_the_call() -> None:
    text = f"""{HEADER}
    .func f() {{ .loc 2 5 1\n op; .loc 3 6 1, function_name n, inlined_at 2 5 1\n op; ret; }}
    .entry k() {{ .loc 1 1 1\n call f; .loc 1 2 1\n call f; ret; }}
    .file 1 "k"\n.file 2 "f"\n.file 3 "g"\n"""
    places = [str(i.location) for i in parse(text).functions["k"].instructions]
    assert places == ["f:5 <- k:1", "g:6 <- f:5 <- k:1", "f:5 <- k:2", "g:6 <- f:5 <- k:2", "k:2"]


@pytest.mark.parametrize(
    ("functions", "call", "message"),
    [
        (".func f() { call f; ret; }", "call f;", "recursion"),
        (".func g(); .func f() { call g; ret; } .func g() { call f; ret; }", "call f;", "recursion"),
        (".func f(.param .b32 a) { ret; }", "call f;", "1 arguments, not 0"),
        (".func (.param .b32 a) f() { ret; }", "call f;", "1 results, not 0"),
        (".func f(.param .b32 a) { ret; }", "{ .param .b64 p; call f, (p); }", "wants 4"),
        (".func f(.param .align 4 .b8 a[12]) { ret; }", "call f, (5);", "12 bytes"),
        (
            ".func (.param .b32 r) f(.param .b32 a) { ret; }",
            "{ .param .b32 p; call (p), f, (p); }",
            "both argument and result",
        ),
        (".func f() { ret; } .func f() { ret; }", "", "defined twice"),
        (".global .u32 f;", "{ .reg .b64 p; call p; }", "indirect"),
    ],
)
def test_calls_that_cannot_be_inlined(functions: str, call: str, message: str) -> None:
    with pytest.raises(PtxSyntaxError, match=message):
        _entry(f"{call} ret;", functions, params="")


def test_recursion_that_no_entry_reaches_does_no_harm() -> None:
    assert shown(_entry("ret;", ".func f() { call f; ret; }", params="")) == ["ret"]


def test_an_explosion_of_calls_is_refused() -> None:
    functions = ".func f0() { op; op; ret; }"
    for level in range(1, 30):
        functions += f".func f{level}() {{ call f{level - 1}; call f{level - 1}; ret; }}"
    with pytest.raises(PtxSyntaxError, match="more than 250000 instructions"):
        _entry("call f29; ret;", functions, params="")


def test_alias_is_the_function() -> None:
    functions = ".func (.reg .b32 r) f() { mov.u32 r, 3; ret; } .alias g, f;"
    function = _entry(
        ".reg .b32 %r<4>; .reg .b64 %rd<2>; call (%r1), g; mov.u64 %rd0, 0; st.global.u32 [%rd0], %r1; ret;",
        functions,
        "",
    )
    assert _run(function) == {0: 3}
