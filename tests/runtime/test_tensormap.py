"""Tensor maps: every rule of the driver in words, what the driver is asked to encode, and maps of torch tensors."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megamoe_jit.errors import ArgumentError, LaunchError
from megamoe_jit.runtime.driver import Driver
from megamoe_jit.runtime.tensormap import (
    Interleave,
    L2Promotion,
    OobFill,
    Swizzle,
    TensorMap,
    TensorMapSpec,
    TmaElement,
    tensor_map_for,
)
from tests.runtime.fake_driver import FakeDriver

GOOD: dict[str, Any] = {
    "element": TmaElement.U8,
    "dims": (512, 256),
    "byte_strides": (512,),
    "box": (128, 64),
    "swizzle": Swizzle.B128,
}
RANK3: dict[str, Any] = {**GOOD, "dims": (512, 256, 2), "byte_strides": (512, 131072), "box": (16, 64, 1)}
PADDED_U4: dict[str, Any] = {**GOOD, "element": TmaElement.PADDED_U4, "dims": (1024, 256)}
PADDED_U6: dict[str, Any] = {**GOOD, "element": TmaElement.PADDED_U6, "dims": (1024, 256), "byte_strides": (768,)}

BAD_SPECS = [
    (GOOD, {"dims": (), "byte_strides": (), "box": ()}, "dims=() has 0 dimensions, and TMA takes 1 to 5"),
    (
        GOOD,
        {"dims": (16,) * 5, "byte_strides": (16, 256, 4096, 65536), "box": (16,) * 5},
        "takes 1048576 bytes, and a block has at most 232448 bytes of shared memory",
    ),
    (GOOD, {"dims": (16,) * 6, "byte_strides": (16,) * 5, "box": (16,) * 6}, "has 6 dimensions, and TMA takes 1 to 5"),
    (GOOD, {"interleave": Interleave.B16}, "has 2 dimensions, and interleave=16B needs at least 3"),
    (
        GOOD,
        {"byte_strides": ()},
        "byte_strides=() has 0 entries, and 2 dimensions need 1. Give one for each dimension but",
    ),
    (GOOD, {"box": (128,)}, "box=(128,) has 1 entries, and 2 dimensions need 2. Give one for each dimension."),
    (GOOD, {"element_strides": (1, 1, 1)}, "element_strides=(1, 1, 1) has 3 entries, and 2 dimensions need 2"),
    (GOOD, {"dims": (512, 0)}, "dims[1]=0, and each dimension holds 1 to 2**32 elements"),
    (GOOD, {"dims": (512, 2**32 + 1)}, "dims[1]=4294967297, and each dimension holds 1 to 2**32 elements"),
    (GOOD, {"dims": (-1, 256)}, "dims[0]=-1, and each dimension holds"),
    (
        GOOD,
        {"element": TmaElement.PACKED_U4, "dims": (511, 256)},
        "dims[0]=511, and 16U4_ALIGN8B needs a multiple of 2",
    ),
    (
        PADDED_U4,
        {"dims": (1000, 256)},
        "dims[0]=1000, and 16U4_ALIGN16B needs a multiple of 128 (it counts values, not bytes). Pad the innermost "
        "dimension to 1024.",
    ),
    (PADDED_U6, {"dims": (64, 256)}, "dims[0]=64, and 16U6_ALIGN16B needs a multiple of 128"),
    (
        GOOD,
        {"byte_strides": (520,)},
        "byte_strides[0]=520 is no multiple of 16, which TMA needs here. Pad rows to 528 bytes.",
    ),
    (RANK3, {"byte_strides": (512, 131080)}, "byte_strides[1]=131080 is no multiple of 16"),
    (
        RANK3,
        {"interleave": Interleave.B32, "swizzle": Swizzle.B32, "byte_strides": (528, 131072)},
        "byte_strides[0]=528 is no multiple of 32",
    ),
    (PADDED_U4, {"byte_strides": (528,)}, "byte_strides[0]=528 is no multiple of 32"),
    (PADDED_U6, {"byte_strides": (784,)}, "byte_strides[0]=784 is no multiple of 32"),
    (GOOD, {"byte_strides": (2**40,)}, "byte_strides[0]=1099511627776, and strides lie between 0 and 2**40 - 1 bytes"),
    (GOOD, {"byte_strides": (-512,)}, "byte_strides[0]=-512, and strides lie between 0"),
    (GOOD, {"box": (128, 0)}, "box[1]=0, and a box has 1 to 256 elements in each dimension"),
    (GOOD, {"box": (128, 257)}, "box[1]=257, and a box has 1 to 256"),
    (GOOD, {"element_strides": (1, 0)}, "element_strides[1]=0, and steps are 1 to 8"),
    (GOOD, {"element_strides": (1, 9)}, "element_strides[1]=9, and steps are 1 to 8"),
    (PADDED_U4, {"box": (64, 64)}, "box[0]=64, and 16U4_ALIGN16B copies exactly 128 elements"),
    (PADDED_U6, {"box": (256, 64)}, "box[0]=256, and 16U6_ALIGN16B copies exactly 128 elements"),
    (
        GOOD,
        {"box": (24, 64)},
        "box[0]=24 elements are 24 bytes, and the innermost box must be a multiple of 16 bytes. Use a multiple of 16 "
        "elements.",
    ),
    (GOOD, {"element": TmaElement.BF16, "box": (12, 64)}, "box[0]=12 elements are 24 bytes"),
    (
        GOOD,
        {"element": TmaElement.PACKED_U4, "box": (16, 64)},
        "box[0]=16 elements are 8 bytes, and the innermost box must be a multiple of 16 bytes. Use a multiple of 32 "
        "elements.",
    ),
    (GOOD, {"element": TmaElement.F64, "box": (1, 64)}, "box[0]=1 elements are 8 bytes"),
    (
        GOOD,
        {"swizzle": Swizzle.B32, "box": (48, 64)},
        "box[0]=48 elements are 48 bytes, and swizzle=32B needs at most 32. Use a box of 32 elements",
    ),
    (GOOD, {"swizzle": Swizzle.B64}, "box[0]=128 elements are 128 bytes, and swizzle=64B needs at most 64"),
    (GOOD, {"box": (144, 64)}, "box[0]=144 elements are 144 bytes, and swizzle=128B needs at most 128"),
    (GOOD, {"box": (256, 64), "swizzle": Swizzle.B128_ATOM_32B}, "swizzle=128B_ATOM_32B needs at most 128"),
    (
        GOOD,
        {"box": (256, 64), "swizzle": Swizzle.B128_ATOM_32B_FLIP_8B},
        "swizzle=128B_ATOM_32B_FLIP_8B needs at most 128",
    ),
    (GOOD, {"box": (256, 64), "swizzle": Swizzle.B128_ATOM_64B}, "swizzle=128B_ATOM_64B needs at most 128"),
    (
        GOOD,
        {"element": TmaElement.BF16, "box": (72, 64)},
        "box[0]=72 elements are 144 bytes, and swizzle=128B needs at most 128",
    ),
    (
        GOOD,
        {"element": TmaElement.PACKED_U4, "box": (192, 64), "swizzle": Swizzle.B64},
        "box[0]=192 elements are 96 bytes, and swizzle=64B needs at most 64. Use a box of 128",
    ),
    (RANK3, {"interleave": Interleave.B32}, "swizzle=128B, and interleave=32B takes swizzle=32B only"),
    (
        RANK3,
        {"interleave": Interleave.B32, "swizzle": Swizzle.NONE},
        "swizzle=NONE, and interleave=32B takes swizzle=32B only",
    ),
    (
        {**RANK3, **PADDED_U6},
        {"dims": (1024, 4, 4), "byte_strides": (768, 768), "box": (128, 1, 1), "interleave": Interleave.B16},
        "interleave=16B, and 16U6_ALIGN16B takes none",
    ),
    (
        PADDED_U4,
        {"swizzle": Swizzle.B64},
        "swizzle=64B, and 16U4_ALIGN16B takes NONE, 128B, 128B_ATOM_32B. Use one of those, or the packed type.",
    ),
    (
        PADDED_U4,
        {"swizzle": Swizzle.B128_ATOM_64B},
        "swizzle=128B_ATOM_64B, and 16U4_ALIGN16B takes NONE, 128B, 128B_ATOM_32B",
    ),
    (
        PADDED_U6,
        {"swizzle": Swizzle.B32},
        "swizzle=32B, and 16U6_ALIGN16B takes NONE, 128B, 128B_ATOM_32B, 128B_ATOM_64B",
    ),
    (GOOD, {"oob_fill": OobFill.NAN}, "oob_fill=NAN, and UINT8 has no NaN"),
    (GOOD, {"element": TmaElement.PACKED_U4, "oob_fill": OobFill.NAN}, "oob_fill=NAN, and 16U4_ALIGN8B has no NaN"),
    (PADDED_U6, {"oob_fill": OobFill.NAN}, "oob_fill=NAN, and 16U6_ALIGN16B has no NaN"),
]

GOOD_SPECS = [
    GOOD,
    RANK3,
    PADDED_U4,
    PADDED_U6,
    {**GOOD, "dims": (2**32, 2**32), "byte_strides": (2**40 - 16,)},
    {**GOOD, "dims": (65536,), "byte_strides": (), "box": (256,), "swizzle": Swizzle.NONE},
    {**GOOD, "dims": (16,) * 5, "byte_strides": (16, 256, 4096, 65536), "box": (16, 16, 4, 4, 4)},
    {**GOOD, "box": (256, 256), "swizzle": Swizzle.NONE},
    {**GOOD, "element": TmaElement.PACKED_U4, "dims": (1022, 256), "box": (256, 64)},
    {**GOOD, "element": TmaElement.BF16, "box": (64, 64), "oob_fill": OobFill.NAN},
    {**GOOD, "element_strides": (8, 8)},
    {**GOOD, "swizzle": Swizzle.B32, "box": (32, 64)},
    {**GOOD, "swizzle": Swizzle.B64, "box": (64, 64)},
    {**GOOD, "swizzle": Swizzle.B128_ATOM_64B},
    {**PADDED_U4, "swizzle": Swizzle.B128_ATOM_32B},
    {**PADDED_U6, "swizzle": Swizzle.B128_ATOM_64B},
    {**RANK3, "interleave": Interleave.B16, "box": (16, 64, 1)},
    {**RANK3, "interleave": Interleave.B32, "swizzle": Swizzle.B32, "box": (128, 64, 1)},
]


@pytest.mark.parametrize(("base", "changes", "sentence"), BAD_SPECS)
def test_a_bad_description_is_refused_in_words(base: dict[str, Any], changes: dict[str, Any], sentence: str) -> None:
    TensorMapSpec(**base)
    with pytest.raises(ArgumentError, match=re.escape(sentence)):
        TensorMapSpec(**{**base, **changes})


@pytest.mark.parametrize("fields", GOOD_SPECS)
def test_a_description_at_the_limits_is_taken(fields: dict[str, Any]) -> None:
    spec = TensorMapSpec(**fields)
    assert spec == TensorMapSpec(**fields)
    assert hash(spec) == hash(TensorMapSpec(**fields))
    assert spec.element.value in spec.describe()
    assert str(spec.box) in spec.describe()


BAD_ADDRESSES = [
    (GOOD, 0, "address=0 is no address"),
    (GOOD, -16, "address=-16 is no address"),
    (GOOD, 2**64, "address=18446744073709551616 is no address"),
    (GOOD, 0x1008, "address=0x1008 is 8 bytes past a multiple of 16, and TMA needs addresses that are multiples of 16"),
    (PADDED_U4, 0x1010, "is 16 bytes past a multiple of 32, and elements of padded types needs"),
    (PADDED_U6, 0x1010, "is 16 bytes past a multiple of 32, and elements of padded types needs"),
    (
        {**RANK3, "interleave": Interleave.B32, "swizzle": Swizzle.B32},
        0x1010,
        "16 bytes past a multiple of 32, and interleave=32B needs",
    ),
]


@pytest.mark.parametrize(("fields", "address", "sentence"), BAD_ADDRESSES)
def test_a_bad_address_is_refused_in_words(fields: dict[str, Any], address: int, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(sentence)):
        TensorMap(spec=TensorMapSpec(**fields), address=address)


def test_box_bytes_count_gaps_in_shared_memory_and_not_on_the_barrier() -> None:
    packed = TensorMapSpec(**{**GOOD, "element": TmaElement.PACKED_U4, "box": (256, 8)})
    assert (packed.box_smem_bytes, packed.transaction_bytes) == (1024, 1024)
    padded = TensorMapSpec(**{**PADDED_U4, "box": (128, 8)})
    assert (padded.box_smem_bytes, padded.transaction_bytes) == (1024, 512)
    padded = TensorMapSpec(**{**PADDED_U6, "box": (128, 8)})
    assert (padded.box_smem_bytes, padded.transaction_bytes) == (1024, 768)
    stepped = TensorMapSpec(**{**GOOD, "box": (64, 9), "element_strides": (4, 4)})  # dimension 0's step is ignored
    assert (stepped.box_elements, stepped.transaction_bytes) == (64 * 3, 64 * 3)


def test_the_driver_encodes_exactly_what_is_described() -> None:
    fake = FakeDriver()
    spec = TensorMapSpec(
        element=TmaElement.PACKED_U4,
        dims=(1024, 256, 3),
        byte_strides=(512, 131072),
        box=(256, 64, 2),
        element_strides=(1, 2, 1),
        swizzle=Swizzle.B128,
        l2_promotion=L2Promotion.B256,
    )
    assert TensorMap(spec=spec, address=0x10000).encode(Driver(fake)) == bytes([1] * 128)
    (element, rank, address, dims, strides, box, steps, interleave, swizzle, promotion, fill) = fake.calls[-1][1]
    assert element is fake.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_16U4_ALIGN8B
    assert (rank, address) == (3, 0x10000)
    assert [int(value) for value in dims] == [1024, 256, 3]
    assert [int(value) for value in strides] == [512, 131072]
    assert [int(value) for value in box] == [256, 64, 2]
    assert [int(value) for value in steps] == [1, 2, 1]
    assert {type(value) for value in (*dims, *strides)} == {fake.cuuint64_t}
    assert {type(value) for value in (*box, *steps)} == {fake.cuuint32_t}
    assert interleave is fake.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE
    assert swizzle is fake.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B
    assert promotion is fake.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B
    assert fill is fake.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE


def test_every_enum_value_names_one_of_the_driver() -> None:
    fake = FakeDriver()
    for ours, theirs, prefix in (
        (TmaElement, fake.CUtensorMapDataType, "CU_TENSOR_MAP_DATA_TYPE_"),
        (Interleave, fake.CUtensorMapInterleave, "CU_TENSOR_MAP_INTERLEAVE_"),
        (Swizzle, fake.CUtensorMapSwizzle, "CU_TENSOR_MAP_SWIZZLE_"),
        (L2Promotion, fake.CUtensorMapL2promotion, "CU_TENSOR_MAP_L2_PROMOTION_"),
        (OobFill, fake.CUtensorMapFloatOOBfill, "CU_TENSOR_MAP_FLOAT_OOB_FILL_"),
    ):
        assert {prefix + member.value for member in ours} == {member.name for member in theirs}


@pytest.mark.parametrize("fields", GOOD_SPECS)
def test_every_good_description_reaches_the_driver(fields: dict[str, Any]) -> None:
    fake = FakeDriver()
    TensorMap(spec=TensorMapSpec(**fields), address=0x10000).encode(Driver(fake))
    assert len(fake.calls[-1][1][4]) == max(1, len(fields["byte_strides"]))


def test_an_encoding_is_remembered_by_address_and_description() -> None:
    fake = FakeDriver()
    driver = Driver(fake)
    spec, other = TensorMapSpec(**GOOD), TensorMapSpec(**{**GOOD, "box": (128, 32)})
    first = TensorMap(spec=spec, address=0x10000).encode(driver)
    assert TensorMap(spec=TensorMapSpec(**GOOD), address=0x10000).encode(driver) == first
    assert fake.count("cuTensorMapEncodeTiled") == 1
    assert TensorMap(spec=spec, address=0x20000).encode(driver) != first
    assert TensorMap(spec=other, address=0x10000).encode(driver) != first
    assert fake.count("cuTensorMapEncodeTiled") == 3


def test_the_memory_of_encodings_is_bounded() -> None:
    fake = FakeDriver()
    driver = Driver(fake)
    fake._cuTensorMapEncodeTiled = lambda *_: (fake.CUtensorMap(),)
    spec = TensorMapSpec(**GOOD)
    for index in range(1025):
        TensorMap(spec=spec, address=0x10000 + 16 * index).encode(driver)
    TensorMap(spec=spec, address=0x10000).encode(driver)  # the oldest one was dropped
    assert fake.count("cuTensorMapEncodeTiled") == 1026


def test_a_refusal_of_the_driver_names_the_description() -> None:
    fake = FakeDriver()
    fake.errors["cuTensorMapEncodeTiled"] = 1
    with pytest.raises(LaunchError, match=re.escape("encoding a tensor map (2-D UINT8 dims=(512, 256)")):
        TensorMap(spec=TensorMapSpec(**GOOD), address=0x10000).encode(Driver(fake))


def aligned(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Return a tensor whose address is a multiple of 64."""
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    memory = torch.zeros(size + 64, dtype=torch.uint8)
    start = -memory.data_ptr() % 64
    return memory[start : start + size].view(dtype).view(shape)


