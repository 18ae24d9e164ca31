"""Patterns, lookups, and what errors say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from megamoe_jit.emulator.isa import table
from megamoe_jit.emulator.isa.patterns import Pattern
from megamoe_jit.emulator.isa.table import Kind, find, handler, lookup, noop, pure, unsupported
from megamoe_jit.emulator.parser.nodes import Instruction, Location
from megamoe_jit.errors import UnsupportedError


@pytest.mark.parametrize(
    ("pattern", "sets", "spellings"),
    [
        ("ret", {}, {"ret"}),
        ("x{.a}", {}, {"x", "x.a"}),
        ("x{.a|.b}.c", {}, {"x.a.c", "x.b.c"}),
        ("x{.a|.b|}.c", {}, {"x.a.c", "x.b.c", "x.c"}),
        ("x{.shared{::cta}}.b64", {}, {"x.b64", "x.shared.b64", "x.shared::cta.b64"}),
        ("x{.a{.b|.c}|.d}", {}, {"x.a.b", "x.a.c", "x.d"}),
        ("x{_drop}.y", {}, {"x.y", "x_drop.y"}),
        ("x.<type>", {"type": "u32 s32"}, {"x.u32", "x.s32"}),
        ("x.{type}{.y}", {"type": "u32 s32"}, {"x.u32", "x.s32", "x.u32.y", "x.s32.y"}),
        ("x{round:.rn|.rz|}.f32", {}, {"x.rn.f32", "x.rz.f32", "x.f32"}),
        ("x::{a|b}", {}, {"x::a", "x::b"}),
    ],
)
def test_patterns(pattern: str, sets: dict[str, str], spellings: set[str]) -> None:
    read = Pattern(pattern, sets)
    assert set(read.spellings()) == spellings
    assert all(read.match(spelling) is not None for spelling in spellings)
    for spelling in spellings:
        for wrong in (f"{spelling}.z", spelling.replace("x", "y"), spelling.upper(), spelling[:-1] + "!"):
            assert read.match(wrong) is None or wrong in spellings


def test_captures() -> None:
    read = Pattern("fma{round:.rn|.rz|}{.ftz}{space:.shared{::cta}|}.<type>", {"type": "f32 f32x2"})
    assert read.match("fma.rz.ftz.shared::cta.f32x2") == {"round": "rz", "space": "shared::cta", "type": "f32x2"}
    assert read.match("fma.f32") == {"round": "", "space": "", "type": "f32"}


@pytest.mark.parametrize(
    ("pattern", "sets", "message"),
    [
        ("x.<type>", {}, "no set of words for <type>"),
        ("x", {"type": "u32"}, "sets without a place: ['type']"),
        ("x{.a", {}, "a brace is not closed"),
    ],
)
def test_patterns_that_are_wrong(pattern: str, sets: dict[str, str], message: str) -> None:
    with pytest.raises(AssertionError) as found:
        Pattern(pattern, sets)
    assert message in str(found.value)


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A table of its own."""
    table.rows()
    monkeypatch.setattr(table, "_rows", {})
    find.cache_clear()
    yield
    find.cache_clear()


@pytest.mark.usefixtures("scratch")
def test_rows_say_what_they_are() -> None:
    @pure("frob{.ftz}.<type>", types="u32 f32", dst="<type> pred?", src="<type> u32 <type>?", section="Frobbing")
    def frob() -> None:
        """Frob."""

    @handler("quux{.a}", section="Quuxing", extra=3)
    def quux() -> None:
        """Quux."""

    noop("blip", "it changes nothing", section="Blips")
    op = lookup("frob.ftz.f32")
    assert (op.kind, op.section, op.function, op.form.type) == (Kind.PURE, "Frobbing", frob, "f32")
    assert op.form.has("ftz")
    assert not op.form.has("sat")
    assert op.dst_types(1) == ("f32",)
    assert op.dst_types(2) == ("f32", "pred")
    assert op.src_types(2) == ("f32", "u32")
    assert op.src_types(3) == ("f32", "u32", "f32")
    for count in (1, 4):
        with pytest.raises(UnsupportedError, match=rf"frob\.ftz\.f32 has {count} sources, but takes f32 u32 f32\?"):
            op.src_types(count)
    assert lookup("quux.a").facts == {"extra": 3}
    assert lookup("quux").kind is Kind.HANDLER
    assert lookup("blip").reason == "it changes nothing"
    assert find("quux.b") is None


@pytest.mark.usefixtures("scratch")
def test_two_rows_for_one_opcode_are_a_bug() -> None:
    noop("blip{.a}", "no", section="Blips")
    noop("blip.a{.b}", "no", section="Blips")
    assert lookup("blip").kind is Kind.NOOP
    with pytest.raises(AssertionError, match=r"blip\.a is in several rows: blip\{\.a\}, blip\.a\{\.b\}"):
        lookup("blip.a")


@pytest.mark.parametrize(
    ("opcode", "parts"),
    [
        ("add.f128", ["add.f128", "Arithmetic Instructions", "other forms"]),
        ("tex.2d.v4.f32.f32", ["Texture Instructions, tex", "no form of it is in its table"]),
        ("frobnicate.b32", ["frobnicate.b32", "no section known"]),
        ("tcgen05.frob", ["TensorCore 5th Generation"]),
    ],
)
def test_unknown_opcodes_name_their_section(opcode: str, parts: list[str]) -> None:
    with pytest.raises(UnsupportedError) as found:
        lookup(opcode)
    for part in parts:
        assert part in str(found.value)


def test_all_instructions_without_a_meaning_are_listed() -> None:
    place = Location(file="/roles/mma.cuh", line=7, inlined_at=Location(file="/sm100.cuh", line=99))
    instructions = [
        Instruction(
            index=4, opcode="tex.2d", operands=(), guard=None, line=40, text="tex.2d %r1, [t];", location=place
        ),
        Instruction(index=5, opcode="frob", operands=(), guard=None, line=41, text="frob %r1;", location=None),
    ]
    text = str(unsupported((instruction, "reason") for instruction in instructions))
    assert "2 instructions" in text
    assert "PTX line 40, /roles/mma.cuh:7 <- /sm100.cuh:99: tex.2d %r1, [t];" in text
    assert "reason (PTX ISA: Texture Instructions, tex)" in text
    assert "PTX line 41: frob %r1;" in text
    assert "1 instruction of" in str(unsupported([(instructions[1], "reason")]))
