import numpy as np
import pytest
import torch

from megamoe_jit.layouts.swizzle import Swizzle

SWIZZLED = [mode for mode in Swizzle if mode is not Swizzle.NONE]


@pytest.mark.parametrize("mode", Swizzle)
def test_is_an_involution_inside_its_pattern(mode: Swizzle) -> None:
    address = torch.arange(4 * mode.pattern_bytes)
    swizzled = mode.apply(address)
    assert torch.equal(mode.apply(swizzled), address)
    assert torch.equal(torch.sort(swizzled).values, address)
    assert torch.equal(swizzled // mode.pattern_bytes, address // mode.pattern_bytes)
    assert torch.equal(swizzled % mode.pattern_bytes, mode.apply(address % mode.pattern_bytes))


@pytest.mark.parametrize("mode", SWIZZLED)
def test_moves_whole_chunks_inside_their_row(mode: Swizzle) -> None:
    chunk = 32 if mode is Swizzle.B128_ATOM_32B else 16
    address = torch.arange(mode.pattern_bytes)
    swizzled = mode.apply(address)
    assert torch.equal(swizzled % chunk, address % chunk)
    assert torch.equal(swizzled // mode.row_bytes, address // mode.row_bytes)


@pytest.mark.parametrize(
    ("mode", "pattern_bytes"),
    [
        (Swizzle.NONE, 16),
        (Swizzle.B32, 256),
        (Swizzle.B64, 512),
        (Swizzle.B128, 1024),
        (Swizzle.B128_ATOM_32B, 512),
    ],
)
def test_pattern_bytes(mode: Swizzle, pattern_bytes: int) -> None:
    assert mode.pattern_bytes == pattern_bytes


@pytest.mark.parametrize("mode", [Swizzle.B32, Swizzle.B64, Swizzle.B128])
def test_eight_rows_of_one_chunk_column_fall_into_different_banks(mode: Swizzle) -> None:
    # A matrix load reads 16 bytes of each of 8 rows in one go: 128 bytes that must cover all 32 banks once.
    for chunk in range(mode.row_bytes // 16):
        offsets = mode.offset(torch.arange(8), torch.full((8,), 16 * chunk))
        assert len(set((offsets % 128).tolist())) == 8


def test_128b_matches_the_table_of_the_module() -> None:
    stored = np.array(
        [[(Swizzle.B128.offset(row, 16 * chunk) - 128 * row) // 16 for chunk in range(8)] for row in range(8)]
    )
    assert np.array_equal(stored, np.arange(8)[None, :] ^ np.arange(8)[:, None])
    assert stored[3].tolist() == [3, 2, 1, 0, 7, 6, 5, 4]
