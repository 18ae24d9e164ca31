"""Tensor copies by instruction: boxes go where the oracle says, completions to the right barrier, rules are kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from megamoe_jit.emulator.engines.tma_box import PADDING_POISON
from megamoe_jit.emulator.isa.tma import reduce_rows
from megamoe_jit.emulator.machine.mbarrier import Mbarrier
from megamoe_jit.emulator.memory.spaces import SHARED_WINDOW
from megamoe_jit.emulator.memory.tensor_map import TENSOR_MAP_BYTES, Element, OobFill, Swizzle, TensorMap
from megamoe_jit.errors import EmulatorFault, MemoryFault, UnsupportedError
from tests.emulator.engines import tma_oracle
from tests.emulator.isa.rig import ALL, Rig, address_of, parks, shared

COMPLETE = "mbarrier::complete_tx::bytes"
BARRIER, BASE = 1024, 4096
COORDS = ["{%r4}", "{%r4, %r5}", "{%r4, %r5, %r6}", "{%r4, %r5, %r6, %r7}", "{%r4, %r5, %r6, %r7, %r8}"]


def load_text(dim: int, *qualifiers: str, space: str = "shared::cluster", extra: str = "") -> str:
    words = ".".join([f"cp.async.bulk.tensor.{dim}d.{space}.global", *qualifiers, COMPLETE])
    gathers = any("gather4" in word for word in qualifiers)
    return f"{words} [%r0], [%d0, {COORDS[4 if gathers else dim - 1]}], [%r2]{extra}"


def store_text(dim: int, *qualifiers: str, base: str = "cp.async.bulk.tensor", extra: str = "") -> str:
    words = ".".join([f"{base}.{dim}d.global.shared::cta", *qualifiers, "bulk_group"])
    gathers = any("scatter4" in word for word in qualifiers)
    return f"{words} [%d0, {COORDS[4 if gathers else dim - 1]}], [%r0]{extra}"


STORE_WAIT = ("cp.async.bulk.commit_group", "cp.async.bulk.wait_group 0")


def tensor(rig: Rig, fields: dict[str, Any], *, seed: int = 0, fill: int | None = None) -> tuple[TensorMap, Any]:
    """Make a tensor of random bytes in global memory, its map, and put the map's address into %d0."""
    nbytes = 1 << 16
    data = np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)
    if fill is not None:
        data[:] = fill
    memory = rig.memory(data)
    map_ = TensorMap(address=address_of(memory), **fields)
    rig.set(d0=address_of(rig.memory(np.frombuffer(map_.encode(), np.uint8), writable=False)))
    return map_, memory


def place(rig: Rig, coordinates: tuple[int, ...], smem: int = BASE, barrier: int = BARRIER) -> None:
    rig.set(r0=smem, r2=barrier, **{f"r{4 + i}": at for i, at in enumerate(coordinates)})


def armed(rig: Rig, nbytes: int, cta: int = 0, offset: int = BARRIER) -> Mbarrier:
    barrier = rig.barrier(offset, 1, cta)
    barrier.expect_tx(nbytes, by=rig.ctas[cta].warps[0])
    barrier.arrive(1, by=rig.ctas[cta].warps[0])
    return barrier


def reader(memory: Any) -> Any:
    start = address_of(memory)
    return lambda address: int(memory[address - start])


B128 = {"swizzle": Swizzle.B128}
ROWS = {"dims": (512, 20), "byte_strides": (256,)}
BOXES: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"element": Element.U8, "dims": (1000,), "box": (256,)}, (896,)),
    ({"element": Element.BF16, "dims": (100, 50), "byte_strides": (208,), "box": (64, 8), **B128}, (64, 45)),
    ({"element": Element.F32, "dims": (20, 30, 4), "byte_strides": (80, 2400), "box": (16, 3, 2),
      "swizzle": Swizzle.B64, "oob_fill": OobFill.NAN}, (-4, -1, 3)),
    ({"element": Element.U64, "dims": (9, 5, 5, 5), "byte_strides": (80, 400, 2000), "box": (4, 2, 2, 2),
      "element_strides": (1, 2, 1, 1), "swizzle": Swizzle.B32}, (6, 1, 4, 0)),
    ({"element": Element.U8, "dims": (64, 3, 3, 3, 3), "byte_strides": (64, 192, 576, 1728), "box": (32, 2, 1, 2, 2)},
     (16, 2, 1, -1, 0)),
    ({"element": Element.PACKED_U4, **ROWS, "box": (256, 8), **B128}, (128, 2)),
    ({"element": Element.PADDED_U6, "dims": (512, 20), "byte_strides": (384,), "box": (128, 4)}, (128, 1)),
    ({"element": Element.PADDED_U4, **ROWS, "box": (128, 8), **B128}, (256, 15)),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "coordinates"), BOXES)
