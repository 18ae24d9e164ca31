"""Kernel parameters: typed values, checked against the `.param` list of the kernel's PTX and packed once."""

from __future__ import annotations

import ctypes
import functools
import math
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from megamoe_jit.errors import ArgumentError
from megamoe_jit.runtime.tensormap import TENSOR_MAP_BYTES, TensorMap

Value = Any  # int | float | bytes | torch.Tensor | TensorMap, as the parameter's kind says
MapEncoder = Callable[[TensorMap], bytes]  # what a backend passes for a tensor map: its 128 bytes
_PARAM_BYTES_LIMIT = 32764  # of all parameters of a kernel, since CUDA 12.1


class ParamKind(Enum):
    """Kinds of kernel parameters."""

    POINTER = "pointer"
    U32 = "u32"
    I32 = "i32"
    U64 = "u64"
    I64 = "i64"
    F32 = "f32"
    TENSOR_MAP = "tensor map"
    STRUCT = "struct"


# Packing by kind; integers that do not fit raise struct.error.
_FORMATS = {
    ParamKind.POINTER: struct.Struct("<Q"),
    ParamKind.U32: struct.Struct("<I"),
    ParamKind.I32: struct.Struct("<i"),
    ParamKind.U64: struct.Struct("<Q"),
    ParamKind.I64: struct.Struct("<q"),
    ParamKind.F32: struct.Struct("<f"),
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Param:
    """One kernel parameter: what it is called, its kind and its value.

    A pointer's value is a tensor or an integer address (0 is a null pointer), a tensor map's is a TensorMap or its 128
    bytes, a struct's is its bytes. A Param keeps the tensor that it was given alive.
    """

    name: str
    kind: ParamKind
    value: Value

    def __post_init__(self) -> None:
        """Check the value's type and range."""
        wanted: tuple[type, ...] = {
            ParamKind.POINTER: (int, torch.Tensor),
            ParamKind.F32: (int, float),
            ParamKind.TENSOR_MAP: (TensorMap, bytes),
            ParamKind.STRUCT: (bytes,),
        }.get(self.kind, (int,))
        if not isinstance(self.value, wanted):
            names = " or ".join(kind.__name__ for kind in wanted)
            raise ArgumentError(
                f"parameter {self.name!r} is a {type(self.value).__name__}, and a {self.kind.value} takes {names}. "
                "Convert the value."
            )
        if self.kind is ParamKind.TENSOR_MAP and isinstance(self.value, bytes) and len(self.value) != TENSOR_MAP_BYTES:
            raise ArgumentError(
                f"parameter {self.name!r} has {len(self.value)} bytes, and a tensor map has {TENSOR_MAP_BYTES}. Pass "
                "TensorMap.encode()."
            )
        if not isinstance(self.value, (TensorMap, bytes)):
            self.pack(self.value)

    def pack(self, value: Value, encode: MapEncoder = TensorMap.encode) -> bytes:
        """Return the bytes of `value` as this parameter; raises ArgumentError for one that does not fit."""
        if isinstance(value, TensorMap):
            return encode(value)
        if isinstance(value, bytes):
            return value
        if isinstance(value, torch.Tensor):
            value = value.data_ptr()
        try:
            return _FORMATS[self.kind].pack(value)
        except (struct.error, OverflowError) as error:
            raise ArgumentError(
                f"parameter {self.name!r} is {value!r}, which does not fit a {self.kind.value}. Check the value, or "
                "widen the parameter."
            ) from error


def pointer(name: str, value: torch.Tensor | int) -> Param:
    """Return a 64-bit address, of a tensor's first element or as given."""
    return Param(name=name, kind=ParamKind.POINTER, value=value)


def u32(name: str, value: int) -> Param:
    """Return an unsigned 32-bit integer."""
    return Param(name=name, kind=ParamKind.U32, value=value)


def i32(name: str, value: int) -> Param:
    """Return a signed 32-bit integer."""
    return Param(name=name, kind=ParamKind.I32, value=value)


def u64(name: str, value: int) -> Param:
    """Return an unsigned 64-bit integer."""
    return Param(name=name, kind=ParamKind.U64, value=value)


def i64(name: str, value: int) -> Param:
    """Return a signed 64-bit integer."""
    return Param(name=name, kind=ParamKind.I64, value=value)


def f32(name: str, value: float) -> Param:
    """Return a 32-bit float."""
    return Param(name=name, kind=ParamKind.F32, value=value)


def tensor_map(name: str, value: TensorMap | bytes) -> Param:
    """Return a tensor map passed by value (`const __grid_constant__` in the kernel)."""
    return Param(name=name, kind=ParamKind.TENSOR_MAP, value=value)


def struct_bytes(name: str, value: bytes) -> Param:
    """Return a struct passed by value, as the bytes that it has in C."""
    return Param(name=name, kind=ParamKind.STRUCT, value=value)


@dataclass(frozen=True, kw_only=True, slots=True)
class PtxParam:
    """One `.param` of a kernel entry: its PTX type ("u64", "f32", "b8" for arrays), size and alignment in bytes."""

    name: str
    type: str
    size: int
    alignment: int


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelSignature:
    """What a kernel's PTX says about launching it."""

    name: str
    params: tuple[PtxParam, ...]
    max_threads: int | None = None  # product of .maxntid
    required_block: tuple[int, int, int] | None = None  # .reqntid
    required_cluster: tuple[int, int, int] | None = None  # .reqnctapercluster

    @property
    def offsets(self) -> tuple[int, ...]:
        """Offsets of the parameters in a C struct of them."""
        offsets, end = [], 0
        for param in self.params:
            offset = -(-end // param.alignment) * param.alignment
            offsets.append(offset)
            end = offset + param.size
        return tuple(offsets)

    @property
    def param_bytes(self) -> int:
        """Bytes of all parameters."""
        return self.offsets[-1] + self.params[-1].size if self.params else 0


_PARAM = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)(?:\s+\.ptr(?:\s+\.\w+)*?(?:\s+\.align\s+\d+)?)?\s+([\w$]+)(?:\[(\d+)\])?"
)
_DIMS = re.compile(r"\.(maxntid|reqntid|reqnctapercluster)\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?")


