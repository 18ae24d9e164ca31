"""Places of scale factors: one to one at every stage, those of the packed tensors, and examples by hand."""

from __future__ import annotations

import pytest
import torch

from megamoe_jit import ArgumentError, MoeWeights
from megamoe_jit.formats.fp8 import decode_ue4m3
from megamoe_jit.formats.sf_check import find_sf_difference
from megamoe_jit.layouts.sf_mixups import sf_mixups
from megamoe_jit.layouts.sf_places import SfPlaces
from megamoe_jit.layouts.weights_sm100 import Sm100WeightLayout, sm100_layouts
from megamoe_jit.ops.weights import transform_weights

# name: gran_k, block_k, mma_k
KINDS = {"nvfp4": (16, 256, 64), "mxfp4": (32, 256, 64), "mxfp8": (32, 128, 32)}


def places(kind: str, *, rows: int = 136, k: int = 352, branches: int = 2) -> SfPlaces:
    gran_k, block_k, mma_k = KINDS[kind]
    layout = Sm100WeightLayout(rows=rows, k=k, gran_k=gran_k, branches=branches)
    return SfPlaces(layout=layout, block_k=block_k, mma_k=mma_k)


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_leads_back(kind: str, branches: int) -> None:
    p = places(kind, branches=branches)
    seen: dict[str, set[object]] = {"packed": set(), "shared": set(), "tensor": set()}
    for row in range(0, p.layout.checkpoint_rows, 7):
        for group in range(p.layout.groups):
            place = p.of(row, group)
            t = place.tensor
            assert p.at_checkpoint(place.checkpoint_byte) == place
            assert p.at_packed(place.packed_byte) == place
            assert p.at_shared(place.tile, place.k_stage, place.shared_byte) == place
            for quarter in range(4):
                assert p.at_tensor(place.tile, place.k_stage, t.lane + 32 * quarter, t.column, t.byte) == place
            seen["packed"].add(place.packed_byte)
            seen["shared"].add((place.tile, place.k_stage, place.shared_byte))
            seen["tensor"].add((place.tile, place.k_stage, t.lane, t.column, t.byte))
    count = len(range(0, p.layout.checkpoint_rows, 7)) * p.layout.groups
    assert {len(found) for found in seen.values()} == {count}


@pytest.mark.parametrize("kind", ["nvfp4", "mxfp4"])
def test_packed_bytes_are_the_transforms(kind: str) -> None:
    weights = MoeWeights.random(2, 352, 160, checkpoint="nvfp4" if kind == "nvfp4" else "mxfp4", seed=3)
    l1, _ = transform_weights(weights, f"{kind}_{kind}", "sm_100f")
    assert l1.sf is not None
    p = places(kind, rows=160)
    packed = l1.sf.transpose(1, 2).contiguous().view(torch.uint8).view(2, -1)
    checkpoint = weights.l1_sf.view(torch.uint8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        row = int(torch.randint(0, 320, (), generator=generator))
        group = int(torch.randint(0, p.layout.groups, (), generator=generator))
        assert packed[1, p.of(row, group).packed_byte] == checkpoint[1, row, group]


@pytest.mark.parametrize(
    ("row", "k", "shared", "lane", "column", "byte", "mma"),
    [
        (0, 0, 0, 0, 0, 0, 0),
        (37, 0, 84, 5, 1, 0, 0),
        (37, 80, 597, 5, 5, 1, 1),
        (64, 128, 1032, 0, 10, 0, 2),
        (127, 255, 2047, 31, 15, 3, 3),
    ],
)
def test_nvfp4_by_hand(row: int, k: int, shared: int, lane: int, column: int, byte: int, mma: int) -> None:
    place = places("nvfp4", rows=256, k=256, branches=1).of(row, k // 16)
    t = place.tensor
    assert (place.shared_byte, t.lane, t.column, t.byte, t.mma, t.sf_id) == (shared, lane, column, byte, mma, 0)


@pytest.mark.parametrize(
    ("row", "k", "shared", "lane", "column", "sf_id"),
    [(0, 0, 0, 0, 0, 0), (37, 40, 85, 5, 1, 1), (127, 127, 511, 31, 3, 3)],
)
def test_mxfp8_by_hand(row: int, k: int, shared: int, lane: int, column: int, sf_id: int) -> None:
    place = places("mxfp8", rows=256, k=256, branches=1).of(row, k // 32)
    t = place.tensor
    assert (place.shared_byte, t.lane, t.column, t.byte, t.mma, t.sf_id) == (shared, lane, column, sf_id, sf_id, sf_id)


def test_padding_is_nobodys() -> None:
    p = places("nvfp4", rows=8, k=32, branches=1)
    assert p.at_tensor(0, 0, 0, 0, 1) is not None
    assert p.at_tensor(0, 0, 0, 0, 2) is None  # K has two groups
    assert p.at_tensor(0, 0, 8, 0, 0) is None  # and eight rows
    assert p.at_packed(8 * 16) is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: p.of(272, 0), "row=272, but this layer has rows 0 to 271"),
        (lambda p: p.of(0, 22), "group=22, but this layer has groups 0 to 21"),
        (lambda p: p.at_packed(10**6), "bytes 0 to"),
        (lambda p: p.at_tensor(0, 0, 128, 0, 0), "lanes are 0 to 127"),
        (lambda p: p.at_shared(9, 0, 0), "tile 9, but there are"),
    ],
)
def test_places_that_do_not_exist_are_refused(call: object, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        call(places("nvfp4"))  # type: ignore[operator]


def difference(layout: Sm100WeightLayout, weights: MoeWeights, packed: torch.Tensor) -> object:
    values = weights.l1(0).dequantize(torch.float64)
    return find_sf_difference(
        weights.l1_codes[0],
        packed,
        values,
        gran_k=layout.gran_k,
        place=layout.scale_byte,
        decode=decode_ue4m3,
        others=sf_mixups(layout),
    )


def test_a_checker_finds_the_difference_and_its_reason() -> None:
    weights = MoeWeights.random(1, 512, 256, seed=5)
    layout, _ = sm100_layouts(hidden=512, intermediate=256, gated=True, gran_k=16)
    l1, _ = transform_weights(weights, "nvfp4_nvfp4", "sm_100f")
    assert l1.sf is not None
    packed = l1.sf[0].T.contiguous().view(torch.uint8).flatten()
    assert difference(layout, weights, packed) is None

    damaged = packed.clone()
    where = int(layout.scale_byte(torch.tensor(300), torch.tensor(21)))
    damaged[where] ^= 0x10
    found = difference(layout, weights, damaged)
    assert (found.row, found.group, found.num_wrong, found.explained_by) == (300, 21, 1, None)  # type: ignore[attr-defined]

    row, group = torch.meshgrid(torch.arange(512), torch.arange(32), indexing="ij")
    sf = weights.l1_sf[0].view(torch.uint8)
    for name, place in sf_mixups(layout).items():
        mixed = torch.zeros_like(packed)
        mixed[place(row, group).flatten()] = sf.flatten()
        found = difference(layout, weights, mixed)
        assert found is not None
        assert name in str(found)
