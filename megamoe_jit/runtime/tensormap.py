"""TMA descriptors: a frozen description, every rule of the driver checked in words, encoded where there is a driver.

Sources: CUDA driver API, cuTensorMapEncodeTiled; PTX ISA, "Tensor-map" (the 96-byte swizzle exists in
`tensormap.replace` only).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from megamoe_jit.errors import ArgumentError
from megamoe_jit.runtime.driver import Driver, get_driver

TENSOR_MAP_BYTES = 128
_CACHED_ENCODINGS = 1024
_MAX_RANK = 5
_MAX_DIM = 1 << 32
_MAX_STRIDE = 1 << 40
_MAX_BOX = 256
_MAX_BOX_BYTES = 227 * 1024  # shared memory of a block; the driver refuses a 1 MiB box on an H200
_MAX_ELEMENT_STRIDE = 8
_PADDED_BOX = 128  # elements of one padded row: 128 bytes of shared memory


class TmaElement(Enum):
    """Element types of a tensor map; the value is the driver's name after CU_TENSOR_MAP_DATA_TYPE_.

    FP8 and scale factors travel as U8. PACKED_U4 leaves FP4 codes packed, two a byte. PADDED_U4 and PADDED_U6 unpack:
    each 16 elements (8 or 12 bytes in global memory) take 16 bytes of shared memory, as kind::mxf8f6f4 reads them.
    """

    U8 = "UINT8"
    U16 = "UINT16"
    U32 = "UINT32"
    I32 = "INT32"
    U64 = "UINT64"
    I64 = "INT64"
    F16 = "FLOAT16"
    F32 = "FLOAT32"
    F64 = "FLOAT64"
    BF16 = "BFLOAT16"
    F32_FTZ = "FLOAT32_FTZ"
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
        """Whether out-of-bounds elements can be filled with NaN."""
        return "FLOAT" in self.value

    @property
    def is_padded(self) -> bool:
        """Whether shared memory has gaps: one byte an element, however many bits it has."""
        return self in (TmaElement.PADDED_U4, TmaElement.PADDED_U6)

    def smem_bytes(self, count: int) -> int:
        """Return the bytes of shared memory that `count` elements take."""
        return count if self.is_padded else count * self.bits // 8


_BITS = {
    TmaElement.U8: 8,
    TmaElement.U16: 16,
    TmaElement.U32: 32,
    TmaElement.I32: 32,
    TmaElement.U64: 64,
    TmaElement.I64: 64,
    TmaElement.F16: 16,
    TmaElement.F32: 32,
    TmaElement.F64: 64,
    TmaElement.BF16: 16,
    TmaElement.F32_FTZ: 32,
    TmaElement.TF32: 32,
    TmaElement.TF32_FTZ: 32,
    TmaElement.PACKED_U4: 4,
    TmaElement.PADDED_U4: 4,
    TmaElement.PADDED_U6: 6,
}


class Interleave(Enum):
    """Interleaved layouts (NC/8HWC8, NC/16HWC16); the value is the driver's name after CU_TENSOR_MAP_INTERLEAVE_."""

    NONE = "NONE"
    B16 = "16B"
    B32 = "32B"


class Swizzle(Enum):
    """Shared-memory swizzles; the value is the driver's name after CU_TENSOR_MAP_SWIZZLE_."""

    NONE = "NONE"
    B32 = "32B"
    B64 = "64B"
    B128 = "128B"
    B128_ATOM_32B = "128B_ATOM_32B"
    B128_ATOM_32B_FLIP_8B = "128B_ATOM_32B_FLIP_8B"
    B128_ATOM_64B = "128B_ATOM_64B"

    @property
    def span_bytes(self) -> int | None:
        """Bytes of the span that the swizzle permutes, which the inner box must not exceed; None without a swizzle."""
        return {Swizzle.NONE: None, Swizzle.B32: 32, Swizzle.B64: 64}.get(self, 128)


