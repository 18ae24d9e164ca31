"""Operands of one lane as Python integers: what handlers read that mostly run for a single elected lane.

A few hundred nanoseconds an operand, where an array of all lanes takes microseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from megamoe_jit.emulator.isa.decode import Decode, immediate, lanes_of
from megamoe_jit.emulator.machine.state import Warp
from megamoe_jit.emulator.parser.nodes import Address, Imm, Operand, RegOp, Symbol
from megamoe_jit.errors import UnsupportedError

Scalar: TypeAlias = Callable[[Warp, int], int]
"""Gives an operand's value in one lane."""

_FORMATS = {1: struct.Struct("<B"), 2: struct.Struct("<H"), 4: struct.Struct("<I"), 8: struct.Struct("<Q")}


def lane_list(mask: int) -> Sequence[int]:
    """Return the lanes of a mask that is not empty, ascending."""
    if mask & (mask - 1) == 0:
        return (mask.bit_length() - 1,)
    lanes: list[int] = lanes_of(mask).tolist()
    return lanes


def scalar(d: Decode, operand: Operand, size: int, *, signed: bool = False) -> Scalar:
    """Read an operand as an integer of `size` bytes; widths meet as `Decode.value` says."""
    if isinstance(operand, RegOp) and operand.reg.width in _FORMATS:
        reg, width = operand.reg, operand.reg.width
        layout: Any = d.layout
        start = int(layout.offset(reg))
        unpack: Any = _FORMATS[width].unpack_from
        own_sign, wanted_sign, wrap = 1 << (8 * width - 1), 1 << (8 * size - 1), (1 << 8 * size) - 1
        if reg.type[0] == "s" and width < size:
            keep = -1 if signed else wrap
            return lambda warp, lane: ((unpack(warp.regs, start + lane * width)[0] ^ own_sign) - own_sign) & keep
        if signed and width >= size:
            return lambda warp, lane: ((unpack(warp.regs, start + lane * width)[0] & wrap) ^ wanted_sign) - wanted_sign
        if width <= size:
            return lambda warp, lane: int(unpack(warp.regs, start + lane * width)[0])
        return lambda warp, lane: int(unpack(warp.regs, start + lane * width)[0]) & wrap
    if isinstance(operand, Imm):
        constant = int(immediate(operand, f"{'i' if signed else 'u'}{size}"))
        return lambda _warp, _lane: constant
    read = d.reader(operand, np.dtype(f"{'i' if signed else 'u'}{size}"))
    return lambda warp, lane: int(read(warp)[lane])


def value_of(d: Decode, index: int, size: int) -> Scalar:
    """Read operand `index` as an unsigned integer of `size` bytes."""
    return scalar(d, d.operand(index), size)


def address_of(d: Decode, index: int) -> Scalar:
    """Read `[base + offset]` of operand `index`; the sum wraps at the base's width."""
    operand = d.operand(index)
    if not isinstance(operand, Address):
        return value_of(d, index, 8)
    offset, base = operand.offset, operand.base
    if base is None:
        return lambda _warp, _lane: offset % (1 << 64)
    size = 4 if isinstance(base, RegOp) and base.reg.width == 4 else 8
    read = scalar(d, base, size)
    if not offset:
        return read
    if isinstance(base, Symbol):
        return lambda warp, lane: read(warp, lane) + offset
    wrap = (1 << 8 * size) - 1
    return lambda warp, lane: (read(warp, lane) + offset) & wrap


def coordinates_of(d: Decode, index: int) -> Callable[[Warp, int], list[int]]:
    """Read the coordinates of `[map, {x, y}]`."""
    operand = d.operand(index)
    if not isinstance(operand, Address) or operand.coords is None or operand.extra:
        raise UnsupportedError(f"{d.instruction.text}: operand {index} must be [map, {{coordinates}}].")
    readers = [scalar(d, item, 4, signed=True) for item in operand.coords.items]
    return lambda warp, lane: [read(warp, lane) for read in readers]
