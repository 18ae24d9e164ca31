"""Constants are held to Python's struct and arithmetic, places in the text to a count by hand."""

import math
import random
import struct

import pytest

from megamoe_jit.emulator.parser.lexer import OperandError, Source, parse_constant, parse_integer, split_operands


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("42", 42),
        ("-42", -42),
        ("- 42", -42),
        ("--7", 7),
        ("0x1F", 31),
        ("0XfU", 15),
        ("0b1011", 11),
        ("017", 15),
        ("5U", 5),
        ("4294967295", 2**32 - 1),
        ("-9223372036854775808", -(2**63)),
        ("0xffffffffffffffff", 2**64 - 1),
        ("(1+2)*3", 9),
        ("1 << 4 | 3", 19),
        ("~0", -1),
        ("!5", 0),
        ("-7/2", -3),
        ("-7%2", -1),
        ("5 > 3 ? 10 : 20", 10),
        ("0 ? 1 : 0 ? 2 : 3", 3),
    ],
)
def test_integer(text: str, value: int) -> None:
    constant = parse_constant(text)
    assert constant.value == value
    assert isinstance(constant.value, int)
    assert not constant.is_float
    assert constant.bits is None
    assert parse_integer(f"  {text} ") == value


_NO_CONSTANTS = """x 0x 0b2 08 1+ (1 1) 1/0 1<<64 1<<-1 18446744073709551616 -9223372036854775809 0f3F80000 0f3F8000000
0d0 1.5.2 1?2 1:2 é ٣ 0fGG000000"""
_LONG = ["9" * 6000, "(" * 500 + "1" + ")" * 500, "-" * 5 + "~" * 500, "4*" * 200 + "4"]


@pytest.mark.parametrize("text", ["", "1 2", *_NO_CONSTANTS.split(), *_LONG])
def test_no_constant(text: str) -> None:
    with pytest.raises(OperandError):
        parse_constant(text)


def test_expressions_agree_with_python() -> None:
    rng = random.Random(1)

    def expression(depth: int) -> str:
        if depth == 0 or rng.random() < 0.2:
            return str(rng.randrange(1, 50))
        kind = rng.randrange(9)
        left, right = expression(depth - 1), expression(depth - 1)
        if kind == 0:
            return f"({left})"
        if kind == 1:
            return f"{rng.choice('-~+')}{left}"
        return f"{left} {rng.choice(['+', '-', '*', '&', '|', '^', '<<', '>>'])} {right}"

    checked = 0
    for _ in range(2000):
        text = expression(4)
        try:
            # The operators drawn here have the same precedence in Python as in C, relative to one another.
            value = eval(text)
        except (ValueError, MemoryError, OverflowError):
            continue
        if not -(2**63) <= value < 2**64 or ("<<" in text or ">>" in text):
            continue
        assert parse_integer(text) == value, text
        checked += 1
    assert checked > 500


def test_comparisons_and_logic_agree_with_c() -> None:
    for left in range(-2, 3):
        for right in range(-2, 3):
            for operator in ("<", ">", "<=", ">=", "==", "!="):
                assert parse_integer(f"({left}) {operator} ({right})") == int(eval(f"{left} {operator} {right}"))
            assert parse_integer(f"({left}) && ({right})") == int(bool(left and right))
            assert parse_integer(f"({left}) || ({right})") == int(bool(left or right))


def test_raw_floats_keep_every_bit() -> None:
    rng = random.Random(2)
    patterns = [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00001, 0x7F800001, 1, 0x3F800000]
    for bits in patterns + [rng.getrandbits(32) for _ in range(200)]:
        for spelled in (f"0f{bits:08X}", f"0F{bits:08x}"):
            constant = parse_constant(spelled)
            assert (constant.bits, constant.size, constant.is_float) == (bits, 4, True)
            expected = struct.unpack("<f", struct.pack("<I", bits))[0]
            assert constant.value == expected or (math.isnan(expected) and math.isnan(constant.value))
        assert parse_constant(f"-0f{bits:08X}").bits == bits ^ (1 << 31)
    for bits in [rng.getrandbits(64) for _ in range(200)]:
        constant = parse_constant(f"0d{bits:016X}")
        assert (constant.bits, constant.size) == (bits, 8)


@pytest.mark.parametrize("text", ["1.5", "-0.25", ".5", "3.", "1e3", "2.5e-3", "1e999", "-1.0E+2"])
def test_decimal_floats(text: str) -> None:
    constant = parse_constant(text)
    assert constant.value == float(text)
    assert constant.bits == struct.unpack("<Q", struct.pack("<d", float(text)))[0]
    assert constant.size == 8


def test_comments_and_strings_keep_places() -> None:
    text = 'a /* one\n two */ b // {;\n.pragma "x{;// \\" y";\nc'
    source = Source(text)
    assert len(source.text) == len(text)
    assert source.text.split() == ["a", "b", ".pragma", '"' + "_" * 10 + '";', "c"]
    assert source.text.count("\n") == text.count("\n")
    assert source.strings == {text.index('"'): 'x{;// \\" y'}
    assert [source.line(text.index(word)) for word in ("a", "b //", ".pragma")] == [1, 2, 3]
    error = source.error("what", text.index("\nc") + 1)
    assert (error.line, error.column) == (4, 1)
    assert str(error) == "PTX line 4, column 1: what"


def test_split_at_top_level() -> None:
    assert split_operands("a, [b, {c, d}], (e, f), {g}") == ["a", " [b, {c, d}]", " (e, f)", " {g}"]
    for text in ("a]", "[a", "{a, b", "a)", "}{"):
        with pytest.raises(OperandError):
            split_operands(text)
