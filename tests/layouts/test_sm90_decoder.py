"""A twin of what an sm_90a consumer thread does with its bytes, in NumPy: proof that the layout fits the tensor core.

It reads packed data as the kernel does (a thread's 16 code bytes and 2 scale bytes of each unit), decodes words with
the same bit operations, places the values where wgmma's A fragment has them (PTX ISA, register fragments of
wgmma.mma_async), multiplies by tokens stored in the permuted order, and puts rows back as the epilogue does. The sum
must be the plain product of the weights in checkpoint order, bit for bit: tokens are small integers, so that float64
sums are exact.
"""

import ml_dtypes
import numpy as np
import pytest
import torch

from megamoe_jit.layouts.weights_sm90 import Sm90Element, Sm90WeightLayout, permute_token_k, sm90_layouts

MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
TOKENS = 3


def decode_e4m3(words: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Words uint32 [...] and UE4M3 scale bytes [...] -> float64 [..., register 0..1, byte 0..3]."""
    s = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    table = (
        (s[..., None] * MAGNITUDES / 8).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    )  # 8 bytes: lo and hi of a prmt
    selectors = words & 0x77777777
    registers = []
    for selector, signs in ((selectors & 0xFFFF, words), (selectors >> 16, words << np.uint32(4))):
        picked = [
            np.take_along_axis(table, ((selector >> (4 * j)) & 7)[..., None].astype(np.int64), -1)[..., 0]
            for j in range(4)
        ]
        register = sum(byte.astype(np.uint32) << np.uint32(8 * j) for j, byte in enumerate(picked))
        registers.append((signs & 0x80808080) | (register & 0x7F7F7F7F))
    registers = np.stack(registers, -1).astype("<u4")
    return registers[..., None].view(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)


def decode_bf16(words: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Words uint32 [...] and UE4M3 scale bytes [...] -> float64 [..., pair 0..3, half 0..1]: code x scale x 2^-9."""
    mask = np.uint32(0x81C081C0)
    rotated = (words >> np.uint32(4)) | (words << np.uint32(28))
    pairs = np.stack(
        [
            (words << np.uint32(2)) & mask,
            (words << np.uint32(6)) & mask,
            rotated & mask,
            (words & np.uint32(0x81808180)) | ((words >> np.uint32(8)) & np.uint32(0x00400040)),
        ],
        -1,
    ).astype("<u4")
    codes = pairs[..., None].view(np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)
    scale = (scales.astype(np.uint16) << np.uint16(4)).view(ml_dtypes.bfloat16).astype(np.float64) * 2.0**127 * 2.0**110
    exact = codes * scale[..., None, None]
    rounded = exact.astype(ml_dtypes.bfloat16).astype(np.float64)
    assert np.array_equal(rounded, exact), "every product fits bf16"
    return rounded


def a_operand(layout: Sm90WeightLayout, data: np.ndarray) -> np.ndarray:
    """One expert's bytes -> float64 [tile, m64, row 0..63, K position]: the A matrix that the tensor core sees."""
    blocks = data.reshape(layout.num_tiles, layout.num_stages, 18432)
    words = blocks[..., :16384].copy().view("<u4").reshape(layout.num_tiles, layout.num_stages, 4, 2, 128, 2, 2)
    scales = blocks[..., 16384:].reshape(layout.num_tiles, layout.num_stages, 4, 2, 128, 2)
    scales = np.repeat(scales[..., None], 2, -1)  # both words of a row share its scale
    a = np.full((layout.num_tiles, layout.num_stages, 4, 2, 64, 64), np.nan)
    values = decode_e4m3(words, scales) if layout.element is Sm90Element.E4M3 else decode_bf16(words, scales)
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        t = lane % 4
        for half in range(2):
            row = 16 * warp + lane // 4 + 8 * half
            for word in range(2):
                mine = values[:, :, :, :, thread, half, word]
                if layout.element is Sm90Element.E4M3:  # m64k32: register half + 2 h holds k 16 h + 4 t + j
                    for h in range(2):
                        for j in range(4):
                            a[..., row, 32 * word + 16 * h + 4 * t + j] = mine[..., h, j]
                else:  # m64k16: register half + 2 h holds k 8 h + 2 t + j; a word covers two steps
                    for pair in range(4):
                        step, h = 2 * word + pair // 2, pair % 2
                        for j in range(2):
                            a[..., row, 16 * step + 8 * h + 2 * t + j] = mine[..., pair, j]
    assert not np.isnan(a).any(), "the fragments cover the operand"
    return a.transpose(0, 2, 4, 1, 3, 5).reshape(layout.num_tiles, 4, 64, layout.padded_k)


def epilogue_rows(layout: Sm90WeightLayout, d: np.ndarray, kind: str) -> np.ndarray:
    """Accumulators [tile, m64, row, token] -> rows as the epilogue's threads know them: [padded rows, token]."""
    out = np.full((layout.num_tiles * 256, TOKENS), np.nan)
    for tile in range(layout.num_tiles):
        for m64 in range(4):
            for warp in range(4):
                for j in range(8):
                    first, second = d[tile, m64, 16 * warp + j], d[tile, m64, 16 * warp + j + 8]
                    in_block = 64 * (m64 // 2) + 16 * (j // 2) + 4 * warp + 2 * (j % 2) + m64 % 2
                    if kind == "l1_gated":
                        i = 128 * tile + in_block
                        out[i], out[layout.padded_rows + i] = first, second
                    elif kind == "l1_plain":
                        i = 256 * tile + in_block
                        out[i], out[i + 128] = first, second
                    else:
                        h = 256 * tile + 64 * m64 + 16 * warp + j
                        out[h], out[h + 8] = first, second
    assert not np.isnan(out).any()
    return out


@pytest.mark.parametrize("element", Sm90Element)
@pytest.mark.parametrize("kind", ["l1_gated", "l1_plain", "l2"])
@pytest.mark.parametrize(("hidden", "intermediate"), [(256, 256), (304, 208)])
def test_register_fragments_and_permuted_tokens_give_the_plain_product(
    element: Sm90Element, kind: str, hidden: int, intermediate: int
) -> None:
    l1, l2 = sm90_layouts(hidden=hidden, intermediate=intermediate, gated=kind != "l1_plain", element=element)
    layout = l2 if kind == "l2" else l1
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (layout.checkpoint_rows, layout.k), dtype=np.uint8)
    sf = rng.integers(0, 0x7F, (layout.checkpoint_rows, layout.k // 16), dtype=np.uint8)  # subnormal scales too
    tokens = np.zeros((TOKENS, layout.padded_k))
    tokens[:, : layout.k] = rng.integers(-8, 9, (TOKENS, layout.k))

    packed_codes = torch.from_numpy(codes[:, 0::2] | codes[:, 1::2] << 4)
    data = layout.pack(packed_codes[None], torch.from_numpy(sf)[None])[0].numpy()
    stored_tokens = permute_token_k(torch.from_numpy(tokens), element).numpy()
    d = a_operand(layout, data) @ stored_tokens.T
    rows = epilogue_rows(layout, d, kind)

    scales = np.repeat(sf.view(ml_dtypes.float8_e4m3fn).astype(np.float64), 16, axis=1)
    weights = np.where(codes & 8, -1, 1) * MAGNITUDES[codes & 7] * scales
    if element is Sm90Element.E4M3:
        weights = (weights / 8).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * 8
    expected = weights @ tokens[:, : layout.k].T
    branches = rows.reshape(layout.row_order.branches, layout.padded_rows, TOKENS) * element.decode_factor
    assert np.array_equal(branches[:, : layout.rows].reshape(expected.shape), expected)
    assert not branches[:, layout.rows :].any(), "padded rows yield zero"


@pytest.mark.parametrize("element", Sm90Element)
def test_every_code_at_every_offset_under_every_scale(element: Sm90Element) -> None:
    """All 16 codes x 8 offsets x 127 scales through the words that `pack` writes."""
    layout = Sm90WeightLayout(
        row_order=sm90_layouts(hidden=256, intermediate=128, gated=True, element=element)[1].row_order,
        element=element,
        rows=127,
        k=256,
    )
    sf = np.repeat(np.arange(127, dtype=np.uint8)[:, None], 16, axis=1)
    group = np.arange(256)
    codes = np.broadcast_to((group % 16 + group // 16) % 16, (127, 256)).astype(
        np.uint8
    )  # a Latin square over the groups
    data = layout.pack(torch.from_numpy(codes[:, 0::2] | codes[:, 1::2] << 4)[None], torch.from_numpy(sf)[None])[
        0
    ].numpy()
    positions = permute_token_k(torch.arange(256, dtype=torch.float64), element, inverse=True).long().numpy()
    a = a_operand(layout, data)[..., positions]  # back to natural K
    scale = sf[:, :1].view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    expected = np.where(codes & 8, -1, 1) * MAGNITUDES[codes & 7] * scale / element.decode_factor
    if element is Sm90Element.E4M3:
        expected = expected.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    for row in range(127):
        assert np.array_equal(a[0, row // 64, row % 64], expected[row])
