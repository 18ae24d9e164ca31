"""What the PTX ISA says a tensor copy moves, element by element and bit by bit: slow, and written from the text alone.

The swizzle is the manual's tables of 16-byte cells, not a formula.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from megamoe_jit.emulator.memory.tensor_map import Element, OobFill, Swizzle, TensorMap

# One line of 128 bytes each: which cell of 16 bytes lies at each place.
TABLES: dict[Swizzle, list[list[int]]] = {
    Swizzle.NONE: [[0, 1, 2, 3, 4, 5, 6, 7]],
    Swizzle.B32: [[0, 1, 2, 3, 4, 5, 6, 7], [1, 0, 3, 2, 5, 4, 7, 6]],
    Swizzle.B96: [[0, 1, 2, 3, 4, 5, 6, 7], [1, 0, 3, 2, 5, 4, 7, 6]],
    Swizzle.B64: [
        [0, 1, 2, 3, 4, 5, 6, 7], [1, 0, 3, 2, 5, 4, 7, 6],
        [2, 3, 0, 1, 6, 7, 4, 5], [3, 2, 1, 0, 7, 6, 5, 4],
    ],
    Swizzle.B128: [
        [0, 1, 2, 3, 4, 5, 6, 7], [1, 0, 3, 2, 5, 4, 7, 6], [2, 3, 0, 1, 6, 7, 4, 5], [3, 2, 1, 0, 7, 6, 5, 4],
        [4, 5, 6, 7, 0, 1, 2, 3], [5, 4, 7, 6, 1, 0, 3, 2], [6, 7, 4, 5, 2, 3, 0, 1], [7, 6, 5, 4, 3, 2, 1, 0],
    ],
    Swizzle.B128_ATOM_32B: [
        [0, 1, 2, 3, 4, 5, 6, 7], [2, 3, 0, 1, 6, 7, 4, 5], [4, 5, 6, 7, 0, 1, 2, 3], [6, 7, 4, 5, 2, 3, 0, 1],
    ],
    Swizzle.B128_ATOM_64B: [[0, 1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 0, 1, 2, 3]],
}  # fmt: skip
TABLES[Swizzle.B128_ATOM_32B_FLIP_8B] = TABLES[Swizzle.B128_ATOM_32B]
SPAN = {Swizzle.NONE: 0, Swizzle.B32: 32, Swizzle.B64: 64, Swizzle.B96: 96}


def swizzled(swizzle: Swizzle, address: int) -> int:
    """Return where the byte of unswizzled shared address `address` lies."""
    line, cell, byte = address // 128, address % 128 // 16, address % 16
    table = TABLES[swizzle]
    place = table[line % len(table)].index(cell)
    if swizzle is Swizzle.B128_ATOM_32B_FLIP_8B and line % 2:
        byte = (byte + 8) % 16
    return 128 * line + 16 * place + byte


def rows(map_: TensorMap, coordinates: Sequence[int], gather: bool) -> Iterator[tuple[int, list[int]]]:
    """Yield the number of each inner row of the box and its coordinates in dimensions 1.., in the order of the rows."""
    if gather:
        yield from ((number, [row]) for number, row in enumerate(coordinates[1:]))
        return
    steps = map_.element_strides[1:]
    ranges = [range(0, extent, step) for extent, step in zip(map_.box[1:], steps, strict=True)]
    for number, index in enumerate(itertools.product(*reversed(ranges))):
        yield number, [at + k for at, k in zip(coordinates[1:], reversed(index), strict=True)]


def element_bit(map_: TensorMap, column: int, outer: list[int], columns: int) -> int | None:
    """Return the bit of global memory at which an element begins, None outside of a tensor of so many columns."""
    if not 0 <= column < columns:
        return None
    for at, extent in zip(outer, map_.dims[1:], strict=True):
        if not 0 <= at < extent:
            return None
    byte = map_.address + sum(at * stride for at, stride in zip(outer, map_.byte_strides, strict=True))
    return 8 * byte + column * map_.element.bits


def pitch(map_: TensorMap) -> int:
    """Return the distance of rows in shared memory."""
    inner = map_.box[0] if map_.element.is_padded else map_.box[0] * map_.element.bits // 8
    return max(inner, SPAN.get(map_.swizzle, 128))


def padded_bit(map_: TensorMap, index: int, *, is_store: bool) -> int:
    """Return the bit of a shared-memory row at which element `index` of the row begins."""
    if map_.element is Element.PADDED_U6 and is_store:
        return 8 * index
    if map_.element.is_padded:
        return index // 16 * 128 + index % 16 * map_.element.bits
    return index * map_.element.bits


def out_of_bounds(map_: TensorMap, bits: int) -> int:
    """Return what an element outside of the tensor reads as."""
    return int("7ff7" * (bits // 16), 16) if map_.oob_fill is OobFill.NAN else 0


def as_tf32(bits: int) -> int:
    """Round a float32 pattern to ten bits of fraction, ties to even."""
    if bits & 0x7F800000 == 0x7F800000:
        return bits if not bits & 0x7FFFFF else 0x7FFFE000
    low, kept = bits & 0x1FFF, bits >> 13
    if low > 0x1000 or (low == 0x1000 and kept & 1):
        kept += 1
    return kept << 13


Read = Callable[[int], int]


def get_bits(read: Read, bit: int, count: int) -> int:
    """Return `count` bits from bit address `bit`, the first lowest."""
    return sum((read((bit + i) // 8) >> (bit + i) % 8 & 1) << i for i in range(count))


def load(
    map_: TensorMap, coordinates: Sequence[int], base: int, read: Read, *, gather: bool = False
) -> tuple[dict[int, int], int]:
    """Return (shared address -> byte, for bytes that are data; transaction bytes) of a copy to shared memory."""
    written: dict[int, int] = {}
    elements = 0
    for number, outer in rows(map_, coordinates, gather):
        for index in range(map_.box[0]):
            elements += 1
            bits = map_.element.bits
            at = element_bit(map_, coordinates[0] + index, outer, map_.dims[0])
            value = out_of_bounds(map_, bits) if at is None else get_bits(read, at, bits)
            if at is not None and map_.element in (Element.TF32, Element.TF32_FTZ):
                value = as_tf32(value)
            first = padded_bit(map_, index, is_store=False)
            for i in range(bits):
                address = swizzled(map_.swizzle, base + number * pitch(map_) + (first + i) // 8)
                bit = (value >> i & 1) << (first + i) % 8
                written[address] = written.get(address, 0) | bit
    return written, elements * map_.element.bits // 8


def store(
    map_: TensorMap, coordinates: Sequence[int], base: int, read: Read, *, gather: bool = False
) -> dict[int, tuple[int, int]]:
    """Return bit of global memory -> (number of bits, value) of each element that a copy from shared memory writes.

    Not from the text: an H200 writes 16 bytes of a row as soon as its first one is inside the tensor.
    """
    written: dict[int, tuple[int, int]] = {}
    columns = map_.dims[0]
    while columns * map_.element.bits % 128:
        columns += 1
    for number, outer in rows(map_, coordinates, gather):

        def shared(address: int, number: int = number) -> int:
            return read(swizzled(map_.swizzle, base + number * pitch(map_) + address))

        for index in range(map_.box[0]):
            at = element_bit(map_, coordinates[0] + index, outer, columns)
            if at is not None:
                bits = map_.element.bits
                written[at] = bits, get_bits(shared, padded_bit(map_, index, is_store=True), bits)
    return written
