"""Parameters are held to ctypes' structures, initialisers to struct and NumPy, layouts to their rules."""

import ctypes
import random
import struct

import numpy as np
import pytest

from megamoe_jit.emulator.parser import SHARED_BASE, WIDTH, PtxSyntaxError, Variable, parse
from megamoe_jit.emulator.parser.declarations import parse_declaration
from tests.emulator.parser.samples import HEADER, parse_entry

_CTYPES = {
    "u8": ctypes.c_uint8,
    "s16": ctypes.c_int16,
    "b32": ctypes.c_uint32,
    "f32": ctypes.c_float,
    "u64": ctypes.c_uint64,
}


def _global(text: str) -> Variable:
    (variable,) = parse(f"{HEADER}{text}").globals.values()
    return variable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (".param .u64 x", ("u64", 8, 8)),
        (".param .u64 .ptr x", ("u64", 8, 8)),
        (".param .u64 .ptr .global .align 1 x", ("u64", 8, 8)),
        (".param .u64 .ptr .align 16 x", ("u64", 8, 8)),
        (".param .u64 .ptr .shared .align 4 x", ("u64", 8, 8)),
        (".param .align 64 .b8 x[128]", ("b8", 128, 64)),
        (".param .b8 x[3]", ("b8", 3, 1)),
        (".param .align 4 .b8 x[0x10]", ("b8", 16, 4)),
        (".param .f32 x", ("f32", 4, 4)),
        (".param .b64 x[2][3]", ("b64", 48, 8)),
        (".param .v4 .f32 x", ("f32", 16, 16)),
        (".param .align 128 .b128 x", ("b128", 16, 128)),
    ],
)
def test_parameter_forms(text: str, expected: tuple[str, int, int]) -> None:
    (param,) = parse_entry("ret;", params=text).params
    assert (param.name, param.type, param.size, param.align, param.offset) == ("x", *expected, 0)


def test_parameters_lie_as_in_a_structure() -> None:
    rng = random.Random(3)
    for _ in range(100):
        fields: list[tuple[str, type]] = []
        texts: list[str] = []
        for number in range(rng.randrange(1, 12)):
            kind = rng.choice(list(_CTYPES))
            if rng.random() < 0.3:
                count = rng.randrange(1, 9)
                fields.append((f"p{number}", _CTYPES[kind] * count))
                texts.append(f".param .align {WIDTH[kind]} .b8 p{number}[{count * WIDTH[kind]}]")
            else:
                fields.append((f"p{number}", _CTYPES[kind]))
                texts.append(f".param .{kind} p{number}")
        structure = type("S", (ctypes.Structure,), {"_fields_": fields})
        function = parse_entry("ret;", params=",\n".join(texts))
        for param in function.params:
            field = getattr(structure, param.name)
            assert (param.offset, param.size) == (field.offset, field.size)
            assert function.param(param.name) is param
        last = function.params[-1]
        assert function.param_bytes == last.offset + last.size <= ctypes.sizeof(structure)


