"""PTX text without its comments, places in it, and its constants."""

from __future__ import annotations

import re
import struct
from bisect import bisect_right

from megamoe_jit.emulator.parser.nodes import Imm, PtxSyntaxError

_COMMENT_OR_STRING = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"|//[^\n]*|/\*.*?\*/', re.S)
_NOT_NEWLINE = re.compile(r"[^\n]")
_MARK = re.compile(r"[\[\]{}(),]")
_INTEGER = re.compile(r"(0[xX][0-9a-fA-F]+|0[bB][01]+|[0-9]+)[uU]?")
_RAW_FLOAT = re.compile(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})")
_DECIMAL_FLOAT = re.compile(r"(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][+-]?[0-9]+)?")
_EXPRESSION_TOKEN = re.compile(
    r"\s*(0[xX][0-9a-fA-F]+[uU]?|0[bB][01]+[uU]?|[0-9]+[uU]?|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^~!()<>?:])"
)

# A constant has at most 64 bits; longer digit strings are not worth converting (and int() refuses very long ones).
_MAX_DIGITS = 70
_MAX_EXPRESSION_DEPTH = 32

_PRECEDENCE = {
    "||": 1, "&&": 2, "|": 3, "^": 4, "&": 5, "==": 6, "!=": 6, "<": 7, ">": 7, "<=": 7, ">=": 7,
    "<<": 8, ">>": 8, "+": 9, "-": 9, "*": 10, "/": 10, "%": 10,
}  # fmt: skip


class OperandError(ValueError):
    """Text that is no operand; the reader of the statement adds the place."""


class Source:
    """PTX text with comments and strings blanked, so that offsets, lines and columns stay those of the original.

    Attributes:
        text: the blanked text; a string keeps its quotes.
        strings: offset of a string's opening quote -> what it holds.
    """

    def __init__(self, text: str) -> None:
        """Blank comments and strings of `text`."""
        self.strings: dict[int, str] = {}
        self.text = _COMMENT_OR_STRING.sub(self._blank, text)
        self._original = text
        self._line_starts = [0, *(match.end() for match in re.finditer(r"\n", text))]

    def _blank(self, match: re.Match[str]) -> str:
        found = match.group()
        if found[0] == '"':
            self.strings[match.start()] = found[1:-1]
            return f'"{"_" * (len(found) - 2)}"'
        if found[1] == "/":
            return " " * len(found)
        return _NOT_NEWLINE.sub(" ", found)

    def line(self, offset: int) -> int:
        """Return the line that holds `offset`, counted from 1."""
        return bisect_right(self._line_starts, offset)

    def error(self, message: str, offset: int) -> PtxSyntaxError:
        """Return the error that says `message` about the text at `offset`."""
        while offset < len(self.text) and self.text[offset].isspace():
            offset += 1
        line = self.line(offset)
        return PtxSyntaxError(message, line=line, column=offset - self._line_starts[line - 1] + 1)

    def excerpt(self, start: int, length: int = 60) -> str:
        """Return the beginning of what stands at `start`, on one line, to be quoted in a message."""
        piece = " ".join(self.text[start : start + 4 * length].split())
        return piece if len(piece) <= length else piece[:length] + "..."


def split_operands(text: str) -> list[str]:
    """Split `text` at the commas that stand outside brackets, braces and parentheses; raises OperandError."""
    depth, start = 0, 0
    parts: list[str] = []
    for match in _MARK.finditer(text):
        mark = match.group()
        if mark == ",":
            if depth == 0:
                parts.append(text[start : match.start()])
                start = match.end()
        elif mark in "[{(":
            depth += 1
        else:
            depth -= 1
            if depth < 0:
                raise OperandError(f"{mark!r} closes nothing")
    if depth:
        raise OperandError("a bracket is never closed")
    parts.append(text[start:])
    return parts


def parse_constant(text: str) -> Imm:
    """Return the constant that `text` spells: integer, float or integer expression; raises OperandError."""
    body = text.lstrip("-")
    negative = (len(text) - len(body)) % 2 == 1
    if match := _INTEGER.fullmatch(body):
        value = _integer(match.group(1))
        return _checked(-value if negative else value, text)
    if match := _RAW_FLOAT.fullmatch(body):
        single, double = match.groups()
        bits = int(single or double, 16)
        size = 4 if single else 8
        return float_constant(bits ^ (1 << (8 * size - 1)) if negative else bits, size)
    if _DECIMAL_FLOAT.fullmatch(body):
        value_text = body if len(body) <= _MAX_DIGITS else body[:_MAX_DIGITS]
        number = -float(value_text) if negative else float(value_text)
        return Imm(value=number, is_float=True, bits=struct.unpack("<Q", struct.pack("<d", number))[0], size=8)
    return _checked(_Expression(text).value(), text)


