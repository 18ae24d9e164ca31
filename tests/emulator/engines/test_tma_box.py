"""The data path of tensor copies against element-by-element oracles, tables of the manual, and measured hardware."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from megamoe_jit.emulator.engines.tma_box import (
    PADDING_POISON,
    Box,
    Region,
    box_layout,
    ends_in_chunk,
    refuse_copy,
    round_to_tf32,
    swizzle_addresses,
)
from megamoe_jit.emulator.memory.tensor_map import Element, Interleave, OobFill, Swizzle, TensorMap
from tests.emulator.engines import tma_oracle

SMEM = 96 * 1024


@dataclass
class Tensor:
    """Bytes of global memory with guards on both sides, at an address that is a multiple of 32."""

    memory: npt.NDArray[np.uint8]
    address: int

    @classmethod
    def random(cls, rng: np.random.Generator, nbytes: int) -> Tensor:
        raw = rng.integers(0, 256, nbytes + 64, dtype=np.uint8)
        start = -raw.ctypes.data % 32
        return cls(raw[start : start + nbytes], raw.ctypes.data + start)

    def view(self, region: Region) -> npt.NDArray[np.uint8]:
        start = region.start - self.address
        assert start >= 0, "the region begins before the tensor"
        assert start + region.span <= len(self.memory), "the region ends behind the tensor"
        return self.memory[start : start + region.span]

    def byte(self, address: int) -> int:
        return int(self.memory[address - self.address])


def random_case(rng: random.Random, *, is_store: bool) -> tuple[TensorMap, Tensor, tuple[int, ...], bool]:
    """Draw a map, memory of its size, coordinates, and whether it is a gather or scatter of four rows."""
    element = rng.choice(list(Element))
    while is_store and element is Element.PADDED_U4:
        element = rng.choice(list(Element))
    swizzles = [Swizzle.NONE, Swizzle.B128, Swizzle.B128_ATOM_32B] if element.is_padded else list(Swizzle)
    swizzle = rng.choice([s for s in swizzles if not (is_store and s is Swizzle.B128_ATOM_32B_FLIP_8B)])
    gather = rng.random() < 0.2
    rank = 2 if gather else rng.randint(1, 5)
    limit = swizzle.span_bytes or 256
    inner = 128 if element.is_padded else rng.randint(1, limit // 16) * 128 // element.bits
    inner = min(inner, 256 // (128 // element.bits or 1) * (128 // element.bits or 1))
    unit = 128 if element.is_padded else 2 if element is Element.PACKED_U4 else 1
    dims = [unit * rng.randint(1, max(1, 3 * inner // unit))]
    box, steps, strides = [inner], [1], []
    row = (dims[0] * element.bits // 8 + 31) // 32 * 32
    for _ in range(rank - 1):
        strides.append(row + 32 * rng.choice([0, 0, 1, 3]))
        dims.append(rng.randint(1, 7))
        row = strides[-1] * dims[-1]
        box.append(1 if gather else rng.randint(1, 5))
        steps.append(rng.choice([1, 1, 1, 2, 3, 8]))
    tensor = Tensor.random(np.random.default_rng(rng.randrange(1 << 30)), row)
    if is_store:
        tensor.memory[:] = 0xC3
    map_ = TensorMap(
        address=tensor.address,
        element=element,
        dims=tuple(dims),
        byte_strides=tuple(strides),
        box=tuple(box),
        element_strides=tuple(steps),
        swizzle=swizzle,
        oob_fill=rng.choice(list(OobFill)) if element.is_float else OobFill.ZERO,
    )
    lowest = 0 if is_store else -1
    columns = rng.choice([0, rng.randint(lowest * 2 * inner, dims[0] + inner)])
    begin = 128 if element.is_padded else 128 // element.bits
    coordinates = [columns // begin * begin]
    outer = dims[1:] * (4 if gather else 1)
    coordinates += [rng.choice([0, rng.randint(lowest * 6, extent + 2)]) for extent in outer]
    return map_, tensor, tuple(coordinates), gather


@pytest.mark.parametrize("seed", range(150))
def test_loads_are_the_oracles(seed: int) -> None:
    rng = random.Random(seed)
    map_, tensor, coordinates, gather = random_case(rng, is_store=False)
    base = 128 * rng.randint(8, 40)
    rank = map_.rank
    refusal = refuse_copy(map_, coordinates, base, dim=rank, is_store=False, gather=gather, reduces=False)
    assert refusal is None
    before = np.random.default_rng(seed).integers(0, 256, SMEM, dtype=np.uint8)
    smem = before.copy()
    box = Box(map_, coordinates, gather=gather)
    payload = box.load([tensor.view(region) for region in box.regions])
    box.layout.scatter(payload, smem, base)
    expected, transaction_bytes = tma_oracle.load(map_, coordinates, base, tensor.byte, gather=gather)
    assert box.layout.transaction_bytes == transaction_bytes
    wanted = before.copy()
    touched = np.unique(box.layout.offsets(base))
    assert touched.min() >= base
    assert touched.max() < base + box.layout.extent
    if map_.element.is_padded:
        wanted[touched] = PADDING_POISON
    wanted[list(expected)] = list(expected.values())
    assert np.array_equal(smem, wanted)
    assert set(expected) <= set(touched.tolist())
    if not map_.element.is_padded:
        assert set(expected) == set(touched.tolist())
        assert box.layout.is_dense == (len(expected) == box.layout.extent)


@pytest.mark.parametrize("seed", range(100))
def test_stores_are_the_oracles(seed: int) -> None:
    rng = random.Random(1000 + seed)
    map_, tensor, coordinates, gather = random_case(rng, is_store=True)
    base = 128 * rng.randint(8, 40)
    rank = map_.rank
    refusal = refuse_copy(map_, coordinates, base, dim=rank, is_store=True, gather=gather, reduces=False)
    assert refusal is None
    smem = np.random.default_rng(seed).integers(0, 256, SMEM, dtype=np.uint8)
    expected = tensor.memory.copy()
    shared = tma_oracle.store(map_, coordinates, base, lambda at: int(smem[at]), gather=gather)
    for bit, (count, value) in shared.items():
        for i in range(count):
            at, mask = (bit + i) // 8 - tensor.address, 1 << (bit + i) % 8
            expected[at] = int(expected[at]) & ~mask | (mask if value >> i & 1 else 0)
    box = Box(map_, coordinates, gather=gather, whole_chunks=True)
    assert ends_in_chunk(map_) == (map_.dims[0] * map_.element.bits % 128 != 0)
    box.store(box.layout.gather(smem, base), [tensor.view(region) for region in box.regions])
    assert np.array_equal(tensor.memory, expected)


@pytest.mark.parametrize("swizzle", list(Swizzle))
def test_swizzles_are_the_manuals_tables(swizzle: Swizzle) -> None:
    addresses = np.arange(8192)
    moved = swizzle_addresses(swizzle, addresses)
    assert moved.tolist() == [tma_oracle.swizzled(swizzle, address) for address in range(8192)]
    assert np.array_equal(np.sort(moved), addresses)
    pattern = swizzle.pattern_bytes
    assert np.array_equal(moved[pattern:] - pattern, moved[:-pattern])
    row = swizzle.span_bytes or 16
    assert np.array_equal(moved[: min(row, 128)], addresses[: min(row, 128)])


def test_swizzles_of_tcgen05_operands_are_the_tensor_cores() -> None:
    """The functions that matrix descriptors apply to the same tiles (CUTLASS's layouts)."""
    x = np.arange(4096)
    assert np.array_equal(swizzle_addresses(Swizzle.B32, x), x ^ ((x >> 3) & 0x10))
    assert np.array_equal(swizzle_addresses(Swizzle.B64, x), x ^ ((x >> 3) & 0x30))
    assert np.array_equal(swizzle_addresses(Swizzle.B128, x), x ^ ((x >> 3) & 0x70))
    assert np.array_equal(swizzle_addresses(Swizzle.B128_ATOM_32B, x), x ^ ((x >> 2) & 0x60))


def words(nbytes: int) -> Tensor:
    """Return memory whose 32-bit word i is i + 1."""
    tensor = Tensor.random(np.random.default_rng(0), nbytes)
    tensor.memory.view(np.uint32)[:] = np.arange(1, nbytes // 4 + 1, dtype=np.uint32)
    return tensor


def loaded_words(base: int, **fields: Any) -> npt.NDArray[np.uint32]:
    """Load a box of U32 from words at coordinates 0 and return shared memory as words."""
    tensor = words(1024)
    map_ = TensorMap(address=tensor.address, element=Element.U32, dims=(32, 8), byte_strides=(128,), **fields)
    box = Box(map_, (0, 0))
    smem = np.zeros(4096, np.uint8)
    box.layout.scatter(box.load([tensor.view(region) for region in box.regions]), smem, base)
    return smem.view(np.uint32)


def test_narrow_rows_are_a_span_apart_as_measured() -> None:
    """An RTX 5080 (sm_120) put rows of 32 bytes 128 apart under the 128B swizzle, and counted 96 bytes."""
    smem = loaded_words(0, box=(8, 5), element_strides=(1, 2), swizzle=Swizzle.B128)
    expected = np.zeros(1024, np.uint32)
    for place, word in ((0, 1), (16, 5), (128, 69), (144, 65), (288, 129), (304, 133)):
        expected[place // 4 : place // 4 + 4] = np.arange(word, word + 4)
    assert np.array_equal(smem, expected)


def test_absolute_addresses_decide_as_measured() -> None:
    """First words of the 128-byte lines that an RTX 5080 wrote at address 128."""
    for swizzle, firsts in (
        (Swizzle.B128, [5, 41, 77, 113, 149, 185, 221, 225]),
        (Swizzle.B128_ATOM_32B, [9, 49, 89, 97, 137, 177, 217, 225]),
        (Swizzle.B128_ATOM_32B_FLIP_8B, [11, 49, 91, 97, 139, 177, 219, 225]),
    ):
        smem = loaded_words(128, box=(32, 8), swizzle=swizzle)
        assert smem[32 : 32 + 256 : 32].tolist() == firsts


# Pattern in global memory -> what an RTX 5080 loaded as TFLOAT32 and as TFLOAT32_FTZ.
TF32 = {
    0x3F801001: 0x3F802000, 0x3F803000: 0x3F804000, 0x3F805000: 0x3F804000, 0x80000001: 0x80000000, 1: 0,
    0x7FFFFF: 0x800000, 0x7F800001: 0x7FFFE000, 0x7FC00001: 0x7FFFE000, 0xFF800001: 0x7FFFE000,
    0x7F800000: 0x7F800000, 0xFF800000: 0xFF800000, 0xBF801000: 0xBF800000, 0x3FFFFFFF: 0x40000000, 0x2000: 0x2000,
    0x80000000: 0x80000000, 0: 0,
}  # fmt: skip


@pytest.mark.parametrize("element", [Element.TF32, Element.TF32_FTZ, Element.F32_FTZ, Element.F32])
def test_floats_are_converted_as_measured(element: Element) -> None:
    tensor = Tensor.random(np.random.default_rng(0), 64)
    tensor.memory.view(np.uint32)[:] = list(TF32)
    map_ = TensorMap(address=tensor.address, element=element, dims=(16,), box=(16,))
    box = Box(map_, (0,))
    got = box.load([tensor.view(region) for region in box.regions]).view(np.uint32)
    assert got.tolist() == list(TF32.values() if element.is_tf32 else TF32)


def test_tf32_keeps_what_has_ten_bits() -> None:
    bits = np.arange(0, 1 << 32, 1 << 13, dtype=np.uint64).astype(np.uint32)
    kept = bits[(bits & 0x7F800000) != 0x7F800000]
    assert np.array_equal(round_to_tf32(kept), kept)


@pytest.mark.parametrize("element", [Element.F16, Element.BF16, Element.F32, Element.TF32, Element.F64])
def test_nan_fill_is_as_measured(element: Element) -> None:
    tensor = Tensor.random(np.random.default_rng(0), 512)
    map_ = TensorMap(
        address=tensor.address, element=element, dims=(16,), byte_strides=(), box=(16,), oob_fill=OobFill.NAN
    )
    box = Box(map_, (16,))
    assert not box.regions
    assert set(box.load([]).view(np.uint32).tolist()) == {0x7FF77FF7}
    assert np.isnan(
        box.load([]).view({16: "f2", 32: "f4", 64: "f8"}[element.bits]) if element.bits > 16 else np.nan
    ).all()


def test_runs_of_a_region_cover_it_once() -> None:
    rng = random.Random(5)
    for _ in range(300):
        map_, _, coordinates, gather = random_case(rng, is_store=False)
        for region in Box(map_, coordinates, gather=gather).regions:
            starts, length = region.rows()
            covered = (starts[:, None] + np.arange(length)).reshape(-1)
            index = np.zeros(1, np.int64)
            for count, stride in zip(region.shape, region.strides, strict=True):
                index = (index[:, None] + np.arange(count) * stride).reshape(-1)
            assert np.array_equal(np.sort(covered), np.sort(region.start + index))
            assert covered.min() == region.start
            assert covered.max() == region.start + region.span - 1


def test_runs_merge_where_rows_touch() -> None:
    map_ = TensorMap(address=0x1000, element=Element.U8, dims=(64, 9, 9), byte_strides=(64, 1024), box=(64, 4, 3))
    (region,) = Box(map_, (0, 2, 8)).regions
    starts, length = region.rows()
    assert (starts.tolist(), length) == ([0x1000 + 128 + 8192], 256)
    (region,) = Box(map_, (0, 2, 6)).regions
    starts, length = region.rows()
    assert (sorted(starts.tolist()), length) == ([0x1000 + 128 + 1024 * page for page in (6, 7, 8)], 256)


BASE: dict[str, Any] = {"address": 0x10000, "element": Element.U8, "dims": (256, 8), "byte_strides": (256,)}
PADDED: dict[str, Any] = {**BASE, "element": Element.PADDED_U6, "box": (128, 8)}


@pytest.mark.parametrize(
    ("fields", "call", "sentence"),
    [
        ({"box": (64, 8)}, {"dim": 3}, "the instruction has 3 dimensions and the tensor map has 2"),
        ({"box": (64, 8)}, {"coordinates": (0, 0, 0)}, "3 coordinates, and this form takes 2"),
        ({"box": (64, 8)}, {"smem": 64}, "shared-memory address 0x40 is no multiple of 128"),
        ({"box": (64, 8)}, {"gather": True, "coordinates": (0, 1, 2, 3, 4)}, "box[1]=8, and gather4"),
        ({"box": (64, 1)}, {"gather": True}, "2 coordinates, and this form takes 5"),
        (
            {"box": (64, 8)},
            {"coordinates": (8, 0)},
            "coordinate 8 of dimension 0 is at byte 8 of a row, and a box begins",
        ),
        ({"box": (64, 8)}, {"is_store": True, "coordinates": (8, 0)}, "Use a multiple of 16 elements"),
        ({"box": (64, 8)}, {"is_store": True, "coordinates": (0, -1)}, "(0, -1), and copies to global memory take no"),
        ({"box": (64, 8), "element": Element.PACKED_U4}, {"coordinates": (3, 0)}, "is at byte 1.5 of a row"),
        (PADDED, {"coordinates": (64, 0)}, "coordinate 64 of dimension 0, and 16U6_ALIGN16B needs a multiple of 128"),
        (PADDED | {"element": Element.PADDED_U4}, {"is_store": True}, "16U4_ALIGN16B can be loaded only"),
        (PADDED | {"swizzle": Swizzle.B128_ATOM_64B}, {}, "can be stored only"),
        ({"box": (64, 8), "swizzle": Swizzle.B128_ATOM_32B_FLIP_8B}, {"is_store": True}, "can be loaded only"),
        ({"box": (64, 8), "element": Element.PACKED_U4}, {"is_store": True, "reduces": True}, "cannot be reduced"),
        ({"box": (64, 8), "element": Element.TF32}, {"is_store": True, "reduces": True}, "TFLOAT32 cannot be reduced"),
    ],
)
def test_copies_that_cannot_be_are_refused(fields: dict[str, Any], call: dict[str, Any], sentence: str) -> None:
    arguments = {"is_store": False, "gather": False, "reduces": False, "dim": 2} | call
    coordinates, smem = arguments.pop("coordinates", (0, 0)), arguments.pop("smem", 1024)
    reason = refuse_copy(TensorMap(**(BASE | fields)), coordinates, smem, **arguments)
    assert reason is not None
    assert sentence in reason


def test_interleaved_maps_are_refused_by_name() -> None:
    map_ = TensorMap(
        address=0x10000, element=Element.F16, dims=(64, 4, 4), byte_strides=(128, 512), box=(8, 2, 2),
        interleave=Interleave.B16,
    )  # fmt: skip
    reason = refuse_copy(map_, (0, 0, 0), 1024, dim=3, is_store=False, gather=False, reduces=False)
    assert reason == "the tensor map has interleave=16B, which the emulator does not copy. Use NONE."


def test_a_tile_takes_tens_of_microseconds() -> None:
    tensor = Tensor.random(np.random.default_rng(0), 1 << 20)
    map_ = TensorMap(
        address=tensor.address, element=Element.U8, dims=(1024, 1024), byte_strides=(1024,), box=(128, 64),
        swizzle=Swizzle.B128,
    )  # fmt: skip
    smem = np.zeros(1 << 16, np.uint8)
    times = []
    for row in range(400):
        start = time.perf_counter()
        box = Box(map_, (128, row))
        box.layout.scatter(box.load([tensor.view(region) for region in box.regions]), smem, 2048)
        times.append(time.perf_counter() - start)
    assert min(times) < 100e-6
    assert box_layout(map_, False) is box.layout
