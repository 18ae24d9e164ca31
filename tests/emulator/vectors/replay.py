"""A case on the emulator, and what its results differ in from those of the machine."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from megamoe_jit.emulator.api import Emulator, Memory, Module
from megamoe_jit.emulator.memory.tensor_map import Element, OobFill, Swizzle, TensorMap
from tests.emulator.vectors.case import (
    BUFFER_ALIGNMENT,
    Array,
    Bytes,
    Case,
    InOut,
    Input,
    Map,
    Output,
    Scalar,
    Scratch,
    Tolerance,
)

SHOWN = 6  # differences that a message lists


def aligned_copy(data: Array) -> Array:
    """Return a copy that starts at a multiple of 1024 bytes, as device memory does."""
    size = data.nbytes
    room = np.empty(size + BUFFER_ALIGNMENT, np.uint8)
    start = -int(room.ctypes.data) % BUFFER_ALIGNMENT
    copy = room[start : start + size]
    copy[:] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return copy.view(data.dtype).reshape(data.shape)


def run(case: Case, emulator: Emulator) -> tuple[dict[int, Array], Module]:
    """Launch the case once; return the contents of each compared argument, and the module."""
    buffers: dict[int, Array] = {}
    for index, arg in enumerate(case.args):
        if isinstance(arg, Input | InOut):
            buffers[index] = aligned_copy(arg.data)
        elif isinstance(arg, Output):
            buffers[index] = aligned_copy(arg.poisoned)
        elif isinstance(arg, Scratch):
            buffers[index] = aligned_copy(np.zeros(arg.size, np.uint8))
    args: list[Any] = []
    memory: list[Memory] = []
    for index, arg in enumerate(case.args):
        if isinstance(arg, Scalar):
            args.append(arg.number)
        elif isinstance(arg, Bytes):
            args.append(arg.data)
        elif isinstance(arg, Map):
            blob = tensor_map(arg, int(buffers[arg.of].ctypes.data)).encode()
            copy = aligned_copy(np.frombuffer(blob, np.uint8))
            args.append(Memory(copy, writable=False) if arg.in_memory else blob)
        else:
            args.append(Memory(buffers[index], writable=not isinstance(arg, Input), name=f"argument {index}"))
    module = emulator.load(case.ptx)
    module.launch("kernel", case.grid, case.block, case.cluster, case.shared_bytes, args, memory=memory)
    return {index: buffers[index] for index in case.outputs}, module


def tensor_map(arg: Map, address: int) -> TensorMap:
    """Return a case's tensor map as the emulator takes it."""
    return TensorMap(
        address=address + arg.offset,
        element=Element(arg.element),
        dims=arg.dims,
        byte_strides=arg.byte_strides,
        box=arg.box,
        element_strides=arg.element_strides,
        swizzle=Swizzle(arg.swizzle),
        oob_fill=OobFill.NAN if arg.is_nan_filled else OobFill.ZERO,
    )


def differences(case: Case, index: int, seen: Array, wanted: Array) -> str | None:
    """Return a description of where an argument's contents differ from the recorded ones, or None."""
    tolerance = case.tolerance.get(index)
    wrong = seen != wanted if tolerance is None else _outside(seen, wanted, tolerance)
    if not wrong.any():
        return None
    arg = case.args[index]
    labels = arg.labels if isinstance(arg, Output | InOut) else ()
    places = np.argwhere(wrong)
    lines = [f"{case.name}, argument {index}: {len(places)} of {wrong.size} elements differ"]
    if labels:
        by_row = {labels[row]: int(wrong[row].sum()) for row in range(len(labels)) if wrong[row].any()}
        lines += [f"  {count} in {label}" for label, count in by_row.items()]
    digits = 2 * seen.dtype.itemsize
    chosen = places[np.unique(np.linspace(0, len(places) - 1, SHOWN).astype(int))]
    for place in chosen:
        where = tuple(int(axis) for axis in place)
        row = f" ({labels[where[0]]})" if labels else ""
        both = f"emulator {_bits(seen, where, digits)}, machine {_bits(wanted, where, digits)}"
        lines.append(f"  {list(where)}{row}: {both}{_inputs(case, where)}")
    return "\n".join(lines)


def _bits(data: Array, where: tuple[int, ...], digits: int) -> str:
    unsigned = np.ascontiguousarray(data).view(f"uint{8 * data.dtype.itemsize}")
    return f"0x{int(unsigned[where]):0{digits}x}"


def _inputs(case: Case, where: tuple[int, ...]) -> str:
    """Return the operands of an elementwise case at one element."""
    inputs = [arg.data for arg in case.args if isinstance(arg, Input)]
    if not case.ptx.count("%in_") or any(data.ndim != 1 or len(data) <= where[-1] for data in inputs):
        return ""
    return " for " + ", ".join(_bits(data, where[-1:], 2 * data.dtype.itemsize) for data in inputs)


def _outside(seen: Array, wanted: Array, tolerance: Tolerance) -> Array:
    dtype: Any = ml_dtypes.bfloat16 if tolerance.value_dtype == "bfloat16" else np.dtype(tolerance.value_dtype)
    values, expected = (np.ascontiguousarray(data).view(dtype).astype(np.float64) for data in (seen, wanted))
    with np.errstate(invalid="ignore"):
        bound = tolerance.absolute + tolerance.relative * np.abs(expected)
        close = (np.abs(values - expected) <= bound) | (values == expected) | (np.isnan(values) & np.isnan(expected))
    return np.asarray(~close)