def float_constant(bits: int, size: int) -> Imm:
    """Return the float whose pattern is `bits`, of 4 or 8 bytes."""
    layout = "<f" if size == 4 else "<d"
    (value,) = struct.unpack(layout, bits.to_bytes(size, "little"))
    return Imm(value=value, is_float=True, bits=bits, size=size)


def parse_integer(text: str) -> int:
    """Return the integer constant that `text` spells; raises OperandError."""
    constant = parse_constant(text.strip())
    if not isinstance(constant.value, int):
        raise OperandError(f"{text.strip()!r} is no integer")
    return constant.value


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise OperandError(f"{digits[:16]}... has more than 64 bits")
    if digits[:2] in ("0x", "0X"):
        return int(digits, 16)
    if digits[:2] in ("0b", "0B"):
        return int(digits, 2)
    if len(digits) > 1 and digits[0] == "0":
        try:
            return int(digits, 8)
        except ValueError:
            raise OperandError(f"{digits!r} is no octal number") from None
    return int(digits)


def _checked(value: int, text: str) -> Imm:
    if not -(1 << 63) <= value < (1 << 64):
        raise OperandError(f"{text[:40]!r} does not fit in 64 bits")
    return Imm(value=value)


class _Expression:
    """A constant integer expression, C's operators and precedence."""

    def __init__(self, text: str) -> None:
        """Cut `text` into tokens."""
        self._text = text
        self._tokens: list[str] = []
        self._next = 0
        position = 0
        while position < len(text.rstrip()):
            match = _EXPRESSION_TOKEN.match(text, position)
            if match is None:
                raise OperandError(f"{text[:60]!r} is no operand")
            self._tokens.append(match.group(1))
            position = match.end()
        if not self._tokens:
            raise OperandError("an operand is missing")

    def value(self) -> int:
        """Return what the whole expression is worth."""
        value = self._conditional(0)
        if self._next != len(self._tokens):
            raise self._error()
        return value

    def _error(self) -> OperandError:
        return OperandError(f"{self._text[:60]!r} is no operand")

    def _take(self) -> str:
        if self._next == len(self._tokens):
            raise self._error()
        self._next += 1
        return self._tokens[self._next - 1]

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _conditional(self, depth: int) -> int:
        if depth > _MAX_EXPRESSION_DEPTH:
            raise OperandError("a constant expression is nested too deeply")
        condition = self._binary(1, depth)
        if self._peek() != "?":
            return condition
        self._take()
        first = self._conditional(depth + 1)
        if self._take() != ":":
            raise self._error()
        second = self._conditional(depth + 1)
        return first if condition else second

    def _binary(self, lowest: int, depth: int) -> int:
        left = self._unary(depth)
        while (precedence := _PRECEDENCE.get(self._peek(), 0)) >= lowest:
            operator = self._take()
            left = _apply(operator, left, self._binary(precedence + 1, depth))
        return left

    def _unary(self, depth: int) -> int:
        if depth > _MAX_EXPRESSION_DEPTH:
            raise OperandError("a constant expression is nested too deeply")
        token = self._take()
        if token == "(":
            value = self._conditional(depth + 1)
            if self._take() != ")":
                raise self._error()
            return value
        if token in ("-", "+", "~", "!"):
            value = self._unary(depth + 1)
            return {"-": -value, "+": value, "~": ~value, "!": int(not value)}[token]
        if not token[0].isdigit():
            raise self._error()
        return _integer(token.rstrip("uU"))


def _apply(operator: str, left: int, right: int) -> int:
    if operator in ("/", "%"):
        if right == 0:
            raise OperandError("a constant expression divides by zero")
        quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
        return quotient if operator == "/" else left - right * quotient
    if operator in ("<<", ">>"):
        if not 0 <= right < 64:
            raise OperandError(f"a constant expression shifts by {right}")
        return left << right if operator == "<<" else left >> right
    if operator == "*" and left.bit_length() + right.bit_length() > 128:
        raise OperandError("a constant expression does not fit in 64 bits")
    results = {
        "||": lambda: int(bool(left) or bool(right)),
        "&&": lambda: int(bool(left) and bool(right)),
        "|": lambda: left | right,
        "^": lambda: left ^ right,
        "&": lambda: left & right,
        "==": lambda: int(left == right),
        "!=": lambda: int(left != right),
        "<": lambda: int(left < right),
        ">": lambda: int(left > right),
        "<=": lambda: int(left <= right),
        ">=": lambda: int(left >= right),
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
    }
    return results[operator]()
