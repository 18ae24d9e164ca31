"""Matrix descriptors: where the rows of an operand lie in shared memory, on Hopper and on data-center Blackwell.

PTX ISA, "Matrix Descriptor Format" (wgmma) and "Shared Memory Descriptor" (tcgen05), "Shared Memory Layout and
Swizzling". All offsets are bytes of one CTA's shared space; swizzles exchange address bits, so they work on absolute
addresses.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import Enum

import numpy as np

from megamoe_jit.emulator.engines.numerics.formats import Array

CHUNK = 16
"""Bytes that every swizzle moves together, or in pairs."""
STEP_BYTES = 32
"""Bytes of a row along K that one instruction reads."""
LONG_STEP_BYTES = 48
"""The same for K = 96 of FP4."""


class Swizzle(Enum):
    """How 16-byte (or 32-byte) pieces of rows are exchanged."""

    NONE = "none"
    B32 = "32B"
    B64 = "64B"
    B128 = "128B"
    B128_ATOM32 = "128B with 32B atom"

    @property
    def width(self) -> int:
        """Bytes of a row (of an MN group) inside an atom."""
        return {Swizzle.NONE: 16, Swizzle.B32: 32, Swizzle.B64: 64}.get(self, 128)

    @property
    def atom_rows(self) -> int:
        """Rows of an atom: rows of the operand if it is K-major, steps of K if it is MN-major."""
        return 4 if self is Swizzle.B128_ATOM32 else 8

    @property
    def pattern_bytes(self) -> int:
        """Distance at which the exchange repeats: the natural alignment of a tile."""
        return 16 if self is Swizzle.NONE else self.width * self.atom_rows

    def apply(self, addresses: Array) -> Array:
        """Exchange address bits."""
        exchanged: Array = addresses
        if self is Swizzle.B128_ATOM32:
            exchanged = addresses ^ (addresses >> 2 & 0x60)
        elif self is not Swizzle.NONE:
            exchanged = addresses ^ (addresses >> 3 & (self.width - 16))
        return exchanged


_SM100_SWIZZLES = {0: Swizzle.NONE, 1: Swizzle.B128_ATOM32, 2: Swizzle.B128, 4: Swizzle.B64, 6: Swizzle.B32}
_SM90_SWIZZLES = {0: Swizzle.NONE, 1: Swizzle.B128, 2: Swizzle.B64, 3: Swizzle.B32}


@dataclass(frozen=True, slots=True)
class MatrixDescriptor:
    """A decoded descriptor.

    Attributes:
        raw: the 64 bits.
        start: byte offset of the operand's first element, before swizzling.
        leading, stride: byte offsets; `chunk_addresses` says what they step over.
        base_offset: phase of a pattern that does not start at its natural alignment.
        swizzle: the exchange.
        leading_is_absolute: `leading` is the address of the second chunk (K = 96).
    """

    raw: int
    start: int
    leading: int
    stride: int
    base_offset: int
    swizzle: Swizzle
    leading_is_absolute: bool = False


def decode_sm100(raw: int) -> tuple[MatrixDescriptor, list[str]]:
    """Decode a tcgen05 descriptor; also what is wrong with its fields."""
    problems = []
    if raw >> 14 & 3:
        problems.append(f"bits 15:14 are {raw >> 14 & 3}, but must be 0")
    if raw >> 30 & 3:
        problems.append(f"bits 31:30 are {raw >> 30 & 3}, but must be 0")
    if raw >> 46 & 7 != 1:
        problems.append(f"version (bits 48:46) is {raw >> 46 & 7}, but must be 1")
    if raw >> 53 & 0xFF:
        problems.append(f"bits 60:53 are {raw >> 53 & 0xFF:#x}, but must be 0")
    code = raw >> 61 & 7
    if code not in _SM100_SWIZZLES:
        problems.append(f"swizzle (bits 63:61) is {code}; 0, 1, 2, 4 and 6 exist (Hopper's codes differ)")
    descriptor = _descriptor(raw, _SM100_SWIZZLES.get(code, Swizzle.NONE), bool(raw >> 52 & 1))
    return descriptor, problems + _phase_problems(descriptor)


def decode_sm90(raw: int) -> tuple[MatrixDescriptor, list[str]]:
    """Decode a wgmma descriptor; also what is wrong with its fields."""
    problems = [
        f"bits {high}:{low} are {raw >> low & mask:#x}, but must be 0"
        for high, low in ((15, 14), (31, 30), (48, 46), (61, 52))
        if raw >> low & (mask := (1 << (high - low + 1)) - 1)
    ]
    descriptor = _descriptor(raw, _SM90_SWIZZLES[raw >> 62 & 3], False)
    return descriptor, problems + _phase_problems(descriptor)


def _descriptor(raw: int, swizzle: Swizzle, absolute: bool) -> MatrixDescriptor:
    return MatrixDescriptor(
        raw=raw,
        start=(raw & 0x3FFF) << 4,
        leading=(raw >> 16 & 0x3FFF) << 4,
        stride=(raw >> 32 & 0x3FFF) << 4,
        base_offset=raw >> 49 & 7,
        swizzle=swizzle,
        leading_is_absolute=absolute,
    )


def _phase_problems(descriptor: MatrixDescriptor) -> list[str]:
    if descriptor.base_offset and descriptor.swizzle is not Swizzle.NONE:  # without one there is no pattern
        return [
            f"base offset (bits 51:49) is {descriptor.base_offset}; only 0 is modelled: let swizzled tiles start at "
            f"multiples of {descriptor.swizzle.pattern_bytes} bytes"
        ]
    return []


@functools.lru_cache(maxsize=256)
def _k_major(swizzle: Swizzle, leading: int, stride: int, rows: int, chunks: int) -> Array:
    """Offsets of 16-byte pieces from the start, [rows, chunks]."""
    row, chunk = np.arange(rows)[:, None], np.arange(chunks)[None]
    between = leading if swizzle is Swizzle.NONE else CHUNK
    return row // 8 * stride + row % 8 * swizzle.width + chunk * between


@functools.lru_cache(maxsize=256)
def _mn_major(swizzle: Swizzle, leading: int, stride: int, depth: int, chunks: int) -> Array:
    """Offsets of 16-byte pieces from the start, [depth, chunks along M or N]."""
    k, chunk = np.arange(depth)[:, None], np.arange(chunks)[None]
    if swizzle is Swizzle.NONE:
        return k // 8 * leading + k % 8 * CHUNK + chunk * stride
    per_group, atom = swizzle.width // CHUNK, swizzle.atom_rows
    return chunk // per_group * leading + chunk % per_group * CHUNK + k // atom * stride + k % atom * swizzle.width


def k_major_addresses(descriptor: MatrixDescriptor, rows: int, step_bytes: int = STEP_BYTES) -> Array:
    """Addresses of the 16-byte pieces of a K-major operand: [rows, step_bytes / 16].

    Without swizzle, `leading` steps from one 16-byte column of K to the next and `stride` from 8 rows to the next 8;
    with one, only `stride` counts. K = 96 continues at the absolute address `leading` where a row of 128 bytes ends.
    """
    offsets = _k_major(descriptor.swizzle, descriptor.leading, descriptor.stride, rows, step_bytes // CHUNK)
    addresses = descriptor.start + offsets
    if descriptor.leading_is_absolute:
        width = descriptor.swizzle.width
        along = descriptor.start % width + np.arange(step_bytes // CHUNK) * CHUNK
        row_offsets = offsets[:, :1] - offsets[0, 0]
        addresses = np.where(along >= width, descriptor.leading + row_offsets + along - width, addresses)
    return descriptor.swizzle.apply(addresses)


def mn_major_addresses(descriptor: MatrixDescriptor, depth: int, mn_bytes: int) -> Array:
    """Addresses of the 16-byte pieces of an MN-major operand: [depth along K, mn_bytes / 16].

    Without swizzle, `leading` steps from 8 steps of K to the next 8 and `stride` from one 16-byte piece of M or N to
    the next. With one, `leading` steps from one group of M or N, as wide as the swizzle, to the next, and `stride` from
    the K of an atom (8; 4 with the 32-byte atom) to the next.
    """
    offsets = _mn_major(descriptor.swizzle, descriptor.leading, descriptor.stride, depth, mn_bytes // CHUNK)
    return descriptor.swizzle.apply(descriptor.start + offsets)


def layout_problems(descriptor: MatrixDescriptor, *, mn_major: bool, step_bytes: int = STEP_BYTES) -> list[str]:
    """Return what is wrong with a descriptor for an operand of this major-ness."""
    swizzle = descriptor.swizzle
    if swizzle is Swizzle.NONE:
        return []
    problems = []
    if descriptor.start % (swizzle.width if mn_major else CHUNK):
        problems.append(f"start {descriptor.start:#x} is inside an MN group of {swizzle.width} bytes")
    if not mn_major:
        if swizzle is Swizzle.B128_ATOM32:
            problems.append(f"swizzle {swizzle.value} is only for MN-major operands")
        last = descriptor.start % swizzle.width + step_bytes
        if last > swizzle.width and not descriptor.leading_is_absolute:
            problems.append(
                f"start {descriptor.start:#x} is {descriptor.start % swizzle.width} bytes into a row of "
                f"{swizzle.width} bytes, so that {step_bytes} bytes along K run over its end"
            )
    if descriptor.leading_is_absolute and (mn_major or step_bytes != LONG_STEP_BYTES):
        problems.append("leading-dimension mode (bit 52) is absolute, which only K = 96 has")
    return problems


def phase_warning(descriptor: MatrixDescriptor) -> str | None:
    """Return a warning when a swizzled tile does not start at row 0 of its pattern although the base offset says so."""
    swizzle = descriptor.swizzle
    phase = descriptor.start % swizzle.pattern_bytes // swizzle.width if swizzle is not Swizzle.NONE else 0
    if not phase or descriptor.base_offset:
        return None
    return (
        f"start {descriptor.start:#x} is at row {phase} of the {swizzle.value} pattern, which repeats every "
        f"{swizzle.pattern_bytes} bytes, but the base offset is 0"
    )
