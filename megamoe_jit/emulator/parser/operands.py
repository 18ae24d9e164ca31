"""Operands of an instruction, from their text."""

from __future__ import annotations

import re

from megamoe_jit.emulator.parser.lexer import OperandError, parse_constant, parse_integer, split_operands
from megamoe_jit.emulator.parser.nodes import Address, Imm, Not, Operand, Pair, RegOp, Sink, Symbol, Vec
from megamoe_jit.emulator.parser.scopes import Scope

_NAME = re.compile(r"[A-Za-z_$%][\w$]*(?:\.[A-Za-z]\w*)*", re.A)
_NAME_AND_OFFSET = re.compile(r"([A-Za-z_$%][\w$]*(?:\.[A-Za-z]\w*)*)\s*([-+].*)", re.A | re.S)
_PAIR = re.compile(r"([\w$%.!]+)\s*\|\s*([\w$%.!]+)", re.A)
_SINK = Sink()


def parse_operands(text: str, scope: Scope) -> tuple[Operand, ...]:
    """Read the comma-separated operands `text`; raises OperandError."""
    if not text or text.isspace():
        return ()
    parts = split_operands(text) if "[" in text or "{" in text or "(" in text else text.split(",")
    known = scope.operands
    found: list[Operand] = []
    for part in parts:
        stripped = part.strip()
        operand = known.get(stripped)
        found.append(parse_operand(stripped, scope) if operand is None else operand)
    return tuple(found)


def parse_operand(text: str, scope: Scope) -> Operand:
    """Read one operand; raises OperandError."""
    operand = scope.operands.get(text)
    if operand is None:
        operand = _read(text, scope)
        scope.operands[text] = operand
    return operand


def _read(text: str, scope: Scope) -> Operand:
    if not text:
        raise OperandError("an operand is missing")
    first = text[0]
    if first == "[":
        return _address(text, scope)
    if first == "{":
        if text[-1] != "}":
            raise OperandError(f"{text[:60]!r} is no operand")
        items = parse_operands(text[1:-1], scope)
        if not items or any(isinstance(item, Vec | Address) for item in items):
            raise OperandError(f"{text[:60]!r} is no vector of registers and constants")
        return Vec(items=items)
    if first.isdigit() or first in "-+~.(":
        return parse_constant(text)
    if text == "_":
        return _SINK
    if _NAME.fullmatch(text):
        return scope.resolve(text)
    if first == "!":
        inner = parse_operand(text[1:].strip(), scope)
        if isinstance(inner, Imm):
            return parse_constant(text)
        if isinstance(inner, RegOp):
            return Not(operand=inner)
        raise OperandError(f"{text[:60]!r} negates what is no predicate")
    if match := _PAIR.fullmatch(text):
        return Pair(first=_destination(match.group(1), scope), second=_destination(match.group(2), scope))
    if match := _NAME_AND_OFFSET.fullmatch(text):
        base = scope.resolve(match.group(1))
        if isinstance(base, Symbol):
            return Symbol(name=base.name, offset=base.offset + _offset(match.group(2)))
    raise OperandError(f"{text[:60]!r} is no operand")


def _destination(text: str, scope: Scope) -> Operand:
    operand = parse_operand(text, scope)
    if not isinstance(operand, RegOp | Sink | Not):
        raise OperandError(f"{text[:60]!r} is no register, so it cannot stand beside '|'")
    return operand


def _address(text: str, scope: Scope) -> Address:
    if text[-1] != "]":
        raise OperandError(f"{text[:60]!r} is no address")
    parts = [part.strip() for part in split_operands(text[1:-1])]
    base, offset = _base(parts[0], scope)
    coords: Vec | None = None
    extra: list[Operand] = []
    for part in parts[1:]:
        operand = parse_operand(part, scope)
        if isinstance(operand, Vec) and coords is None and not extra:
            coords = operand
        else:
            extra.append(operand)
    return Address(base=base, offset=offset, coords=coords, extra=tuple(extra))


def _base(text: str, scope: Scope) -> tuple[Operand | None, int]:
    offset = 0
    if match := _NAME_AND_OFFSET.fullmatch(text):
        text, offset = match.group(1), _offset(match.group(2))
    if _NAME.fullmatch(text):
        base = parse_operand(text, scope)
        if isinstance(base, Symbol):
            # A symbol with an offset of its own cannot come from a plain name, so that the sum stays one number.
            return Symbol(name=base.name), offset + base.offset
        if isinstance(base, RegOp):
            return base, offset
        if isinstance(base, Imm) and isinstance(base.value, int):
            return None, base.value + offset
        raise OperandError(f"{text[:60]!r} cannot be the base of an address")
    return None, parse_integer(text)


def _offset(text: str) -> int:
    """Return the sum that `+ 4`, `-4`, `+-4` or `+ 4*2` adds."""
    return parse_integer(text[1:] if text[0] == "+" else text)