TENSORS = [
    ((256, 512), torch.uint8, (64, 128), None, (TmaElement.U8, (512, 256), (512,), (128, 64))),
    ((256, 512), torch.float8_e4m3fn, (64, 128), None, (TmaElement.U8, (512, 256), (512,), (128, 64))),
    ((256, 512), torch.bfloat16, (8, 64), None, (TmaElement.BF16, (512, 256), (1024,), (64, 8))),
    ((256, 512), torch.int32, (8, 32), None, (TmaElement.I32, (512, 256), (2048,), (32, 8))),
    ((256, 512), torch.float4_e2m1fn_x2, (8, 256), None, (TmaElement.PACKED_U4, (1024, 256), (512,), (256, 8))),
    ((256, 512), torch.uint8, (8, 256), TmaElement.PACKED_U4, (TmaElement.PACKED_U4, (1024, 256), (512,), (256, 8))),
    ((256, 512), torch.int8, (8, 128), TmaElement.PADDED_U4, (TmaElement.PADDED_U4, (1024, 256), (512,), (128, 8))),
    ((256, 768), torch.uint8, (8, 128), TmaElement.PADDED_U6, (TmaElement.PADDED_U6, (1024, 256), (768,), (128, 8))),
    ((4, 8, 16, 32), torch.uint8, (1, 2, 4, 16), None, (TmaElement.U8, (32, 16, 8, 4), (32, 512, 4096), (16, 4, 2, 1))),
    ((64,), torch.float32, (16,), None, (TmaElement.F32, (64,), (), (16,))),
    ((256, 64), torch.float32, (8, 32), TmaElement.TF32, (TmaElement.TF32, (64, 256), (256,), (32, 8))),
]


