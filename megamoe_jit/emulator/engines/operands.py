"""From bytes of shared or tensor memory to codes: rows along K of an operand of a matrix multiplication.

PTX ISA, "Packing formats of elements in Tensor and Shared memory". FP4 and FP6 of the f8f6f4 kinds take 16 bytes for 16
elements in shared memory (8 or 12 bytes of data, then padding) and one byte each in tensor memory and registers.
"""

from __future__ import annotations

import functools

import numpy as np

from megamoe_jit.emulator.engines.descriptors import (
    CHUNK,
    MatrixDescriptor,
    k_major_addresses,
    mn_major_addresses,
)
from megamoe_jit.emulator.engines.numerics.formats import E2M1, Array, ElementFormat


def operand_addresses(
    descriptor: MatrixDescriptor, rows: int, depth: int, element_bytes: int, step_bytes: int, *, mn_major: bool
) -> Array:
    """Addresses of the 16-byte pieces that an operand of `rows` x `depth` elements consists of."""
    if not mn_major:
        return k_major_addresses(descriptor, rows, step_bytes)
    # groups of 16 bytes: rows that do not fill the last one are part of it all the same
    return mn_major_addresses(descriptor, depth, -(-rows * element_bytes // CHUNK) * CHUNK)


def gather(memory: Array, addresses: Array) -> Array:
    """Read 16-byte pieces of a byte array: [..., pieces] to [..., 16 * pieces] bytes. Addresses are multiples of 16."""
    whole = memory[: memory.size // CHUNK * CHUNK].view(np.uint64).reshape(-1, 2)
    pieces = np.take(whole, addresses >> 4, axis=0)
    return pieces.reshape(*addresses.shape[:-1], -1).view(np.uint8)


def packed_fp4(data: Array) -> Array:
    """Codes of FP4 two to a byte, the first in the low half: [..., n] bytes to [..., 2 n]."""
    codes: Array = _nibbles()[data].view(np.uint8)
    return codes


@functools.cache
def _nibbles() -> Array:
    codes = np.arange(256, dtype=np.uint16)
    return codes & 15 | codes >> 4 << 8


def padded(data: Array, bits: int) -> Array:
    """Codes of groups of 16 elements of 4 or 6 bits that are padded to 16 bytes: [..., 16 g] bytes to [..., 16 g]."""
    groups = data.reshape(*data.shape[:-1], -1, CHUNK)
    if bits == 4:
        codes = packed_fp4(np.ascontiguousarray(groups[..., :8]))
    else:
        triples = groups[..., :12].reshape(*groups.shape[:-1], 4, 3).astype(np.uint32)
        words = triples[..., 0] | triples[..., 1] << 8 | triples[..., 2] << 16
        codes = (words[..., None] >> np.arange(0, 24, 6) & 63).astype(np.uint8)
    return codes.reshape(data.shape)


def container_codes(data: Array, form: ElementFormat) -> Array:
    """Codes in containers of one byte, as tensor memory and registers hold them: E2M1 in bits 5:2, FP6 in bits 5:0."""
    if form is E2M1:
        return data >> 2 & 15
    return data & 63 if form.bits == 6 else data


def codes_from_words(data: Array, form: ElementFormat) -> Array:
    """Codes of 8, 16 and 32-bit elements from bytes [..., n]; TF32 is the upper 19 bits of a word."""
    if form.bits <= 8:
        return data
    if form.bits == 16:
        return data.view(np.uint16)
    return data.view(np.uint32) >> 13


def codes_of(data: Array, form: ElementFormat, rows: int, *, packed: bool, mn_major: bool) -> Array:
    """Codes [rows, depth] of an operand in shared memory.

    Args:
        data: what `gather` read: [rows, bytes along K], or [depth, bytes along M or N].
        form: of the elements.
        rows: of the operand.
        packed: two FP4 elements in a byte (else FP4 and FP6 are padded).
        mn_major: which of the two `data` is.
    """
    if form.bits == 4 and packed:
        return packed_fp4(data)
    codes = padded(data, form.bits) if form.bits < 8 else codes_from_words(data, form)
    return np.ascontiguousarray(codes.T[:rows]) if mn_major else codes


def shared_codes(
    memory: Array, addresses: Array, form: ElementFormat, rows: int, *, packed: bool, mn_major: bool
) -> Array:
    """Read an operand of `operand_addresses` from a CTA's shared space: codes [rows, depth]."""
    return codes_of(gather(memory, addresses), form, rows, packed=packed, mn_major=mn_major)


def tensor_memory_codes(words: Array, form: ElementFormat, *, packed: bool) -> Array:
    """Codes of A in tensor memory: [rows, words] uint32 to [rows, depth]."""
    data = np.ascontiguousarray(words).view(np.uint8)
    if form.bits == 4 and packed:
        return packed_fp4(data)
    return container_codes(data, form) if form.bits < 8 else codes_from_words(data, form)
