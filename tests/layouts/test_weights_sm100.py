import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megamoe_jit.errors import ArgumentError
from megamoe_jit.layouts.interleave import interleave_gate_up, pad_branches
from megamoe_jit.layouts.scales import is_mn_major, pack_sf_words, permute_sf_for_utccp
from megamoe_jit.layouts.weights_sm100 import Sm100WeightLayout, sm100_layouts

layouts = st.builds(
    Sm100WeightLayout,
    rows=st.integers(1, 300),
    k=st.integers(1, 20).map(lambda groups: 16 * groups),
    gran_k=st.sampled_from([16, 32]),
    branches=st.sampled_from([1, 2]),
    k_multiple=st.sampled_from([128, 256]),
)


def random_weights(layout: Sm100WeightLayout, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.randint(0, 256, (num_experts, layout.checkpoint_rows, layout.k // 2), dtype=torch.uint8)
    sf = torch.randint(0, 255, (num_experts, layout.checkpoint_rows, layout.groups), dtype=torch.uint8)
    return codes, sf


def expert_bytes(sf: torch.Tensor) -> torch.Tensor:
    """Scale words [E, rows, words] as the bytes of each expert in memory order."""
    assert is_mn_major(sf)
    return torch.as_strided(sf, (sf.shape[0], sf[0].numel()), (sf[0].numel(), 1)).view(torch.uint8)


@settings(max_examples=40)
@given(layouts, st.integers(1, 2))
def test_round_trip_keeps_every_bit(layout: Sm100WeightLayout, num_experts: int) -> None:
    codes, sf = random_weights(layout, num_experts)
    packed_codes, packed_sf = layout.pack(codes, sf)
    assert packed_codes.shape == (num_experts, layout.total_rows, layout.padded_k // 2)
    assert packed_sf.shape == (num_experts, layout.total_rows, layout.num_words)
    assert packed_sf.dtype == torch.int32
    assert packed_sf.stride()[1:] == (1, layout.total_rows)
    unpacked_codes, unpacked_sf = layout.unpack(packed_codes, packed_sf)
    assert torch.equal(unpacked_codes, codes)
    assert torch.equal(unpacked_sf, sf)


@settings(max_examples=40)
@given(layouts)
def test_packing_agrees_with_the_closed_form_and_pads_with_zeros(layout: Sm100WeightLayout) -> None:
    codes, sf = random_weights(layout, 2)
    packed_codes, packed_sf = layout.pack(codes, sf)
    row, k = torch.meshgrid(torch.arange(layout.checkpoint_rows), torch.arange(layout.k), indexing="ij")
    byte, low_bit = layout.code_position(row, k)
    natural = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
    assert torch.equal((packed_codes.flatten(1)[:, byte] >> low_bit.to(torch.uint8)) & 15, natural)
    assert len(set((8 * byte + low_bit).flatten().tolist())) == row.numel()
    assert packed_codes.count_nonzero() == codes.count_nonzero()

    row, group = torch.meshgrid(torch.arange(layout.checkpoint_rows), torch.arange(layout.groups), indexing="ij")
    memory, where = expert_bytes(packed_sf), layout.scale_byte(row, group)
    assert torch.equal(memory[:, where], sf)
    assert len(set(where.flatten().tolist())) == row.numel()
    assert memory.count_nonzero() == sf.count_nonzero()


@settings(max_examples=20)
@given(layouts)
def test_packing_is_the_steps_one_after_the_other(layout: Sm100WeightLayout) -> None:
    codes, sf = random_weights(layout, 2)
    packed_codes, packed_sf = layout.pack(codes, sf)
    steps = []
    for tensor, width in ((codes, layout.padded_k // 2), (sf, 4 * layout.num_words)):
        rows = pad_branches(tensor, branches=layout.branches, padded_rows=layout.padded_rows, padded_width=width)
        steps.append(interleave_gate_up(rows) if layout.branches == 2 else rows)
    assert torch.equal(packed_codes, steps[0])
    assert torch.equal(packed_sf, permute_sf_for_utccp(pack_sf_words(steps[1])))


def test_sizes() -> None:
    l1, l2 = sm100_layouts(hidden=2880, intermediate=2880, gated=True, gran_k=32)
    assert (l1.padded_rows, l1.total_rows, l1.padded_k, l1.num_words) == (2944, 5888, 2944, 23)
    assert (l2.padded_rows, l2.total_rows, l2.padded_k, l2.num_words) == (3072, 3072, 2944, 23)
    plain, l2 = sm100_layouts(hidden=128, intermediate=384, gated=False, gran_k=16)
    assert (plain.total_rows, l2.padded_k, l2.num_words) == (512, 512, 8)


def test_unpadded_l2_codes_are_not_copied() -> None:
    layout = Sm100WeightLayout(rows=256, k=128, gran_k=16)
    codes, sf = random_weights(layout, 1)
    packed_codes, packed_sf = layout.pack(codes, sf)
    assert packed_codes is codes
    assert layout.unpack(packed_codes, packed_sf)[0] is codes


LAYOUT = Sm100WeightLayout(rows=64, k=96, gran_k=16, branches=2)
CODES, SF = random_weights(LAYOUT, 2)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Sm100WeightLayout(rows=64, k=96, gran_k=64), r"gran_k=64 is no FP4 block size\. Use 16 .* or 32"),
        (lambda: Sm100WeightLayout(rows=64, k=100, gran_k=16), r"64 rows and K=100 was given.*multiple of 16\. Pad"),
        (lambda: Sm100WeightLayout(rows=64, k=96, gran_k=16, branches=3), r"branches=3 was given; use 2"),
        (lambda: Sm100WeightLayout(rows=64, k=96, gran_k=16, k_multiple=64), r"k_multiple=64 is no positive multiple"),
        (
            lambda: LAYOUT.pack(CODES.to(torch.int16), SF),
            r"codes is torch\.int16.*takes torch\.uint8 \[num_experts, 128",
        ),
        (lambda: LAYOUT.pack(CODES, SF.float()), r"sf is torch\.float32 \[2, 128, 6\].*takes torch\.uint8"),
        (lambda: LAYOUT.pack(CODES, SF[:1]), r"codes hold 2 experts on cpu, sf 1 on cpu, and both must agree"),
        (lambda: LAYOUT.unpack(CODES, SF), r"codes is torch\.uint8 \[2, 128, 48\].*\[num_experts, 256, 64\]"),
        (lambda: LAYOUT.unpack(LAYOUT.pack(CODES, SF)[0], SF), r"sf is torch\.uint8.*takes torch\.int32"),
    ],
)
def test_bad_input(call, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        call()
