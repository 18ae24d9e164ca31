"""Tensor maps of the emulator: a description, its rules, and 128 bytes that hold all of it.

Where there is no driver, a kernel gets these bytes in place of a CUtensorMap: it may copy them, and `tensormap.replace`
edits them field by field. Sources: PTX ISA, "Tensors" and "tensormap.replace" (field codes); CUDA driver API,
cuTensorMapEncodeTiled (rules).
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from enum import Enum
from typing import Any

from megamoe_jit.errors import ArgumentError

TENSOR_MAP_BYTES = 128
TENSOR_MAP_ALIGNMENT = 64
MAX_RANK = 5
PADDED_BOX = 128
"""Elements of the innermost dimension that a copy of a padded type always moves."""

_MAX_DIM = 1 << 32
_MAX_STRIDE = 1 << 40
_MAX_BOX = 256
_MAX_ELEMENT_STRIDE = 8
_MAX_BOX_BYTES = 227 * 1024


class Element(Enum):
    """Element types; the value is the driver's name after CU_TENSOR_MAP_DATA_TYPE_, the order `tensormap.replace`'s.

    PADDED_U4 and PADDED_U6 take one byte of shared memory an element: 16 elements are 8 or 12 bytes of data and then
    padding of unspecified content. A store reads PADDED_U6 the other way: one value in the low six bits of each byte.
    """

    U8 = "UINT8"
    U16 = "UINT16"
    U32 = "UINT32"
    I32 = "INT32"
    U64 = "UINT64"
    I64 = "INT64"
    F16 = "FLOAT16"
    F32 = "FLOAT32"
    F32_FTZ = "FLOAT32_FTZ"
    F64 = "FLOAT64"
    BF16 = "BFLOAT16"
    TF32 = "TFLOAT32"
    TF32_FTZ = "TFLOAT32_FTZ"
    PACKED_U4 = "16U4_ALIGN8B"
    PADDED_U4 = "16U4_ALIGN16B"
    PADDED_U6 = "16U6_ALIGN16B"

    @property
    def bits(self) -> int:
        """Bits of one element in global memory."""
        return _BITS[self]

    @property
    def is_float(self) -> bool:
        """Whether elements outside the tensor can read as NaN."""
        return "FLOAT" in self.value

    @property
    def is_padded(self) -> bool:
        """Whether 16 elements take 16 bytes of shared memory, however many bits they have."""
        return self in (Element.PADDED_U4, Element.PADDED_U6)

    @property
    def is_tf32(self) -> bool:
        """Whether loads round to ten bits of fraction."""
        return self in (Element.TF32, Element.TF32_FTZ)


_ELEMENTS = tuple(Element)
_BITS = dict(zip(_ELEMENTS, (8, 16, 32, 32, 64, 64, 16, 32, 32, 64, 16, 32, 32, 4, 4, 6), strict=True))


class Interleave(Enum):
    """Interleaved layouts; the value is the driver's name after CU_TENSOR_MAP_INTERLEAVE_."""

    NONE = "NONE"
    B16 = "16B"
    B32 = "32B"


class Swizzle(Enum):
    """Swizzles of shared memory; the value is the driver's name after CU_TENSOR_MAP_SWIZZLE_ (96B is PTX's alone)."""

    NONE = "NONE"
    B32 = "32B"
    B64 = "64B"
    B128 = "128B"
    B128_ATOM_32B = "128B_ATOM_32B"
    B128_ATOM_32B_FLIP_8B = "128B_ATOM_32B_FLIP_8B"
    B128_ATOM_64B = "128B_ATOM_64B"
    B96 = "96B"

    @property
    def span_bytes(self) -> int | None:
        """Most bytes of an inner box, and the least distance of rows in shared memory; None without swizzle."""
        return _SWIZZLES[self].span

    @property
    def pattern_bytes(self) -> int:
        """Bytes after which the pattern repeats; tiles aligned to it begin with an unmoved row."""
        return _SWIZZLES[self].pattern