class L2Promotion(Enum):
    """Bytes that L2 fetches at once; the value is the driver's name after CU_TENSOR_MAP_L2_PROMOTION_."""

    NONE = "NONE"
    B64 = "L2_64B"
    B128 = "L2_128B"
    B256 = "L2_256B"


class OobFill(Enum):
    """What elements outside the tensor read as; the value is the driver's name after CU_TENSOR_MAP_FLOAT_OOB_FILL_."""

    ZERO = "NONE"
    NAN = "NAN_REQUEST_ZERO_FMA"


_PADDED_SWIZZLES = {
    TmaElement.PADDED_U4: (Swizzle.NONE, Swizzle.B128, Swizzle.B128_ATOM_32B),
    TmaElement.PADDED_U6: (Swizzle.NONE, Swizzle.B128, Swizzle.B128_ATOM_32B, Swizzle.B128_ATOM_64B),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorMapSpec:
    """Description of a tiled tensor for TMA, without its address. Dimension 0 is the innermost.

    Attributes:
        element: element type; `dims` and `box` count elements, FP4 values rather than bytes.
        dims: elements in each of 1..5 dimensions.
        byte_strides: bytes between neighbours in dimensions 1.. (dimension 0 is dense).
        box: elements that one copy traverses in each dimension.
        element_strides: step in each dimension (default 1); ignored in dimension 0 unless interleaved.

    Raises ArgumentError, naming the rule, for a description that cuTensorMapEncodeTiled would refuse.
    """

    element: TmaElement
    dims: tuple[int, ...]
    byte_strides: tuple[int, ...]
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
        strides = tuple(int(value) for value in self.element_strides) or (1,) * len(self.dims)
        object.__setattr__(self, "element_strides", strides)
        reason = _reject_shape(self) or _reject_dims(self) or _reject_box(self) or _reject_modes(self)
        if reason:
            raise ArgumentError(reason)

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.dims)

    @property
    def address_alignment(self) -> int:
        """Bytes that the tensor's address and strides must be a multiple of."""
        return 32 if self.interleave is Interleave.B32 or self.element.is_padded else 16

    @property
    def box_elements(self) -> int:
        """Elements that one copy moves."""
        count = 1
        for axis, (extent, step) in enumerate(zip(self.box, self.element_strides, strict=True)):
            ignored = axis == 0 and self.interleave is Interleave.NONE
            count *= extent if ignored else -(-extent // step)
        return count

    @property
    def box_smem_bytes(self) -> int:
        """Bytes of shared memory that one box occupies, gaps of padded types included."""
        return self.element.smem_bytes(self.box_elements)

    @property
    def transaction_bytes(self) -> int:
        """Bytes that a copy adds to an mbarrier's transaction count: packed ones, also for padded types."""
        return self.box_elements * self.element.bits // 8

    def describe(self) -> str:
        """Return one line with every field."""
        text = (
            f"{self.rank}-D {self.element.value} dims={self.dims} byte_strides={self.byte_strides} box={self.box} "
            f"swizzle={self.swizzle.value} l2_promotion={self.l2_promotion.value}"
        )
        if set(self.element_strides) != {1}:
            text += f" element_strides={self.element_strides}"
        if self.interleave is not Interleave.NONE:
            text += f" interleave={self.interleave.value}"
        return text + (" out-of-bounds=NaN" if self.oob_fill is OobFill.NAN else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorMap:
    """A TMA descriptor: a description and the address it starts at. Without a driver it only carries its fields."""

    spec: TensorMapSpec
    address: int

    def __post_init__(self) -> None:
        """Check the address."""
        alignment = self.spec.address_alignment
        if not 0 < self.address < 1 << 64:
            raise ArgumentError(
                f"address={self.address} is no address. A tensor map needs allocated memory; skip empty tensors."
            )
        if self.address % alignment:
            why = "elements of padded types" if self.spec.element.is_padded else "TMA"
            why = "interleave=32B" if self.spec.interleave is Interleave.B32 else why
            raise ArgumentError(
                f"address=0x{self.address:x} is {self.address % alignment} bytes past a multiple of {alignment}, and "
                f"{why} needs addresses that are multiples of {alignment}. Start the view at an aligned offset, or "
                "copy the tensor."
            )

    def encode(self, driver: Driver | None = None) -> bytes:
        """Return the 128 bytes of the CUtensorMap; the last 1024 pairs of address and description are remembered.

        Raises UnsupportedError without a driver, LaunchError when the driver refuses (a type that the device does not
        know).
        """
        driver = driver or get_driver()
        encode = driver.remember(
            "tensor_maps", lambda: functools.lru_cache(maxsize=_CACHED_ENCODINGS)(functools.partial(_encode, driver))
        )
        blob: bytes = encode(self.spec, self.address)
        return blob

    def describe(self) -> str:
        """Return one line with the address and every field of the description."""
        return f"tensor map at 0x{self.address:x}: {self.spec.describe()}"


def tensor_map_for(
    tensor: torch.Tensor,
    *,
    box: Sequence[int],
    swizzle: Swizzle = Swizzle.NONE,
    element: TmaElement | None = None,
    element_strides: Sequence[int] = (),
    l2_promotion: L2Promotion = L2Promotion.B128,
    oob_fill: OobFill = OobFill.ZERO,
) -> TensorMap:
    """Return the tensor map of a tensor of 1..5 dimensions whose last one is dense.

    `box` and `element_strides` are given in the order of `tensor.shape` (outermost first) and count elements of
    `element`, which the dtype decides unless given: torch.float4_e2m1fn_x2 is PACKED_U4, FP8 dtypes are U8. A U8, I8 or
    FP4 tensor can be given as PACKED_U4, PADDED_U4 or PADDED_U6; its last dimension then counts 4- or 6-bit values.
    Raises ArgumentError as TensorMapSpec does.
    """
    element = element or _ELEMENT_OF_DTYPE.get(tensor.dtype)
    if element is None:
        known = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in _ELEMENT_OF_DTYPE))
        raise ArgumentError(
            f"tensor has dtype {tensor.dtype}, which no TMA element type has. Use one of {known}, view the tensor as "
            "one, or pass element=."
        )
    if tensor.dim() == 0 or tensor.numel() == 0:
        raise ArgumentError(
            f"tensor has shape {list(tensor.shape)}, and a tensor map needs elements to point at. Skip the copy "
            "instead."
        )
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ArgumentError(
            f"tensor has stride {tensor.stride(-1)} in its last dimension, and TMA needs 1 there. Call .contiguous(), "
            "or transpose the view."
        )
    item_bytes = tensor.element_size()
    inner_bits = tensor.shape[-1] * item_bytes * 8
    if (element.bits >= 8 and element.bits != item_bytes * 8) or (element.bits < 8 and item_bytes != 1):
        raise ArgumentError(
            f"tensor has {item_bytes}-byte elements of {tensor.dtype}, and element={element.name} has {element.bits} "
            "bits. View the tensor as bytes for 4- and 6-bit elements, or choose an element type of the same size."
        )
    if inner_bits % element.bits:
        raise ArgumentError(
            f"tensor has {inner_bits // 8} bytes in its last dimension, which is no whole number of {element.bits}-bit "
            "elements. Pad it to a multiple of 96 bytes (128 elements)."
        )
    dims = [inner_bits // element.bits, *reversed(tensor.shape[:-1])]
    strides = [stride * item_bytes for stride in reversed(tensor.stride()[:-1])]
    dense = tensor.shape[-1] * item_bytes
    for axis, extent in enumerate(dims[1:]):
        if extent == 1:  # torch leaves any stride on a dimension of one; the driver wants an aligned one
            strides[axis] = -(-dense // 32) * 32
        dense = strides[axis] * extent
    return TensorMap(
        spec=TensorMapSpec(
            element=element,
            dims=tuple(dims),
            byte_strides=tuple(strides),
            box=tuple(reversed(box)),
            element_strides=tuple(reversed(element_strides)),
            swizzle=swizzle,
            l2_promotion=l2_promotion,
            oob_fill=oob_fill,
        ),
        address=tensor.data_ptr(),
    )


_ELEMENT_OF_DTYPE = {
    torch.uint8: TmaElement.U8,
    torch.int8: TmaElement.U8,
    torch.float8_e4m3fn: TmaElement.U8,
    torch.float8_e5m2: TmaElement.U8,
    torch.float8_e8m0fnu: TmaElement.U8,
    torch.float4_e2m1fn_x2: TmaElement.PACKED_U4,
    torch.int16: TmaElement.U16,
    torch.uint16: TmaElement.U16,
    torch.int32: TmaElement.I32,
    torch.uint32: TmaElement.U32,
    torch.int64: TmaElement.I64,
    torch.uint64: TmaElement.U64,
    torch.float16: TmaElement.F16,
    torch.bfloat16: TmaElement.BF16,
    torch.float32: TmaElement.F32,
    torch.float64: TmaElement.F64,
}


def _reject_shape(spec: TensorMapSpec) -> str | None:
    rank = spec.rank
    if not 1 <= rank <= _MAX_RANK:
        return f"dims={spec.dims} has {rank} dimensions, and TMA takes 1 to {_MAX_RANK}. Merge or split off dimensions."
    if spec.interleave is not Interleave.NONE and rank < 3:
        return (
            f"dims={spec.dims} has {rank} dimensions, and interleave={spec.interleave.value} needs at least 3. Use "
            "interleave=NONE."
        )
    for name, values, needed in (
        ("byte_strides", spec.byte_strides, rank - 1),
        ("box", spec.box, rank),
        ("element_strides", spec.element_strides, rank),
    ):
        if len(values) != needed:
            return (
                f"{name}={values} has {len(values)} entries, and {rank} dimensions need {needed}. Give one for each "
                "dimension" + (" but the innermost." if name == "byte_strides" else ".")
            )
    return None


def _reject_dims(spec: TensorMapSpec) -> str | None:
    for axis, extent in enumerate(spec.dims):
        if not 1 <= extent <= _MAX_DIM:
            return (
                f"dims[{axis}]={extent}, and each dimension holds 1 to 2**32 elements. Skip empty tensors and split "
                "larger ones."
            )
    multiple = 128 if spec.element.is_padded else 2 if spec.element is TmaElement.PACKED_U4 else 1
    if spec.dims[0] % multiple:
        return (
            f"dims[0]={spec.dims[0]}, and {spec.element.value} needs a multiple of {multiple} (it counts values, not "
            f"bytes). Pad the innermost dimension to {-(-spec.dims[0] // multiple) * multiple}."
        )
    alignment = spec.address_alignment
    for axis, stride in enumerate(spec.byte_strides):
        if stride % alignment:
            return (
                f"byte_strides[{axis}]={stride} is no multiple of {alignment}, which TMA needs here. Pad rows to "
                f"{-(-stride // alignment) * alignment} bytes."
            )
        if not 0 <= stride < _MAX_STRIDE:
            return (
                f"byte_strides[{axis}]={stride}, and strides lie between 0 and 2**40 - 1 bytes. Split the tensor, or "
                "flip the view."
            )
    return None


def _reject_box(spec: TensorMapSpec) -> str | None:
    for axis, extent in enumerate(spec.box):
        if not 1 <= extent <= _MAX_BOX:
            return (
                f"box[{axis}]={extent}, and a box has 1 to {_MAX_BOX} elements in each dimension. Issue several copies "
                "for a larger tile."
            )
    for axis, step in enumerate(spec.element_strides):
        if not 1 <= step <= _MAX_ELEMENT_STRIDE:
            return (
                f"element_strides[{axis}]={step}, and steps are 1 to {_MAX_ELEMENT_STRIDE}. Use a larger byte stride "
                "instead."
            )
    if spec.box_smem_bytes > _MAX_BOX_BYTES:
        return (
            f"box={spec.box} takes {spec.box_smem_bytes} bytes, and a block has at most {_MAX_BOX_BYTES} bytes of "
            "shared memory. Use a smaller box and several copies."
        )
    if spec.element.is_padded and spec.box[0] != _PADDED_BOX:
        return (
            f"box[0]={spec.box[0]}, and {spec.element.value} copies exactly {_PADDED_BOX} elements of the innermost "
            f"dimension. Use {_PADDED_BOX}."
        )
    inner_bits = spec.box[0] * spec.element.bits
    if spec.interleave is Interleave.NONE and not spec.element.is_padded and inner_bits % 128:
        return (
            f"box[0]={spec.box[0]} elements are {inner_bits / 8:g} bytes, and the innermost box must be a multiple of "
            f"16 bytes. Use a multiple of {128 // spec.element.bits} elements."
        )
    return None


def _reject_modes(spec: TensorMapSpec) -> str | None:
    element, swizzle, interleave = spec.element, spec.swizzle, spec.interleave
    if element is TmaElement.PADDED_U6 and interleave is not Interleave.NONE:
        return f"interleave={interleave.value}, and {element.value} takes none. Use interleave=NONE."
    if interleave is Interleave.B32 and swizzle is not Swizzle.B32:
        return (
            f"swizzle={swizzle.value}, and interleave=32B takes swizzle=32B only. Use swizzle=32B, or interleave=NONE."
        )
    if element.is_padded and swizzle not in _PADDED_SWIZZLES[element]:
        allowed = ", ".join(mode.value for mode in _PADDED_SWIZZLES[element])
        return f"swizzle={swizzle.value}, and {element.value} takes {allowed}. Use one of those, or the packed type."
    inner_bytes, span = element.smem_bytes(spec.box[0]), swizzle.span_bytes
    if interleave is Interleave.NONE and span is not None and inner_bytes > span:
        return (
            f"box[0]={spec.box[0]} elements are {inner_bytes} bytes, and swizzle={swizzle.value} needs at most {span}. "
            f"Use a box of {spec.box[0] * span // inner_bytes} elements and several copies, or a wider swizzle."
        )
    if spec.oob_fill is OobFill.NAN and not element.is_float:
        return f"oob_fill=NAN, and {element.value} has no NaN that the driver knows. Use OobFill.ZERO."
    return None


def _encode(driver: Driver, spec: TensorMapSpec, address: int) -> bytes:
    module = driver.module
    # A map of one dimension has no strides, but the driver is given an array all the same.
    strides = spec.byte_strides or (spec.address_alignment,)
    encoded = driver.call(
        f"encoding a tensor map ({spec.describe()})",
        "cuTensorMapEncodeTiled",
        getattr(module.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{spec.element.value}"),
        spec.rank,
        address,
        [module.cuuint64_t(extent) for extent in spec.dims],
        [module.cuuint64_t(stride) for stride in strides],
        [module.cuuint32_t(extent) for extent in spec.box],
        [module.cuuint32_t(step) for step in spec.element_strides],
        getattr(module.CUtensorMapInterleave, f"CU_TENSOR_MAP_INTERLEAVE_{spec.interleave.value}"),
        getattr(module.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{spec.swizzle.value}"),
        getattr(module.CUtensorMapL2promotion, f"CU_TENSOR_MAP_L2_PROMOTION_{spec.l2_promotion.value}"),
        getattr(module.CUtensorMapFloatOOBfill, f"CU_TENSOR_MAP_FLOAT_OOB_FILL_{spec.oob_fill.value}"),
    )
    return ctypes.string_at(encoded.getPtr(), TENSOR_MAP_BYTES)
