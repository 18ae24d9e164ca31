"""From Python values to a kernel's parameters and the memory that it may touch."""

from __future__ import annotations

import mmap
import platform
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.memory.allocations import ALL_RANKS, Allocations
from megamoe_jit.emulator.native.registers import aligned_zeros
from megamoe_jit.emulator.parser.nodes import Function, Param, PtxModule
from megamoe_jit.errors import ArgumentError

PARAM_ALIGNMENT = 256
_MAX_PARAM_BYTES = 32764
_MAP_32BIT = 0x40  # of Linux on x86-64; Python 3.13 names it


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """Memory that a launch may touch.

    Attributes:
        tensor: a torch tensor of the CPU or a numpy array; from its first to its last element.
        writable: whether kernels may store to it (a read-only array never is).
        rank: whose it is, None: of the launch that names it.
        peer: whether other ranks may touch it too.
        name: what reports call it.
    """

    tensor: Any
    writable: bool = True
    rank: int | None = None
    peer: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class Region:
    """A range of host memory with its rights."""

    address: int
    size: int
    name: str
    rank: int
    writable: bool
    peer: bool
    keep: object


def region_of(memory: Memory, rank: int) -> Region:
    """Return where `memory` lies; raises ArgumentError for what is no memory of the host."""
    address, size, writable = extent_of(memory.tensor, memory.name or "memory")
    return Region(
        address=address,
        size=size,
        name=memory.name or f"{type(memory.tensor).__name__} {tuple(memory.tensor.shape)}",
        rank=rank if memory.rank is None else memory.rank,
        writable=writable and memory.writable,
        peer=memory.peer,
        keep=memory.tensor,
    )


def extent_of(tensor: Any, name: str) -> tuple[int, int, bool]:
    """Return (address of the first element, bytes to the end of the last, whether it may be written)."""
    if isinstance(tensor, np.ndarray):
        if any(stride < 0 for stride in tensor.strides):
            raise ArgumentError(f"{name} is an array with negative strides {tensor.strides}; pass a contiguous copy.")
        span = _span(tensor.shape, tensor.strides, 1, tensor.itemsize)
        return int(tensor.ctypes.data), span, bool(tensor.flags.writeable)
    if is_tensor(tensor):
        if tensor.device.type != "cpu":
            raise ArgumentError(f"{name} is on {tensor.device}; the emulator runs on tensors of the CPU.")
        size = tensor.element_size()
        return int(tensor.data_ptr()), _span(tensor.shape, tensor.stride(), size, size), True
    raise ArgumentError(f"{name} is a {type(tensor).__name__}; a torch tensor or a numpy array is needed.")


