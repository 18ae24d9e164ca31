"""Native code's access to ctypes structures: a field by its name, with the LLVM type of its ctypes type."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from megamoe_jit.emulator.native.context import WarpContext
from megamoe_jit.emulator.native.ir import Number, Val

_INTEGERS = {1: "i8", 2: "i16", 4: "i32", 8: "i64"}


@cache
def place(structure: type[ctypes.Structure], name: str) -> tuple[int, str]:
    """Return (byte offset, LLVM type) of a field; the type is "" when it is an array or a structure."""
    declared: Any = dict(structure._fields_)[name]  # type: ignore[arg-type]  # no bit fields here
    is_scalar = issubclass(declared, ctypes._SimpleCData)
    return getattr(structure, name).offset, _INTEGERS[ctypes.sizeof(declared)] if is_scalar else ""


class Fields:
    """A structure in native memory."""

    __slots__ = ("address", "structure")

    def __init__(self, address: Val, structure: type[ctypes.Structure]) -> None:
        """Take the memory at `address` as a `structure`."""
        self.address = address
        self.structure = structure

    def at(self, name: str) -> Val:
        """Return the address of a field."""
        return self.address.at(place(self.structure, name)[0])

    def get(self, name: str) -> Val:
        """Read a field."""
        return self.at(name).load(place(self.structure, name)[1])

    def pointer(self, name: str) -> Val:
        """Read a field that holds an address."""
        return self.at(name).load("ptr")

    def set(self, name: str, value: Number) -> None:
        """Write a field."""
        type = place(self.structure, name)[1]
        self.at(name).store(value if isinstance(value, Val) else self.address.f.const(type, value))


def context(address: Val) -> Fields:
    """Take `address` as a WarpContext."""
    return Fields(address, WarpContext)