@pytest.mark.parametrize(("shape", "dtype", "box", "element", "expected"), TENSORS)
def test_a_tensor_gives_its_dims_and_strides(
    shape: tuple[int, ...], dtype: torch.dtype, box: tuple[int, ...], element: TmaElement | None, expected: Any
) -> None:
    tensor = aligned(*shape, dtype=dtype)
    mapped = tensor_map_for(tensor, box=box, element=element, swizzle=Swizzle.NONE)
    spec = mapped.spec
    assert (spec.element, spec.dims, spec.byte_strides, spec.box) == expected
    assert mapped.address == tensor.data_ptr()
    assert hex(mapped.address) in mapped.describe()


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    left=st.integers(0, 3),
    top=st.integers(0, 3),
    itemsize=st.sampled_from([torch.uint8, torch.int16, torch.float32, torch.float64]),
)
def test_the_map_of_a_view_addresses_the_view(
    rows: int, columns: int, left: int, top: int, itemsize: torch.dtype
) -> None:
    unit = 16 // itemsize.itemsize  # elements of 16 bytes, so that views stay aligned
    whole = aligned(top + rows, (left + columns) * unit, dtype=itemsize)
    view = whole[top:, left * unit :]
    mapped = tensor_map_for(view, box=(1, unit))
    assert mapped.spec.dims == (columns * unit, rows)
    # Walking the description reaches the element that torch finds at the same index.
    row, column = rows - 1, columns * unit - 1
    stride = mapped.spec.byte_strides[0]
    assert (mapped.address + row * stride + column * itemsize.itemsize) == view[row:, column:].data_ptr()


