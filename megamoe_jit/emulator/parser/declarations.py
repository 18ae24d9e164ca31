"""Declarations of variables, registers and parameters, and initialisers."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from megamoe_jit.emulator.parser.lexer import (
    OperandError,
    float_constant,
    parse_constant,
    parse_integer,
    split_operands,
)
from megamoe_jit.emulator.parser.nodes import WIDTH

_WORD = re.compile(r"\s*\.(\w+)", re.A)
_ALIGN = re.compile(r"\s*([0-9]{1,7})")
_ATTRIBUTE = re.compile(r"\s*\((?:[^()]|\([^()]*\))*\)")
_NAME = r"[A-Za-z_$%][\w$]*"
_ITEM = re.compile(rf"\s*({_NAME})\s*((?:\[[^\[\]]*\]\s*)*)(?:=(.*))?", re.A | re.S)
_REGISTERS = re.compile(rf"\s*({_NAME})\s*(?:<\s*([0-9]{{1,9}})\s*>)?\s*", re.A)
_RELOCATION = re.compile(
    rf"(?:(0[xX][0-9a-fA-F]+|[0-9]+)\s*\(\s*)?(?:generic\s*\(\s*({_NAME})\s*\)|({_NAME}))\s*([-+][^()]*)?(\))?", re.A
)

LINKAGE = frozenset({"extern", "visible", "weak", "common"})
_LANES = {"v2": 2, "v4": 4, "v8": 8}
_MAX_SIZE = 1 << 33
_MAX_INITIALISED = 1 << 26
_MAX_DIMENSIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """One name of a declaration; `dims` is empty for a scalar, and its first number None for `[]`."""

    name: str
    type: str
    lanes: int
    align: int
    dims: tuple[int | None, ...]
    init: str | None
    linkage: frozenset[str]

    @property
    def element(self) -> int:
        """Bytes of an element of the type."""
        return WIDTH[self.type]

    @property
    def size(self) -> int:
        """Bytes of the whole; 0 when the first dimension is open."""
        size = self.element * self.lanes
        for dim in self.dims:
            size *= dim or 0
        return size


def parse_declaration(text: str, space: str) -> list[Declared]:
    """Read `text`, a declaration of variables of `space` without its semicolon; raises OperandError."""
    kind, lanes, align, spaces, is_pointer, linkage = "", 1, 0, set[str](), False, set[str]()
    position = 0
    while match := _WORD.match(text, position):
        word = match.group(1)
        position = match.end()
        if word == "align":
            number = _ALIGN.match(text, position)
            if number is None:
                raise OperandError(".align without a number")
            position = number.end()
            # What follows `.ptr` is about the memory that the parameter points to.
            align = align if is_pointer else _alignment(int(number.group(1)))
        elif word == "attribute":
            attribute = _ATTRIBUTE.match(text, position)
            if attribute is None:
                raise OperandError(".attribute without its list")
            position = attribute.end()
        elif word in LINKAGE:
            linkage.add(word)
        elif word in _LANES:
            lanes = _LANES[word]
        elif word == "ptr":
            is_pointer = True
        elif word in ("global", "const", "shared", "local", "param", "reg"):
            spaces.add(word)
        elif word in WIDTH and not kind:
            kind = word
        else:
            raise OperandError(f".{word} is not known in a declaration")
    if space not in spaces or (len(spaces) > 1 and not is_pointer):
        raise OperandError(f"a variable needs one state space, not {sorted(spaces)}")
    if not kind or (kind == "pred" and space != "reg"):
        raise OperandError(f"a variable of space .{space} needs a type")
    natural = WIDTH[kind] * lanes
    return [_item(part, kind, lanes, align or natural, frozenset(linkage)) for part in split_operands(text[position:])]


def _alignment(align: int) -> int:
    if align <= 0 or align & (align - 1):
        raise OperandError(f".align {align} is no power of two")
    return align


def _item(text: str, kind: str, lanes: int, align: int, linkage: frozenset[str]) -> Declared:
    match = _ITEM.fullmatch(text)
    if match is None:
        raise OperandError(f"{' '.join(text.split())[:60]!r} declares nothing")
    name, brackets, init = match.groups()
    dims = tuple(_dimension(dim) for dim in re.findall(r"\[([^\]]*)\]", brackets))
    if len(dims) > _MAX_DIMENSIONS or None in dims[1:]:
        raise OperandError(f"{name!r} has dimensions that cannot be read")
    declared = Declared(
        name=name, type=kind, lanes=lanes, align=align, dims=dims, init=init and init.strip(), linkage=linkage
    )
    if declared.size > _MAX_SIZE:
        raise OperandError(f"{name!r} has {declared.size} bytes")
    return declared


def _dimension(text: str) -> int | None:
    if not text.strip():
        return None
    size = parse_integer(text)
    if not 0 <= size <= _MAX_SIZE:
        raise OperandError(f"an array cannot have {size} elements")
    return size


def parse_registers(text: str) -> list[tuple[str, int | None, str, int]]:
    """Read what follows `.reg`: (name, count of `name<count>` or None, type, lanes) each; raises OperandError."""
    kind, lanes, position = "", 1, 0
    while match := _WORD.match(text, position):
        word = match.group(1)
        position = match.end()
        if word in _LANES:
            lanes = _LANES[word]
        elif word in WIDTH and not kind:
            kind = word
        else:
            raise OperandError(f".{word} is not known in a declaration of registers")
    if not kind or (lanes > 1 and kind == "pred") or lanes > 4:
        raise OperandError("registers need a type")
    found: list[tuple[str, int | None, str, int]] = []
    for part in text[position:].split(","):
        item = _REGISTERS.fullmatch(part)
        if item is None or (item.group(2) and lanes > 1):
            raise OperandError(f"{' '.join(part.split())[:60]!r} declares no register")
        found.append((item.group(1), int(item.group(2)) if item.group(2) else None, kind, lanes))
    return found


def initial_bytes(declared: Declared) -> tuple[int, bytes | None, tuple[tuple[int, str], ...]]:
    """Return size, bytes and relocations of a variable (an open dimension is as long as its list)."""
    if declared.init is None:
        return declared.size, None, ()
    if declared.size > _MAX_INITIALISED:
        raise OperandError(f"{declared.name!r} has an initialiser of {declared.size} bytes")
    dims: tuple[int | None, ...] = (*declared.dims, declared.lanes) if declared.lanes > 1 else declared.dims
    if dims and dims[0] is None:
        if not declared.init.startswith("{") or not declared.init.endswith("}"):
            raise OperandError(f"{declared.name!r} needs a list, since its length is open")
        row = 1
        for dim in dims[1:]:
            row *= dim or 0
        items = split_operands(declared.init[1:-1])
        length = len(items) if items[0].strip().startswith("{") else -(-len(items) // max(row, 1))
        dims = (length, *dims[1:])
    filler = _Filler(declared.type, tuple(dim or 0 for dim in dims))
    if len(filler.data) > _MAX_INITIALISED:
        raise OperandError(f"{declared.name!r} has an initialiser of {len(filler.data)} bytes")
    filler.fill(declared.init)
    return len(filler.data), bytes(filler.data), tuple(filler.relocations)


class _Filler:
    def __init__(self, kind: str, dims: tuple[int, ...]) -> None:
        self._type = kind
        self._element = WIDTH[kind]
        self._strides = [1]  # elements from one item of the innermost list to the next, then of the lists around it
        for dim in reversed(dims):
            self._strides.append(self._strides[-1] * dim)
        if self._strides[-1] * self._element > _MAX_INITIALISED:
            raise OperandError(f"an initialiser of {self._strides[-1] * self._element} bytes")
        self.data = bytearray(self._strides[-1] * self._element)
        self.relocations: list[tuple[int, str]] = []
        self._masked: dict[int, str] = {}

    def fill(self, text: str) -> None:
        self._fill(text, len(self._strides) - 1, 0)

    def _fill(self, text: str, level: int, start: int) -> None:
        """Write the value or list `text` at element `start`; a list here fills `strides[level]` elements."""
        text = text.strip()
        if not text.startswith("{"):
            self._value(text, start)
            return
        if not text.endswith("}") or level < 0:
            raise OperandError(f"{text[:60]!r} is no initialiser")
        inner = text[1:-1]
        end = start + self._strides[level]
        if self._fill_bytes(inner, start, end) or not inner.strip():
            return
        step = self._strides[max(level - 1, 0)]
        at = start
        for item in split_operands(inner):
            if item.strip().startswith("{"):
                at = start + -(-(at - start) // step) * step if step else at
                self._check(at, end)
                self._fill(item, level - 1, at)
                at += step
            else:
                self._check(at, end)
                self._value(item.strip(), at)
                at += 1

    def _check(self, at: int, end: int) -> None:
        if at >= end or (at + 1) * self._element > len(self.data):
            raise OperandError("an initialiser has more items than its variable")

    def _fill_bytes(self, inner: str, start: int, end: int) -> bool:
        """Write a plain list of bytes at once, which is what strings and tables are."""
        if self._element != 1:
            return False
        try:
            values = bytes([int(item) for item in inner.split(",")])
        except ValueError:
            return False
        if start + len(values) > min(end, len(self.data)):
            raise OperandError("an initialiser has more items than its variable")
        self.data[start : start + len(values)] = values
        return True

    def _value(self, text: str, at: int) -> None:
        offset = at * self._element
        if offset + self._element > len(self.data):
            raise OperandError("an initialiser has more items than its variable")
        match = _RELOCATION.fullmatch(text)
        if match is not None:
            self._relocate(match, offset)
            return
        constant = parse_constant(text)
        bits = _float_bits(constant.value, self._element) if isinstance(constant.value, float) else constant.value
        if isinstance(constant.value, int) and self._type in ("f32", "f64"):
            bits = _float_bits(float(constant.value), self._element)
        if constant.is_float and constant.bits is not None and constant.size == self._element:
            bits = constant.bits
        self.data[offset : offset + self._element] = (bits & (1 << (8 * self._element)) - 1).to_bytes(
            self._element, "little"
        )

    def _relocate(self, match: re.Match[str], offset: int) -> None:
        mask, generic, plain, addend_text, closing = match.groups()
        symbol = generic or plain
        addend = parse_integer(addend_text.lstrip("+ ")) if addend_text else 0
        word = (addend & (1 << 64) - 1).to_bytes(8, "little")
        if (mask is None) != (closing is None):
            raise OperandError(f"{match.group()[:60]!r} is no initialiser")
        if mask is None:
            if self._element != 8:
                raise OperandError(f"the address of {symbol!r} needs a 64-bit type, not .{self._type}")
            self.data[offset : offset + 8] = word
            self.relocations.append((offset, symbol))
            return
        shift = (parse_integer(mask).bit_length() - 1) // 8
        if self._element != 1 or not 0 <= shift < 8 or parse_integer(mask) != 0xFF << (8 * shift):
            raise OperandError(f"{match.group()[:60]!r} is no byte of an address")
        self.data[offset] = word[shift]
        # Eight bytes of one address, lowest first, are a relocation of the word; anything else has no meaning here.
        self._masked[offset] = symbol
        if shift != 0 and self._masked.get(offset - 1) != symbol:
            raise OperandError(f"bytes of the address of {symbol!r} are not in order")
        if shift == 0:
            self.relocations.append((offset, symbol))


def _float_bits(value: float, size: int) -> int:
    if size == 4:
        try:
            return int.from_bytes(struct.pack("<f", value), "little")
        except OverflowError:
            return float_constant(0xFF800000 if value < 0 else 0x7F800000, 4).bits or 0
    if size == 8:
        return int.from_bytes(struct.pack("<d", value), "little")
    if size == 2:
        raise OperandError("16-bit floats are initialised by their bits")
    raise OperandError(f"a float does not initialise {size} bytes")