@dataclass(frozen=True, slots=True)
class _SwizzleFacts:
    codes: tuple[int, int]  # tensormap.replace's swizzle_mode and swizzle_atomicity
    span: int | None
    pattern: int


_SWIZZLES = {
    Swizzle.NONE: _SwizzleFacts((0, 0), None, 16),
    Swizzle.B32: _SwizzleFacts((1, 0), 32, 256),
    Swizzle.B64: _SwizzleFacts((2, 0), 64, 512),
    Swizzle.B128: _SwizzleFacts((3, 0), 128, 1024),
    Swizzle.B128_ATOM_32B: _SwizzleFacts((3, 1), 128, 512),
    Swizzle.B128_ATOM_32B_FLIP_8B: _SwizzleFacts((3, 2), 128, 512),
    Swizzle.B128_ATOM_64B: _SwizzleFacts((3, 3), 128, 256),
    Swizzle.B96: _SwizzleFacts((4, 0), 96, 256),
}
_SWIZZLE_OF_CODES = {facts.codes: swizzle for swizzle, facts in _SWIZZLES.items()}
_MODE_NAMES = ("none", "32B", "64B", "128B", "96B")
_ATOMICITY_NAMES = ("16B", "32B", "32B with 8B flip", "64B")
_PADDED_SWIZZLES = (Swizzle.NONE, Swizzle.B128, Swizzle.B128_ATOM_32B, Swizzle.B128_ATOM_64B)


class L2Promotion(Enum):
    """Bytes that L2 fetches at once, no effect here; the driver's names after CU_TENSOR_MAP_L2_PROMOTION_."""

    NONE = "NONE"
    B64 = "L2_64B"
    B128 = "L2_128B"
    B256 = "L2_256B"


class OobFill(Enum):
    """What elements outside the tensor read as; the value is the driver's name after CU_TENSOR_MAP_FLOAT_OOB_FILL_."""

    ZERO = "NONE"
    NAN = "NAN_REQUEST_ZERO_FMA"