@pytest.mark.parametrize("space", ["shared::cluster", "shared::cta"])
def test_loads_every_rank_and_type(fields: dict[str, Any], coordinates: tuple[int, ...], space: str) -> None:
    rig = Rig(load_text(len(coordinates), "tile", space=space))
    map_, memory = tensor(rig, fields)
    expected, transactions = tma_oracle.load(map_, coordinates, BASE, reader(memory))
    barrier = armed(rig, transactions)
    place(rig, coordinates)
    before = rig.cta.smem.copy()
    assert rig.step(0, 1 << 13) is None
    assert np.array_equal(rig.cta.smem, before)
    rig.finish()
    assert barrier.phase == 1
    changed = rig.cta.smem.copy()
    for address, value in expected.items():
        assert changed[address] == value
        changed[address] = before[address]
    rest = np.flatnonzero(changed != before)
    assert set(changed[rest].tolist()) <= ({PADDING_POISON} if map_.element.is_padded else set())
    assert rig.machine.counters.tma_bytes == transactions


@pytest.mark.parametrize(("fields", "coordinates"), BOXES[:-1])
def test_stores_every_rank_and_type(fields: dict[str, Any], coordinates: tuple[int, ...]) -> None:
    coordinates = tuple(abs(at) for at in coordinates)
    rig = Rig(store_text(len(coordinates)), *STORE_WAIT)
    map_, memory = tensor(rig, fields, fill=0xEE)
    rig.cta.smem[:] = np.random.default_rng(1).integers(0, 256, len(rig.cta.smem), dtype=np.uint8)
    want = memory.copy()
    for bit, (count, value) in tma_oracle.store(map_, coordinates, BASE, lambda at: int(rig.cta.smem[at])).items():
        at = bit - 8 * map_.address
        for i in range(count):
            mask = 1 << (at + i) % 8
            want[(at + i) // 8] = int(want[(at + i) // 8]) & ~mask | (mask if value >> i & 1 else 0)
    place(rig, coordinates)
    rig.step(0, 1)
    rig.step(1, 1)
    assert (memory == 0xEE).all()
    assert parks(rig.step(2, 1))
    rig.finish()
    assert rig.step(2, 1) is None
    assert np.array_equal(memory, want)


@pytest.mark.parametrize(("size", "last"), [(320, 304), (300, 300)])
def test_stores_write_whole_chunks_where_there_is_memory(size: int, last: int) -> None:
    rig = Rig(store_text(1), *STORE_WAIT)
    memory = rig.memory(np.zeros(size, np.uint8))
    map_ = TensorMap(address=address_of(memory), element=Element.U8, dims=(300,), box=(64,))
    rig.set(d0=address_of(rig.memory(np.frombuffer(map_.encode(), np.uint8), writable=False)))
    rig.cta.smem[BASE : BASE + 64] = 7
    place(rig, (288,))
    for step in range(3):
        rig.step(step, 1)
    rig.finish()
    assert np.flatnonzero(memory).tolist() == list(range(288, last))


GATHER: dict[str, Any] = {
    "element": Element.F16, "dims": (128, 40), "byte_strides": (256,), "box": (64, 1), "swizzle": Swizzle.B128,
}  # fmt: skip


def test_gather_and_scatter_of_four_rows() -> None:
    rig = Rig(load_text(2, "tile::gather4"), store_text(2, "tile::scatter4"), *STORE_WAIT)
    map_, memory = tensor(rig, GATHER)
    coordinates = (64, 7, 39, 0, 40)
    expected, transactions = tma_oracle.load(map_, coordinates, BASE, reader(memory), gather=True)
    assert transactions == 512
    barrier = armed(rig, transactions)
    place(rig, coordinates)
    rig.step(0, 1)
    rig.finish()
    assert barrier.phase == 1
    assert all(rig.cta.smem[address] == value for address, value in expected.items())
    copy, target = tensor(rig, GATHER, fill=0)
    moved = (64, 1, 2, 3, 4)
    place(rig, moved)
    rig.step(1, 1)
    rig.step(2, 1)
    rig.finish()
    got, source = target[: 40 * 256].reshape(40, 256), memory[: 40 * 256].reshape(40, 256)
    assert np.array_equal(got[1:4, 128:], source[[7, 39, 0], 128:])
    assert not got[4].any()  # row 40 was outside and read zero
    assert not got[:, :128].any()
    assert not got[5:].any()
    assert copy.dims == (128, 40)


def test_multicast_signals_each_destination() -> None:
    rig = Rig(load_text(2, "multicast::cluster", extra=", %h0"), cluster=4)
    fields = {
        "element": Element.U8,
        "dims": (256, 64),
        "byte_strides": (256,),
        "box": (128, 8),
        "swizzle": Swizzle.B128,
    }
    map_, memory = tensor(rig, fields)
    expected, transactions = tma_oracle.load(map_, (128, 5), BASE, reader(memory))
    barriers = [armed(rig, transactions, cta) for cta in range(4)]
    place(rig, (128, 5), smem=shared(BASE, 3), barrier=shared(BARRIER, 0))
    rig.set(h0=0b0110)
    before = [cta.smem.copy() for cta in rig.ctas]
    rig.step(0, 1)
    rig.finish()
    assert [barrier.phase for barrier in barriers] == [0, 1, 1, 0]
    for rank, cta in enumerate(rig.ctas):
        if rank in (1, 2):
            before[rank][list(expected)] = list(expected.values())
        assert np.array_equal(cta.smem, before[rank])


PAIR = {"element": Element.U8, "dims": (256, 64), "byte_strides": (256,), "box": (64, 8)}


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("told", [0, 1])
def test_a_pair_may_tell_either_ctas_barrier(target: int, told: int) -> None:
    rig = Rig(load_text(2, "cta_group::2"), cluster=2)
    tensor(rig, PAIR)
    barriers = [armed(rig, 512, cta) for cta in range(2)]
    place(rig, (0, 0), smem=shared(BASE, target), barrier=shared(BARRIER, told))
    rig.step(0, 1)
    rig.finish()
    assert [barrier.phase for barrier in barriers] == [int(told == 0), int(told == 1)]


@pytest.mark.parametrize("parity", [0, 1])
def test_multicast_pairs_tell_barriers_of_one_parity(parity: int) -> None:
    rig = Rig(load_text(2, "cta_group::2", "multicast::cluster", extra=", 0x3f"), cluster=8)
    tensor(rig, PAIR)
    barriers = [armed(rig, 2 * 512, cta) for cta in range(8)]
    place(rig, (0, 0), barrier=shared(BARRIER, 4 + parity))
    rig.step(0, 1)
    rig.finish()
    assert [barrier.phase for barrier in barriers] == [int(rank % 2 == parity and rank < 6) for rank in range(8)]


REDUCED = [
    (Element.U32, "add"), (Element.I32, "min"), (Element.U64, "max"), (Element.U32, "inc"), (Element.U32, "dec"),
    (Element.I64, "max"), (Element.U32, "xor"), (Element.U64, "and"), (Element.F32, "add"), (Element.F16, "add"),
    (Element.BF16, "min"), (Element.F32_FTZ, "add"),
]  # fmt: skip


@pytest.mark.parametrize(("element", "operation"), REDUCED)
def test_reductions_of_a_box(element: Element, operation: str) -> None:
    from megamoe_jit.emulator.engines.reductions import combination

    rig = Rig(store_text(2, operation, "tile", base="cp.reduce.async.bulk.tensor"), *STORE_WAIT)
    inner = 128 * 8 // element.bits
    fields = {
        "element": element,
        "dims": (inner + 3, 20),
        "byte_strides": (256,),
        "box": (inner, 6),
        "swizzle": Swizzle.B128,
    }
    map_, memory = tensor(rig, fields)
    before = memory.copy()
    rig.cta.smem[:] = np.random.default_rng(9).integers(0, 256, len(rig.cta.smem), dtype=np.uint8)
    coordinates = (16 * 8 // element.bits, 16)
    types = {
        "U32": "u32",
        "I32": "s32",
        "U64": "u64",
        "I64": "s64",
        "F32": "f32",
        "F32_FTZ": "f32",
        "F16": "f16",
        "BF16": "bf16",
    }
    combine = combination(operation, types[element.name], flushes=element is Element.F32_FTZ)
    dtype, want = f"u{element.bits // 8}", before.copy()
    for bit, (_, value) in tma_oracle.store(map_, coordinates, BASE, lambda at: int(rig.cta.smem[at])).items():
        at = bit // 8 - map_.address
        cell = want[at : at + element.bits // 8].view(dtype)
        cell[:] = combine(cell.copy(), np.array([value], dtype))
    place(rig, coordinates)
    rig.step(0, 1)
    assert np.array_equal(memory, before)
    rig.finish()
    assert np.array_equal(memory, want)
    assert (want != before).any()


def test_rows_that_lie_over_one_another_are_reduced_one_by_one() -> None:
    cells = np.zeros(8, np.uint32)
    overlapping = np.lib.stride_tricks.as_strided(cells, (3, 2, 4), (4, 0, 4))
    operand = np.arange(24, dtype=np.uint32).reshape(3, 2, 4)
    reduce_rows(overlapping, operand, lambda old, new: old + new)
    want = [0] * 8
    for i in range(3):
        for j in range(2):
            for k in range(4):
                want[i + k] += int(operand[i, j, k])
    assert cells.tolist() == want


def test_the_map_is_read_at_the_issue() -> None:
    rig = Rig(load_text(1))
    map_, memory = tensor(rig, {"element": Element.U8, "dims": (1024,), "box": (16,)})
    raw = rig.kept[-1]
    armed(rig, 16)
    place(rig, (32,))
    rig.step(0, 1)
    raw[:] = 0
    rig.finish()
    assert np.array_equal(rig.cta.smem[BASE : BASE + 16], memory[32:48])
    with pytest.raises(EmulatorFault, match="are no tensor map"):
        rig.step(0, 1)
    assert map_.rank == 1


FIELDS: dict[str, Any] = {"element": Element.U8, "dims": (256, 64), "byte_strides": (256,), "box": (128, 8)}


@pytest.mark.parametrize(
    ("text", "values", "sentence"),
    [
        (load_text(2), {"r0": BASE + 16}, "no multiple of 128"),
        (load_text(2), {"r0": 512}, "shared address 0x200"),
        (load_text(2), {"r2": BARRIER + 8}, "No mbarrier was initialised"),
        (load_text(2), {"r2": shared(BARRIER, 1)}, "it must be in the CTA of the destination"),
        (load_text(2, "cta_group::2"), {"r2": shared(BARRIER, 2)}, "the CTA of the destination or its pair's"),
        (load_text(2, space="shared::cta"), {"r0": shared(BASE, 1)}, "may only name its own"),
        (load_text(2, space="shared::cta"), {"r2": shared(BARRIER, 1)}, "may only name its own"),
        (load_text(3), {}, "the instruction has 3 dimensions and the tensor map has 2"),
        (load_text(2, "tile::gather4"), {}, "box[1]=8, and gather4 and scatter4 need a box of one row"),
        (load_text(2), {"d0": 64}, "in no allocation"),
        (load_text(2), {"d0": SHARED_WINDOW + 8192}, "is in shared memory; it must be param, const or global"),
        (load_text(2), {"r4": 1}, "is at byte 1 of a row, and a box begins at a multiple of 16 bytes"),
        (store_text(2), {"r4": 8}, "Use a multiple of 16 elements"),
        (store_text(2), {"r5": -1}, "and copies to global memory take no negative ones"),
        (store_text(2), {"r0": shared(BASE, 1)}, "may only name its own"),
        (store_text(2), {"r0": BASE + 64}, "no multiple of 128"),
        (store_text(2, "add", base="cp.reduce.async.bulk.tensor"), {}, ".add of a tensor takes no UINT8"),
        (load_text(2, "multicast::cluster", extra=", 0x100"), {}, "names CTA 8 of the cluster"),
    ],
)
def test_wrong_operands_are_reported(text: str, values: dict[str, int], sentence: str) -> None:
    rig = Rig(text, cluster=4)
    tensor(rig, FIELDS)
    for cta in range(4):
        armed(rig, 1024, cta)
    place(rig, (0, 0, 0, 0, 0))
    rig.set(**values)
    with pytest.raises(EmulatorFault) as caught:
        rig.step(0, ALL & -ALL)
    assert sentence in str(caught.value)
    assert not rig.machine.queues.pending


def test_what_is_no_map_is_named_with_its_address() -> None:
    rig = Rig(load_text(2))
    tensor(rig, FIELDS)
    wrong = rig.memory(np.arange(256, dtype=np.uint8))
    rig.set(d0=address_of(wrong))
    armed(rig, 1024)
    place(rig, (0, 0))
    with pytest.raises(EmulatorFault) as caught:
        rig.step(0, 1)
    assert f"At 0x{address_of(wrong):x}, where a tensor map is wanted: the 128 bytes are no tensor map" in str(
        caught.value
    )
    assert "00 01 02 03" in str(caught.value)


def test_memory_outside_of_allocations_is_reported_at_the_issue() -> None:
    rig = Rig(load_text(2), store_text(2))
    map_, _ = tensor(rig, FIELDS)
    far = dataclasses.replace(map_, dims=(256, 1000))
    rig.set(d0=address_of(rig.memory(np.frombuffer(far.encode(), np.uint8))))
    armed(rig, 1024)
    for index in (0, 1):
        place(rig, (0, 500))
        with pytest.raises(MemoryFault, match="in no allocation"):
            rig.step(index, 1)
        assert not rig.machine.queues.pending


def test_outside_of_the_tensor_nothing_is_touched() -> None:
    """A box that begins behind the tensor reads only fill, wherever its rows would lie."""
    rig = Rig(load_text(2), store_text(2), *STORE_WAIT)
    tensor(rig, FIELDS)
    barrier = armed(rig, 1024)
    place(rig, (0, 1 << 30))
    rig.cta.smem[:] = 1
    rig.step(0, 1)
    rig.step(1, 1)
    rig.step(2, 1)
    rig.finish()
    assert barrier.phase == 1
    assert rig.step(3, 1) is None
    assert not rig.cta.smem[BASE : BASE + 1024].any()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (load_text(3, "im2col"), ".im2col is not emulated"),
        (load_text(3, "tile::gather4"), ".tile::gather4 has no 3d form"),
        (load_text(2, "tile::scatter4"), "no form copies shared::cluster global .tile::scatter4"),
        (load_text(2, "multicast::cluster", space="shared::cta", extra=", 3"), ".multicast needs .shared::cluster"),
        (store_text(2, "cta_group::2"), ".cta_group::2 is for copies to shared memory"),
        (store_text(2, "tile::scatter4", "add", base="cp.reduce.async.bulk.tensor"), "in .tile mode"),
        (load_text(2, "L2::cache_hint"), "has 3 operands, and"),
    ],
)
def test_forms_that_do_not_exist_fail_at_load_time(text: str, sentence: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        Rig(text).step(0)
    assert sentence in str(caught.value)


def test_a_map_is_built_in_shared_memory_and_published() -> None:
    rig = Rig(
        "tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%d1], %d2",
        "tensormap.replace.tile.rank.shared::cta.b1024.b32 [%d1], 1",
        "tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%d1], 0, %r10",
        "tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%d1], 1, 8",
        "tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%d1], 0, 256",
        "tensormap.replace.tile.global_dim.b1024.b32 [%d4], 1, 64",
        "tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%d1], 0, 256",
        "tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%d1], 0, 1",
        "tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%d1], 1, 1",
        "tensormap.replace.tile.elemtype.shared::cta.b1024.b32 [%d1], 0",
        "tensormap.replace.tile.swizzle_mode.shared::cta.b1024.b32 [%d1], 3",
        "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%d3], [%d1], 128",
        "tensormap.replace.tile.fill_mode.global.b1024.b32 [%d3], 2",
        "tensormap.replace.tile.rank.global.b1024.b32 [%d3], %r10",
    )
    data = rig.memory(np.zeros(1 << 14, np.uint8))
    published = rig.memory(np.zeros(TENSOR_MAP_BYTES, np.uint8))
    rig.cta.smem[8192 : 8192 + TENSOR_MAP_BYTES] = 0
    rig.set(d1=8192, d2=address_of(data), d3=address_of(published), d4=SHARED_WINDOW + 8192, r10=128)
    for index in range(11):
        rig.step(index, 1)
    rig.step(11)
    map_ = TensorMap.decode(published.tobytes())
    assert map_ == TensorMap(
        address=address_of(data), element=Element.U8, dims=(256, 64), byte_strides=(256,), box=(128, 8),
        swizzle=Swizzle.B128,
    )  # fmt: skip
    with pytest.raises(EmulatorFault, match=r"fill_mode=2, and tensormap\.replace takes 0 to 1"):
        rig.step(12, 1)
    with pytest.raises(EmulatorFault, match="rank=128"):
        rig.step(13, 1)


def test_replacing_what_is_no_map_is_reported() -> None:
    rig = Rig("tensormap.replace.tile.rank.shared::cta.b1024.b32 [%r0], 1")
    rig.cta.smem[8192 : 8192 + 128] = 3
    rig.set(r0=8192)
    with pytest.raises(EmulatorFault, match="are no tensor map"):
        rig.step(0, 1)


def test_publishing_needs_one_address() -> None:
    rig = Rig(
        "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.sys.sync.aligned [%d3], [%r0], 128"
    )
    published = rig.memory(np.zeros(256, np.uint8))
    rig.set(d3=address_of(published), r0=[8192] * 31 + [8320])
    with pytest.raises(EmulatorFault, match="Lanes give different addresses"):
        rig.step(0)