def test_wide_alignment_moves_a_parameter() -> None:
    function = parse_entry("ret;", params=".param .u32 a, .param .align 64 .b8 map[128], .param .u8 b, .param .u64 c")
    assert [param.offset for param in function.params] == [0, 64, 192, 200]
    assert [param.is_pointer for param in function.params] == [False, False, False, True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (".global .u32 x = 7;", struct.pack("<I", 7)),
        (".const .s16 x = -2;", struct.pack("<h", -2)),
        (".global .align 8 .b8 x[6] = {1, 2, 255, 0x10, -1};", bytes([1, 2, 255, 16, 255, 0])),
        (".global .u64 x[2] = {1, 18446744073709551615};", struct.pack("<QQ", 1, 2**64 - 1)),
        (".global .f32 x[3] = {0f3F800000, 2.5, -1};", struct.pack("<fff", 1, 2.5, -1)),
        (".global .f64 x = 0d3FF8000000000000;", struct.pack("<d", 1.5)),
        (".global .f64 x[2] = {0.1, 3};", struct.pack("<dd", 0.1, 3)),
        (".global .f32 x = 1e300;", struct.pack("<f", float("inf"))),
        (".global .b32 x[2][3] = {{1,2},{3,4,5}};", np.array([1, 2, 0, 3, 4, 5], "<u4").tobytes()),
        (".global .b32 x[2][3] = {1,2,3,4};", np.array([1, 2, 3, 4, 0, 0], "<u4").tobytes()),
        (".global .b32 x[2][2][2] = {{{1},{2,3}},{{4,5}}};", np.array([1, 0, 2, 3, 4, 5, 0, 0], "<u4").tobytes()),
        (".global .b32 x[2][3] = {1,{4,5}};", np.array([1, 0, 0, 4, 5, 0], "<u4").tobytes()),
        (".global .v2 .b16 x[2] = {{1,2},{3,4}};", np.array([1, 2, 3, 4], "<u2").tobytes()),
        (".global .v4 .f32 x = {1.0,2.0,3.0,4.0};", np.array([1, 2, 3, 4], "<f4").tobytes()),
        (".global .b16 x[] = {1,2,3};", np.array([1, 2, 3], "<u2").tobytes()),
        (".global .b8 x[][2] = {{1},{2,3}};", bytes([1, 0, 2, 3])),
        (".global .b8 x[][2] = {1,2,3};", bytes([1, 2, 3, 0])),
        (".global .b8 x[4] = {};", bytes(4)),
        (".global .u32 x = {9};", struct.pack("<I", 9)),
        (".global .u32 x[2] = {(1+2)*3, ~0};", struct.pack("<II", 9, 2**32 - 1)),
        (".weak .global .attribute(.managed) .align 16 .u32 x = 1;", struct.pack("<I", 1)),
    ],
)
def test_initialisers(text: str, expected: bytes) -> None:
    variable = _global(text)
    assert variable.init == expected
    assert variable.size == len(expected)
    assert variable.relocations == ()


def test_random_nested_initialisers() -> None:
    rng = random.Random(4)
    for _ in range(100):
        dims = [rng.randrange(1, 4) for _ in range(rng.randrange(1, 4))]
        values = np.array([rng.randrange(1 << 16) for _ in range(int(np.prod(dims)))], "<u2").reshape(dims)

        def spell(array: np.ndarray) -> str:
            return str(int(array)) if array.ndim == 0 else "{" + ",".join(spell(item) for item in array) + "}"

        assert (
            _global(f".const .b16 x{''.join(f'[{dim}]' for dim in dims)} = {spell(values)};").init == values.tobytes()
        )


def test_relocations() -> None:
    module = parse(
        HEADER
        + ".global .b8 $s[3] = {104, 105};\n"
        + ".global .align 8 .u64 x[4] = {generic($s), 5, $s + 2, generic($s)-1};\n"
        + ".const .b8 y[12] = {1, 0, 0, 0"
        + "".join(f", {0xFF << 8 * byte:#X}(generic($s)+513)" for byte in range(8))
        + "};"
    )
    x, y = module.globals["x"], module.globals["y"]
    assert x.relocations == ((0, "$s"), (16, "$s"), (24, "$s"))
    assert x.init == struct.pack("<QQQq", 0, 5, 2, -1)
    assert y.relocations == ((4, "$s"),)
    assert y.init == struct.pack("<IQ", 1, 513)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".global .u32 x[2] = {1, 2, 3};", "more items"),
        (".global .b8 x[2] = {1, 2, 3};", "more items"),
        (".global .b32 x[2][2] = {{1, 2, 3}};", "more items"),
        (".global .u32 x[2] = {1, {2, 3}};", "more items|no initialiser"),
        (".global .u32 x = y;", "64-bit"),
        (".global .u64 x = y;", "no global or const"),
        (".global .u64 x = generic(y;", "never closed"),
        (".global .u64 x = generic(y+1);", "no operand"),
        (".entry k { ret; } .global .u64 x = k;", "no global or const"),
        (".shared .u32 y; .global .u64 x = y;", "no global or const"),
        (".global .b8 x = 0xFE(y);", "no byte"),
        (".global .b8 x[2] = {0xFF00(y), 0xFF(y)};", "not in order"),
        (".global .b16 x = 1.5;", "by their bits"),
        (".global .b8 x[99999999999999];", "cannot have"),
        (".global .b64 x[8000000000];", "bytes"),
        (".global .b8 x[1000000000] = {1};", "bytes"),
        (".global .b8 x[-1];", "cannot have"),
        (".global .b8 x[2][];", "cannot be read"),
        (".global .b8 x[];", "no length"),
        (".global .align 3 .b8 x;", "power of two"),
        (".global .align .b8 x;", "without a number"),
        (".global .align 0 .b8 x;", "power of two"),
        (".global x;", "needs a type"),
        (".global .pred x;", "needs a type"),
        (".global .shared .b8 x;", "one state space"),
        (".shared .b8 x = 1;", "cannot be initialised"),
        (".global .u32 x, x;", "declared twice"),
        (".global .u32 x = 1", "no semicolon"),
        (".global .u32 ;", "declares nothing"),
        (".global .u32 x = ;", "missing"),
        (".global .f32 x = {{{{{{1.0}}}}}};", "no initialiser|more items"),
        (".global .b8 x" + "[1]" * 40 + ";", "dimensions"),
        (".blah .u32 x;", "not known"),
        (".global .u32 x = 99999999999999999999;", "64 bits"),
    ],
)
def test_bad_declarations(text: str, message: str) -> None:
    with pytest.raises(PtxSyntaxError, match=message):
        parse(HEADER + text)