_INTERLEAVES, _PROMOTIONS, _FILLS = tuple(Interleave), tuple(L2Promotion), tuple(OobFill)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorMap:
    """A tensor in global memory and the box of it that one copy moves. Dimension 0 is the innermost.

    Attributes:
        address: host address of the first element.
        element: element type; `dims` and `box` count elements, 4-bit values rather than bytes.
        dims: elements in each of 1..5 dimensions.
        byte_strides: bytes between neighbours in dimensions 1.. (dimension 0 is dense).
        box: elements that one copy traverses in each dimension.
        element_strides: step in each dimension (default 1): a copy moves ceil(box / step); dimension 0 ignores it.
        interleave: interleaved layouts can be described, not copied.

    Raises ArgumentError, naming the rule, for a description that cuTensorMapEncodeTiled or the PTX ISA refuses.
    """

    address: int
    element: Element
    dims: tuple[int, ...]
    byte_strides: tuple[int, ...] = ()
    box: tuple[int, ...]
    element_strides: tuple[int, ...] = ()
    interleave: Interleave = Interleave.NONE
    swizzle: Swizzle = Swizzle.NONE
    l2_promotion: L2Promotion = L2Promotion.NONE
    oob_fill: OobFill = OobFill.ZERO

    def __post_init__(self) -> None:
        """Check every rule."""
        for name in ("dims", "byte_strides", "box"):
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        steps = tuple(int(value) for value in self.element_strides) or (1,) * len(self.dims)
        object.__setattr__(self, "element_strides", steps)
        reason = _reject(self)
        if reason is not None:
            raise ArgumentError(reason)

    @classmethod
    def describing(cls, spec: Any, address: int) -> TensorMap:
        """Return the map of `spec`: any object with this class's fields but the address, enums of the same values."""
        return cls(
            address=address,
            element=Element(spec.element.value),
            dims=spec.dims,
            byte_strides=spec.byte_strides,
            box=spec.box,
            element_strides=spec.element_strides,
            interleave=Interleave(spec.interleave.value),
            swizzle=Swizzle(spec.swizzle.value),
            l2_promotion=L2Promotion(spec.l2_promotion.value),
            oob_fill=OobFill(spec.oob_fill.value),
        )

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.dims)

    @property
    def counts(self) -> tuple[int, ...]:
        """Elements that one copy moves in each dimension."""
        outer = zip(self.box[1:], self.element_strides[1:], strict=True)
        return (self.box[0], *(-(-extent // step) for extent, step in outer))

    @property
    def row_bytes(self) -> int:
        """Bytes of global memory of an inner row of the box."""
        return self.box[0] * self.element.bits // 8

    def encode(self) -> bytes:
        """Return the 128 bytes that `decode` reads."""
        mode, atomicity = _SWIZZLES[self.swizzle].codes
        rest = MAX_RANK - self.rank
        return _LAYOUT.pack(
            _MAGIC,
            self.address,
            _TILED,
            self.rank - 1,
            _ELEMENTS.index(self.element),
            _INTERLEAVES.index(self.interleave),
            mode,
            atomicity,
            _FILLS.index(self.oob_fill),
            _PROMOTIONS.index(self.l2_promotion),
            *self.dims + (1,) * rest,
            *self.byte_strides + (0,) * rest,
            *self.box + (1,) * rest,
            *self.element_strides + (1,) * rest,
        )

    @classmethod
    def decode(cls, data: bytes) -> TensorMap:
        """Read what `encode` wrote, or what replacements made of it.

        Raises ArgumentError for bytes that are no tensor map, and for fields that break a rule.
        """
        return _decode(bytes(data))

    def describe(self) -> str:
        """Return one line with every field."""
        return (
            f"tensor map at 0x{self.address:x}: {self.element.value} dims={self.dims} byte_strides={self.byte_strides} "
            f"box={self.box} element_strides={self.element_strides} interleave={self.interleave.value} "
            f"swizzle={self.swizzle.value} oob_fill={self.oob_fill.name}"
        )


_MAGIC = b"EMUTMAP1"
_TILED = 0
_LAYOUT = struct.Struct("<8sQ8B5Q4Q5H5B17x")
assert _LAYOUT.size == TENSOR_MAP_BYTES


@dataclass(frozen=True, slots=True)
class _Field:
    offset: int
    bytes: int
    lowest: int
    highest: int
    ordinals: int = 1


_FIELDS = {
    "global_address": _Field(8, 8, 0, (1 << 64) - 1),
    "rank": _Field(17, 1, 0, MAX_RANK - 1),
    "elemtype": _Field(18, 1, 0, len(_ELEMENTS) - 1),
    "interleave_layout": _Field(19, 1, 0, len(_INTERLEAVES) - 1),
    "swizzle_mode": _Field(20, 1, 0, len(_MODE_NAMES) - 1),
    "swizzle_atomicity": _Field(21, 1, 0, len(_ATOMICITY_NAMES) - 1),
    "fill_mode": _Field(22, 1, 0, len(_FILLS) - 1),
    "global_dim": _Field(24, 8, 0, (1 << 32) - 1, MAX_RANK),
    "global_stride": _Field(64, 8, 0, _MAX_STRIDE - 1, MAX_RANK - 1),
    "box_dim": _Field(96, 2, 1, _MAX_BOX, MAX_RANK),
    "element_stride": _Field(106, 1, 1, _MAX_ELEMENT_STRIDE, MAX_RANK),
}


def replace_field(data: bytes, field: str, value: int, ordinal: int = 0) -> bytes:
    """Return the 128 bytes `data` after `tensormap.replace.tile.<field>`.

    128 zero bytes become a map (kernels build maps from them). Values have the meaning of the instruction: `rank` is
    one less than the number of dimensions, codes are those of its table. The fields need not fit together yet: `decode`
    looks at that. Raises ArgumentError when `data` is no tensor map or a value cannot be held.
    """
    facts = _FIELDS[field]
    if not 0 <= ordinal < facts.ordinals:
        raise ArgumentError(f"ordinal {ordinal} of {field}, and there are {facts.ordinals}. Count dimensions from 0.")
    if not facts.lowest <= value <= facts.highest:
        raise ArgumentError(
            f"{field}={value}, and tensormap.replace takes {facts.lowest} to {facts.highest} here. See its table."
        )
    if data == bytes(TENSOR_MAP_BYTES):
        data = _MAGIC + data[len(_MAGIC) :]
    elif not is_tensor_map(data):
        raise ArgumentError(_not_a_map(data))
    start = facts.offset + ordinal * facts.bytes
    return data[:start] + value.to_bytes(facts.bytes, "little") + data[start + facts.bytes :]


def is_tensor_map(data: bytes) -> bool:
    """Whether these 128 bytes are a tensor map of the emulator."""
    return len(data) == TENSOR_MAP_BYTES and data.startswith(_MAGIC)


def _not_a_map(data: bytes) -> str:
    return (
        f"the {len(data)} bytes are no tensor map: they begin with {data[:8].hex(' ')}, and a tensor map of the "
        f"emulator with {_MAGIC.hex(' ')}. Pass TensorMap.encode(), or give the address of the kernel's parameter."
    )


@functools.lru_cache(maxsize=4096)
def _decode(data: bytes) -> TensorMap:
    if not is_tensor_map(data):
        raise ArgumentError(_not_a_map(data))
    _, address, *codes = _LAYOUT.unpack(data)
    _, rank, element, interleave, mode, atomicity, fill, promotion, *rest = codes
    rank += 1
    limits = (_TILED + 1, MAX_RANK, len(_ELEMENTS), len(_INTERLEAVES), len(_MODE_NAMES), len(_ATOMICITY_NAMES))
    if any(code >= limit for code, limit in zip(codes, (*limits, len(_FILLS), len(_PROMOTIONS)), strict=False)):
        raise ArgumentError(f"a tensor map was overwritten: its codes are {codes[:8]}. Encode it again.")
    swizzle = _SWIZZLE_OF_CODES.get((mode, atomicity))
    if swizzle is None:
        raise ArgumentError(
            f"swizzle_mode {_MODE_NAMES[mode]} with swizzle_atomicity {_ATOMICITY_NAMES[atomicity]}, and only 128B "
            "takes another atomicity than 16B. Replace one of them."
        )
    return TensorMap(
        address=address,
        element=_ELEMENTS[element],
        dims=tuple(rest[:rank]),
        byte_strides=tuple(rest[5 : 4 + rank]),
        box=tuple(rest[9 : 9 + rank]),
        element_strides=tuple(rest[14 : 14 + rank]),
        interleave=_INTERLEAVES[interleave],
        swizzle=swizzle,
        l2_promotion=_PROMOTIONS[promotion],
        oob_fill=_FILLS[fill],
    )


def _reject(map_: TensorMap) -> str | None:
    """Return why the description is refused, None when it is not."""
    return _reject_shape(map_) or _reject_dims(map_) or _reject_box(map_) or _reject_modes(map_)


def _reject_shape(map_: TensorMap) -> str | None:
    rank = map_.rank
    if not 1 <= rank <= MAX_RANK:
        return f"dims={map_.dims} has {rank} dimensions, and a tensor map has 1 to {MAX_RANK}. Merge dimensions."
    if map_.interleave is not Interleave.NONE and rank < 3:
        return (
            f"dims={map_.dims} has {rank} dimensions, and interleave={map_.interleave.value} needs 3 or more. Use "
            "interleave=NONE."
        )
    for name, wanted in (("byte_strides", rank - 1), ("box", rank), ("element_strides", rank)):
        values = getattr(map_, name)
        if len(values) != wanted:
            return f"{name}={values} has {len(values)} entries, and {rank} dimensions need {wanted}. Give that many."
    return None


def _reject_dims(map_: TensorMap) -> str | None:
    wide = map_.element.is_padded or map_.interleave is Interleave.B32
    alignment = 32 if wide else 16
    if map_.address % alignment or not 0 <= map_.address < 1 << 64:
        return (
            f"address=0x{map_.address:x}, and {map_.element.value} with interleave={map_.interleave.value} needs a "
            f"multiple of {alignment}. Align the tensor."
        )
    for axis, extent in enumerate(map_.dims):
        if not 1 <= extent <= _MAX_DIM:
            return f"dims[{axis}]={extent}, and a dimension has 1 to 2**32 elements. Leave empty tensors out."
    multiple = PADDED_BOX if map_.element.is_padded else 2 if map_.element is Element.PACKED_U4 else 1
    if map_.dims[0] % multiple:
        return f"dims[0]={map_.dims[0]}, and {map_.element.value} needs a multiple of {multiple}. Pad the rows."
    for axis, stride in enumerate(map_.byte_strides):
        if stride % alignment or not 0 <= stride < _MAX_STRIDE:
            return (
                f"byte_strides[{axis}]={stride}, and a stride is a multiple of {alignment} from 0 to 2**40 - 1 here. "
                "Pad the rows."
            )
    return None


def _reject_box(map_: TensorMap) -> str | None:
    for axis, extent in enumerate(map_.box):
        if not 1 <= extent <= _MAX_BOX:
            return f"box[{axis}]={extent}, and a box has 1 to {_MAX_BOX} elements a dimension. Copy several boxes."
    for axis, step in enumerate(map_.element_strides):
        if not 1 <= step <= _MAX_ELEMENT_STRIDE:
            return f"element_strides[{axis}]={step}, and a step is 1 to {_MAX_ELEMENT_STRIDE}. Use a byte stride."
    if map_.element.is_padded:
        if map_.box[0] != PADDED_BOX:
            return f"box[0]={map_.box[0]}, and {map_.element.value} moves {PADDED_BOX} elements. Use {PADDED_BOX}."
    elif map_.interleave is Interleave.NONE and map_.box[0] * map_.element.bits % 128:
        return (
            f"box[0]={map_.box[0]} elements are {map_.box[0] * map_.element.bits / 8:g} bytes, and an inner box is a "
            f"multiple of 16 bytes. Use a multiple of {128 // map_.element.bits} elements."
        )
    copied = _smem_row_bytes(map_)
    for count in map_.counts[1:]:
        copied *= count
    if copied > _MAX_BOX_BYTES:
        return f"box={map_.box} takes {copied} bytes, and a CTA has at most {_MAX_BOX_BYTES}. Use a smaller box."
    return None


def _reject_modes(map_: TensorMap) -> str | None:
    element, swizzle, interleave = map_.element, map_.swizzle, map_.interleave
    if interleave is not Interleave.NONE and (element is Element.PADDED_U6 or swizzle is Swizzle.B96):
        return f"interleave={interleave.value}, and {element.value} with swizzle={swizzle.value} takes none. Use NONE."
    if interleave is Interleave.B32 and swizzle is not Swizzle.B32:
        return f"swizzle={swizzle.value}, and interleave=32B takes swizzle=32B only. Use that, or interleave=NONE."
    if element.is_padded and swizzle not in _PADDED_SWIZZLES:
        allowed = ", ".join(mode.value for mode in _PADDED_SWIZZLES)
        return f"swizzle={swizzle.value}, and {element.value} takes {allowed}. Use one of those."
    inner, span = _smem_row_bytes(map_), swizzle.span_bytes
    if interleave is Interleave.NONE and span is not None and inner > span:
        return (
            f"box[0]={map_.box[0]} elements are {inner} bytes, and swizzle={swizzle.value} takes at most {span}. Use a "
            "narrower box or another swizzle."
        )
    if map_.oob_fill is OobFill.NAN and not element.is_float:
        return f"oob_fill=NAN, and {element.value} has no NaN. Use OobFill.ZERO."
    return None


def _smem_row_bytes(map_: TensorMap) -> int:
    return map_.box[0] if map_.element.is_padded else map_.row_bytes
