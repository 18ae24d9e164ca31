"""Tensor maps: every rule refuses with its sentence, every field survives 128 bytes, replacements edit them."""

from __future__ import annotations

import dataclasses
import random
import struct
from typing import Any

import pytest

from megamoe_jit.emulator.memory.tensor_map import (
    TENSOR_MAP_BYTES,
    Element,
    Interleave,
    L2Promotion,
    OobFill,
    Swizzle,
    TensorMap,
    is_tensor_map,
    replace_field,
)
from megamoe_jit.errors import ArgumentError
from megamoe_jit.runtime.tensormap import TensorMapSpec, TmaElement

PLAIN: dict[str, Any] = {
    "address": 0x7F00_0000_1000,
    "element": Element.U8,
    "dims": (512, 40, 3),
    "byte_strides": (512, 20480),
    "box": (128, 8, 1),
    "swizzle": Swizzle.B128,
}

# Changes to PLAIN, and a part of the sentence that refuses them.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"dims": (), "byte_strides": (), "box": ()}, "dims=() has 0 dimensions"),
    ({"dims": (16,) * 6, "byte_strides": (16,) * 5, "box": (16,) * 6}, "6 dimensions, and a tensor map has 1 to 5"),
    ({"byte_strides": (512,)}, "byte_strides=(512,) has 1 entries, and 3 dimensions need 2"),
    ({"box": (128, 8)}, "box=(128, 8) has 2 entries"),
    ({"element_strides": (1, 1)}, "element_strides=(1, 1) has 2 entries"),
    ({"address": 0x1008}, "address=0x1008, and UINT8 with interleave=NONE needs a multiple of 16"),
    ({"address": 0x1010, "element": Element.PADDED_U4}, "needs a multiple of 32"),
    ({"address": 1 << 64}, "address=0x10000000000000000"),
    ({"dims": (512, 0, 3)}, "dims[1]=0"),
    ({"dims": (512, 40, (1 << 32) + 1)}, "dims[2]=4294967297"),
    ({"element": Element.PACKED_U4, "dims": (511, 40, 3)}, "dims[0]=511, and 16U4_ALIGN8B needs a multiple of 2"),
    ({"element": Element.PADDED_U6, "dims": (500, 40, 3)}, "dims[0]=500, and 16U6_ALIGN16B needs a multiple of 128"),
    ({"byte_strides": (520, 20480)}, "byte_strides[0]=520, and a stride is a multiple of 16"),
    ({"byte_strides": (512, 1 << 40)}, "byte_strides[1]=1099511627776"),
    ({"byte_strides": (512, -16)}, "byte_strides[1]=-16"),
    ({"element": Element.PADDED_U4, "byte_strides": (528, 20480)}, "a multiple of 32"),
    ({"box": (128, 257, 1)}, "box[1]=257"),
    ({"box": (128, 0, 1)}, "box[1]=0"),
    ({"element_strides": (1, 9, 1)}, "element_strides[1]=9"),
    ({"element_strides": (1, 0, 1)}, "element_strides[1]=0"),
    ({"element": Element.PADDED_U4, "box": (64, 8, 1)}, "box[0]=64, and 16U4_ALIGN16B moves 128 elements"),
    ({"box": (24, 8, 1)}, "box[0]=24 elements are 24 bytes, and an inner box is a multiple of 16 bytes"),
    ({"element": Element.PACKED_U4, "box": (48, 8, 1)}, "box[0]=48 elements are 24 bytes"),
    ({"element": Element.F32, "box": (2, 8, 1)}, "Use a multiple of 4 elements"),
    ({"box": (256, 256, 16), "swizzle": Swizzle.NONE}, "takes 1048576 bytes, and a CTA has at most 232448"),
    ({"box": (256, 8, 1)}, "box[0]=256 elements are 256 bytes, and swizzle=128B takes at most 128"),
    ({"box": (128, 8, 1), "swizzle": Swizzle.B96}, "swizzle=96B takes at most 96"),
    ({"box": (64, 8, 1), "swizzle": Swizzle.B32}, "swizzle=32B takes at most 32"),
    ({"element": Element.PADDED_U4, "swizzle": Swizzle.B64}, "takes NONE, 128B, 128B_ATOM_32B, 128B_ATOM_64B"),
    ({"element": Element.PADDED_U6, "swizzle": Swizzle.B128_ATOM_32B_FLIP_8B}, "16U6_ALIGN16B takes NONE"),
    ({"oob_fill": OobFill.NAN}, "oob_fill=NAN, and UINT8 has no NaN"),
    ({"oob_fill": OobFill.NAN, "element": Element.PACKED_U4}, "has no NaN"),
    ({"interleave": Interleave.B32}, "interleave=32B takes swizzle=32B only"),
    ({"interleave": Interleave.B16, "swizzle": Swizzle.B96}, "takes none. Use NONE"),
    ({"interleave": Interleave.B16, "dims": (512, 40), "byte_strides": (512,), "box": (16, 8)}, "needs 3 or more"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=[sentence[:40] for _, sentence in REFUSED])