def test_several_names_in_one_declaration() -> None:
    first, second = parse_declaration(".visible .global .align 16 .u32 a[2] = {1, 2}, b", "global")
    assert (first.name, first.size, first.align, first.linkage) == ("a", 8, 16, {"visible"})
    assert (second.name, second.size, second.init) == ("b", 4, None)


def test_external_declaration_then_definition() -> None:
    assert _global(".extern .global .u32 x; .visible .global .u32 x = 3;").init == struct.pack("<I", 3)


def test_shared_layout() -> None:
    function = parse_entry(
        ".shared .align 4 .b8 own[10]; .reg .b32 a; mov.u32 a, early; { .shared .b64 own; mov.u32 a, own; }"
        "mov.u32 a, dyn; mov.u32 a, dyn2;",
        before=".shared .align 2 .b8 early[3]; .shared .align 1024 .b8 unused[5000];\n"
        ".extern .shared .align 16 .b8 dyn[]; .extern .shared .align 128 .b32 dyn2[];\n"
        ".extern .shared .align 1024 .b8 other[];",
    )
    variables = function.variables
    assert set(variables) == {"early", "own", "own.2", "dyn", "dyn2"}
    assert variables["early"].offset == SHARED_BASE
    assert variables["own"].offset == SHARED_BASE + 4
    assert variables["own.2"].offset == SHARED_BASE + 16
    assert function.shared_bytes == 24
    assert function.dynamic_shared_offset == variables["dyn"].offset == variables["dyn2"].offset == SHARED_BASE + 128
    assert [variables[name].is_extern for name in ("own", "dyn", "dyn2")] == [False, True, True]


def test_dynamic_shared_memory_begins_aligned_without_a_variable() -> None:
    function = parse_entry(".shared .b8 x[3]; ret;")
    assert (function.shared_bytes, function.dynamic_shared_offset) == (3, SHARED_BASE + 16)


def test_local_frame() -> None:
    function = parse_entry(".local .b8 a[3]; { .local .align 16 .b8 a[20]; } .local .b64 c; ret;")
    assert {name: found.offset for name, found in function.variables.items()} == {"a": 0, "a.2": 16, "c": 40}
    assert function.local_bytes == 48
    assert function.shared_bytes == 0


def test_global_inside_a_function_is_the_modules() -> None:
    module = parse(f"{HEADER}.entry k {{ .reg .b64 a; .global .u32 inside = 5; mov.u64 a, inside; ret; }}")
    assert module.globals["inside"].init == struct.pack("<I", 5)
    assert module.functions["k"].variables == {}


def test_a_frame_has_a_limit() -> None:
    assert parse_entry(".local .b8 a[524288]; ret;").local_bytes == 524288
    with pytest.raises(PtxSyntaxError, match="524292 bytes of local memory"):
        parse_entry(".local .b8 a[524288]; { .local .b32 b; } ret;")