@functools.lru_cache(maxsize=256)
def parse_signature(ptx: str, kernel_name: str) -> KernelSignature:
    """Return the signature of the entry `kernel_name` in `ptx`; raises ArgumentError when there is no such entry."""
    start = re.search(rf"\.entry\s+{re.escape(kernel_name)}(?![\w$])", ptx)
    if start is None:
        found = ", ".join(re.findall(r"\.entry\s+([\w$]+)", ptx)) or "none"
        raise ArgumentError(
            f'kernel_name={kernel_name!r} is no entry of the PTX, which has: {found}. Declare the kernel extern "C" '
            "__global__ with this name."
        )
    header = re.sub(r"//[^\n]*|/\*.*?\*/", "", ptx[start.end() : ptx.find("{", start.end())], flags=re.DOTALL)
    declared, _, directives = header.rpartition(")")
    params = []
    for align, kind, name, count in _PARAM.findall(declared):
        item = int(re.sub(r"\D", "", kind)) // 8
        params.append(PtxParam(name=name, type=kind, size=item * int(count or 1), alignment=int(align or item)))
    dims = {name: (int(x), int(y or 1), int(z or 1)) for name, x, y, z in _DIMS.findall(directives)}
    return KernelSignature(
        name=kernel_name,
        params=tuple(params),
        max_threads=math.prod(dims["maxntid"]) if "maxntid" in dims else None,
        required_block=dims.get("reqntid"),
        required_cluster=dims.get("reqnctapercluster"),
    )


def check_params(signature: KernelSignature, params: Sequence[Param]) -> None:
    """Raise ArgumentError unless `params` fit the kernel's one by one: count, size, alignment, float or integer."""
    if len(params) != len(signature.params):
        given = ", ".join(param.name for param in params) or "none"
        raise ArgumentError(
            f"{signature.name} takes {len(signature.params)} parameters, and the plan has {len(params)} ({given}). "
            "List one Param for each, in the kernel's order."
        )
    for index, (param, ptx) in enumerate(zip(params, signature.params, strict=True)):
        reason = _mismatch(param, ptx)
        if reason:
            raise ArgumentError(
                f"parameter {index} ({param.name!r}) of {signature.name} is {reason}. Pass the kind that the kernel "
                "declares, in its order."
            )
    if signature.param_bytes > _PARAM_BYTES_LIMIT:
        raise ArgumentError(
            f"{signature.name} takes {signature.param_bytes} bytes of parameters, and CUDA passes at most "
            f"{_PARAM_BYTES_LIMIT}. Put them into device memory and pass a pointer."
        )