def test_a_broken_rule_is_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        TensorMap(**(PLAIN | changes))
    assert sentence in str(caught.value)


def random_map(rng: random.Random) -> TensorMap:
    """Return a map that the rules take, every field drawn."""
    while True:
        element = rng.choice(list(Element))
        rank = rng.randint(1, 5)
        unit = 128 if element.is_padded else 2 if element is Element.PACKED_U4 else 1
        inner = 128 if element.is_padded else rng.choice([1, 2, 4, 8, 16]) * 128 // element.bits
        fields: dict[str, Any] = {
            "address": rng.randrange(1 << 50) * 32,
            "element": element,
            "dims": (unit * rng.randint(1, 9), *(rng.randint(1, 1 << 32) for _ in range(rank - 1))),
            "byte_strides": tuple(32 * rng.randrange(1 << 35) for _ in range(rank - 1)),
            "box": (inner, *(rng.randint(1, 256) for _ in range(rank - 1))),
            "element_strides": tuple(rng.randint(1, 8) for _ in range(rank)),
            "interleave": rng.choice(list(Interleave)),
            "swizzle": rng.choice(list(Swizzle)),
            "l2_promotion": rng.choice(list(L2Promotion)),
            "oob_fill": rng.choice(list(OobFill)),
        }
        try:
            return TensorMap(**fields)
        except ArgumentError:
            continue


def test_every_field_survives_the_bytes() -> None:
    rng = random.Random(3)
    drawn = [random_map(rng) for _ in range(400)]
    assert {map_.swizzle for map_ in drawn} == set(Swizzle)
    assert {map_.element for map_ in drawn} == set(Element)
    for map_ in drawn:
        data = map_.encode()
        assert len(data) == TENSOR_MAP_BYTES
        assert is_tensor_map(data)
        assert TensorMap.decode(data) == map_
        assert map_.describe()


def test_bytes_that_are_no_map_are_refused() -> None:
    for data in (bytes(128), b"\xff" * 128, TensorMap(**PLAIN).encode()[:-1], b"x" + TensorMap(**PLAIN).encode()[1:]):
        with pytest.raises(ArgumentError, match="are no tensor map"):
            TensorMap.decode(data)


@pytest.mark.parametrize("offset", range(16, 24))
def test_overwritten_codes_are_refused(offset: int) -> None:
    data = bytearray(TensorMap(**PLAIN).encode())
    data[offset] = 0xEE
    with pytest.raises(ArgumentError, match="was overwritten"):
        TensorMap.decode(bytes(data))


# tensormap.replace's table: the value of elemtype is the place.
ELEMENT_OF_NAME = {
    "u8": Element.U8, "u16": Element.U16, "u32": Element.U32, "s32": Element.I32, "u64": Element.U64,
    "s64": Element.I64, "f16": Element.F16, "f32": Element.F32, "f32.ftz": Element.F32_FTZ, "f64": Element.F64,
    "bf16": Element.BF16, "tf32": Element.TF32, "tf32.ftz": Element.TF32_FTZ, "b4x16": Element.PACKED_U4,
    "b4x16_p64": Element.PADDED_U4, "b6x16_p32": Element.PADDED_U6,
}  # fmt: skip
SWIZZLE_CODES = {
    (0, 0): Swizzle.NONE, (1, 0): Swizzle.B32, (2, 0): Swizzle.B64, (3, 0): Swizzle.B128, (4, 0): Swizzle.B96,
    (3, 1): Swizzle.B128_ATOM_32B, (3, 2): Swizzle.B128_ATOM_32B_FLIP_8B, (3, 3): Swizzle.B128_ATOM_64B,
}  # fmt: skip