def is_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor, without importing torch."""
    return hasattr(value, "data_ptr") and hasattr(value, "element_size")


def _span(shape: Sequence[int], strides: Sequence[int], unit: int, itemsize: int) -> int:
    if any(extent == 0 for extent in shape):
        return 0
    return sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True)) * unit + itemsize


def pack(function: Function, args: Sequence[Any], rank: int) -> tuple[npt.NDArray[np.uint8], list[Region]]:
    """Return the parameter buffer and the memory of tensors among `args`.

    Args:
        function: an entry.
        args: one value a parameter: tensors and arrays (their address), integers, floats, bytes, tensor maps (anything
            with `encode() -> bytes`).
        rank: whose launch it is.

    Raises:
        ArgumentError: a value that its parameter cannot hold, or the wrong number of them.
    """
    if len(args) != len(function.params):
        names = ", ".join(f"{param.name} ({param.type}, {param.size} bytes)" for param in function.params)
        raise ArgumentError(f"{function.name} takes {len(function.params)} arguments, not {len(args)}: {names}.")
    if function.param_bytes > _MAX_PARAM_BYTES:
        raise ArgumentError(f"{function.name} has {function.param_bytes} bytes of parameters, of {_MAX_PARAM_BYTES}.")
    buffer = _param_buffer(max(function.param_bytes, 1))
    regions: list[Region] = []
    for param, value in zip(function.params, args, strict=True):
        data = _encode(param, value, rank, regions)
        buffer[param.offset : param.offset + param.size] = np.frombuffer(data, np.uint8)
    return buffer, regions


def _param_buffer(size: int) -> npt.NDArray[np.uint8]:
    """Return zeros below 4 GiB where the system can: compilers may keep addresses of parameters in 32 bits."""
    low = getattr(mmap, "MAP_32BIT", _MAP_32BIT if platform.machine() == "x86_64" else 0)
    if sys.platform != "linux" or not low:
        return aligned_zeros(size, PARAM_ALIGNMENT)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | low)
    return np.frombuffer(pages, np.uint8)[:size]


def _encode(param: Param, value: Any, rank: int, regions: list[Region]) -> bytes:
    if isinstance(value, Memory | np.ndarray) or is_tensor(value):
        if not param.is_pointer:
            raise ArgumentError(f"{param.name} is a {param.type} of {param.size} bytes, and no pointer to a tensor.")
        memory = value if isinstance(value, Memory) else Memory(value)
        region = region_of(replace(memory, name=memory.name or param.name), rank)
        if region.size:
            regions.append(region)
        return region.address.to_bytes(8, "little")
    if hasattr(value, "encode") and not isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        if len(value) != param.size:
            raise ArgumentError(f"{param.name} has {param.size} bytes, and {len(value)} were given.")
        return bytes(value)
    if isinstance(value, bool | int | np.integer | np.bool_):
        return _integer(param, int(value))
    if isinstance(value, float | np.floating) and param.type in ("f32", "f64"):
        return struct.pack("<f" if param.size == 4 else "<d", float(value))
    raise ArgumentError(f"{param.name} is a {param.type} of {param.size} bytes, and cannot hold {value!r}.")


def _integer(param: Param, value: int) -> bytes:
    if param.type in ("f32", "f64"):
        return struct.pack("<f" if param.size == 4 else "<d", float(value))
    bits = 8 * param.size
    if not -(1 << (bits - 1)) <= value < 1 << bits:
        raise ArgumentError(f"{param.name} is a {param.type} of {param.size} bytes, and cannot hold {value}.")
    return (value % (1 << bits)).to_bytes(param.size, "little")


def register(allocations: Allocations, regions: Iterable[Region]) -> None:
    """Register `regions`; what several ranks name belongs to all of them."""
    ordered = sorted((region for region in regions if region.size), key=lambda region: region.address)
    group: list[Region] = []
    end = -1
    for region in ordered:
        if group and region.address >= end:
            _register_group(allocations, group)
            group = []
        end = max(end, region.address + region.size) if group else region.address + region.size
        group.append(region)
    _register_group(allocations, group)


def _register_group(allocations: Allocations, group: list[Region]) -> None:
    ranks = {region.rank for region in group}
    rank = ranks.pop() if len(ranks) == 1 else ALL_RANKS
    for region in group:
        allocations.add(
            region.address,
            region.size,
            writable=region.writable,
            name=region.name,
            rank=rank,
            peer=region.peer,
            keep=region.keep,
        )


class Globals:
    """Variables of a module in global and const memory, once for each rank: they keep their values between launches.

    Attributes:
        symbols: name -> host address.
        regions: where they lie.
    """

    def __init__(self, module: PtxModule, rank: int) -> None:
        """Make and initialise them."""
        self.symbols: dict[str, int] = {}
        self.regions: list[Region] = []
        self.arrays: dict[str, npt.NDArray[np.uint8]] = {}
        for name, variable in module.globals.items():
            if variable.space not in ("global", "const"):
                continue
            array = aligned_zeros(max(variable.size, 1), max(variable.align, 16))
            if variable.init is not None:
                array[: len(variable.init)] = np.frombuffer(variable.init, np.uint8)
            self.arrays[name] = array
            self.symbols[name] = int(array.ctypes.data)
            writable = variable.space == "global"
            self.regions.append(Region(self.symbols[name], len(array), name, rank, writable, False, array))
        for name, variable in module.globals.items():
            for offset, symbol in variable.relocations:
                word = self.arrays[name][offset : offset + 8].view(np.uint64)
                word += np.uint64(self.symbols[symbol])