def _mismatch(param: Param, ptx: PtxParam) -> str | None:
    """Return how `param` differs from what the kernel declares, or None."""
    declared = f".b8[{ptx.size}] aligned to {ptx.alignment}" if ptx.type == "b8" else f".{ptx.type}"
    if param.kind in (ParamKind.TENSOR_MAP, ParamKind.STRUCT):
        size = len(param.value) if isinstance(param.value, bytes) else TENSOR_MAP_BYTES
        if ptx.type != "b8" or ptx.size != size:
            return f"a {param.kind.value} of {size} bytes, and the kernel declares {declared}"
        if param.kind is ParamKind.TENSOR_MAP and ptx.alignment < 64:
            return (
                f"a tensor map, which must be aligned to 64 bytes, and the kernel declares {declared}: use alignas(64)"
            )
        return None
    size = _FORMATS[param.kind].size
    is_float, wants_float = param.kind is ParamKind.F32, ptx.type.startswith("f")
    if (
        ptx.size != size
        or (ptx.type[0] != "b" and is_float != wants_float)
        or (ptx.type == "b8" and ptx.alignment < size)
    ):
        return f"a {param.kind.value} of {size} bytes, and the kernel declares {declared}"
    return None


class ParamBuffer:
    """Parameters packed into one block of host memory, with the pointer array that cuLaunchKernelEx takes.

    The driver copies the values when it launches, so that one buffer serves any number of launches; not for several
    threads at once.
    """

    __slots__ = ("_buffer", "_cells", "_encode", "_memory", "_params", "_pointers", "address")

    def __init__(
        self, signature: KernelSignature, params: Sequence[Param], encode: MapEncoder = TensorMap.encode
    ) -> None:
        """Check `params` against the kernel and pack them; tensor maps by `encode`, the driver's own by default."""
        check_params(signature, params)
        self._params = tuple(params)
        self._encode = encode
        alignment = 64
        self._buffer = bytearray(signature.param_bytes + alignment)
        self._memory = ctypes.c_char.from_buffer(self._buffer)  # pins the bytes where they are
        start = -ctypes.addressof(self._memory) % alignment
        base = ctypes.addressof(self._memory) + start
        # (packer of numbers or None, where the bytes lie) by parameter.
        self._cells = tuple(
            (_FORMATS[param.kind].pack if param.kind in _FORMATS else None, slice(start + at, start + at + ptx.size))
            for param, ptx, at in zip(params, signature.params, signature.offsets, strict=True)
        )
        self._pointers = (ctypes.c_void_p * max(len(params), 1))(*(base + offset for offset in signature.offsets))
        self.address = ctypes.addressof(self._pointers)
        for param, (_, place) in zip(params, self._cells, strict=True):
            self._buffer[place] = param.pack(param.value, encode)

    def index_of(self, name: str) -> int:
        """Return the index of the parameter called `name`."""
        names = [param.name for param in self._params]
        if name not in names:
            raise ArgumentError(
                f"name={name!r} is no parameter of this launch, which has {', '.join(names) or 'none'}. Use one of "
                "those."
            )
        return names.index(name)

    def update(self, index: int, value: Value) -> None:
        """Set parameter `index` to another value of its kind; raises ArgumentError for one that does not fit.

        A tensor is not kept alive: the caller does that until the launch is enqueued, as with any torch operator.
        """
        pack, place = self._cells[index]
        param = self._params[index]
        if pack is not None:
            # Exact types only: struct would pack a tensor of one integer as its value.
            if type(value) is int or type(value) is float:
                try:
                    self._buffer[place] = pack(value)
                    return
                except (struct.error, OverflowError):
                    pass  # Param says in words what does not fit
            elif param.kind is ParamKind.POINTER and isinstance(value, torch.Tensor):
                self._buffer[place] = pack(value.data_ptr())
                return
        packed = Param(name=param.name, kind=param.kind, value=value).pack(value, self._encode)
        size = place.stop - place.start
        if len(packed) != size:
            raise ArgumentError(
                f"parameter {param.name!r} has {len(packed)} bytes, and the kernel declares {size}. Pack the same "
                "struct."
            )
        self._buffer[place] = packed

    def patch(self, index: int, offset: int, data: bytes) -> None:
        """Overwrite `data` at byte `offset` of the struct parameter `index`; raises ArgumentError outside of it."""
        place = self._cells[index][1]
        start = place.start + offset
        end = start + len(data)
        if offset < 0 or end > place.stop or self._params[index].kind is not ParamKind.STRUCT:
            param = self._params[index]
            raise ArgumentError(
                f"bytes {offset} to {offset + len(data)} of parameter {param.name!r}, a {param.kind.value} of "
                f"{place.stop - place.start} bytes, cannot be patched. Patch within a struct, and update other "
                "parameters."
            )
        self._buffer[start:end] = data

    def read(self, index: int) -> bytes:
        """Return the packed bytes of parameter `index`."""
        return bytes(self._buffer[self._cells[index][1]])