def built(map_: TensorMap) -> bytes:
    """Build a map from zero bytes by replacements alone, as a kernel does; the codes are the manual's."""
    codes_of = {element: code for code, element in enumerate(ELEMENT_OF_NAME.values())}
    mode, atomicity = next(codes for codes, swizzle in SWIZZLE_CODES.items() if swizzle is map_.swizzle)
    edits = [
        ("global_address", 0, map_.address),
        ("rank", 0, map_.rank - 1),
        *(("global_dim", i, dim) for i, dim in enumerate(map_.dims)),
        *(("global_stride", i, stride) for i, stride in enumerate(map_.byte_strides)),
        *(("box_dim", i, extent) for i, extent in enumerate(map_.box)),
        *(("element_stride", i, step) for i, step in enumerate(map_.element_strides)),
        ("elemtype", 0, codes_of[map_.element]),
        ("interleave_layout", 0, list(Interleave).index(map_.interleave)),
        ("swizzle_mode", 0, mode),
        ("swizzle_atomicity", 0, atomicity),
        ("fill_mode", 0, int(map_.oob_fill is OobFill.NAN)),
    ]
    random.Random(len(edits)).shuffle(edits)
    data = bytes(TENSOR_MAP_BYTES)
    for field, ordinal, value in edits:
        data = replace_field(data, field, value, ordinal)
    return data


def test_a_map_can_be_built_from_zeros() -> None:
    rng = random.Random(11)
    for _ in range(200):
        map_ = dataclasses.replace(random_map(rng), l2_promotion=L2Promotion.NONE)
        map_ = dataclasses.replace(map_, dims=tuple(min(dim, (1 << 32) - 1) for dim in map_.dims))
        assert TensorMap.decode(built(map_)) == map_


def test_replacing_one_field_changes_only_it() -> None:
    map_ = TensorMap(**PLAIN)
    data = map_.encode()
    assert TensorMap.decode(replace_field(data, "global_address", 0x1230)) == dataclasses.replace(map_, address=0x1230)
    assert TensorMap.decode(replace_field(data, "global_dim", 7, 2)) == dataclasses.replace(map_, dims=(512, 40, 7))
    stride = dataclasses.replace(map_, byte_strides=(512, 1 << 39))
    assert TensorMap.decode(replace_field(data, "global_stride", 1 << 39, 1)) == stride
    for codes, swizzle in SWIZZLE_CODES.items():
        edited = replace_field(replace_field(data, "swizzle_mode", codes[0]), "swizzle_atomicity", codes[1])
        edited = replace_field(edited, "box_dim", 32, 0)
        assert TensorMap.decode(edited) == dataclasses.replace(map_, swizzle=swizzle, box=(32, 8, 1))
    with pytest.raises(ArgumentError, match="only 128B takes another atomicity"):
        TensorMap.decode(replace_field(replace_field(data, "swizzle_mode", 1), "swizzle_atomicity", 2))


@pytest.mark.parametrize(
    ("field", "ordinal", "value", "sentence"),
    [
        ("rank", 0, 5, "rank=5, and tensormap.replace takes 0 to 4"),
        ("elemtype", 0, 16, "takes 0 to 15"),
        ("swizzle_mode", 0, 5, "takes 0 to 4"),
        ("swizzle_atomicity", 0, 4, "takes 0 to 3"),
        ("interleave_layout", 0, 3, "takes 0 to 2"),
        ("fill_mode", 0, 2, "takes 0 to 1"),
        ("box_dim", 0, 0, "takes 1 to 256"),
        ("box_dim", 5, 1, "ordinal 5 of box_dim"),
        ("global_stride", 4, 16, "ordinal 4 of global_stride"),
        ("element_stride", 1, 9, "takes 1 to 8"),
    ],
)
def test_values_that_a_field_cannot_hold_are_refused(field: str, ordinal: int, value: int, sentence: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        replace_field(TensorMap(**PLAIN).encode(), field, value, ordinal)
    assert sentence in str(caught.value)


def test_replacing_in_what_is_no_map_is_refused() -> None:
    with pytest.raises(ArgumentError, match="are no tensor map"):
        replace_field(struct.pack("<Q", 7) + bytes(120), "rank", 1)


def test_it_takes_over_the_runtimes_descriptions() -> None:
    for element in TmaElement:
        inner = 128 if element.is_padded else 256 // element.bits
        spec = TensorMapSpec(element=element, dims=(256, 9), byte_strides=(2048,), box=(inner, 4))
        map_ = TensorMap.describing(spec, 0x4000)
        assert (map_.address, map_.element.value, map_.box) == (0x4000, element.value, (inner, 4))
        assert map_.element.bits == element.bits
        assert map_.row_bytes == inner * element.bits // 8