def test_a_dimension_of_one_gets_an_aligned_stride_whatever_torch_says() -> None:
    tensor = aligned(1, 3, 64).as_strided((1, 3, 64), (7, 64, 1))
    assert tensor_map_for(tensor, box=(1, 1, 64)).spec.byte_strides == (64, 192)


BAD_TENSORS = [
    (lambda: torch.zeros(16, 16, dtype=torch.bool), {}, "tensor has dtype torch.bool, which no TMA element type has"),
    (
        lambda: torch.zeros((), dtype=torch.uint8),
        {},
        "tensor has shape [], and a tensor map needs elements to point at",
    ),
    (lambda: torch.zeros(0, 16, dtype=torch.uint8), {}, "tensor has shape [0, 16], and a tensor map needs elements"),
    (lambda: aligned(64, 64).t(), {}, "tensor has stride 64 in its last dimension, and TMA needs 1 there"),
    (
        lambda: aligned(64, 64),
        {"element": TmaElement.BF16},
        "tensor has 1-byte elements of torch.uint8, and element=BF16 has 16 bits",
    ),
    (
        lambda: aligned(64, 64, dtype=torch.int32),
        {"element": TmaElement.PACKED_U4},
        "tensor has 4-byte elements of torch.int32, and element=PACKED_U4 has 4 bits",
    ),
    (
        lambda: aligned(64, 64),
        {"element": TmaElement.PADDED_U6},
        "tensor has 64 bytes in its last dimension, which is no whole number of 6-bit elements",
    ),
    (lambda: aligned(64, 64)[:, 8:], {}, "is 8 bytes past a multiple of 16"),
    (lambda: aligned(64, 72)[:, :64], {}, "byte_strides[0]=72 is no multiple of 16"),
    (lambda: aligned(64, 64), {"box": (16,)}, "box=(16,) has 1 entries, and 2 dimensions need 2"),
]


@pytest.mark.parametrize(("make", "options", "sentence"), BAD_TENSORS)
def test_a_tensor_without_a_map_is_refused_in_words(make: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(sentence)):
        tensor_map_for(make(), **{"box": (16, 16), **options})
