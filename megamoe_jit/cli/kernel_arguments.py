"""Kernel arguments as they are typed on a command line: files, fills and scalars."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megamoe_jit.errors import ArgumentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from megamoe_jit.emulator.parser import Param

_NAME = re.compile(r"([A-Za-z_]\w*)=(.+)", re.S)
_TYPED = re.compile(r"([a-z]\w*):([^:]+)")
_FILL = re.compile(r"(zeros|ones|arange|normal|uniform|integers):([A-Za-z]\w*):(\d+(?:x\d+)*)")
_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)")
_FLOAT = re.compile(r"-?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?|-?inf|nan")
_SCALARS = {"f64": "<d", "f32": "<f", "f16": "<e"}

FORMS = """
    x.npy                     an array, passed by its address (by value where the parameter is an array of bytes)
    zeros:float32:16x64       a new array: zeros, ones, arange, normal, uniform or integers (see --seed)
    7   -1   0x10   1.5       a scalar, of the parameter's type
    f32:1.5   u64:7           a scalar of the type that is written (u8 ... s64, f16, bf16, f32, f64)
    null                      a null pointer
    out=...                   any of them with a name, under which --save finds it
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelArgument:
    """One argument: an array that the kernel may write, or a scalar.

    Attributes:
        name: what it is called, "" without a name.
        array: its memory, or None for a scalar.
        scalar: a scalar's value: a number of the parameter's type, or the bytes of one whose type is written.
    """

    name: str
    array: NDArray[Any] | None = None
    scalar: int | float | bytes = 0


def parse_arguments(texts: list[str], *, seed: int) -> list[KernelArgument]:
    """Read all arguments; random fills depend on `seed` and on their position. Raises ArgumentError."""
    arguments = [parse_argument(text, seed=seed + position) for position, text in enumerate(texts)]
    names = [argument.name for argument in arguments if argument.name]
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(f"two arguments are called {name!r}; give them names of their own: --arg NAME=...")
    return arguments


def parse_argument(text: str, *, seed: int = 0) -> KernelArgument:
    """Read one argument (see FORMS); raises ArgumentError with the forms that there are."""
    name, value = "", text
    if match := _NAME.fullmatch(text):
        name, value = match.groups()
    if value.endswith(".npy"):
        return KernelArgument(name=name or Path(value).stem, array=_load(Path(value)))
    if match := _FILL.fullmatch(value):
        kind, dtype, shape = match.groups()
        return KernelArgument(name=name, array=_fill(kind, dtype, tuple(map(int, shape.split("x"))), seed))
    if value == "null":
        return KernelArgument(name=name, scalar=0)
    if _INTEGER.fullmatch(value):
        return KernelArgument(name=name, scalar=int(value, 0) if "x" in value.lower() else int(value))
    if _FLOAT.fullmatch(value):
        return KernelArgument(name=name, scalar=float(value))
    if match := _TYPED.fullmatch(value):
        return KernelArgument(name=name, scalar=_typed(*match.groups()))
    raise ArgumentError(f"--arg {text!r} is no argument. One of:\n{FORMS}")


def check_arguments(arguments: list[KernelArgument], params: tuple[Param, ...], kernel: str) -> None:
    """Raise ArgumentError when the number of arguments, or an argument's kind, is not what `kernel` takes."""
    if len(arguments) != len(params):
        raise ArgumentError(
            f"{kernel} has {len(params)} parameters, and {len(arguments)} --arg are given. It takes, in order: "
            + (", ".join(f"{param.name} ({describe_param(param)})" for param in params) or "none")
        )
    for argument, param in zip(arguments, params, strict=True):
        if argument.array is not None and not param.is_pointer and not is_by_value(param):
            raise ArgumentError(
                f"{param.name} of {kernel} is {describe_param(param)}, and an array is given; write a number"
            )
        if argument.array is not None and is_by_value(param) and argument.array.nbytes != param.size:
            raise ArgumentError(
                f"{param.name} of {kernel} is {describe_param(param)}, and the array has {argument.array.nbytes} bytes"
            )
        if isinstance(argument.scalar, bytes) and argument.array is None and len(argument.scalar) != param.size:
            raise ArgumentError(
                f"{param.name} of {kernel} is {describe_param(param)}, and a value of {len(argument.scalar)} bytes is "
                "given"
            )


def is_by_value(param: Param) -> bool:
    """Return whether `param` is a structure that is passed by value."""
    from megamoe_jit.emulator.parser import WIDTH

    return WIDTH[param.type] != param.size


def describe_param(param: Param) -> str:
    """Return a parameter's type in words: "pointer or u64", "128 bytes by value", "f32"."""
    if is_by_value(param):
        return f"{param.size} bytes by value"
    return f"pointer or {param.type}" if param.is_pointer else param.type


def dtype_of(name: str) -> np.dtype[Any]:
    """Return the dtype called `name`, NumPy's or ml_dtypes' (bfloat16, float8_e4m3fn); raises ArgumentError."""
    import ml_dtypes
    import numpy as np

    short = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn"}
    name = short.get(name, name)
    try:
        return np.dtype(getattr(ml_dtypes, name, name))
    except TypeError:
        raise ArgumentError(
            f"{name!r} is no dtype; one of float32, bfloat16, float8_e4m3fn, int32, uint8, ..."
        ) from None


def save_array(array: NDArray[Any], path: Path) -> None:
    """Write an array as .npy; types that NumPy does not know are written as their bits (bfloat16 as uint16)."""
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array)


def _load(path: Path) -> NDArray[Any]:
    import numpy as np

    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path} cannot be read as an array: {error}") from None
    return np.ascontiguousarray(array)


def _fill(kind: str, dtype_name: str, shape: tuple[int, ...], seed: int) -> NDArray[Any]:
    import numpy as np

    dtype = dtype_of(dtype_name)
    count = 1
    for length in shape:
        count *= length
    if count * dtype.itemsize > 1 << 36:
        raise ArgumentError(f"an array of shape {shape} takes {count * dtype.itemsize} bytes, more than this emulates")
    rng = np.random.default_rng(seed)
    if kind == "normal":
        return rng.standard_normal(shape).astype(dtype)
    if kind == "uniform":
        return rng.random(shape).astype(dtype)
    if kind == "integers":
        return rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8).view(dtype).reshape(shape)
    if kind == "arange":
        return np.arange(count).reshape(shape).astype(dtype)
    return (np.ones if kind == "ones" else np.zeros)(shape, dtype)


def _typed(kind: str, value: str) -> bytes:
    try:
        if kind in _SCALARS:
            return struct.pack(_SCALARS[kind], float(value))
        if kind == "bf16":
            import ml_dtypes

            return bytes(ml_dtypes.bfloat16(float(value)).tobytes())
        if match := re.fullmatch(r"([usb])(8|16|32|64)", kind):
            number, bits = int(value, 0), int(match.group(2))
            if not -(1 << (bits - 1)) <= number < 1 << bits:
                raise ArgumentError(f"{value} does not fit in {kind}")
            return (number & (1 << bits) - 1).to_bytes(bits // 8, "little")
    except (ValueError, OverflowError):
        raise ArgumentError(f"{value!r} is no number of type {kind}") from None
    raise ArgumentError(f"{kind!r} is no type of a scalar: u8 ... u64, s8 ... s64, b8 ... b64, f16, bf16, f32, f64")
