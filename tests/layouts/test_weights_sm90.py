import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megamoe_jit.errors import ArgumentError
from megamoe_jit.layouts.weights_sm90 import (
    BLOCK_BYTES,
    CODE_BYTES,
    RowOrder,
    Sm90Element,
    Sm90WeightLayout,
    permute_token_k,
    sm90_layouts,
    sm90_token_permutation,
)

row_orders = st.sampled_from(RowOrder)
elements = st.sampled_from(Sm90Element)
layouts = st.builds(
    Sm90WeightLayout,
    row_order=row_orders,
    element=elements,
    rows=st.integers(1, 300),
    k=st.integers(1, 20).map(lambda groups: 16 * groups),
    k_multiple=st.sampled_from([128, 256]),
)


def random_weights(layout: Sm90WeightLayout, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.randint(0, 256, (num_experts, layout.checkpoint_rows, layout.k // 2), dtype=torch.uint8)
    sf = torch.randint(0, 127, (num_experts, layout.checkpoint_rows, layout.k // 16), dtype=torch.uint8)
    return codes, sf


def all_codes(layout: Sm90WeightLayout) -> tuple[torch.Tensor, torch.Tensor]:
    row, k = torch.meshgrid(torch.arange(layout.checkpoint_rows), torch.arange(layout.k), indexing="ij")
    return row, k


@settings(max_examples=40)
@given(layouts, st.integers(1, 2))
def test_round_trip_keeps_every_bit(layout: Sm90WeightLayout, num_experts: int) -> None:
    codes, sf = random_weights(layout, num_experts)
    data = layout.pack(codes, sf)
    assert data.dtype == torch.uint8
    assert data.shape == (num_experts, layout.bytes_per_expert)
    assert data.is_contiguous()
    unpacked_codes, unpacked_sf = layout.unpack(data)
    assert torch.equal(unpacked_codes, codes)
    assert unpacked_sf.dtype == torch.float8_e4m3fn
    assert torch.equal(unpacked_sf.view(torch.uint8), sf)


@settings(max_examples=40)
@given(layouts)
def test_packing_agrees_with_the_closed_form(layout: Sm90WeightLayout) -> None:
    codes, sf = random_weights(layout, 2)
    data = layout.pack(codes, sf)
    bits = layout.code_bits(*all_codes(layout))  # [rows, K, 4]
    natural = torch.stack([(codes >> bit) & 1 for bit in range(8)], -1).view(2, layout.checkpoint_rows, layout.k, 4)
    assert torch.equal((data[:, bits // 8] >> (bits % 8).to(torch.uint8)) & 1, natural)
    row, group = torch.meshgrid(torch.arange(layout.checkpoint_rows), torch.arange(layout.k // 16), indexing="ij")
    assert torch.equal(data[:, layout.scale_byte(row, group)], sf)


@settings(max_examples=40)
@given(layouts)
def test_closed_form_is_injective_and_in_bounds_and_the_rest_is_zero(layout: Sm90WeightLayout) -> None:
    row, group = torch.meshgrid(torch.arange(layout.checkpoint_rows), torch.arange(layout.k // 16), indexing="ij")
    scale_bits = (8 * layout.scale_byte(row, group))[..., None] + torch.arange(8)
    used = torch.cat((layout.code_bits(*all_codes(layout)).flatten(), scale_bits.flatten()))
    assert used.min() >= 0
    assert used.max() < 8 * layout.bytes_per_expert
    counts = torch.bincount(used, minlength=8 * layout.bytes_per_expert)
    assert counts.max() == 1
    if (layout.rows, layout.k) == (layout.padded_rows, layout.padded_k):
        assert counts.min() == 1, "without padding every bit is used"
    codes, sf = random_weights(layout, 1)
    data_bits = torch.stack([(layout.pack(codes, sf)[0] >> bit) & 1 for bit in range(8)], -1).flatten()
    assert not data_bits[counts == 0].any()


@settings(max_examples=40)
@given(layouts)
def test_codes_and_scales_stay_in_their_part_of_their_block(layout: Sm90WeightLayout) -> None:
    row, k = all_codes(layout)
    byte = layout.code_bits(row, k) // 8
    scale = layout.scale_byte(row, k // 16)[..., None]
    assert ((byte % BLOCK_BYTES) < CODE_BYTES).all()
    assert ((scale % BLOCK_BYTES) >= CODE_BYTES).all()
    assert torch.equal(byte // BLOCK_BYTES, (scale // BLOCK_BYTES).expand_as(byte))
    # The 16 bytes of a thread's unit and its 2 scale bytes have one index.
    assert torch.equal(byte % BLOCK_BYTES // 16, ((scale % BLOCK_BYTES - CODE_BYTES) // 2).expand_as(byte))
    tile, stage = layout.packed_row(row) // 256, k // 128
    block = torch.tensor([layout.block_offset(t, s) for t in range(layout.num_tiles) for s in range(layout.num_stages)])
    assert torch.equal(block[tile * layout.num_stages + stage], byte[..., 0] // BLOCK_BYTES * BLOCK_BYTES)


# Worked by hand from the picture: the first byte of the word, the bits of the code in it, and the scale byte.
@pytest.mark.parametrize(
    ("order", "element", "row", "k", "word_byte", "bits", "scale_byte"),
    [
        # up row 45 = 0 + 16 * 2 + 4 * 3 + 2 * 0 + 1: m64 1, warp 3, j 2 * 2 + 0; k 77: unit 1, t 0, offset 13:
        # thread 112, word 3, offset 5 of the word
        (RowOrder.L1_GATED, Sm90Element.E4M3, 128 + 45, 77, (3 * 128 + 112) * 16 + 12, (20, 21, 22, 11), 16384 + 993),
        (RowOrder.L1_GATED, Sm90Element.BF16, 128 + 45, 77, (3 * 128 + 112) * 16 + 12, (26, 27, 28, 3), 16384 + 993),
        # hidden 90 of a tile: m64 1, warp 1, half 1, j 2; k 20: t 1, offset 4: thread 41, word 2
        (RowOrder.L2, Sm90Element.E4M3, 90, 20, (2 * 128 + 41) * 16 + 8, (16, 17, 18, 3), 16384 + 595),
        (RowOrder.L2, Sm90Element.BF16, 90, 20, (2 * 128 + 41) * 16 + 8, (10, 11, 12, 19), 16384 + 595),
        # intermediate 128 of a tile: half 1 of thread 0
        (RowOrder.L1_PLAIN, Sm90Element.E4M3, 128, 0, 8, (0, 1, 2, 7), 16384 + 1),
        (RowOrder.L1_PLAIN, Sm90Element.BF16, 128, 0, 8, (4, 5, 6, 13), 16384 + 1),
    ],
)
def test_worked_examples(
    order: RowOrder, element: Sm90Element, row: int, k: int, word_byte: int, bits: tuple[int, ...], scale_byte: int
) -> None:
    rows = 128 if order is RowOrder.L1_GATED else 256
    layout = Sm90WeightLayout(row_order=order, element=element, rows=rows, k=128)
    assert layout.code_bits(torch.tensor(row), torch.tensor(k)).tolist() == [8 * word_byte + bit for bit in bits]
    assert layout.scale_byte(torch.tensor(row), torch.tensor(k // 16)).item() == scale_byte


def test_threads_own_what_the_epilogue_needs() -> None:
    def owner(layout: Sm90WeightLayout, row: int) -> tuple[int, int]:
        packed = int(layout.packed_row(torch.tensor(row)))
        return packed // 64 * 64 + packed % 64 // 16 * 16 + packed % 8, packed // 8 % 2

    gated, down = sm90_layouts(hidden=256, intermediate=128, gated=True, element=Sm90Element.E4M3)
    plain, _ = sm90_layouts(hidden=256, intermediate=256, gated=False, element=Sm90Element.E4M3)
    for i in range(128):
        (gate_owner, gate_half), (up_owner, up_half) = owner(gated, i), owner(gated, 128 + i)
        assert (gate_owner, gate_half, up_half) == (up_owner, 0, 1)
        assert owner(plain, i)[0] == owner(plain, 128 + i)[0]
    for layout in (gated, plain):  # neighbours: the same lane's in the two m64 of one warpgroup
        for i in range(0, 128, 2):
            assert owner(layout, i)[0] == owner(layout, i + 1)[0] - 64
            assert owner(layout, i)[0] // 64 % 2 == 0
    for h in range(256):  # rows of a tile lie as they are: a warp's 8 lanes of a column have 8 neighbours
        assert int(down.packed_row(torch.tensor(h))) == h


@pytest.mark.parametrize("element", Sm90Element)
@pytest.mark.parametrize("gated", [True, False])
def test_a_warps_activations_of_a_column_are_neighbours_in_the_row_that_l2_reads(
    element: Sm90Element, gated: bool
) -> None:
    """What epilogue L1 stores without looking at the order: 8 lanes' pairs are a 16-byte piece (two in BF16)."""
    layout, _ = sm90_layouts(hidden=256, intermediate=256, gated=gated, element=element)
    stored_at = torch.empty(128, dtype=torch.int64)
    stored_at[permute_token_k(torch.arange(128), element)] = torch.arange(128)
    packed = layout.packed_row(torch.arange(128))
    m64, warp, half, j = packed // 64, packed % 64 // 16, packed // 8 % 2, packed % 8
    assert not half.any()
    if element is Sm90Element.E4M3:
        expected = 64 * (m64 // 2) + 16 * warp + 2 * j + m64 % 2
    else:
        expected = 64 * (m64 // 2) + 16 * warp + 8 * (j % 2) + 2 * (j // 2) + m64 % 2
    assert torch.equal(stored_at, expected)


def test_sizes() -> None:
    l1, l2 = sm90_layouts(hidden=2880, intermediate=2880, gated=True, element=Sm90Element.BF16)
    assert (l1.padded_rows, l1.padded_k, l1.num_tiles, l1.num_stages) == (2944, 2944, 23, 23)
    assert (l2.padded_rows, l2.padded_k, l2.num_tiles, l2.num_stages) == (3072, 2944, 12, 23)
    assert l1.bytes_per_expert == 2 * 2944 * 2944 * 9 // 16
    assert l2.bytes_per_expert == 3072 * 2944 * 9 // 16
    plain, l2 = sm90_layouts(hidden=128, intermediate=384, gated=False, element=Sm90Element.BF16)
    assert (plain.padded_rows, l2.padded_k) == (512, 512)


@pytest.mark.parametrize("element", Sm90Element)
def test_token_permutation_is_the_documented_one(element: Sm90Element) -> None:
    perm = sm90_token_permutation(element)
    assert sorted(perm.tolist()) == list(range(64))
    for k in range(64):
        if element is Sm90Element.E4M3:
            t, s, h, j = k // 16, k // 8 % 2, k // 4 % 2, k % 4
            p = 32 * s + 16 * h + 4 * t + j
        else:
            t, s, h, j = k // 16, k // 4 % 4, k // 2 % 2, k % 2
            p = 16 * s + 8 * h + 2 * t + j
        assert perm[p] == k
    run = 4 if element is Sm90Element.E4M3 else 2  # only aligned words of 4 bytes move
    assert torch.equal(perm.view(-1, run) % run, torch.arange(run).expand(64 // run, run))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("element", Sm90Element)
def test_permute_token_k_round_trip(element: Sm90Element, dtype: torch.dtype) -> None:
    x = torch.randint(-8, 9, (3, 192)).to(torch.float32).to(dtype)
    stored = permute_token_k(x, element)
    assert stored.dtype == dtype
    values = x.double()
    assert torch.equal(stored.double()[:, 64:128], values[:, 64 + sm90_token_permutation(element)])
    assert torch.equal(permute_token_k(stored, element, inverse=True).double(), values)


def test_pack_writes_into_a_given_tensor() -> None:
    layout = Sm90WeightLayout(row_order=RowOrder.L2, element=Sm90Element.E4M3, rows=100, k=144)
    codes, sf = random_weights(layout, 2)
    out = torch.full((2, layout.bytes_per_expert), 0xAA, dtype=torch.uint8)
    assert layout.pack(codes, sf.view(torch.float8_e4m3fn), out=out) is out
    assert torch.equal(out, layout.pack(codes, sf))


def test_pack_takes_views() -> None:
    layout = Sm90WeightLayout(row_order=RowOrder.L1_GATED, element=Sm90Element.BF16, rows=20, k=32)
    codes, sf = random_weights(layout, 3)
    strided_codes = torch.cat((codes, codes), -1)[..., : codes.shape[-1]]
    strided_sf = sf.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided_codes.is_contiguous()
    assert torch.equal(layout.pack(strided_codes, strided_sf), layout.pack(codes, sf))


LAYOUT = Sm90WeightLayout(row_order=RowOrder.L1_GATED, element=Sm90Element.E4M3, rows=64, k=96)
CODES, SF = random_weights(LAYOUT, 2)
DATA = LAYOUT.pack(CODES, SF)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: Sm90WeightLayout(row_order=RowOrder.L2, element=Sm90Element.E4M3, rows=64, k=100),
            r"a layer of 64 rows and K=100 was given.*multiple of 16.*Pad",
        ),
        (
            lambda: Sm90WeightLayout(row_order=RowOrder.L2, element=Sm90Element.E4M3, rows=0, k=16),
            r"a layer of 0 rows",
        ),
        (
            lambda: Sm90WeightLayout(row_order=RowOrder.L2, element=Sm90Element.E4M3, rows=1, k=16, k_multiple=64),
            r"k_multiple=64 is not a positive multiple of 128",
        ),
        (lambda: LAYOUT.pack(CODES.to(torch.int8), SF), r"codes is torch\.int8 \[2, 128, 48\].*takes torch\.uint8"),
        (lambda: LAYOUT.pack(CODES[:, :64], SF), r"codes is torch\.uint8 \[2, 64, 48\].*\[num_experts, 128, 48\]"),
        (lambda: LAYOUT.pack(CODES, SF[..., :3]), r"sf is torch\.uint8 \[2, 128, 3\].*\[num_experts, 128, 6\]"),
        (lambda: LAYOUT.pack(CODES[0], SF[0]), r"codes is torch\.uint8 \[128, 48\]"),
        (lambda: LAYOUT.pack(CODES, SF[:1]), r"codes hold 2 experts on cpu, sf 1 on cpu, and both must agree"),
        (lambda: LAYOUT.pack(CODES, SF, out=DATA[:, ::2]), r"out is torch\.uint8"),
        (lambda: LAYOUT.unpack(DATA[:, 1:]), r"data is torch\.uint8"),
        (lambda: LAYOUT.unpack(DATA.t().contiguous().t()), r"data is not contiguous.*Pass data\.contiguous\(\)"),
        (lambda: permute_token_k(torch.zeros(2, 96), Sm90Element.BF16), r"x has 96 values along K.*blocks of 64.*Pad"),
    ],
)
def test_bad_input(call, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        call()
