"""What a kernel is made from: its description, and the C++ spelling of the constants in it."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from megamoe_jit.arch import Arch
from megamoe_jit.errors import ArgumentError

ConstantValue: TypeAlias = bool | int | float | str

_SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


class KernelDescription(Protocol):
    """All that a kernel is rendered from; any frozen, hashable dataclass that has these members will do.

    Equal descriptions must render the same source: `build` remembers kernels by description.
    """

    @property
    def kernel_name(self) -> str:
        """The `extern "C"` symbol of the kernel."""
        ...

    @property
    def entry(self) -> str:
        """The entry's path below the template folder, such as "mega_moe/sm90.cuh"."""
        ...

    @property
    def arch(self) -> Arch:
        """The target that it is compiled for."""
        ...

    def constants(self) -> Mapping[str, ConstantValue]:
        """Return the C++ constants that `config.cuh` prints, in its order: `block_m` becomes `config::kBlockM`."""
        ...

    def template_values(self) -> Mapping[str, object]:
        """Return the values that Jinja loops and include lines use, such as `wgmma_shapes`."""
        ...

    def __hash__(self) -> int:
        """Hash by value."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelSource:
    """The plainest `KernelDescription`: its parts as they are. Small kernels and tests use it."""

    kernel_name: str
    entry: str
    arch: Arch
    parameters: tuple[tuple[str, ConstantValue], ...] = ()
    values: tuple[tuple[str, object], ...] = ()

    def constants(self) -> Mapping[str, ConstantValue]:
        """Return `parameters` as a mapping."""
        return dict(self.parameters)

    def template_values(self) -> Mapping[str, object]:
        """Return `values` as a mapping."""
        return dict(self.values)


def cpp_name(name: str) -> str:
    """Return the C++ name of a Python constant: `num_stages` becomes `kNumStages`.

    Raises ArgumentError when `name` is not snake_case.
    """
    if not _SNAKE_CASE.fullmatch(name):
        raise ArgumentError(
            f"constant {name!r} has no C++ name: constants are snake_case (small letters, digits, single underscores), "
            "so that num_stages becomes config::kNumStages. Rename it."
        )
    return "k" + "".join(word[0].upper() + word[1:] for word in name.split("_"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """One line of `config.cuh`."""

    name: str
    cpp_type: str
    cpp_name: str
    literal: str

    @property
    def definition(self) -> str:
        """The C++ definition."""
        if self.cpp_type == "char[]":
            return f"constexpr char {self.cpp_name}[] = {self.literal};"
        return f"constexpr {self.cpp_type} {self.cpp_name} = {self.literal};"


def spell_constants(constants: Mapping[str, ConstantValue]) -> tuple[Constant, ...]:
    """Return each constant with its C++ type, name and literal.

    bool -> bool; 0 <= int < 2^32 -> uint32_t, larger -> uint64_t, negative -> int64_t; float -> float, rounded to
    nearest and printed with nine digits (which give the same float back); str -> char array. Raises ArgumentError for
    other types, floats that no finite float holds, integers beyond 64 bits, and names that meet in one C++ name.
    """
    spelled: dict[str, Constant] = {}
    for name, value in constants.items():
        cpp_type, literal = _spell(name, value)
        constant = Constant(name=name, cpp_type=cpp_type, cpp_name=cpp_name(name), literal=literal)
        if other := spelled.get(constant.cpp_name):
            raise ArgumentError(
                f"constants {other.name!r} and {name!r} are both {constant.cpp_name} in C++. Rename one."
            )
        spelled[constant.cpp_name] = constant
    return tuple(spelled.values())


def _spell(name: str, value: ConstantValue) -> tuple[str, str]:
    if isinstance(value, bool):
        return "bool", "true" if value else "false"
    if isinstance(value, int):
        return _spell_int(name, value)
    if isinstance(value, float):
        return "float", _spell_float(name, value)
    if isinstance(value, str):
        return "char[]", _spell_str(name, value)
    raise ArgumentError(
        f"constant {name!r} has type {type(value).__name__}; C++ constants are bool, int, float or str. "
        "Convert it, or pass it as a template value."
    )


def _spell_int(name: str, value: int) -> tuple[str, str]:
    if 0 <= value < 1 << 32:
        return "uint32_t", str(int(value))
    if 0 <= value < 1 << 64:
        return "uint64_t", f"{int(value)}ull"
    if value == -(1 << 63):
        return "int64_t", "-9223372036854775807ll - 1"
    if -(1 << 63) < value < 0:
        return "int64_t", f"{int(value)}ll"
    raise ArgumentError(f"constant {name!r} is {value}, which no 64-bit integer holds.")


def _spell_float(name: str, value: float) -> str:
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        rounded = math.inf
    if not math.isfinite(rounded):
        raise ArgumentError(
            f"constant {name!r} is {value!r}, which is no finite float. "
            "Pass a bool that says whether there is a limit, beside its value."
        )
    digits = f"{rounded:.9g}"
    return (digits if "." in digits or "e" in digits else digits + ".0") + "f"


def _spell_str(name: str, value: str) -> str:
    if not value.isascii() or not value.isprintable():
        raise ArgumentError(f"constant {name!r} is {value!r}; text constants are printable ASCII.")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
