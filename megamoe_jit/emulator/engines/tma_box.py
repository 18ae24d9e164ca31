"""The data path of tensor copies: which byte of global memory goes to which byte of shared memory, and back.

Nothing here knows instructions, barriers or address spaces: callers give arrays. Sources: PTX ISA, "Tensors" (tiled
mode, out of boundary access, swizzling modes, sub-byte types) and "Restriction on Tensor Copy instructions".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megamoe_jit.emulator.memory.tensor_map import PADDED_BOX, Element, Interleave, OobFill, Swizzle, TensorMap

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]

SMEM_ALIGNMENT = 128
"""Of the shared-memory address of a tensor copy."""
GATHER_ROWS = 4
PADDING_POISON = 0xDB
"""What padding of 4- and 6-bit types is filled with: its content is unspecified, so nobody may count on the old one."""
_OOB_NAN = 0x7FF7  # 16 bits, repeated through wider elements; measured on sm_120
_TF32_NAN = np.uint32(0x7FFFE000)  # what the conversion makes of any NaN; measured on sm_120
_CHUNK = 16


def swizzle_addresses(swizzle: Swizzle, addresses: Offsets) -> Offsets:
    """Return where bytes of unswizzled shared-memory addresses really lie; bits of the absolute address decide."""
    if swizzle is Swizzle.NONE:
        return addresses
    shift, mask = _XOR[swizzle]
    moved = addresses ^ ((addresses >> shift) & mask)
    if swizzle is Swizzle.B128_ATOM_32B_FLIP_8B:  # halves of 16 bytes change places in every other line of 128
        moved ^= (addresses >> 4) & 8
    return moved


_XOR = {
    Swizzle.B32: (3, 0x10),
    Swizzle.B64: (3, 0x30),
    Swizzle.B96: (3, 0x10),
    Swizzle.B128: (3, 0x70),
    Swizzle.B128_ATOM_32B: (2, 0x60),
    Swizzle.B128_ATOM_32B_FLIP_8B: (2, 0x60),
    Swizzle.B128_ATOM_64B: (1, 0x40),
}


class BoxLayout:
    """Where the rows of a box lie in shared memory; the same for every copy of one tensor map.

    Attributes:
        counts: elements that a copy moves in each dimension.
        rows: inner rows of the box; row_bytes: bytes of each in global memory.
        pitch: distance of rows in shared memory: at least the swizzle's span (measured: a narrower row leaves a gap).
        extent: bytes of shared memory from the first row to the end of the last one's span.
        transaction_bytes: what complete_tx counts: all of the box, inside the tensor or not, padding and gaps excluded.
    """

    def __init__(self, map_: TensorMap, rows: int) -> None:
        """Lay `rows` rows out; 4 for gather4 and scatter4, else the box's own number."""
        self.map = map_
        self.counts = map_.counts
        self.rows = rows
        self.row_bytes = map_.row_bytes
        inner = map_.box[0] if map_.element.is_padded else map_.row_bytes
        self.pitch = max(inner, map_.swizzle.span_bytes or 0)
        self.extent = (rows - 1) * self.pitch + (inner if map_.swizzle is Swizzle.NONE else self.pitch)
        self.transaction_bytes = rows * map_.row_bytes
        self.is_linear = map_.swizzle is Swizzle.NONE and not map_.element.is_padded
        # Bytes that always stay together in shared memory, and the bytes of data among them.
        self._unit = 8 if map_.swizzle is Swizzle.B128_ATOM_32B_FLIP_8B else _CHUNK
        self._data = {Element.PADDED_U4: 8, Element.PADDED_U6: 12}.get(map_.element, self._unit)
        self._inner = inner
        self._index: dict[int, npt.NDArray[np.intp]] = {}

    @property
    def is_dense(self) -> bool:
        """Whether the box covers every byte of its extent."""
        return self.pitch == self._inner

    def index(self, base: int) -> npt.NDArray[np.intp]:
        """Return the unit (8 or 16 bytes, counted from `base`) of each unit of the box, rows one after the other."""
        phase = base % 1024
        found = self._index.get(phase)
        if found is None:
            row = np.arange(self.rows, dtype=np.int64)[:, None] * self.pitch
            at = phase + row + np.arange(0, self._inner, self._unit, dtype=np.int64)
            found = ((swizzle_addresses(self.map.swizzle, at) - phase) // self._unit).reshape(-1).astype(np.intp)
            self._index[phase] = found
        return found

    def offsets(self, base: int) -> Offsets:
        """Return the shared-memory address of each byte that a copy at `base` touches, padding included."""
        start = base + self.index(base).astype(np.int64)[:, None] * self._unit
        return (start + np.arange(self._unit)).reshape(-1)

    def scatter(self, payload: Bytes, smem: Bytes, base: int) -> None:
        """Write `payload` ([rows * row_bytes], as in global memory) to `smem` (indexed by address) at `base`."""
        if self.is_linear:
            smem[base : base + self.extent] = payload
            return
        target, index = smem[base : base + self.extent], self.index(base)
        if self._data == self._unit:
            target.view(_UNIT_TYPE[self._unit])[index] = payload.view(_UNIT_TYPE[self._unit])
            return
        units = target.reshape(-1, self._unit)
        units[index, : self._data] = payload.reshape(-1, self._data)
        units[index, self._data :] = PADDING_POISON

    def gather(self, smem: Bytes, base: int) -> Bytes:
        """Return the payload of the box that lies in `smem` at `base`: [rows * row_bytes], as in global memory."""
        source = smem[base : base + self.extent]
        if self.is_linear:
            return source.copy()
        units = source.view(_UNIT_TYPE[self._unit])[self.index(base)].view(np.uint8)
        return pack_six_bits(units) if self.map.element is Element.PADDED_U6 else units


_UNIT_TYPE: dict[int, Any] = {8: np.uint64, 16: np.complex128}


@functools.lru_cache(maxsize=1024)
def box_layout(map_: TensorMap, gather: bool) -> BoxLayout:
    """Return the layout of `map_`'s box; with `gather` that of its four rows."""
    return BoxLayout(map_, GATHER_ROWS if gather else math.prod(map_.counts[1:]))


def pack_six_bits(values: Bytes) -> Bytes:
    """Pack the low six bits of each byte, four of them into three bytes, the first lowest."""
    quads = (values & 63).reshape(-1, 4).astype(np.uint32)
    words = quads[:, 0] | quads[:, 1] << 6 | quads[:, 2] << 12 | quads[:, 3] << 18
    return np.ascontiguousarray(words.view(np.uint8).reshape(-1, 4)[:, :3]).reshape(-1)


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a box that lies inside the tensor, as an array of bytes in global memory.

    Attributes:
        start, span: the host addresses that it touches lie in [start, start + span).
        shape: rows in the dimensions 4, 3, 2, 1 (as many as there are) and bytes of a row.
        strides: of the same, in bytes.
        place: the same part of the payload.
    """

    start: int
    span: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    place: tuple[slice, ...]

    def array(self, memory: Bytes, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """View `memory` (the bytes [start, start + span)) as this part, in elements of `dtype`."""
        item = np.dtype(dtype).itemsize
        shape = (*self.shape[:-1], self.shape[-1] // item)
        return np.ndarray(shape, dtype, buffer=memory, strides=(*self.strides[:-1], item))

    def rows(self) -> tuple[Offsets, int]:
        """Return the address of each contiguous run of bytes, and their common length."""
        starts = np.array([self.start], dtype=np.int64)
        length, merged = self.shape[-1], True
        for count, stride in zip(reversed(self.shape[:-1]), reversed(self.strides[:-1]), strict=True):
            if merged and (count == 1 or stride == length):
                length *= count
                continue
            merged = False
            starts = (np.arange(count, dtype=np.int64)[:, None] * stride + starts).reshape(-1)
        return starts, length


class Box:
    """One tensor copy: a tensor map and coordinates.

    Attributes:
        layout: where it lies in shared memory.
        regions: its parts inside the tensor: none or one; of gather4 and scatter4 up to four.
    """

    __slots__ = ("_shape", "layout", "map", "regions")

    def __init__(
        self, map_: TensorMap, coordinates: Sequence[int], *, gather: bool = False, whole_chunks: bool = False
    ) -> None:
        """Place the box at `coordinates`, innermost first.

        Args:
            map_: the tensor.
            coordinates: of the first element; with `gather` a column and four rows.
            gather: whether this is gather4 or scatter4.
            whole_chunks: whether rows of the tensor end at a multiple of 16 bytes, as stores see it: an H200 writes
                16 bytes or none, so that up to 15 behind a row's end are written too.
        """
        self.map = map_
        self.layout = box_layout(map_, gather)
        self._shape = (GATHER_ROWS,) if gather else self.layout.counts[:0:-1]
        extents = (-(-map_.dims[0] // _chunk(map_)) * _chunk(map_), *map_.dims[1:]) if whole_chunks else map_.dims
        if gather:
            column, *rows = coordinates
            counts = self.layout.counts
            found = (_region(map_, extents, counts, (column, row), slice(at, at + 1)) for at, row in enumerate(rows))
            self.regions = tuple(region for region in found if region is not None)
        else:
            region = _region(map_, extents, self.layout.counts, coordinates, None)
            self.regions = () if region is None else (region,)

    def load(self, memory: Sequence[Bytes]) -> Bytes:
        """Return the payload: `memory` (one array for each region), fill elsewhere, floats converted as loads do."""
        map_, layout = self.map, self.layout
        payload = np.empty(layout.transaction_bytes, np.uint8)
        shaped = self._shaped(payload)
        covered = sum(math.prod(region.shape) for region in self.regions)
        if covered < layout.transaction_bytes:
            payload.view(np.uint16)[:] = _OOB_NAN if map_.oob_fill is OobFill.NAN else 0
        for region, source in zip(self.regions, memory, strict=True):
            part = region.array(source)
            if map_.element.is_tf32:
                part = round_to_tf32(np.ascontiguousarray(part).view(np.uint32)).view(np.uint8)
            shaped[region.place] = part
        return payload

    def store(self, payload: Bytes, memory: Sequence[Bytes]) -> None:
        """Write the payload to `memory`, one array for each region; what lies outside of the tensor is dropped."""
        shaped = self._shaped(payload)
        for region, target in zip(self.regions, memory, strict=True):
            region.array(target)[...] = shaped[region.place]

    def parts(
        self, payload: Bytes, memory: Sequence[Bytes], dtype: npt.DTypeLike
    ) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Return (elements in memory, elements of the payload) of each region, for reductions."""
        shaped = self._shaped(payload)
        return [
            (region.array(target, dtype), np.ascontiguousarray(shaped[region.place]).view(dtype))
            for region, target in zip(self.regions, memory, strict=True)
        ]

    def _shaped(self, payload: Bytes) -> Bytes:
        return payload.reshape(*self._shape, self.layout.row_bytes)


def ends_in_chunk(map_: TensorMap) -> bool:
    """Whether rows of the tensor end within 16 bytes that a store writes as a whole."""
    return map_.dims[0] % _chunk(map_) != 0


def _chunk(map_: TensorMap) -> int:
    """Return how many elements are written together."""
    return PADDED_BOX if map_.element.is_padded else 8 * _CHUNK // map_.element.bits


def _region(
    map_: TensorMap,
    extents: tuple[int, ...],
    counts: tuple[int, ...],
    coordinates: Sequence[int],
    row: slice | None,
) -> Region | None:
    """Return the part of the box at `coordinates` inside `extents`, None when there is none; `row`: where it goes."""
    steps = (1, *map_.element_strides[1:])
    start, span = map_.address, 1
    shape, strides, place = [], [], []
    sizes = (0, *map_.byte_strides)
    for axis in range(map_.rank):
        at, step, extent = coordinates[axis], steps[axis], extents[axis]
        low = max(0, -(at // step)) if at < 0 else 0
        high = min(counts[axis], -(-(extent - at) // step))
        if low >= high:
            return None
        first, count = at + low * step, high - low
        if axis == 0:
            bits = map_.element.bits
            start += first * bits // 8
            shape.append(count * bits // 8)
            strides.append(1)
            place.append(slice(low * bits // 8, high * bits // 8))
        else:
            start += first * sizes[axis]
            shape.append(count)
            strides.append(step * sizes[axis])
            place.append(slice(low, high) if row is None else row)
        span += (shape[-1] - 1) * strides[-1]
    return Region(start, span, tuple(reversed(shape)), tuple(reversed(strides)), tuple(reversed(place)))


def round_to_tf32(bits: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Round float32 patterns to ten bits of fraction, ties to even; every NaN becomes one positive NaN."""
    tie = (bits >> np.uint32(13)) & np.uint32(1)
    rounded = (bits + np.uint32(0xFFF) + tie) & np.uint32(0xFFFFE000)
    special = (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    is_nan = special & ((bits & np.uint32(0x7FFFFF)) != 0)
    return np.where(is_nan, _TF32_NAN, np.where(special, bits, rounded))


def refuse_copy(
    map_: TensorMap,
    coordinates: Sequence[int],
    smem_address: int,
    *,
    dim: int,
    is_store: bool,
    gather: bool,
    reduces: bool,
) -> str | None:
    """Return why this copy cannot be executed, None when it can."""
    if map_.rank != dim:
        return f"the instruction has {dim} dimensions and the tensor map has {map_.rank}. Use .{map_.rank}d."
    wanted = GATHER_ROWS + 1 if gather else dim
    if len(coordinates) != wanted:
        return f"{len(coordinates)} coordinates, and this form takes {wanted}."
    if map_.interleave is not Interleave.NONE:
        return f"the tensor map has interleave={map_.interleave.value}, which the emulator does not copy. Use NONE."
    if gather and map_.box[1] != 1:
        return f"box[1]={map_.box[1]}, and gather4 and scatter4 need a box of one row. Use box=({map_.box[0]}, 1)."
    if smem_address % SMEM_ALIGNMENT:
        return f"shared-memory address 0x{smem_address:x} is no multiple of {SMEM_ALIGNMENT}. Align the tile."
    element, column = map_.element, coordinates[0]
    if element.is_padded and column % PADDED_BOX:
        return f"coordinate {column} of dimension 0, and {element.value} needs a multiple of {PADDED_BOX}."
    if column % _chunk(map_):  # an H200 stops there too
        return (
            f"coordinate {column} of dimension 0 is at byte {column * element.bits / 8:g} of a row, and a box begins "
            f"at a multiple of {_CHUNK} bytes. Use a multiple of {_chunk(map_)} elements."
        )
    if is_store and any(coordinate < 0 for coordinate in coordinates):  # an H200 stops there too
        return f"coordinates {tuple(coordinates)}, and copies to global memory take no negative ones."
    if is_store and element is Element.PADDED_U4:
        return f"{element.value} can be loaded only. Store the packed type."
    if is_store and map_.swizzle is Swizzle.B128_ATOM_32B_FLIP_8B:
        return f"swizzle={map_.swizzle.value} can be loaded only. Use 128B_ATOM_32B."
    if not is_store and element is Element.PADDED_U6 and map_.swizzle is Swizzle.B128_ATOM_64B:
        return f"swizzle={map_.swizzle.value} with {element.value} can be stored only. Use 128B_ATOM_32B."
    if reduces and (element.bits < 8 or element.is_tf32):
        return f"{element.value} cannot be reduced. Use a type that the instruction's table names."
    return None
